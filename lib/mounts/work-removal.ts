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
import { member, text } from '../text.js';
import { Pauses } from './attempts.js';
import { dropInherited } from './inherited.js';

/** How long the removal waits, in ms. A child process of the library can hold a copy of the mount for a moment. */
const MOMENT = 500;

/** The round in which programs that have inherited a copy are searched for. Most copies are gone before it. */
const INHERITED_ROUND = 2;

const PATH_ROOM = 4096;

/** The directory that a symbolic link leads to; undefined where that can't be told. */
function* followLink(link: Path): Task<Path | undefined> {
  const plan = new Plan();
  const directory = plan.add(calls.openat2, [k.AT_FDCWD, link, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0]);
  const args = [k.AT_FDCWD, ['/proc/self/fd/', directory] as const, PATH_ROOM];
  const step = plan.stepOf(plan.add(calls.readlinkat, args, { output: PATH_ROOM }));
  const outcome = yield* ask(plan);
  return outcome instanceof StepFailure ? undefined : outcome.bytes(step, outcome.result(step));
}

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

/**
 * Removes the workdir of an overlay that has been unmounted: what the kernel has made in it, and the directory itself. A
 * symbolic link that leads there stays.
 *
 * @throws {OverlayError} `reason` is `'work-in-use'` or `'work-not-empty'`, `'permission-denied'`, `'read-only'`,
 * `'mount-inside'`, `'path-not-directory'`
 */
export function* removeWork(mounted: Mounted): Task<void> {
  if (mounted.workdir === undefined) return;
  const given = withoutTrailingSlashes(mounted.workdir);
  let workdir = given;
  const pauses = new Pauses(MOMENT);
  for (let round = 0; ; round++) {
    const outcome = yield* ask(removalPlan(workdir));
    if (!(outcome instanceof StepFailure)) return;
    const { step, errno, guard } = outcome;
    if (step?.call === calls.openat2 && errno === e.ENOENT) return;
    if (step?.call === calls.openat2 && errno === e.ENOTDIR && workdir === given) {
      workdir = (yield* followLink(given)) ?? given;
      if (workdir !== given) continue;
    }
    if (guard !== 'directory-is-in-use') throw notRemoved(mounted, workdir, outcome);
    const length = pauses.next();
    if (round === INHERITED_ROUND) yield* dropInherited(mounted);
    if (length !== undefined) yield* pause(length);
    else if (yield* isUsed(workdir)) throw inUse(mounted, workdir);
  }
}

const inUse = ({ path }: Mounted, workdir: Path): OverlayError =>
  new OverlayError({
    errno: e.EBUSY,
    path: pathString(workdir),
    reason: 'work-in-use',
    what: `${quotePath(path)} is unmounted, but its workdir ${quotePath(workdir)} remains: an overlay still uses it`,
    hint: 'unmount the other mounts of this overlay (clones, binds), close its files, and then remove the workdir',
  });

const reasonsOf: Readonly<Record<number, Reason>> = {
  [e.ENOTEMPTY]: 'work-not-empty',
  [e.EEXIST]: 'work-not-empty',
  [e.EACCES]: 'permission-denied',
  [e.EPERM]: 'permission-denied',
  [e.EROFS]: 'read-only',
  [e.EBUSY]: 'mount-inside',
  [e.EXDEV]: 'mount-inside',
};

function notRemoved({ path }: Mounted, workdir: Path, { step, errno }: StepFailure): OverlayError {
  if (step?.call === calls.openat2 && errno === e.ENOTDIR) {
    return new OverlayError({
      errno,
      path: pathString(workdir),
      reason: 'path-not-directory',
      what: `${quotePath(path)} is unmounted, but its workdir remains: ${quotePath(workdir)} is no longer a directory`,
      hint: text`find the workdir, and remove it with ${member('removeLayer')}`,
    });
  }
  const directory = step?.call === calls.remove ? joinPath(workdir, splitPath(step.args[1] as Path)[1]) : workdir;
  return new OverlayError({
    errno,
    syscall: 'rmdir',
    path: pathString(directory),
    reason: reasonsOf[errno] ?? 'unexplained',
    what: `${quotePath(path)} is unmounted, but the work directory ${quotePath(directory)} could not be removed`,
  });
}
