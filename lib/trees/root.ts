/** Opens the directories that a call works on, and learns what identifies them. */
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import type { Path } from '../paths.js';
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
