/** Removes the work directory that an overlay leaves behind, once the overlay has ended. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { isUsed } from '../in-use/probe.js';
import { addReservation } from '../in-use/registry.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, pause, type Task } from '../kernel/task.js';
import type { Mounted } from '../mount-table/identity.js';
import { joinPath, type Path, pathString, quotePath, splitPath, withoutTrailingSlashes } from '../paths.js';
import type { Reason } from '../reasons.js';
import { readMarks } from '../trees/marks.js';
import { Walker } from '../trees/walk.js';
import { Pauses } from './attempts.js';
import { dropInherited } from './inherited.js';

/** How long the removal waits, in ms. A child process of the library can hold a copy of the mount for a moment. */
const MOMENT = 500;

/** The round in which programs that have inherited a copy are searched for. Most copies are gone before it. */
const INHERITED_ROUND = 2;

/**
 * The reservation keeps others from mounting with the directory meanwhile. A symbolic link fails with ENOTDIR before
 * anything is removed: rmdir(2) takes none.
 */
function removalPlan(workdir: Path): Plan {
  const plan = new Plan();
  const subject = { role: 'workdir', path: workdir } as const;
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC;
  const directory = plan.add(calls.openat2, [k.AT_FDCWD, workdir, flags, 0], { subject });
  addReservation(plan, directory, { role: 'workdir', subject, against: 'everybody' });
  addWorkContentsRemoval(plan, directory, '.', [e.ENOENT]);
  plan.add(calls.unlinkat, [k.AT_FDCWD, workdir, k.AT_REMOVEDIR], { tolerate: [e.ENOENT] });
  return plan;
}

/**
 * Adds steps that remove what the kernel has made in a workdir. From `work`, which a user namespace leaves with mode
 * 000, they remove the shared whiteouts and the mark of a volatile mount. They remove all of `index`.
 */
export function addWorkContentsRemoval(
  plan: Plan,
  at: Descriptor,
  workdir: Path,
  tolerate: readonly number[] | 'any',
): void {
  for (const [name, onlyKernels] of [
    ['work', 1],
    ['index', 0],
  ] as const) {
    plan.add(calls.remove, [at, joinPath(workdir, name), onlyKernels], { tolerate });
  }
}

/** True if the index knows hard links of a file that the upper lacks. A merge of the upper needs them. */
function* isIndexNeeded(workdir: Path): Task<boolean> {
  const walker = new Walker(joinPath(workdir, 'index'), { attributes: 'all', unsorted: true });
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        const { links } = readMarks(walker.attributes, 'either');
        // One link of the inode is the index's own.
        if (walker.type === k.S_IFREG && links !== undefined && links(walker.links) >= walker.links) return true;
      }
    }
    return false;
  } catch {
    // There is no index, or the removal says why it cannot be read.
    return false;
  } finally {
    walker.close();
  }
}

/**
 * Removes the workdir that the library has made for an overlay, which is unmounted: what the kernel has made in it, and
 * the directory itself. It stays if an overlay still uses it, if it holds data, or if something else is in its place.
 *
 * @throws {OverlayError} `reason` is `'permission-denied'`, `'read-only'`, `'mount-inside'`
 */
export function* removeWork(mounted: Mounted): Task<void> {
  if (mounted.workdir === undefined) return;
  const workdir = withoutTrailingSlashes(mounted.workdir);
  if (yield* isIndexNeeded(workdir)) return;
  const pauses = new Pauses(MOMENT);
  for (let round = 0; ; round++) {
    const outcome = yield* ask(removalPlan(workdir));
    if (!(outcome instanceof StepFailure)) return;
    const { step, errno, guard } = outcome;
    const isGone = step?.call === calls.openat2 && (errno === e.ENOENT || errno === e.ENOTDIR);
    if (isGone || errno === e.ENOTEMPTY || errno === e.EEXIST) return;
    if (guard !== 'directory-is-in-use') throw notRemoved(mounted, workdir, outcome);
    const length = pauses.next();
    if (round === INHERITED_ROUND) yield* dropInherited(mounted);
    if (length !== undefined) yield* pause(length);
    else if (yield* isUsed(workdir)) return;
  }
}

const reasonsOf: Readonly<Record<number, Reason>> = {
  [e.EACCES]: 'permission-denied',
  [e.EPERM]: 'permission-denied',
  [e.EROFS]: 'read-only',
  [e.EBUSY]: 'mount-inside',
  [e.EXDEV]: 'mount-inside',
};

function notRemoved({ path }: Mounted, workdir: Path, { step, errno }: StepFailure): OverlayError {
  const directory = step?.call === calls.remove ? joinPath(workdir, splitPath(step.args[1] as Path)[1]) : workdir;
  return new OverlayError({
    errno,
    syscall: 'rmdir',
    path: pathString(directory),
    reason: reasonsOf[errno] ?? 'unexplained',
    what: `${quotePath(path)} is unmounted, but the work directory ${quotePath(directory)} could not be removed`,
  });
}
