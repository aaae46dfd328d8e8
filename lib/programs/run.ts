/** Programs that are waited for: their output, and how they ended. */
import type { ChildProcess } from 'node:child_process';
import type { Readable } from 'node:stream';
import { checkBoolean, checkWord, toOptions } from '../arguments.js';
import { conflictingOptions, invalidArgumentType, outOfRange, ProgramError } from '../errors.js';
import { internalsOf, type Mount } from '../mounts/mount.js';
import { isAtOrBelow, type Path, type PathLike, quotePath, toAbsolute, toPath, toReal } from '../paths.js';
import { option, text } from '../text.js';
import { type SpawnOptions, spawn, spawnNames, toStdio } from './spawn.js';

export interface RunOptions extends SpawnOptions {
  /** The whole standard input of the program. Default: it is empty. */
  input?: string | Uint8Array;
  /** `'buffer'` gives the output as bytes. Default: `'utf8'`. */
  encoding?: 'utf8' | 'buffer';
  /** The most bytes of standard output, and of standard error; a program that writes more is killed. Default: 100 MiB. */
  maxBuffer?: number;
  /** True: a program that does not end with 0 is an error. Default: false. */
  check?: boolean;
}

/** The options of `overlay.run`. */
export interface OverlayRunOptions extends RunOptions {
  /** The directory where the program sees the overlay. Default: the target of the mount, else its only lower directory. */
  target?: PathLike;
}

type Output = string | Buffer;

/** How a program has ended, and its output. */
export interface RunResult<T extends string | Buffer = string> {
  /** The exit code; null if a signal ended the program. */
  readonly exitCode: number | null;
  /** The signal that ended the program. */
  readonly signal: NodeJS.Signals | null;
  /** The program took longer than `timeout`, and was killed. */
  readonly timedOut: boolean;
  /** Empty if `stdio` names another stream for it. */
  readonly stdout: T;
  readonly stderr: T;
}

const names: ReadonlySet<string> = new Set([...spawnNames, 'input', 'encoding', 'maxBuffer', 'check']);

const overlayNames: ReadonlySet<string> = new Set([...names, 'target']);

const MAX_BUFFER = 100 * 2 ** 20;

/** In milliseconds. Others may hold the output of a program that was killed open for ever. */
const GRACE = 100;

export type Ended = readonly [code: number | null, signal: NodeJS.Signals | null];

/** Waits until a process has ended and its streams are closed. Then throws its error, if it has one. */
export const endOf = (child: ChildProcess): Promise<Ended> =>
  new Promise((resolve, reject) => {
    let failed: Error | undefined;
    child.on('error', (error) => {
      failed ??= error;
      if (child.pid === undefined) reject(error);
    });
    child.on('close', (...outcome: Ended) => (failed === undefined ? resolve(outcome) : reject(failed)));
  });

/** Returns the working directory if it is inside this directory, else the directory. */
export function startIn(at: Path): Path {
  try {
    const here = toReal(toAbsolute('.'));
    return isAtOrBelow(here, toReal(at)) ? here : at;
  } catch {
    return at; // it has been removed
  }
}

type Stdio = NonNullable<SpawnOptions['stdio']>;

/** Returns the streams, with a standard input that ends: nobody can write to it later. */
function toStreams(stdio: SpawnOptions['stdio'], hasInput: boolean): Stdio {
  const [stdin, ...rest] = toStdio(stdio ?? 'pipe');
  const isFree = stdin === 'pipe' || stdin === 'overlapped' || stdin === undefined || stdin === null;
  if (hasInput && !isFree && typeof stdio !== 'string') {
    throw conflictingOptions(
      text`${option('input')} and the first of ${option('stdio')} both are the standard input of the program`,
      text`leave one of them out, or pass 'pipe' as the first of ${option('stdio')}`,
    );
  }
  return [hasInput ? 'pipe' : isFree ? 'ignore' : stdin, ...rest];
}

function checkMaxBuffer(value: unknown): number {
  if (value === undefined) return MAX_BUFFER;
  if (typeof value !== 'number') throw invalidArgumentType('maxBuffer', 'a number of bytes', value);
  if (!(value >= 0)) throw outOfRange('maxBuffer', 'a number of bytes, or Infinity', String(value));
  return value;
}

function checkInput(value: unknown): void {
  if (value === undefined || typeof value === 'string' || value instanceof Uint8Array) return;
  throw invalidArgumentType('input', 'a string or a Uint8Array', value);
}

/** Collects what a stream brings, up to a limit. */
function collect(stream: Readable | null | undefined, most: number, exceed: () => void): Buffer[] {
  const pieces: Buffer[] = [];
  let left = most;
  stream?.on('data', (piece: Buffer) => {
    if (left >= 0) pieces.push(piece.length > left ? piece.subarray(0, left) : piece);
    left -= piece.length;
    if (left < 0) exceed();
  });
  return pieces;
}

/** The last line that the program has written to standard error, as the end of a sentence. */
function lastLine(stderr: Output): string {
  const line = String(stderr.slice(-2000)).trimEnd().split('\n').at(-1) ?? '';
  return line === '' ? '' : `: ${line.slice(0, 200)}`;
}

/** How a program ended, which `program` names. */
interface Ending {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly timedOut?: boolean;
}

