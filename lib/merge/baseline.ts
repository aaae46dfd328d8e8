/**
 * A moment in the life of a directory tree, by the clock of its file system. The ctime of a change tells exactly if it
 * came before or after this moment.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, stat, unlink } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { checkBoolean, takeOnce, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { invalidArgumentType, OverlayError, platformError } from '../errors.js';
import { run } from '../kernel/task.js';
import { type Path, type PathLike, pathString, quotePath, toAbsolute, toBytes, toPath } from '../paths.js';
import { explainShortage } from '../verdicts.js';
import { isLinkedNames, LinkedNames, recordLinkedNames } from './linked-names.js';

/** A moment with which to compare later changes of a directory. It is plain data and can be stored as JSON. */
export interface Baseline {
  readonly version: 1;
  /** Nanoseconds since 1970 by the clock of the file system, in decimal. */
  readonly ctime: string;
  /** The device and the inode identify the directory, in decimal. */
  readonly device: string;
  readonly inode: string;
  /** The names of files with several hard links, as hashes, in base64. */
  readonly links?: string;
}

/** A baseline as the merge compares with it. */
export interface CheckedBaseline extends Pick<Baseline, 'inode' | 'device'> {
  readonly ctime: bigint;
  readonly links: LinkedNames | undefined;
}

export interface BaselineOptions {
  /**
   * Records the names of files with several hard links, so that a merge finds those that others remove. This reads the
   * whole tree, some µs an entry, and no contents. Default: true.
   */
  links?: boolean;
}

const known: ReadonlySet<string> = new Set(['links']);

/** node:fs does not export it. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
/** The longest wait, in ms. The clock of a file system ticks every 1 to 10 ms; that of FAT ticks every 2 s. */
const PATIENCE = 5000;

const nameless = constants.O_RDWR | O_TMPFILE;
const named = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;

/** True if the file system does not support files without a name. */
const isRefused = (error: unknown): boolean =>
  [e.EOPNOTSUPP, e.EISDIR, e.EINVAL].includes(-((error as NodeJS.ErrnoException).errno ?? 0));

/**
 * Opens a file without a name in the directory, so that the directory does not change. If the file system does not
 * support this, opens a file with a name and unlinks it at once.
 */
async function openProbe(dir: Buffer): Promise<FileHandle> {
  try {
    return await open(dir, nameless, 0o600);
  } catch (error) {
    if (!isRefused(error)) throw error;
    const other = Buffer.concat([dir, Buffer.from(`/.overlayfs-${process.pid}-${performance.now()}`)]);
    const made = await open(other, named, 0o600);
    await unlink(other);
    return made;
  }
}

/** Changes the file, and returns its ctime. */
async function touch(file: FileHandle): Promise<bigint> {
  await file.utimes(0, 0);
  return (await file.stat({ bigint: true })).ctimeNs;
}

function explainBaseline(dir: Path, error: unknown): unknown {
  const { errno = 0, syscall } = error as NodeJS.ErrnoException;
  if (errno >= 0 || error instanceof OverlayError) return error;
  const shown = quotePath(dir);
  const fields = (reason: ConstructorParameters<typeof OverlayError>[0]['reason'], what: string, hint?: string) =>
    new OverlayError({ errno: -errno, reason, what, hint, path: pathString(dir), syscall }, { cause: error });
  switch (-errno) {
    case e.ENOENT:
      return fields('path-missing', `the directory ${shown} does not exist`);
    case e.ENOTDIR:
      return fields('path-not-directory', `${shown} is not a directory`);
    case e.EROFS:
      return fields('read-only', `the file system of ${shown} is read-only, and only a new file can show its clock`);
    case e.EACCES:
    case e.EPERM:
      return fields('permission-denied', `this process may not make a file in ${shown} to read its clock`);
    case e.ENOSPC:
    case e.EDQUOT:
      return fields('out-of-space', `no room is left in ${shown} for a file to read its clock`);
    default:
      return explainShortage(-errno, `open a file in ${shown}`) ?? error;
  }
}

/** Checks the option `since` of a merge. */
export function toBaseline(value: unknown): CheckedBaseline {
  const expected = 'a baseline, as baseline() returns it';
  if (typeof value !== 'object' || value === null) throw invalidArgumentType('since', expected, value);
  const { version, ctime, inode, device, links } = takeOnce(
    value as Baseline,
    new Set(['version', 'ctime', 'inode', 'device', 'links']),
  );
  const areNumbers = [ctime, inode, device].every((text) => typeof text === 'string' && /^-?\d+$/.test(text));
  if (version !== 1 || !areNumbers || !(links === undefined || isLinkedNames(links)))
    throw invalidArgumentType('since', expected, value);
  return { ctime: BigInt(ctime), inode, device, links: links === undefined ? undefined : new LinkedNames(links) };
}

/**
 * Returns the present moment of a directory tree. Take it when the overlay is mounted, and pass it to `merge` as
 * `since`. A file that others change in the directory after this moment is a conflict. The time comes from the clock of
 * the file system, which lags behind `Date.now()`: it is the ctime of a file without a name (open(2), `O_TMPFILE`). The
 * call waits until this clock ticks, mostly up to 4 ms, so that no earlier change has the same time.
 *
 * It also records which names have other hard links, from one walk of the tree; `links: false` leaves this out.
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'`, `'read-only'`, `'permission-denied'` or
 * `'out-of-space'`
 */
export async function baseline(dir: PathLike, options?: BaselineOptions): Promise<Baseline> {
  const records = checkBoolean(toOptions(options, known).links, 'links') ?? true;
  if (process.platform !== 'linux') throw platformError();
  const path = toAbsolute(toPath(dir, 'dir'));
  const bytes = Buffer.from(toBytes(path));
  try {
    const { dev, ino } = await stat(bytes, { bigint: true });
    const probe = await openProbe(bytes);
    try {
      // A name that others remove meanwhile is in a directory that they changed before the moment.
      const links = records ? await run(recordLinkedNames(path)) : undefined;
      // Waits for the next tick of the clock, so that every change before this call has an earlier ctime.
      const first = await touch(probe);
      let now = first;
      for (const start = performance.now(); now === first && performance.now() - start < PATIENCE; ) {
        await sleep(1);
        now = await touch(probe);
      }
      const moment = { version: 1, ctime: String(now), device: String(dev), inode: String(ino) } as const;
      return links === undefined ? moment : { ...moment, links };
    } finally {
      await probe.close();
    }
  } catch (error) {
    throw explainBaseline(path, error);
  }
}
