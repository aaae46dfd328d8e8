/**
 * Parses the mount table of /proc: proc_pid_mountinfo(5). The parser takes text and does no I/O; readMountinfo does.
 */
import { readFileSync } from 'node:fs';
import * as e from '../errnos.js';
import { explainProc, missingProc, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { AT_FDCWD } from '../kernel/constants.js';
import { DATA_OUTPUT, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { ask, type Task } from '../kernel/task.js';
import { unescapeOctal } from '../mount-strings.js';
import { explainErrno } from '../verdicts.js';

/** A line of the table. Each character of a string is one byte. Octal escapes are decoded, except in the options. */
export interface MountinfoLine {
  readonly id: number;
  readonly parent: number;
  readonly device: string;
  readonly root: string;
  readonly target: string;
  readonly mountOptions: string;
  /** The optional fields, such as `shared:1 master:2` or `unbindable`; mostly empty. */
  readonly tags: string;
  readonly type: string;
  readonly source: string;
  readonly superOptions: string;
}

/** The same line with bytes. */
export interface MountinfoEntry {
  /** Reused after the mount is gone: not the id that statx(2) calls unique. */
  readonly id: number;
  readonly parent: number;
  readonly device: string;
  readonly root: Buffer;
  readonly target: Buffer;
  readonly mountOptions: string;
  readonly type: string;
  readonly source: Buffer;
  /** As in the table, still escaped: once the escapes are decoded, a comma may also be part of a value. */
  readonly superOptions: Buffer;
}

const toBuffer = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');

/** Decodes the table's octal escapes. Each character is one byte, in the argument and in the result. */
export const unescapeField = (field: string): string =>
  field.includes('\\') ? unescapeOctal(toBuffer(field)).toString('latin1') : field;

//   36 35 98:0 /root /target rw,noatime master:1 … - ext3 /dev/root rw,errors=continue
//   id parent device root target options (any number of tags) - type source super
function parseLine(line: string, before: MountinfoLine | undefined): MountinfoLine | undefined {
  // Splits at single spaces, because an empty source is an empty field.
  let at = 0;
  const next = (): string => {
    const end = line.indexOf(' ', at);
    const field = end < 0 ? line.slice(at) : line.slice(at, end);
    at = end < 0 ? line.length + 1 : end + 1;
    return field;
  };
  const id = next();
  const parent = next();
  const device = next();
  const root = next();
  const target = next();
  const mountOptions = next();
  const tagsAt = at;
  while (line.charCodeAt(at) !== 0x2d || line.charCodeAt(at + 1) !== 0x20) {
    if (at > line.length) return undefined;
    next();
  }
  const tags = line.slice(tagsAt, Math.max(at - 1, tagsAt));
  at += 2;
  const type = next();
  const source = next();
  if (at > line.length) return undefined;
  const shared = sharer(before);
  return {
    id: Number(id),
    parent: Number(parent),
    device: shared('device', device),
    root: shared('root', unescapeField(root)),
    target: unescapeField(target),
    mountOptions: shared('mountOptions', mountOptions),
    tags: shared('tags', tags),
    type: shared('type', type),
    source: shared('source', unescapeField(source)),
    superOptions: shared('superOptions', next()),
  };
}

type Texts = Exclude<keyof MountinfoLine, 'id' | 'parent'>;

/**
 * Returns the string of the previous line when it is equal. Lines of long tables have much in common, and one shared
 * copy saves work for the garbage collector.
 */
const sharer = (before: MountinfoLine | undefined) => (name: Texts, text: string) =>
  before?.[name] === text ? before[name] : text;

/** Yields the lines of a table. */
export function* splitMountinfo(text: Buffer): Generator<MountinfoLine> {
  const whole = text.toString('latin1');
  let before: MountinfoLine | undefined;
  for (let start = 0; start < whole.length; ) {
    let end = whole.indexOf('\n', start);
    if (end < 0) end = whole.length;
    const line = parseLine(whole.slice(start, end), before);
    if (line !== undefined) {
      yield line;
      before = line;
    }
    start = end + 1;
  }
}

/** Converts the strings, with one byte a character, to bytes. */
export const toEntry = ({ tags, ...line }: MountinfoLine): MountinfoEntry => ({
  ...line,
  root: toBuffer(line.root),
  target: toBuffer(line.target),
  source: toBuffer(line.source),
  superOptions: toBuffer(line.superOptions),
});

export const parseMountinfo = (text: Buffer): MountinfoEntry[] => Array.from(splitMountinfo(text), toEntry);

/** The mount table of the calling thread. */
export const MOUNTINFO = '/proc/thread-self/mountinfo';

/**
 * Returns the mounts that the calling thread sees.
 *
 * @throws {OverlayError} `reason` is `'proc-missing'`
 */
export function readMountinfo(): MountinfoEntry[] {
  try {
    return parseMountinfo(readFileSync(MOUNTINFO));
  } catch (error) {
    throw explainProc(error, MOUNTINFO);
  }
}

const whole = (line: MountinfoLine): MountinfoLine => line;

/**
 * Returns the lines of a table, or the results of `make` for them; results that are undefined are left out. The promise
 * form keeps the event loop free, however long the table is: another thread reads the text, and the lines are parsed in
 * slices.
 *
 * @throws {OverlayError} `reason` is `'proc-missing'`, `'out-of-descriptors'` or `'unexplained'`
 */
export function readTable(): Task<MountinfoLine[]>;
export function readTable<T>(make: (line: MountinfoLine) => T | undefined, path?: string): Task<T[]>;
export function* readTable(make: (line: MountinfoLine) => unknown = whole, path: string = MOUNTINFO): Task<unknown[]> {
  const plan = new Plan();
  const text = plan.stepOf(plan.add(calls.read_file, [AT_FDCWD, path], { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return yield* collect(splitMountinfo(outcome.data(text)), make);
  const { errno } = outcome;
  if (errno === e.ENOENT) throw missingProc(path);
  throw new OverlayError({
    errno,
    syscall: 'open',
    path,
    ...explainErrno(errno, { name: path, purpose: 'read the mount table' }),
  });
}
