/** The errors of a store that cannot be used: why, and what to do. */
import { accessSync, constants, existsSync, readFileSync, type StatsFs, statfsSync, statSync } from 'node:fs';
import * as e from '../errnos.js';
import { splitPath } from '../paths.js';
import { damaged, quoteKey, SnapshotError, UNREADABLE } from './errors.js';
import { code, codeOf } from './sqlite.js';

export const rootOf = (path: string): string => String(splitPath(path)[0]);
const filesOf = (path: string): string[] => [path, `${path}-wal`, `${path}-shm`];

export function failed(
  path: string,
  problem: string,
  hint: string,
  cause?: Error,
  reason?: 'out-of-space',
): SnapshotError {
  const what = `the store ${quoteKey(path)} could not be used: ${problem}`;
  return new SnapshotError({ code: 'ERR_SNAPSHOT_STORE_FAILED', what, hint, path, reason }, { cause });
}

const toWrite = 'run as its owner or as root, on a file system that can be written';
const hints: ReadonlyMap<number, string> = new Map([
  [e.EACCES, toWrite],
  [e.EPERM, toWrite],
  [e.EROFS, toWrite],
  [e.EMFILE, 'raise the limit (ulimit -n), or do less at once'],
  [e.ENFILE, 'raise the limit of the machine (sysctl fs.file-max)'],
]);

export function explainErrno(path: string, errno: number, cause?: Error): SnapshotError {
  if (errno === e.ENOSPC || errno === e.EDQUOT) return noSpace(path, cause);
  if (errno === e.EFBIG) return tooLarge(path, cause);
  const [name, message] = e.describeErrno(errno);
  return failed(path, `${name}, ${message}`, hints.get(errno) ?? 'see the kernel log (dmesg)', cause);
}

/** The error for a change that everybody sees. `errno` is 0 when an earlier fsync(2) failed. */
export function unsynced(path: string, errno: number): SnapshotError {
  const which = errno === 0 ? 'an earlier fsync(2)' : `fsync(2), with ${e.describeErrno(errno)[0]},`;
  return new SnapshotError({
    code: 'ERR_SNAPSHOT_STORE_FAILED',
    reason: 'not-synced',
    what: `the change is in the store ${quoteKey(path)}, but may not be on the disk: ${which} failed`,
    hint: 'see the kernel log (dmesg), and check the disk: a power cut may undo the change. It need not be repeated now',
    path,
  });
}

/** Returns the error for a failure of SQLite. Errors of the rules are returned as they are. */
export function explain(path: string, given: unknown, isUnreadable = false): unknown {
  const error = given as NodeJS.ErrnoException;
  const found = codeOf(error);
  if (found === undefined) return typeof error.errno === 'number' ? explainErrno(path, -error.errno, error) : error;
  // The library's own statements fit the tables that it makes.
  if (found === code.corrupt || found === code.notADatabase || found === code.error) {
    return damaged(path, error.message, undefined, isUnreadable ? UNREADABLE : undefined);
  }
  const shortage = shortageOf(path, error);
  if (shortage !== undefined) return explainErrno(path, shortage, error);
  const errno = found === code.cannotOpen || found === code.readonly ? errnoOf(path) : undefined;
  if (errno !== undefined) return explainErrno(path, errno, error);
  return failed(path, error.message, 'see the kernel log (dmesg); nothing was changed', error);
}

/** SQLite does not say which error a system call gave. Returns the one that opening its files would give now. */
function errnoOf(path: string): number | undefined {
  const { closeSync, openSync } = process.getBuiltinModule('node:fs');
  const held: number[] = [];
  try {
    for (const file of [rootOf(path), ...filesOf(path)].filter((each) => existsSync(each))) {
      accessSync(file, constants.R_OK | constants.W_OK);
    }
    while (held.length < DESCRIPTORS) held.push(openSync('/', 'r'));
    return undefined;
  } catch (error) {
    return -((error as NodeJS.ErrnoException).errno ?? 0);
  } finally {
    for (const descriptor of held) closeSync(descriptor);
  }
}

/** The descriptors that SQLite opens. */
const DESCRIPTORS = 3;

function noSpace(path: string, cause?: Error): SnapshotError {
  const hint = 'make room there; nothing was changed. remove and cleanup work on a full disk';
  return failed(path, 'no space is left on its file system', hint, cause, 'out-of-space');
}

function tooLarge(path: string, cause?: Error): SnapshotError {
  const problem = `a file of it would be larger than this process may make one (${fileLimit()} bytes)`;
  return failed(path, problem, 'raise that limit (ulimit -f); nothing was changed', cause, 'out-of-space');
}

/** In bytes. For SQLite, a write that was cut short is an I/O error. */
const NEARLY_FULL = 2 ** 20;
/** In bytes: as much as ext4 keeps for itself, which statfs(2) counts among the space of root. */
const MOST_KEPT = 2 ** 24;
/** In bytes: SQLite makes the file of its shared memory longer by this. */
const STEP = 2 ** 15;

/** Returns the errno of the shortage that made a call fail, if one did. SQLite itself does not say. */
export function shortageOf(path: string, error: unknown): number | undefined {
  const failure = codeOf(error);
  if (failure === code.full) return e.ENOSPC;
  if (error instanceof SnapshotError) return error.reason === 'out-of-space' ? e.ENOSPC : undefined;
  if (failure !== code.io && failure !== code.cannotOpen) return undefined;
  const limit = fileLimit() - STEP;
  if (filesOf(path).some((file) => (statSync(file, { throwIfNoEntry: false })?.size ?? 0) > limit)) return e.EFBIG;
  const found = fileSystemOf(rootOf(path));
  if (found === undefined) return undefined;
  const { blocks, bavail, bfree, bsize, files, ffree } = found;
  if (files > 0 && ffree === 0) return e.ENOSPC;
  if (blocks === 0 || bavail * bsize >= NEARLY_FULL) return undefined;
  return process.geteuid?.() !== 0 || bfree * bsize < MOST_KEPT + NEARLY_FULL ? e.ENOSPC : undefined;
}

/** statfs(2), or undefined where that is denied. */
export function fileSystemOf(path: string): StatsFs | undefined {
  try {
    return statfsSync(path);
  } catch {
    return undefined;
  }
}

/** Returns the RLIMIT_FSIZE of this process, in bytes. */
function fileLimit(): number {
  const limits = existsSync(LIMITS) ? readFileSync(LIMITS, 'latin1') : '';
  return Number(/^Max file size +(\d+)/m.exec(limits)?.[1] ?? Number.POSITIVE_INFINITY);
}
const LIMITS = '/proc/self/limits';
