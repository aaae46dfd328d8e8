/** Asks the kernel if an overlay uses a directory as upperdir or workdir. The kernel knows of all overlays. */
import { EBUSY, EINVAL } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan, type Step, type Text } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { addNamespaces, type Namespaces } from '../namespaces/user-namespace.js';
import type { Path } from '../paths.js';
import { addReservation, findUser, forgetUser } from './registry.js';

/** Returns true for a short path that every kernel parses the same way. Other paths are passed as file descriptors. */
const isPlain = (path: Path): boolean => typeof path === 'string' && /^[^\\,:]{1,80}$/.test(path);

function addProbe(plan: Plan, directory: Path, lower: Path): Step {
  const any = { tolerate: 'any' } as const;
  const viaDescriptor = (path: Path): Text => {
    const args = [k.AT_FDCWD, path, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0] as const;
    return ['/proc/self/fd/', plan.add(calls.openat2, args, any)];
  };
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC], any);
  const set = (key: string, value: Text) => plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_STRING, key, value], any);
  const setPath = (key: string, path: Path) => set(key, isPlain(path) ? path : viaDescriptor(path));
  setPath('lowerdir', lower);
  setPath('upperdir', directory);
  setPath('workdir', directory);
  set('index', 'on');
  return plan.stepOf(plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_CREATE, null, null], { ...any, output: 0 }));
}

/**
 * Returns true when an overlay in any mount namespace uses a directory, and undefined when this process may not ask.
 * The probe requests an overlay with index=on and the directory as both upperdir and workdir. The kernel refuses it
 * with EBUSY when the directory is in use, and otherwise with EINVAL, because the two must differ. Nothing is left
 * behind. The kernel writes a line to its log, so the probe is only for cases that nothing else can decide. `lower` is
 * any directory.
 *
 * The kernel claims the directory for a moment during the probe. An overlay that another thread mounts at that moment
 * would not get it, and would never count as its user again. So the plan reserves the directory during the probe.
 */
export function* askUse(directory: Path, lower: Path, namespaces?: Namespaces): Task<boolean | undefined> {
  const plan = new Plan();
  if (namespaces !== undefined) addNamespaces(plan, namespaces);
  const subject = { role: 'upperdir', path: directory } as const;
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  const reserved = plan.add(calls.openat2, [k.AT_FDCWD, directory, flags, 0], { subject });
  addReservation(plan, reserved, { role: 'upperdir', subject, against: 'certain' });
  const step = addProbe(plan, directory, lower);
  const outputs = yield* ask(plan);
  if (outputs instanceof StepFailure) return outputs.guard === 'directory-is-in-use' ? true : undefined;
  const result = outputs.result(step);
  return result === -EBUSY ? true : result === -EINVAL ? false : undefined;
}

/**
 * Returns true when an overlay that this process has mounted or seen uses the directory, such as a detached one. A user
 * of which the record is not certain counts only when the kernel confirms it.
 */
export function* isUsed(directory: Path): Task<boolean> {
  const user = yield* findUser(directory);
  if (user === undefined) return false;
  if (user.isCertain || (yield* askUse(directory, '/')) !== false) return true;
  yield* forgetUser(directory, user);
  return false;
}
