/** Opens the directories that a call works on, and learns what identifies them. */
import { EINVAL } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { addStat, readStat, STATFS_OUTPUT, type StatResult } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { type Path, pathString, quotePath } from '../paths.js';
import type { Text } from '../text.js';
import { explainWalk } from './walk.js';

export interface Root {
  readonly path: Path;
  readonly descriptor: Descriptor;
  readonly found: StatResult;
  readonly real: Path;
}

/** The caller closes the descriptor. */
export function* openRoot(path: Path): Task<Root> {
  const plan = new Plan();
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const root = plan.add(calls.openat2, [k.AT_FDCWD, path, flags, 0], { keep: true, output: 0 });
  const look = addStat(plan, '', {
    at: root,
    flags: k.AT_EMPTY_PATH,
    mask: k.STATX_INO | k.STATX_MNT_ID,
    tolerate: [],
  });
  const room = 4096;
  const link = plan.stepOf(
    plan.add(calls.readlinkat, [k.AT_FDCWD, ['/proc/self/fd/', root], room], { output: room, tolerate: 'any' }),
  );
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainWalk(path, outcome.errno);
  const length = outcome.result(link);
  return {
    path,
    descriptor: outcome.result(plan.stepOf(root)),
    found: readStat(look, outcome),
    real: length > 0 ? outcome.bytes(link, length) : path,
  };
}

const toLayers = 'name the upperdir of the mount, and its lower layers where the call takes them';

/**
 * Refuses the root of a mounted overlay as a layer: it shows the files of all layers and none of their marks, so each
 * file would count as a change.
 */
export function* refuseMerged(path: Path, directory: Descriptor, hint: Text = toLayers): Task<void> {
  const plan = new Plan();
  const look = addStat(plan, '', { at: directory, flags: k.AT_EMPTY_PATH });
  const statfs = plan.stepOf(plan.add(calls.fstatfs, [directory], { output: STATFS_OUTPUT, tolerate: 'any' }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure || !readStat(look, outcome).isMountRoot) return;
  if (outcome.result(statfs) < 0 || outcome.number(statfs, 0) !== k.OVERLAYFS_SUPER_MAGIC) return;
  throw new OverlayError({
    errno: EINVAL,
    reason: 'merged-mount',
    what: `${quotePath(path)} is a mounted overlay, which shows the files of all its layers, and no layer`,
    hint,
    path: pathString(path),
  });
}
