/**
 * Walks a directory tree by descriptors: parents first, the names of a directory in byte order. native/walk.cc reads
 * hundreds of entries in each native call. This file has the cursor over its records.
 */

import { lstatSync } from 'node:fs';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { DATA_OUTPUT, type Outcome, perform, performSync, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { ask, inEitherForm, type Task } from '../kernel/task.js';
import { addon, type NativeWalk } from '../native.js';
import { joinPath, type Path, pathString, quotePath, toBytes } from '../paths.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { below, toBytePath } from './encodings.js';
import { Records } from './records.js';

/** The bits of a walk, as in native/walk.h. */
const flag = {
  unsorted: 1,
  attributesOfDirectories: 2,
  attributesOfOthers: 4,
  targets: 8,
  followRoot: 16,
  rootInside: 32,
  oneLevel: 64,
} as const;

export interface WalkOptions {
  /**
   * The directory from which the root's path counts. The path may be empty; it leads through no symbolic link and into no
   * other mount. Default: the working directory, and a path of any kind.
   */
  readonly at?: Descriptor;
  /** The path of `at`, for errors. */
  readonly atPath?: Path;
  /**
   * The entries whose extended attributes the walk reads. `'directories'` includes empty files, which may be whiteouts.
   * Default: none.
   */
  readonly attributes?: 'directories' | 'all';
  /** Reads the targets of symbolic links. */
  readonly targets?: boolean;
  /** Leaves the names of a directory in the order of the file system. */
  readonly unsorted?: boolean;
  /** Follows the root if it is a symbolic link. Default: true. */
  readonly followRoot?: boolean;
  /** Enters no directory but the root. */
  readonly oneLevel?: boolean;
  /** Keeps the records of a walk that skips nothing; or has them of an earlier one. */
  readonly tape?: Tape;
}

const toFlags = ({ at, attributes, targets, unsorted, oneLevel, followRoot = true }: WalkOptions): number =>
  (unsorted ? flag.unsorted : 0) |
  (attributes === undefined ? 0 : flag.attributesOfDirectories) |
  (attributes === 'all' ? flag.attributesOfOthers : 0) |
  (targets ? flag.targets : 0) |
  (followRoot ? flag.followRoot : 0) |
  (oneLevel ? flag.oneLevel : 0) |
  (at === undefined ? 0 : flag.rootInside);

/**
 * The size of a batch of records, some hundreds of entries. Larger batches are no faster, and make V8's heap grow. The
 * first batch is smaller, so a small tree takes less memory.
 */
const FIRST_BATCH = 16 * 1024;
const BATCH = 64 * 1024;

/** Most bytes of records that are kept for a second walk. */
const TAPE = 16 * 2 ** 20;

/** The records of a complete walk, for a second one that does not ask the kernel again. */
export class Tape {
  readonly #batches: Batch[] = [];
  #size = 0;
  #isComplete = false;

  /** False if the walk is not at its end, or was too long. */
  get isComplete(): boolean {
    return this.#isComplete && this.#size <= TAPE;
  }

  add(batch: Batch): void {
    this.#size += batch.records.length;
    if (batch.count === 0) this.#isComplete = true;
    else if (this.#size <= TAPE) this.#batches.push(batch);
    else this.#batches.length = 0;
  }

  take(): Batch {
    return this.#batches.shift() ?? { count: 0, records: Buffer.alloc(0) };
  }
}

interface Batch {
  readonly count: number;
  readonly records: Buffer;
}

/**
 * A cursor over the entries of a directory tree. The current entry is the one that `advance` has reached.
 *
 * ```ts
 * const walker = new Walker(dir, { attributes: 'all' });
 * try {
 *   while (yield* walker.more()) {
 *     while (walker.advance()) use(walker.path, walker.mode, …);
 *   }
 * } finally {
 *   walker.close();
 * }
 * ```
 */
export class Walker extends Records {
  readonly #root: Path;
  readonly #at: Descriptor;
  /** The root's path in errors. */
  readonly #shown: Path;
  readonly #native: NativeWalk;
  readonly #tape: Tape | undefined;
  /** The paths of the directories that lead to the current entry, by depth; the root's is empty. */
  readonly #parents: string[] = [];
  readonly #areAscii: boolean[] = [];
  #name = '';
  #path = '';
  #pathIsAscii = true;
  /** The number of the current entry, counted from 1. */
  #number = 0;
  /** The cursor skips entries that are deeper than this. */
  #skipDepth = Number.POSITIVE_INFINITY;
  #skipped = 0;
  #batchSize = FIRST_BATCH;
  #ahead: Promise<Batch> | undefined;
  #isClosed = false;

  constructor(root: Path, options: WalkOptions = {}) {
    super();
    this.#root = root;
    this.#at = options.at ?? k.AT_FDCWD;
    const { atPath } = options;
    this.#shown = atPath === undefined ? root : root.length === 0 ? atPath : joinPath(atPath, root);
    this.#native = addon().openWalk(toFlags(options));
    this.#tape = options.tape;
  }

  /** Reads more entries. Returns false if there are none. Throws an OverlayError if the root cannot be opened. */
  *more(): Task<boolean> {
    if (this.#isClosed) return false;
    const isReplay = this.#tape?.isComplete === true;
    const batch = isReplay
      ? (this.#tape as Tape).take()
      : yield* inEitherForm(
          () => this.#nextBatch(),
          () => this.#readSync(),
        );
    if (!isReplay) this.#tape?.add(batch);
    this.load(batch.records);
    if (batch.count === 0) this.close();
    return batch.count > 0;
  }

  /** A thread reads the next batch while the caller uses this one. */
  async #nextBatch(): Promise<Batch> {
    const batch = await (this.#ahead ?? this.#read());
    this.#ahead = batch.count === 0 || this.#isClosed ? undefined : this.#read();
    // The next call throws the error.
    this.#ahead?.catch(() => {});
    return batch;
  }

  async #read(): Promise<Batch> {
    const plan = this.#plan();
    return this.#toBatch(plan, await perform(plan));
  }

  #readSync(): Batch {
    const plan = this.#plan();
    return this.#toBatch(plan, performSync(plan));
  }

  #plan(): Plan {
    const plan = new Plan();
    const args = [this.#at, this.#root, this.#native.id, this.#batchSize, this.#skipped] as const;
    plan.add(calls.walk, args, { output: DATA_OUTPUT });
    this.#batchSize = BATCH;
    return plan;
  }

  #toBatch({ steps }: Plan, outcome: Outcome): Batch {
    if (outcome instanceof StepFailure) throw explainWalk(this.#shown, outcome.errno);
    const step = steps[0] as Step;
    const count = outcome.result(step);
    return { count, records: count === 0 ? Buffer.alloc(0) : outcome.data(step) };
  }

  /**
   * Moves to the next entry of the batch. Returns false at its end; `more` then reads another batch.
   *
   * @throws {OverlayError} `'layer-changed'` if another program has moved a directory away, so the walk cannot continue
   */
  override advance(): boolean {
    while (super.advance()) {
      this.#number++;
      const { depth } = this;
      if (this.isBrokenOff) throw explainWalk(this.#shown, this.error, this.#parents[depth] ?? '');
      if (depth > this.#skipDepth) continue;
      this.#skipDepth = Number.POSITIVE_INFINITY;
      this.#skipped = 0;
      this.#enter(depth);
      return true;
    }
    return false;
  }

  #enter(depth: number): void {
    if (depth > 0) {
      this.#name = super.name;
      this.#path = below(this.#parents[depth - 1] as string, this.#name);
      this.#pathIsAscii = (this.#areAscii[depth - 1] as boolean) && this.isAscii;
    }
    if (this.type === k.S_IFDIR) {
      this.#parents[depth] = this.#path;
      this.#areAscii[depth] = this.#pathIsAscii;
    }
  }

  /** The path below the root, one character for each byte; empty for the root. */
  get path(): string {
    return this.#path;
  }

  override get name(): string {
    return this.#name;
  }

  get hasAsciiPath(): boolean {
    return this.#pathIsAscii;
  }

  /** Skips the contents of the current entry, a directory. */
  skip(): void {
    this.#skipDepth = this.depth;
    this.#skipped = this.#number;
  }

  /** Returns an OverlayError for the `error` of the current entry. */
  failure(): OverlayError {
    return explainWalk(this.#shown, this.error, this.#path);
  }

  /** Ends the walk. A second call has no effect. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    addon().closeWalk(this.#native.id);
  }
}

/** Returns the remedy for a directory that this process may not read: its owner may change the mode. */
function toReadable(path: Path): string {
  try {
    if (lstatSync(Buffer.from(toBytes(path))).uid === process.geteuid?.())
      return `make it readable: chmod u+rx ${quotePath(path)}`;
  } catch {
    // A directory above it is the cause.
  }
  return 'run as its owner or as root';
}

/** Explains why a tree could not be read. `inside` is the path below its root. */
export function explainWalk(root: Path, errno: number, inside = ''): OverlayError {
  const path = inside === '' ? root : joinPath(root, toBytePath(inside));
  const shown = quotePath(path);
  const name = `the directory ${shown}`;
  const moved: Verdict = { reason: 'layer-changed', what: `${name} was moved away while it was read` };
  const denied: Verdict = {
    reason: 'path-inaccessible',
    what: `this process may not read ${shown}`,
    hint: errno === e.EACCES ? toReadable(path) : 'run as its owner or as root',
  };
  const own: Readonly<Record<number, Verdict>> = {
    [e.ENOTDIR]: { reason: 'path-not-directory', what: `${shown} is not a directory` },
    [e.EACCES]: denied,
    [e.EPERM]: denied,
    [e.ESTALE]: moved,
    [e.EXDEV]: moved,
    // The walk has seen a directory there.
    ...(inside !== '' && { [e.ENOENT]: moved, [e.ENOTDIR]: moved, [e.ELOOP]: moved }),
    [e.EAGAIN]: { reason: 'layer-changed', what: `${shown} changed during each attempt to read it` },
  };
  const verdict = own[errno] ?? explainErrno(errno, { name, purpose: `read ${shown}` });
  return new OverlayError({ errno, path: pathString(path), ...verdict });
}

/**
 * Describes single entries below a directory, in the order of the paths. An entry that does not exist has an `error`.
 * The path to an entry leads through no symbolic link and into no other mount.
 */
export function* examine(
  directory: Descriptor,
  paths: readonly string[],
  options: Pick<WalkOptions, 'attributes' | 'targets'> = {},
): Task<Records> {
  const plan = new Plan();
  const args = [directory, toFlags(options), encodePaths(paths)] as const;
  const step = plan.stepOf(plan.add(calls.examine, args, { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainWalk('.', outcome.errno);
  const records = new Records();
  records.load(outcome.data(step));
  return records;
}

/** Encodes paths for native/walk.cc. Each is its size, its bytes and a NUL, aligned to 4 bytes. */
function encodePaths(paths: readonly string[]): Buffer {
  const roomOf = ({ length }: string): number => (4 + length + 1 + 3) & ~3;
  let room = 0;
  for (const path of paths) room += roomOf(path);
  const bytes = Buffer.alloc(room);
  let at = 0;
  for (const path of paths) {
    bytes.writeUInt32LE(path.length, at);
    bytes.write(path, at + 4, 'latin1');
    at += roomOf(path);
  }
  return bytes;
}
