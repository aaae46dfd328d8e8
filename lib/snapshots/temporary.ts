/**
 * Temporary directories. Each has a file that tells who has made it, and is locked by flock(2) for as long as its maker
 * lives. A reused process id, or another PID namespace, therefore deceives nobody: lib/snapshots/leftovers.ts.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { explainFiltered } from '../kernel/filtered.js';
import { close, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { run, runSync } from '../kernel/task.js';
import { removeDirectory } from '../layers/remove.js';
import { quotePath } from '../paths.js';
import { tryLock } from '../trees/lock.js';
import { explainErrno, explainSystemError } from '../verdicts.js';
import { type Maker, ownMaker } from './maker.js';

/** The names of these directories. */
export const TEMPORARY = /^overlayfs-(?:container|mounts)-[0-9a-f]{16}$/;

/** The name of the file in JSON with the maker. */
export const LABEL_FILE = 'maker';

/** The name of a file that an OCI runtime holds locked for as long as it runs. */
export const RUNNING_FILE = 'running';

/** The name of a file that an OCI runtime writes when the program of the container has started. */
export const PID_FILE = 'pid';

export interface TemporaryLabel extends Maker {
  /** The OCI runtime that has a container here, with its first arguments. The container is called as the directory. */
  readonly runtime?: readonly string[] | undefined;
  /** /proc/self/cgroup of the maker, below whose control groups the runtime makes that of the container. */
  readonly cgroups?: string | undefined;
}

export interface Temporary {
  readonly path: string;
  /** The last part of the path, which nothing else is called. */
  readonly name: string;
  readonly lock: Held;
}

function explainLock(failure: StepFailure, directory: string): OverlayError {
  const { errno, step } = failure;
  const name = `the file system of ${quotePath(directory)}`;
  const purpose = `lock a temporary directory in ${quotePath(directory)}`;
  const verdict =
    explainFiltered(failure) ??
    (step?.call === calls.flock
      ? { reason: 'option-unsupported', what: `${name} cannot lock directories`, hint: HINT }
      : explainErrno(errno, { name, purpose, syscall: step?.call.name }));
  return new OverlayError({ errno, path: directory, syscall: step?.call.name, ...verdict });
}

const HINT =
  'set TMPDIR to a directory that exists, that this process may write to, with space, and not on a network file system';

/** Returns undefined if a clean-up has taken the directory for one that nobody holds. */
function make(directory: string, name: string, mode: number, more: Partial<TemporaryLabel>): Temporary | undefined {
  const path = `${directory}/${name}`;
  mkdirSync(path, mode);
  const lock = runSync(tryLock(path));
  if (lock === 'taken') return undefined;
  try {
    if (lock instanceof StepFailure) throw explainLock(lock, directory);
    writeFileSync(`${path}/${LABEL_FILE}`, JSON.stringify({ ...ownMaker(), ...more }), { mode: 0o600, flag: 'wx' });
    return { path, name, lock };
  } catch (error) {
    const isGone = !existsSync(path);
    if (!(lock instanceof StepFailure)) close(lock);
    rmSync(path, { recursive: true, force: true });
    if (isGone) return undefined;
    throw error;
  }
}

/** Makes a directory of this library where temporary files belong. */
export function makeTemporary(kind: 'container' | 'mounts', more: Partial<TemporaryLabel> = {}): Temporary {
  const directory = tmpdir();
  // Others may go through to what is mounted inside.
  const mode = kind === 'mounts' ? 0o711 : 0o700;
  try {
    for (;;) {
      const made = make(directory, `overlayfs-${kind}-${randomBytes(8).toString('hex')}`, mode, more);
      if (made !== undefined) return made;
    }
  } catch (error) {
    throw explainSystemError(error, `make a temporary directory in ${quotePath(directory)}`, HINT);
  }
}

/** Removes it with all that it holds. One that cannot go, such as one with a mount inside, is left to a clean-up. */
export async function removeTemporary({ path, lock }: Temporary): Promise<void> {
  await run(removeDirectory(path, { isLocked: true })).catch(() => {});
  close(lock);
}
