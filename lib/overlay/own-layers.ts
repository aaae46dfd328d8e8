/** An upper and its workdir that only one `overlayfs run` uses at a time. */
import { EBUSY } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { AT_FDCWD, AT_REMOVEDIR } from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { run } from '../kernel/task.js';
import { addWorkContentsRemoval } from '../mounts/work-removal.js';
import type { OverlayOptions } from '../options/check.js';
import { isSamePath, type Path, pathString, quotePath } from '../paths.js';
import { lockDirectory } from '../trees/lock.js';
import { directoriesMadeBy, readOptions } from './mount.js';
import { planLayers } from './plan.js';

export interface OwnLayers {
  /** True if the workdir was made here, so that it goes with the mount. */
  readonly ownsWork: boolean;
  /** Releases the locks and removes the directories that were made. Called if the mount failed, or no program has run in it. */
  undo(): Promise<void>;
  release(): void;
}

/** Makes the missing directories as the mount would; returns them from the top. */
async function makeMissing(options: OverlayOptions): Promise<readonly Path[]> {
  const { plan, made } = planLayers(readOptions(options).asked);
  const outcome = await perform(plan);
  // Otherwise the mount fails in the same way, and explains it.
  return outcome instanceof StepFailure ? [] : directoriesMadeBy(made, outcome);
}

/**
 * Locks the directories, whose paths are absolute. With `create`, makes them first, so that they are locked before the
 * mount: the mount would already take over what another program has in its workdir.
 *
 * @throws {OverlayError} `'upper-in-use'`, `'work-in-use'`
 */
export async function ownLayers(options: OverlayOptions): Promise<OwnLayers> {
  const { upperdir: upper, workdir: work } = readOptions(options).asked;
  const locks: Held[] = [];
  const made = options.create && upper !== undefined ? await makeMissing(options) : [];
  const ownsWork = work !== undefined && made.some((path) => isSamePath(path, work));
  const release = (): void => locks.forEach(close);
  const undo = async (): Promise<void> => {
    const plan = new Plan();
    if (ownsWork) addWorkContentsRemoval(plan, AT_FDCWD, work, 'any');
    for (const path of [...made].reverse()) {
      plan.add(calls.unlinkat, [AT_FDCWD, path, AT_REMOVEDIR], { tolerate: 'any' });
    }
    await perform(plan);
    release();
  };
  try {
    for (const [role, path] of [
      ['upper', upper],
      ['work', work],
    ] as const) {
      if (path === undefined) continue;
      const lock = await run(lockDirectory(path));
      if (lock === 'taken') {
        throw new OverlayError({
          errno: EBUSY,
          reason: `${role}-in-use`,
          what: `another overlayfs run uses the ${role}dir ${quotePath(path)}`,
          hint: 'wait for it to end, or use other directories',
          path: pathString(path),
        });
      }
      if (lock !== undefined) locks.push(lock);
    }
  } catch (error) {
    await undo();
    throw error;
  }
  return { ownsWork, undo, release };
}