/** Returns the error of a program that did not end with 0. */
export function programFailed(program: string, result: Ending, lastLine = ''): ProgramError {
  const { exitCode, signal, timedOut = false } = result;
  const ended = `${exitCode === null ? `by ${signal}` : `with ${exitCode}`}${timedOut ? ' when its time was over' : ''}`;
  const error = new ProgramError({
    code: 'ERR_PROGRAM_FAILED',
    reason: 'program-failed',
    what: `${program} ended ${ended}${lastLine}`,
    hint: 'correct what it says: the error has its output',
  });
  return Object.assign(error, result);
}

/**
 * Starts a program as `spawn` does, and waits for its end. By default its standard input is empty, and its output is
 * collected: `stdio: 'inherit'` shows it instead. The way in which the program ends is no error, unless `check` is true.
 *
 * @returns a promise of `{ exitCode, signal, timedOut, stdout, stderr }`. It is fulfilled when the program has ended and
 * all that it has started has closed the output.
 * @throws as `spawn`, with the errors of its event `error` too; `ABORT_ERR` if `signal` aborts
 * @throws {ProgramError} `ERR_PROGRAM_FAILED` with `check`; `ERR_PROGRAM_OUTPUT`: more than `maxBuffer`
 *
 * @example
 * const { exitCode, stdout } = await run('git', ['status', '-s'], { mounts: [{ source: mount, target: '/srv/project' }], cwd: '/srv/project' });
 */
export function run(
  command: string,
  args: readonly string[] | undefined,
  options: RunOptions & { encoding: 'buffer' },
): Promise<RunResult<Buffer>>;
export function run(command: string, args?: readonly string[], options?: RunOptions): Promise<RunResult>;
export async function run(
  command: string,
  args: readonly string[] = [],
  given?: RunOptions,
): Promise<RunResult<Output>> {
  const { input, encoding, maxBuffer, check, stdio, ...options } = toOptions(given, names);
  checkInput(input);
  const isText = checkWord(encoding, 'encoding', ['utf8', 'buffer']) !== 'buffer';
  const most = checkMaxBuffer(maxBuffer);
  const isChecked = checkBoolean(check, 'check');
  const child = spawn(command, args, { ...options, stdio: toStreams(stdio, input !== undefined) });
  const ended = endOf(child);
  let isOver = false;
  const exceed = (): void => {
    isOver = true;
    child.kill('SIGKILL');
  };
  const [out, err] = [collect(child.stdout, most, exceed), collect(child.stderr, most, exceed)];
  // The program may end before it has read all.
  child.stdin?.on('error', () => {}).end(input);
  child.on('exit', () => {
    if (!child.killed) return;
    const leave = (): void => [child.stdout, child.stderr].forEach((stream) => void stream?.destroy());
    setTimeout(leave, GRACE).unref();
  });
  const [exitCode, signal] = await ended;
  const [stdout, stderr] = [out, err].map((pieces) => {
    const bytes = Buffer.concat(pieces);
    return isText ? bytes.toString() : bytes;
  }) as [Output, Output];
  const result = { exitCode, signal, timedOut: child.killed && !isOver, stdout, stderr };
  const program = `the program ${quotePath([command, ...args].join(' ').slice(0, 200))}`;
  if (isOver) {
    const what = `${program} has written more than ${most} bytes`;
    const hint = text`raise ${option('maxBuffer')}, or pass 'inherit' as ${option('stdio')}`;
    throw Object.assign(new ProgramError({ code: 'ERR_PROGRAM_OUTPUT', reason: 'program-output', what, hint }), result);
  }
  if (isChecked === true && exitCode !== 0) {
    throw programFailed(program, result, lastLine(stderr));
  }
  return result;
}

/** The place of an overlay that has none: its only lower layer, of which the program changes a copy. */
export const onlyOf = <T>([lower, ...others]: readonly T[]): T | undefined => (others.length === 0 ? lower : undefined);

const places = new WeakMap<Mount, Path>();

/** Has programs see a detached mount at this place by default. */
export const showAt = (mount: Mount, place: Path): unknown => places.set(mount, place);

/** Runs a program that sees an overlay at the target that is named, else at its own, else at its only lower layer. */
export function runIn(
  mount: Mount,
  lowers: readonly PathLike[],
  command: string,
  args: readonly string[] | undefined,
  given: OverlayRunOptions,
): Promise<RunResult<Output>> {
  const { target, mounts, ...options } = toOptions(given, overlayNames);
  const place = target ?? mount.target ?? places.get(mount) ?? onlyOf(lowers);
  if (place === undefined) {
    throw invalidArgumentType(
      'target',
      `a directory where the program sees the overlay of ${lowers.length} lower layers`,
      place,
    );
  }
  const at = toAbsolute(toPath(place, 'target'));
  const isThere =
    target === undefined && mount.target !== undefined && internalsOf(mount).mounted.namespace === undefined;
  // A list of another type is refused as that.
  const own = isThere ? [] : [{ source: mount, target: at }];
  const shown = mounts === undefined || Array.isArray(mounts) ? [...own, ...(mounts ?? [])] : mounts;
  return run(command, args, { cwd: startIn(at), ...options, mounts: shown });
}
