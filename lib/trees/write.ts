/**
 * Writes trees in batches. A thread of the library performs the operations in order, below a root directory. The writer
 * gathers operations and sends them in pieces of about 2 MiB. In the promise form it continues to gather while
 * threads write, one after the other, with at most 8 MiB outstanding. native/write.h describes the operations.
 */
import { ECANCELED } from '../errnos.js';
import { abortError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { type Outcome, perform, performSync, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { Slices } from '../kernel/slices.js';
import { inEitherForm, type Task } from '../kernel/task.js';
import { addon, type OperationFlag, type OperationKind, type Stage } from '../native.js';
import type { Records, Time } from './records.js';

const PIECE = 1 << 21;
/** The size of the buffer for a piece. */
const ROOM = PIECE + PIECE / 4;
/** The most native calls under way: the next one begins when the first ends, without the event loop. */
const MOST_UNDER_WAY = 2;
/** The most gathered pieces that wait for them. */
const MOST_WAITING = 2;
/** In the place of a number of a turn: no further batch begins. */
const OVER = -1;

const RECORD_SIZE = 80;
/** The numbers of a WriteReport, native/write.h. A path follows. */
const NUMBERS_SIZE = 40;
const REPORT_SIZE = NUMBERS_SIZE + 4096;
const REMOVED = 0xffffffff;
/** Less data than this is copied into the batch. */
const LEAST_LENT = 128;
/** The size of a place in lent memory. */
const PLACE = 8;
/** Leaves a time as it is: UTIME_OMIT, utimensat(2). */
const OMIT = 0x3ffffffe;
/** The present time: UTIME_NOW. */
export const NOW: Time = { seconds: 0, nanoseconds: 0x3fffffff };
const UINT32 = 2 ** 32;

/** A path or a name: bytes, or a string in which each character is one byte. */
export type Bytes = string | Uint8Array;

export interface WrittenXattr {
  /** With its prefix: `user.comment`. */
  readonly name: Bytes;
  /** If left out, the operation removes the attribute if it exists. */
  readonly value?: Uint8Array;
  /** The writer counts and skips the attribute if the file system does not support it (EOPNOTSUPP). */
  readonly toleratesUnsupported?: boolean;
  /** The writer counts and skips the attribute if the kernel refuses it for this type of file or process (EPERM). */
  readonly toleratesDenied?: boolean;
}

/** The metadata that an operation sets. A field that is left out keeps the kernel's default or the present value. */
export interface Metadata {
  readonly uid?: number;
  readonly gid?: number;
  /** The permissions; for a node, also its type. */
  readonly mode?: number;
  readonly atime?: Time | undefined;
  readonly mtime?: Time | undefined;
  readonly xattrs?: readonly WrittenXattr[] | undefined;
}

export interface OperationFields extends Metadata {
  /** The other path, or the text of a symbolic link. */
  readonly from?: Bytes;
  /** The contents. */
  readonly data?: Uint8Array;
  /** An offset, a size, or the inode of the file to copy. */
  readonly number?: number | bigint;
  /** The device of a node. */
  readonly device?: { readonly major: number; readonly minor: number };
  /** The size of the file to copy. */
  readonly size?: number;
  readonly flags?: readonly OperationFlag[];
  /** The index of the other root. Default: 0. */
  readonly other?: number;
}

/** An operation that failed. The operations before it are complete; those after it have not begun. */
export class WriteFailure extends Error {
  readonly path: Buffer;
  readonly kind: OperationKind;
  readonly errno: number;
  readonly stage: Stage;
  /** The path is below another root. */
  readonly isInOther: boolean;
  /** The path of an entry of another root that was to be moved. */
  readonly source: Buffer | undefined;
  /** The name of the extended attribute, if one failed. */
  readonly attribute: string | undefined;

  constructor(record: Recorded, errno: number, stage: Stage, attribute: number, inside: string) {
    super(`${record.kind} of ${record.path}: errno ${errno} (${stage})`);
    this.path = inside === '' ? record.path : Buffer.concat([record.path, Buffer.from(`/${inside}`, 'latin1')]);
    this.source = record.source;
    this.kind = record.kind;
    this.errno = errno;
    this.isInOther = record.isInOther;
    this.stage = stage;
    this.attribute = stage === 'xattr' ? record.attributes[attribute] : undefined;
  }
}

export interface WriteTotals {
  /** Complete operations. */
  operations: number;
  /** Bytes that `copy` has copied or cloned. */
  copied: number;
  /** Attributes that were refused and skipped. */
  tolerated: number;
}

export interface WriterOptions {
  /** The roots of paths with the flag `other` or `from_other`. */
  readonly others?: readonly Descriptor[];
  /** A directory below the root, in which operations with the flag `atomic` make entries before they place them. */
  readonly staging?: Bytes | undefined;
  /** Follows symbolic links in paths, inside the root. Otherwise a path with one fails with ELOOP or ENOTDIR. */
  readonly inRoot?: boolean;
  readonly signal?: AbortSignal | undefined;
  /**
   * The data of operations is not copied: it stays as it is until `totals` counts the operation. Otherwise it may change
   * after `add`.
   */
  readonly lends?: boolean;
}

const keyOf = <K extends string>(numbers: Readonly<Record<K, number>>, number: number): K =>
  (Object.keys(numbers) as K[]).find((key) => numbers[key] === number) as K;

interface Recorded {
  readonly kind: OperationKind;
  readonly path: Buffer;
  readonly isInOther: boolean;
  readonly source: Buffer | undefined;
  readonly attributes: readonly string[];
}

/** Reads the operation at this position of a batch. */
function readRecord(batch: Buffer, position: number): Recorded {
  let at = 0;
  for (let i = 0; i < position; i++) at += batch.readUInt32LE(at);
  const start = at + RECORD_SIZE;
  const pathSize = batch.readUInt32LE(at + 8);
  const attributes: string[] = [];
  const from = start + pathSize + 1;
  const fromEnd = from + batch.readUInt32LE(at + 12);
  let next = fromEnd + 1;
  const end = next + batch.readUInt32LE(at + 16);
  while (next < end) {
    const nameSize = batch.readUInt16LE(next);
    const size = batch.readUInt32LE(next + 4);
    attributes.push(batch.toString('utf8', next + 8, next + 7 + nameSize));
    next += 8 + nameSize + (size === REMOVED ? 0 : size);
  }
  const kind = keyOf(addon().operations, batch.readUInt16LE(at + 4));
  const has = (flag: OperationFlag): boolean => (batch.readUInt16LE(at + 6) & addon().operationFlags[flag]) !== 0;
  const isMoved = kind === 'rename' && has('from_other');
  return {
    kind,
    isInOther: has('other'),
    path: Buffer.from(batch.subarray(start, start + pathSize)),
    source: isMoved ? Buffer.from(batch.subarray(from, fromEnd)) : undefined,
    attributes,
  };
}

/** Gathered operations, and the memory with their data. */
interface Batch {
  readonly records: Buffer;
  readonly lent: readonly Uint8Array[];
  /** The number of the first of these buffers, counted from 1 over all batches. */
  readonly firstLent: number;
  /** It makes files, with modes that the umask of the process must not change. */
  readonly makesFiles: boolean;
}

/** The result of a batch. */
interface Report {
  readonly copied: number;
  readonly tolerated: number;
  readonly errno: number;
  readonly done: number;
  readonly stage: number;
  readonly attribute: number;
  /** The path, inside the failed entry, of the one that could not be removed; one character for each byte. */
  readonly inside: string;
}

const readInside = (report: Buffer): string => report.toString('latin1', NUMBERS_SIZE, report.indexOf(0, NUMBERS_SIZE));

export class TreeWriter {
  readonly totals: WriteTotals = { operations: 0, copied: 0, tolerated: 0 };
  readonly #root: Descriptor;
  readonly #options: WriterOptions;
  readonly #staging: Uint8Array | null;
  #gathered: Buffer = Buffer.allocUnsafeSlow(ROOM);
  /** The same memory. */
  #words = new Uint32Array(this.#gathered.buffer);
  /** Buffers whose operations are done. New memory for each piece would cost more than what is copied. */
  readonly #free: Buffer[] = [];
  readonly #others: Buffer;
  #end = 0;
  #makesFiles = false;
  #lent: Uint8Array[] = [];
  /** The number of the next buffer that is lent. */
  #nextLent = 1;
  #lentSize = 0;
  #waiting: Batch[] = [];
  /** The number of native calls under way. */
  #underWay = 0;
  /** The last of them, after those before it. */
  #last: Promise<void> = Promise.resolve();
  /** The number of the call whose turn it is; OVER after a failure. Threads write it too. */
  readonly #turn = new Uint32Array(1);
  #nextTurn = 0;
  #failure: unknown;
  #roomMade: (() => void) | undefined;
  #added = 0;
  readonly #atEnd: (readonly [Bytes, OperationFields])[] = [];

  /** The caller closes the descriptors, after `finish` or `stop`. */
  constructor(root: Descriptor, options: WriterOptions = {}) {
    this.#root = root;
    this.#options = options;
    const { staging, others = [] } = options;
    this.#others = Buffer.alloc(4 * others.length);
    for (const [i, other] of others.entries()) this.#others.writeInt32LE(other, 4 * i);
    this.#staging = typeof staging === 'string' ? Buffer.from(staging, 'latin1') : (staging ?? null);
  }

  /** True if the writer has gathered enough for `send`. */
  get isFull(): boolean {
    return this.#end + this.#lentSize >= PIECE;
  }

  /** The number of operations that `add` has gathered; `totals` has the number of the complete ones. */
  get added(): number {
    return this.#added;
  }

  /** Gathers an operation. The path is relative to the root; the empty path is the root itself. */
  add(kind: OperationKind, path: Bytes, fields: OperationFields = {}): void {
    this.#added++;
    if (kind !== 'data') this.#makesFiles = true;
    const { xattrs, data, from = '' } = fields;
    const attributes = xattrs ?? [];
    const lent = data !== undefined && this.#options.lends && data.length >= LEAST_LENT ? this.#lend(data) : 0;
    const inside = lent === 0 ? (data?.length ?? 0) : PLACE;
    const room = RECORD_SIZE + 16 + path.length + from.length + inside + sizeOf(attributes);
    this.#reserve(room);
    const start = this.#end;
    const to = this.#gathered;
    let at = start + RECORD_SIZE;
    const put = (text: Bytes): number => {
      const before = at;
      if (typeof text === 'string') at += to.write(text, at, 'latin1');
      else {
        to.set(text, at);
        at += text.length;
      }
      return at - before;
    };
    const pathSize = put(path);
    to[at++] = 0;
    const fromSize = put(from);
    to[at++] = 0;
    const attributesStart = at;
    for (const { name, value, toleratesUnsupported, toleratesDenied } of attributes) {
      const head = at;
      at += 8;
      to.writeUInt16LE(put(name) + 1, head);
      to[at++] = 0;
      to.writeUInt16LE((toleratesUnsupported ? 1 : 0) | (toleratesDenied ? 2 : 0), head + 2);
      to.writeUInt32LE(value === undefined ? REMOVED : value.length, head + 4);
      if (value !== undefined) put(value);
    }
    const attributesSize = at - attributesStart;
    if (data !== undefined && lent === 0) put(data);
    else if (data !== undefined) {
      // The place in its memory. It is not aligned.
      to.writeUIntLE(data.byteOffset, at, 6);
      to.writeUInt16LE(0, at + 6);
      at += PLACE;
    }
    while (at % 8 !== 0) to[at++] = 0;
    this.#end = at;

    writeHead(this.#words, start / 4, kind, fields, { size: at - start, pathSize, fromSize, attributesSize, lent });
  }

  /** Returns the number of the buffer. All data in one piece of memory shares it. */
  #lend(data: Uint8Array): number {
    this.#lentSize += data.length;
    if (this.#lent.at(-1)?.buffer !== data.buffer) {
      this.#lent.push(new Uint8Array(data.buffer));
      this.#nextLent++;
    }
    return this.#nextLent - 1;
  }

  /**
   * Sets metadata in `finish`, when nothing inside the directory changes any more. The last call takes effect first, so
   * two calls for one path must agree.
   */
  addLast(path: Bytes, metadata: Metadata): void {
    this.#atEnd.push([path, metadata]);
  }

  /** Sends the gathered operations. In the promise form, waits only while too much is outstanding. */
  *send(): Task<void> {
    if (this.#end === 0) return;
    const lent = this.#lent;
    const records = this.#gathered.subarray(0, this.#end);
    const batch: Batch = { records, lent, firstLent: this.#nextLent - lent.length, makesFiles: this.#makesFiles };
    this.#makesFiles = false;
    this.#gatherIn(this.#free.pop() ?? Buffer.allocUnsafeSlow(ROOM));
    this.#end = 0;
    this.#lent = [];
    this.#lentSize = 0;
    yield* inEitherForm(
      () => this.#sendLater(batch),
      () => this.#sendNow(batch),
    );
  }

  /** Writes all gathered operations, then the metadata of `addLast`, and waits until they are complete. */
  *finish(): Task<WriteTotals> {
    const slices = new Slices();
    for (let entry = this.#atEnd.pop(); entry !== undefined; entry = this.#atEnd.pop()) {
      this.add('metadata', ...entry);
      if (this.isFull) yield* this.send();
      if (slices.isOver()) yield* slices.pause();
    }
    yield* this.send();
    yield* inEitherForm(
      () => this.#idle(),
      () => undefined,
    );
    return this.totals;
  }

  /**
   * Finishes, and writes the root's file system to its disk, syncfs(2): files, directories and names, those of others on
   * that file system too. One call is cheaper than fsync(2) for each file.
   */
  *sync(): Task<void> {
    yield* this.finish();
    this.add('sync', '');
    yield* this.finish();
  }

  /** Drops the operations that have not begun and waits for the others. For a caller that gives up; throws nothing. */
  *stop(): Task<void> {
    this.#end = 0;
    this.#waiting = [];
    yield* inEitherForm(
      () => this.#settle(),
      () => undefined,
    );
  }

  #reserve(size: number): void {
    if (this.#end + size <= this.#gathered.length) return;
    const larger = Buffer.allocUnsafeSlow((Math.max(this.#gathered.length * 2, this.#end + size) + 3) & ~3);
    this.#gathered.copy(larger, 0, 0, this.#end);
    this.#gatherIn(larger);
  }

  #gatherIn(memory: Buffer): void {
    this.#gathered = memory;
    this.#words = new Uint32Array(memory.buffer);
  }

  #plan({ records, lent, firstLent, makesFiles }: Batch, turn: number): Plan {
    const plan = new Plan();
    const all = turn === OVER ? lent : [new Uint8Array(this.#turn.buffer), ...lent];
    if (all.length > 0) plan.lent = all;
    // A new thread has an umask of its own.
    plan.isOnOwnThread = makesFiles;
    const { inRoot } = this.#options;
    const staging = this.#staging;
    plan.add(calls.write_tree, [this.#root, this.#others, records, staging, inRoot ? 1 : 0, firstLent, turn], {
      output: REPORT_SIZE,
      tolerate: 'any',
    });
    return plan;
  }

  #sendNow(batch: Batch): void {
    const plan = this.#plan(batch, OVER);
    this.#take(this.#reportOf(performSync(plan), plan), batch);
  }

  #reportOf(outcome: Outcome, plan: Plan): Report {
    // The step tolerates all errors, so a failure means that an abort kept the plan from beginning.
    if (outcome instanceof StepFailure) throw abortError(this.#options.signal as AbortSignal);
    const [step] = plan.steps as [Step];
    return {
      errno: -outcome.result(step),
      done: outcome.number(step, 0),
      stage: outcome.number(step, 1),
      attribute: outcome.number(step, 2),
      copied: outcome.number(step, 3),
      tolerated: outcome.number(step, 4),
      inside: outcome.result(step) < 0 ? readInside(outcome.bytes(step, REPORT_SIZE)) : '',
    };
  }

  /** Adds the result of a batch to the totals. Throws if an operation failed. */
  #take({ errno, done, stage, attribute, inside, copied, tolerated }: Report, { records }: Batch): void {
    this.totals.operations += done;
    this.totals.copied += copied;
    this.totals.tolerated += tolerated;
    if (errno <= 0) {
      if (records.buffer.byteLength === ROOM) this.#free.push(Buffer.from(records.buffer));
      return;
    }
    const { signal } = this.#options;
    if (errno === ECANCELED && signal?.aborted) throw abortError(signal);
    throw new WriteFailure(readRecord(records, done), errno, keyOf(addon().stages, stage), attribute, inside);
  }

  async #sendLater(batch: Batch): Promise<void> {
    this.#throwFailure();
    this.#waiting.push(batch);
    this.#begin();
    if (this.#waiting.length >= MOST_WAITING) {
      await new Promise<void>((resolve) => {
        this.#roomMade = resolve;
      });
      this.#throwFailure();
    }
  }

  /** Begins with batches that wait. */
  #begin(): void {
    while (this.#underWay < MOST_UNDER_WAY) {
      const batch = this.#waiting.shift();
      if (batch === undefined) return;
      this.#underWay++;
      this.#last = this.#write(batch, this.#last);
    }
  }

  async #write(batch: Batch, before: Promise<void>): Promise<void> {
    const { signal } = this.#options;
    try {
      const plan = this.#plan(batch, this.#nextTurn++);
      // The outputs are valid until the event loop goes on.
      const writing = perform(plan, signal).then((outcome) => this.#reportOf(outcome, plan));
      writing.catch(() => Atomics.store(this.#turn, 0, OVER));
      await before;
      const report = await writing;
      if (this.#failure === undefined) this.#take(report, batch);
    } catch (error) {
      this.#failure ??= error;
      this.#waiting = [];
    }
    this.#underWay--;
    this.#begin();
    this.#makeRoom();
  }

  #makeRoom(): void {
    this.#roomMade?.();
    this.#roomMade = undefined;
  }

  async #settle(): Promise<void> {
    while (this.#underWay > 0) await this.#last;
  }

  async #idle(): Promise<void> {
    await this.#settle();
    this.#throwFailure();
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }
}

interface Sizes {
  /** The bytes of the whole record. */
  readonly size: number;
  readonly pathSize: number;
  readonly fromSize: number;
  readonly attributesSize: number;
  /** The number of the buffer that has the data; 0: the record has it. */
  readonly lent: number;
}

/** Writes the fixed part of a record, which begins at this word: stores into numbers are faster than Buffer's methods. */
function writeHead(words: Uint32Array, at: number, kind: OperationKind, fields: OperationFields, sizes: Sizes): void {
  const { operations, operationFlags } = addon();
  const { data, device, atime, mtime, number = 0 } = fields;
  const { size, pathSize, fromSize, attributesSize, lent } = sizes;
  let flags = 0;
  for (const flag of fields.flags ?? noFlags) flags |= operationFlags[flag];
  if (fields.uid !== undefined || fields.gid !== undefined) flags |= operationFlags.owner;
  if (fields.mode !== undefined) flags |= operationFlags.mode;
  // The time of a file to copy helps to identify it, even if its copy gets no times.
  if (atime !== undefined || mtime !== undefined) flags |= operationFlags.times;
  words[at] = size;
  words[at + 1] = operations[kind] | (flags << 16);
  words[at + 2] = pathSize;
  words[at + 3] = fromSize;
  words[at + 4] = attributesSize;
  words[at + 5] = fields.mode ?? 0;
  // chown(2) leaves an id unchanged for -1.
  words[at + 6] = fields.uid ?? 0xffffffff;
  words[at + 7] = fields.gid ?? 0xffffffff;
  if (device !== undefined) {
    words[at + 8] = device.minor;
    words[at + 9] = device.major;
  } else if (typeof number === 'bigint') {
    words[at + 8] = Number(BigInt.asUintN(32, number));
    words[at + 9] = Number(BigInt.asUintN(32, number >> 32n));
  } else {
    setNumber(words, at + 8, number);
  }
  setNumber(words, at + 10, data?.length ?? fields.size ?? 0);
  setNumber(words, at + 12, atime?.seconds ?? 0);
  setNumber(words, at + 14, mtime?.seconds ?? 0);
  words[at + 16] = atime?.nanoseconds ?? OMIT;
  words[at + 17] = mtime?.nanoseconds ?? OMIT;
  words[at + 18] = fields.other ?? 0;
  words[at + 19] = lent;
}

const noFlags: readonly OperationFlag[] = [];

const sizeOf = (attributes: readonly WrittenXattr[]): number =>
  attributes.reduce((size, { name, value }) => size + 16 + name.length + (value?.length ?? 0), 0);

/** Writes a safe integer as 64 bits. */
function setNumber(words: Uint32Array, at: number, value: number): void {
  words[at] = ((value % UINT32) + UINT32) % UINT32;
  words[at + 1] = Math.floor(value / UINT32);
}

export const metadataOf = (entry: Pick<Records, 'uid' | 'gid' | 'mode' | 'mtime'>): OperationFields => ({
  uid: entry.uid,
  gid: entry.gid,
  mode: entry.mode & 0o7777,
  mtime: entry.mtime,
});

/** Adds an entry that is neither a regular file nor a directory. */
export function addSpecial(
  writer: TreeWriter,
  entry: Pick<Records, 'type' | 'mode' | 'target' | 'rdevMajor' | 'rdevMinor'>,
  target: string,
  fields: OperationFields,
): void {
  if (entry.type === k.S_IFLNK) {
    const { mode: _, ...rest } = fields;
    writer.add('symlink', target, { ...rest, from: Buffer.from(entry.target) });
  } else {
    const device = { major: entry.rdevMajor, minor: entry.rdevMinor };
    writer.add('node', target, { ...fields, mode: entry.mode, device });
  }
}
