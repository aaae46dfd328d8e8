/** Whether an overlay uses a directory as upper or work: asked of the kernel, which knows of all of them. */
import { EBADF, EINVAL, ENOENT, EPERM } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { Plan, Step, Text } from '../kernel/plan.js';
import type { Path } from '../paths.js';

/** Short, and the same to every kernel: the others go by a descriptor. */
const isPlain = (path: Path): boolean => typeof path === 'string' && /^[^\\,:]{1,80}$/.test(path);

function addProbe(plan: Plan, directory: Path, lower: Path, tolerate: readonly number[] | 'any'): Step {
  const any = { tolerate: 'any' } as const;
  const viaDescriptor = (path: Path): Text => {
    const args = [k.AT_FDCWD, path, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0];
    return ['/proc/self/fd/', plan.add(calls.openat2, args, any)];
  };
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC], any);
  const set = (key: string, value: Text) => plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_STRING, key, value], any);
  const setPath = (key: string, path: Path) => set(key, isPlain(path) ? path : viaDescriptor(path));
  setPath('lowerdir', lower);
  setPath('upperdir', directory);
  setPath('workdir', directory);
  set('index', 'on');
  return plan.stepOf(plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_CREATE, null, null], { tolerate, output: 0 }));
}

/**
 * A context with index=on and one directory as both upper and work. The result of the step is EBUSY where it is in
 * use, in whichever namespace; else EINVAL, since the two may not be one, and nothing is left. A lower is any
 * directory.
 */
export const addUseProbe = (plan: Plan, directory: Path, lower: Path): Step => addProbe(plan, directory, lower, 'any');

/** The same as a guard: fails with EBUSY. A process that may not mount is not told, and goes on. */
export const addUseGuard = (plan: Plan, directory: Path): Step =>
  addProbe(plan, directory, '/', [EINVAL, ENOENT, EPERM, EBADF]);
