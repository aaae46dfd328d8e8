/**
 * Writes trees in batches. A thread of the library performs the operations in order, below a root directory. The writer
 * gathers operations and sends them in pieces of about 1 MiB. In the promise form it continues to gather while the
 * thread writes, with at most 4 MiB outstanding. native/write.h describes the operations.
 */
import { ECANCELED } from '../errnos.js';
import { abortError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { type Outcome, perform, performSync, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { inEitherForm, type Task } from '../kernel/task.js';
import { addon, type OperationFlag, type OperationKind, type Stage } from '../native.js';
import type { Time } from './records.js';

const PIECE = 1 << 20;
/** The most gathered pieces that wait while the thread writes others. */
const MOST_WAITING = 3;

const RECORD_SIZE = 80;
const REMOVED = 0xffffffff;
/** Leaves a time as it is: UTIME_OMIT, utimensat(2). */
const OMIT = 0x3ffffffe;
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
  /** The name of the extended attribute, if one failed. */
  readonly attribute: string | undefined;

  constructor(record: Recorded, errno: number, stage: Stage, attribute: number) {
    super(`${record.kind} of ${record.path}: errno ${errno} (${stage})`);
    this.path = record.path;
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
}

const keyOf = <K extends string>(numbers: Readonly<Record<K, number>>, number: number): K =>
  (Object.keys(numbers) as K[]).find((key) => numbers[key] === number) as K;

interface Recorded {
  readonly kind: OperationKind;
  readonly path: Buffer;
  readonly isInOther: boolean;
  readonly attributes: readonly string[];
}

/** Reads the operation at this position of a batch. */
function readRecord(batch: Buffer, position: number): Recorded {
  let at = 0;
  for (let i = 0; i < position; i++) at += batch.readUInt32LE(at);
  const start = at + RECORD_SIZE;
  const pathSize = batch.readUInt32LE(at + 8);
  const attributes: string[] = [];
  let next = start + pathSize + 1 + batch.readUInt32LE(at + 12) + 1;
  const end = next + batch.readUInt32LE(at + 16);
  while (next < end) {
    const nameSize = batch.readUInt16LE(next);
    const size = batch.readUInt32LE(next + 4);
    attributes.push(batch.toString('utf8', next + 8, next + 7 + nameSize));
    next += 8 + nameSize + (size === REMOVED ? 0 : size);
  }
  const kind = keyOf(addon().operations, batch.readUInt16LE(at + 4));
  const isInOther = (batch.readUInt16LE(at + 6) & addon().operationFlags.other) !== 0;
  return { kind, isInOther, path: Buffer.from(batch.subarray(start, start + pathSize)), attributes };
}

export class TreeWriter {
  readonly totals: WriteTotals = { operations: 0, copied: 0, tolerated: 0 };
  readonly #root: Descriptor;
  readonly #options: WriterOptions;
  readonly #staging: Uint8Array | null;
  readonly #others: Buffer;
  #gathered = Buffer.allocUnsafe(PIECE + PIECE / 4);
  #end = 0;
  #waiting: Buffer[] = [];
  /** The native call under way and those that follow it at once. */
  #running: Promise<void> | undefined;
  #failure: unknown;
  #roomMade: (() => void) | undefined;
  readonly #last: (readonly [Bytes, OperationFields])[] = [];

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
    return this.#end >= PIECE;
  }

  /** Gathers an operation. The path is relative to the root; the empty path is the root itself. */
  add(kind: OperationKind, path: Bytes, fields: OperationFields = {}): void {
    const { operations, operationFlags } = addon();
    const { xattrs, data, from = '', device } = fields;
    const attributes = xattrs ?? [];
    const room = RECORD_SIZE + 16 + path.length + from.length + (data?.length ?? 0) + sizeOf(attributes);
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
    if (data !== undefined) put(data);
    while (at % 8 !== 0) to[at++] = 0;
    this.#end = at;

    let flags = 0;
    for (const flag of fields.flags ?? []) flags |= operationFlags[flag];
    if (fields.uid !== undefined || fields.gid !== undefined) flags |= operationFlags.owner;
    if (fields.mode !== undefined) flags |= operationFlags.mode;
    const { atime, mtime } = fields;
    // The time of a file to copy helps to identify it, even if its copy gets no times.
    if (atime !== undefined || mtime !== undefined) flags |= operationFlags.times;
    to.writeUInt32LE(at - start, start);
    to.writeUInt16LE(operations[kind], start + 4);
    to.writeUInt16LE(flags, start + 6);
    to.writeUInt32LE(pathSize, start + 8);
    to.writeUInt32LE(fromSize, start + 12);
    to.writeUInt32LE(attributesSize, start + 16);
    to.writeUInt32LE(fields.mode ?? 0, start + 20);
    // chown(2) leaves an id unchanged for -1.
    to.writeUInt32LE(fields.uid ?? 0xffffffff, start + 24);
    to.writeUInt32LE(fields.gid ?? 0xffffffff, start + 28);
    if (device !== undefined) {
      to.writeUInt32LE(device.minor, start + 32);
      to.writeUInt32LE(device.major, start + 36);
    } else if (typeof fields.number === 'bigint') {
      to.writeBigUInt64LE(fields.number, start + 32);
    } else {
      writeNumber(to, fields.number ?? 0, start + 32);
    }
    writeNumber(to, data?.length ?? fields.size ?? 0, start + 40);
    writeNumber(to, atime?.seconds ?? 0, start + 48);
    writeNumber(to, mtime?.seconds ?? 0, start + 56);
    to.writeUInt32LE(atime?.nanoseconds ?? OMIT, start + 64);
    to.writeUInt32LE(mtime?.nanoseconds ?? OMIT, start + 68);
    to.writeUInt32LE(fields.other ?? 0, start + 72);
    to.writeUInt32LE(0, start + 76);
  }

  /**
   * Sets metadata in `finish`, when nothing inside the directory changes any more. The last call takes effect first, so
   * two calls for one path must agree.
   */
  addLast(path: Bytes, metadata: Metadata): void {
    this.#last.push([path, metadata]);
  }

  /** Sends the gathered operations. In the promise form, waits only while too much is outstanding. */
  *send(): Task<void> {
    if (this.#end === 0) return;
    const batch = this.#gathered.subarray(0, this.#end);
    this.#gathered = Buffer.allocUnsafe(PIECE + PIECE / 4);
    this.#end = 0;
    yield* inEitherForm(
      () => this.#sendLater(batch),
      () => this.#sendNow(batch),
    );
  }

  /** Writes all gathered operations, then the metadata of `addLast`, and waits until they are complete. */
  *finish(): Task<WriteTotals> {
    for (let entry = this.#last.pop(); entry !== undefined; entry = this.#last.pop()) {
      this.add('metadata', ...entry);
      if (this.isFull) yield* this.send();
    }
    yield* this.send();
    yield* inEitherForm(
      () => this.#idle(),
      () => undefined,
    );
    return this.totals;
  }

  /** Drops the operations that have not begun and waits for the others. For a caller that gives up; throws nothing. */
  *stop(): Task<void> {
    this.#end = 0;
    this.#waiting = [];
    yield* inEitherForm(
      async () => this.#running,
      () => undefined,
    );
  }

  #reserve(size: number): void {
    if (this.#end + size <= this.#gathered.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#gathered.length * 2, this.#end + size));
    this.#gathered.copy(larger, 0, 0, this.#end);
    this.#gathered = larger;
  }

  #plan(batch: readonly Buffer[]): Plan {
    const plan = new Plan();
    // The writer needs a thread with its own umask.
    plan.isOnOwnThread = true;
    const { inRoot } = this.#options;
    const staging = this.#staging;
    plan.add(calls.write_tree, [this.#root, this.#others, batch, staging, inRoot ? 1 : 0], {
      output: 40,
      tolerate: 'any',
    });
    return plan;
  }

  #sendNow(batch: Buffer): void {
    const plan = this.#plan([batch]);
    this.#take(performSync(plan), plan.steps[0] as Step, [batch]);
  }

  /** Adds the result of a batch to the totals. Throws if an operation failed. */
  #take(outcome: Outcome, step: Step, batch: readonly Buffer[]): void {
    // The step tolerates all errors, so a failure means that an abort kept the plan from beginning.
    if (outcome instanceof StepFailure) throw abortError(this.#options.signal as AbortSignal);
    const done = outcome.number(step, 0);
    this.totals.operations += done;
    this.totals.copied += outcome.number(step, 3);
    this.totals.tolerated += outcome.number(step, 4);
    const errno = -outcome.result(step);
    if (errno <= 0) return;
    const { signal } = this.#options;
    if (errno === ECANCELED && signal?.aborted) throw abortError(signal);
    const stage = keyOf(addon().stages, outcome.number(step, 1));
    throw new WriteFailure(readRecord(Buffer.concat(batch), done), errno, stage, outcome.number(step, 2));
  }

  async #sendLater(batch: Buffer): Promise<void> {
    this.#throwFailure();
    this.#waiting.push(batch);
    this.#running ??= this.#run();
    if (this.#waiting.length >= MOST_WAITING) {
      await new Promise<void>((resolve) => {
        this.#roomMade = resolve;
      });
      this.#throwFailure();
    }
  }

  /** Performs all waiting pieces in one native call, and repeats this until none waits. */
  async #run(): Promise<void> {
    try {
      while (this.#waiting.length > 0) {
        const batch = this.#waiting;
        this.#waiting = [];
        const { signal } = this.#options;
        if (signal?.aborted) throw abortError(signal);
        const plan = this.#plan(batch);
        const writing = perform(plan, signal);
        this.#makeRoom();
        this.#take(await writing, plan.steps[0] as Step, batch);
      }
    } catch (error) {
      this.#failure = error;
      this.#waiting = [];
    }
    this.#running = undefined;
    this.#makeRoom();
  }

  #makeRoom(): void {
    this.#roomMade?.();
    this.#roomMade = undefined;
  }

  async #idle(): Promise<void> {
    await this.#running;
    this.#throwFailure();
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }
}

const sizeOf = (attributes: readonly WrittenXattr[]): number =>
  attributes.reduce((size, { name, value }) => size + 16 + name.length + (value?.length ?? 0), 0);

/** Writes a safe integer as 64 bits. */
function writeNumber(to: Buffer, value: number, at: number): void {
  to.writeUInt32LE(((value % UINT32) + UINT32) % UINT32, at);
  to.writeInt32LE(Math.floor(value / UINT32) | 0, at + 4);
}
