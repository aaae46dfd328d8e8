/** Asks the kernel if overlayfs takes a directory's file system as a layer. No field that programs can read tells it. */
import { EINVAL, ELOOP } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan, type Text } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { Path } from '../paths.js';

/** File systems that some kernels refuse as layers, later releases of Linux 6.18 among them, and others take. */
const refusedBySome: readonly number[] = [k.DEBUGFS_MAGIC, k.TRACEFS_MAGIC, k.BPF_FS_MAGIC, k.BINFMTFS_MAGIC];

export const isRefusedBySome = (magic: number): boolean => refusedBySome.includes(magic);

/**
 * Returns undefined when this process may not ask. The probe requests an overlay with the directory as both lower
 * layers. The kernel first checks how deep their file systems may be stacked, and refuses with EINVAL. It refuses the
 * same directory twice after that, with ELOOP. Nothing is left behind but a line in the kernel's log.
 */
export function* askStacking(directory: Path): Task<boolean | undefined> {
  const plan = new Plan();
  const any = { tolerate: 'any' } as const;
  const layer = plan.add(calls.openat2, [k.AT_FDCWD, directory, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0]);
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC]);
  const twice: Text = ['/proc/self/fd/', layer, ':/proc/self/fd/', layer];
  plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_STRING, 'lowerdir', twice]);
  const step = plan.stepOf(
    plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_CREATE, null, null], { ...any, output: 0 }),
  );
  const outputs = yield* ask(plan);
  if (outputs instanceof StepFailure) return undefined;
  const result = outputs.result(step);
  return result === -ELOOP ? true : result === -EINVAL ? false : undefined;
}
