/** An upper and its workdir that only one `overlayfs run` uses at a time. */
import { existsSync, mkdirSync, rmdirSync } from 'node:fs';
import { EBUSY } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { close, type Held } from '../kernel/held.js';
import { run } from '../kernel/task.js';
import { type Path, pathString, quotePath, splitPath, toBytes } from '../paths.js';
import { lockDirectory } from '../trees/lock.js';

export interface OwnLayers {
  /** Releases the locks and removes the directories that were made. Called if the mount failed. */
  undo(): void;
  release(): void;
}

const bytes = (path: Path): Buffer => Buffer.from(toBytes(path));

/** Makes a directory; returns the directories that did not exist, the deepest first. */
function makeDirectory(path: Path): Path[] {
  const missing: Path[] = [];
  for (let at = path; !existsSync(bytes(at)); [at] = splitPath(at)) missing.push(at);
  try {
    mkdirSync(bytes(path), { recursive: true, mode: 0o755 });
  } catch {
    // The mount fails in the same way, and explains it.
  }
  return missing;
}

/**
 * Locks the directories, whose paths are absolute. With `create`, makes them first, so that they are locked before the
 * mount: the mount would already take over what another program has in its workdir.
 *
 * @throws {OverlayError} `'upper-in-use'`, `'work-in-use'`
 */
export async function ownLayers(upper?: Path, work?: Path, create = false): Promise<OwnLayers> {
  const locks: Held[] = [];
  const made: Path[] = [];
  const release = (): void => locks.forEach(close);
  const undo = (): void => {
    for (const path of made.reverse()) {
      try {
        rmdirSync(bytes(path));
      } catch {
        // It could not be made, or another program uses it now.
      }
    }
    release();
  };
  try {
    for (const [role, path] of [
      ['upper', upper],
      ['work', work],
    ] as const) {
      if (path === undefined) continue;
      if (create) made.push(...makeDirectory(path).reverse());
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
    undo();
    throw error;
  }
  return { undo, release };
}
