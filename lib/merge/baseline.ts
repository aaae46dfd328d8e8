/**
 * A moment in the life of a directory tree, by the clock of its file system. The ctime of a change tells exactly if it
 * came before or after this moment.
 */
import { constants } from 'node:fs';
import { takeOnce } from '../arguments.js';
import * as e from '../errnos.js';
import { invalidArgumentType, OverlayError } from '../errors.js';
import { inEitherForm, pause, run, runSync, type Task } from '../kernel/task.js';
import { type Path, type PathLike, pathString, quotePath, toAbsolute, toBytes, toPath } from '../paths.js';
import { explainShortage } from '../verdicts.js';

/** A moment with which to compare later changes of a directory. It is plain data and can be stored as JSON. */
export interface Baseline {
  readonly version: 1;
  /** Nanoseconds since 1970 by the clock of the file system, in decimal. */
  readonly ctime: string;
  /** The device and the inode identify the directory, in decimal. */
  readonly device: string;
  readonly inode: string;
}

/** node:fs does not export it. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
/** The longest wait, in ms. The clock of a file system ticks every 1 to 10 ms; that of FAT ticks every 2 s. */
const PATIENCE = 5000;

interface Probe {
  /** Changes the file and returns its ctime. */
  readonly touch: () => Task<bigint>;
  readonly close: () => Task<void>;
}

const nameless = constants.O_RDWR | O_TMPFILE;
const named = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;

/** True if the file system does not support files without a name. */
const isRefused = (error: unknown): boolean =>
  [e.EOPNOTSUPP, e.EISDIR, e.EINVAL].includes(-((error as NodeJS.ErrnoException).errno ?? 0));

/**
 * Opens a file without a name in the directory, so that the directory does not change. If the file system does not
 * support this, opens a file with a name and unlinks it at once.
 */
function* openProbe(dir: Path): Task<Probe> {
  const fs = process.getBuiltinModule('node:fs');
  const { open, unlink } = process.getBuiltinModule('node:fs/promises');
  const path = Buffer.from(toBytes(dir));
  const other = Buffer.concat([path, Buffer.from(`/.overlayfs-${process.pid}-${performance.now()}`)]);
  type File = Awaited<ReturnType<typeof open>> | number;
  const file = yield* inEitherForm<File>(
    async () => {
      try {
        return await open(path, nameless, 0o600);
      } catch (error) {
        if (!isRefused(error)) throw error;
        const made = await open(other, named, 0o600);
        await unlink(other);
        return made;
      }
    },
    () => {
      try {
        return fs.openSync(path, nameless, 0o600);
      } catch (error) {
        if (!isRefused(error)) throw error;
        const made = fs.openSync(other, named, 0o600);
        fs.unlinkSync(other);
        return made;
      }
    },
  );
  const touchLater = async (handle: Exclude<File, number>): Promise<bigint> => {
    await handle.utimes(0, 0);
    return (await handle.stat({ bigint: true })).ctimeNs;
  };
  const touchNow = (descriptor: number): bigint => {
    fs.futimesSync(descriptor, 0, 0);
    return fs.fstatSync(descriptor, { bigint: true }).ctimeNs;
  };
  return {
    touch: () =>
      inEitherForm(
        () => touchLater(file as Exclude<File, number>),
        () => touchNow(file as number),
      ),
    close: () =>
      inEitherForm(
        async () => (file as Exclude<File, number>).close(),
        () => fs.closeSync(file as number),
      ),
  };
}

function* identify(dir: Path): Task<{ dev: bigint; ino: bigint }> {
  const fs = process.getBuiltinModule('node:fs');
  const { stat } = process.getBuiltinModule('node:fs/promises');
  const path = Buffer.from(toBytes(dir));
  return yield* inEitherForm(
    () => stat(path, { bigint: true }),
    () => fs.statSync(path, { bigint: true }),
  );
}

function* takeBaseline(value: PathLike): Task<Baseline> {
  const dir = toAbsolute(toPath(value, 'dir'));
  try {
    const { dev, ino } = yield* identify(dir);
    const probe = yield* openProbe(dir);
    try {
      // Waits for the next tick of the clock, so that every change before this call has an earlier ctime.
      const first = yield* probe.touch();
      let now = first;
      for (const start = performance.now(); now === first && performance.now() - start < PATIENCE; ) {
        yield* pause(1);
        now = yield* probe.touch();
      }
      return { version: 1, ctime: String(now), device: String(dev), inode: String(ino) };
    } finally {
      yield* probe.close();
    }
  } catch (error) {
    throw explainBaseline(dir, error);
  }
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
export function toBaseline(value: unknown): {
  readonly ctime: bigint;
  readonly inode: string;
  readonly device: string;
} {
  const expected = 'a baseline, as baseline() returns it';
  if (typeof value !== 'object' || value === null) throw invalidArgumentType('since', expected, value);
  const { version, ctime, inode, device } = takeOnce(
    value as Baseline,
    new Set(['version', 'ctime', 'inode', 'device']),
  );
  const areNumbers = [ctime, inode, device].every((text) => typeof text === 'string' && /^-?\d+$/.test(text));
  if (version !== 1 || !areNumbers) throw invalidArgumentType('since', expected, value);
  return { ctime: BigInt(ctime), inode, device };
}

/**
 * Returns the present moment of a directory tree. Take it when the overlay is mounted, and pass it to `mergeLayer` as
 * `since`. A file that others change in the directory after this moment is a conflict. The time comes from the clock of
 * the file system, which lags behind `Date.now()`: it is the ctime of a file without a name (open(2), `O_TMPFILE`). The
 * call waits until this clock ticks, mostly up to 4 ms, so that no earlier change has the same time.
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'`, `'read-only'`, `'permission-denied'` or
 * `'out-of-space'`
 */
export async function baseline(dir: PathLike): Promise<Baseline> {
  return run(takeBaseline(dir));
}

/** The synchronous form of `baseline`. */
export function baselineSync(dir: PathLike): Baseline {
  return runSync(takeBaseline(dir));
}
