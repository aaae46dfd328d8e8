/** Layer archives unpacked: a stream of tar becomes a layer directory, or a plain one. */
import { checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { abortError, invalidArgumentType, invalidArgumentValue, OverlayError, outOfRange } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { onAbort } from '../kernel/on-abort.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { Slices } from '../kernel/slices.js';
import { run, type Task } from '../kernel/task.js';
import type { OperationKind } from '../native.js';
import {
  joinPath,
  type Path,
  type PathLike,
  pathString,
  quotePath,
  splitPath,
  toAbsolute,
  toBytes,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { CHUNK, ChunkMemory, type Compression, decode, detect, peek } from '../tar/compression.js';
import { Digester } from '../tar/digest.js';
import type { FoundEntry } from '../tar/entry.js';
import { invalidArchive } from '../tar/invalid.js';
import { TarReader } from '../tar/reader.js';
import { option, type Text, text } from '../text.js';
import { toBytePath } from '../trees/encodings.js';
import { toPaths } from '../trees/given.js';
import { isWhiteoutDevice, isWhiteoutEntry, readMarks, shownAttributes } from '../trees/marks.js';
import { findPath, findRoot, openLayers } from '../trees/stack.js';
import { Walker } from '../trees/walk.js';
import { type Bytes, type OperationFields, TreeWriter, WriteFailure, type WrittenXattr } from '../trees/write.js';
import { explainWrite } from '../trees/written.js';
import { opaqueName } from '../trees/xattrs.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { checkOwnerMaps, type MappedOwners, type OwnerMaps } from './owner-maps.js';
import { Directory, type Layout, Leaf, type Placed, Placement, Unseen } from './placement.js';

/** An archive: its path, its bytes, or a stream of them. */
export type ArchiveSource = string | URL | Uint8Array | AsyncIterable<Uint8Array>;

export interface ApplyProgress {
  /** Entries of the archive so far. */
  readonly entries: number;
  /** Bytes of the uncompressed archive so far. */
  readonly bytes: number;
  /** Bytes of the source so far. */
  readonly read: number;
  /** The size of the source, where it is known. */
  readonly total: number | undefined;
}

export interface ApplyOptions {
  /**
   * `'overlay'`: whiteouts and opaque marks of the archive become those of overlayfs. `'plain'`: they remove what is in
   * the directory. Default: `'overlay'`.
   */
  readonly layout?: Layout | undefined;
  /** Writes marks for mounts with `userxattr`: `user.overlay.*`. Default: false. */
  readonly userxattr?: boolean | undefined;
  /**
   * `'keep'` sets the owners of the archive, `'ignore'` leaves all files to the calling user, and maps replace the
   * archive's ids. Default: `'keep'` for root, else `'ignore'`.
   */
  readonly owners?: 'keep' | 'ignore' | OwnerMaps | undefined;
  /**
   * The layers below, the topmost first. A directory that the archive has no entry for, only for something in it, gets
   * owner, mode, time and attributes that it has there. Without them: 0755, root.
   */
  readonly lowerdir?: PathLike | readonly PathLike[] | undefined;
  /** The treatment of device nodes. Default: `'create'` for root, else `'skip'`. */
  readonly devices?: 'create' | 'skip' | 'fail' | undefined;
  /** The digest that the source must have: `sha256:` and 64 digits. */
  readonly expectedDigest?: string | undefined;
  /** The digest that the uncompressed archive must have. */
  readonly expectedDiffId?: string | undefined;
  /** Default: 4,000,000. */
  readonly maxEntries?: number | undefined;
  /** The limit on the uncompressed archive, and on the size of all files, holes included. Default: 1 TiB. */
  readonly maxBytes?: number | undefined;
  /** The most components of a path. Default: 1024. */
  readonly maxPathDepth?: number | undefined;
  /** The most bytes that one compressed byte may stand for, after the first 64 MiB. Default: 200. */
  readonly maxRatio?: number | undefined;
  /** Called after each chunk, about 2 MiB. */
  readonly onProgress?: ((progress: ApplyProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** `'end'` writes the file system back to its disk at the end, syncfs(2). Default: `'none'`. */
  readonly sync?: 'none' | 'end' | undefined;
}

export interface SkippedEntries {
  /**
   * `'device'`: by the option `devices`. `'aufs'`: files of aufs itself. `'attribute'`: the file system or the kernel
   * refuses an attribute. `'attribute-unread'`: an ACL with names of users. `'opaque-root'`: the whole layer hides what
   * is below; the kernel ignores this mark on the root, so mount the layer without lower layers.
   */
  readonly reason: 'device' | 'aufs' | 'attribute' | 'attribute-unread' | 'opaque-root';
  readonly count: number;
  /** The name of the first one in the archive, where it is known. */
  readonly first: string | undefined;
}

export interface LayerSummary {
  /** The number of entries in the archive. */
  readonly entries: number;
  /** The size of all files, in bytes. */
  readonly bytes: number;
  /** SHA-256 of the uncompressed archive, bytes after its end included: `sha256:` and 64 digits. */
  readonly diffId: string;
  /** SHA-256 of the archive as it is, compressed or not. */
  readonly digest: string;
  /** The size of the archive as it is, in bytes. */
  readonly size: number;
  readonly compression: Compression;
  /** The number of whiteouts in the archive. */
  readonly whiteouts: number;
  readonly skipped: readonly SkippedEntries[];
}

const known: ReadonlySet<string> = new Set<keyof ApplyOptions>([
  'layout',
  'userxattr',
  'owners',
  'devices',
  'expectedDigest',
  'expectedDiffId',
  'maxEntries',
  'maxBytes',
  'maxPathDepth',
  'maxRatio',
  'onProgress',
  'signal',
  'sync',
  'lowerdir',
]);

/** Files up to this size are one operation. */
const MOST_INLINE = 256 * 1024;
/** The ratio of compression counts after so many bytes. */
const RATIO_BEGINS = 64 * 2 ** 20;
/** Read without a look at the clock: at most 128 entries. */
const PIECE = 64 * 1024;

interface Checked {
  readonly layout: Layout;
  readonly userxattr: boolean;
  readonly owners: MappedOwners | undefined;
  readonly devices: 'create' | 'skip' | 'fail';
  readonly expectedDigest: string | undefined;
  readonly expectedDiffId: string | undefined;
  readonly maxEntries: number;
  readonly maxBytes: number;
  readonly maxPathDepth: number;
  readonly maxRatio: number;
  readonly onProgress: ((progress: ApplyProgress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
  readonly syncs: boolean;
  /** True for a directory that was made for this layer: its root is that of the layers below, as far as the archive has none. */
  readonly isNew: boolean;
  readonly lowers: () => readonly Path[] | Promise<readonly Path[]>;
}

function checkLimit(value: unknown, name: string, usual: number): number {
  if (value === undefined) return usual;
  if (typeof value !== 'number') throw invalidArgumentType(name, 'a number', value);
  if (!(value > 0)) throw outOfRange(name, 'a number above 0, or Infinity', String(value));
  return value;
}

function checkDigest(value: unknown, name: string): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'string') throw invalidArgumentType(name, 'a digest: "sha256:" and 64 digits', value);
  if (!/^sha256:[0-9a-f]{64}$/.test(value)) {
    throw invalidArgumentValue(name, value, 'must be "sha256:" and 64 digits of 0-9 and a-f');
  }
  return value;
}

function checkOwners(value: unknown, isRoot: boolean): Checked['owners'] {
  const keep = { uid: (id: number) => id, gid: (id: number) => id };
  if (value === undefined) return isRoot ? keep : undefined;
  if (typeof value === 'object' && value !== null) return checkOwnerMaps(value, 'outside');
  return checkWord(value, 'owners', ['keep', 'ignore']) === 'keep' ? keep : undefined;
}

function check(given: ApplyOptions | undefined): Checked {
  const options = toOptions(given, known);
  const isRoot = process.geteuid?.() === 0;
  const { userxattr, onProgress } = options;
  const lowers = toPaths(options.lowerdir, 'lowerdir');
  if (userxattr !== undefined && typeof userxattr !== 'boolean') {
    throw invalidArgumentType('userxattr', 'true or false', userxattr);
  }
  checkFunction(onProgress, 'onProgress');
  return {
    layout: checkWord(options.layout, 'layout', ['overlay', 'plain']) ?? 'overlay',
    userxattr: userxattr ?? false,
    owners: checkOwners(options.owners, isRoot),
    devices: checkWord(options.devices, 'devices', ['create', 'skip', 'fail']) ?? (isRoot ? 'create' : 'skip'),
    expectedDigest: checkDigest(options.expectedDigest, 'expectedDigest'),
    expectedDiffId: checkDigest(options.expectedDiffId, 'expectedDiffId'),
    maxEntries: checkLimit(options.maxEntries, 'maxEntries', 4e6),
    maxBytes: checkLimit(options.maxBytes, 'maxBytes', 2 ** 40),
    maxPathDepth: checkLimit(options.maxPathDepth, 'maxPathDepth', 1024),
    maxRatio: checkLimit(options.maxRatio, 'maxRatio', 200),
    onProgress,
    signal: checkSignal(options.signal),
    lowers: () => lowers,
    isNew: false,
    syncs: checkWord(options.sync, 'sync', ['none', 'end']) === 'end',
  };
}

// ------------------------------------------------------------------------------------------------------- sources

interface Source {
  readonly chunks: AsyncIterable<Uint8Array>;
  readonly total: number | undefined;
  /** Releases what the source holds, whether it was read or not. */
  close(): void | Promise<void>;
}

/** Reads at once: Node drops what a child process has written when it has ended and nobody reads yet. */
function beginReading(
  source: AsyncIterable<unknown>,
): Pick<Source, 'close'> & { readonly all: AsyncIterable<unknown> } {
  const iterator = source[Symbol.asyncIterator]();
  const first = iterator.next();
  // Its error comes out when the first chunk is asked for.
  first.catch(() => {});
  async function* read(): AsyncGenerator<unknown> {
    for (let next = await first; !next.done; next = await iterator.next()) yield next.value;
  }
  const end = (): void => {
    (source as { destroy?: () => void }).destroy?.();
    // A chunk that never comes would keep this waiting.
    iterator.return?.()?.catch?.(() => {});
  };
  return { all: read(), close: end };
}

/**
 * Copies the caller's bytes into chunks of our own: threads use a chunk after the next one has been asked for, and the
 * caller may do with its memory what it likes.
 */
async function* ofCaller(
  source: AsyncIterable<unknown> | readonly Uint8Array[],
  memory: ChunkMemory,
): AsyncGenerator<Uint8Array> {
  let gathered: Buffer = Buffer.alloc(0);
  let end = 0;
  for await (const bytes of source) {
    if (!(bytes instanceof Uint8Array)) throw invalidArgumentType('source', 'a stream of bytes', bytes);
    for (let at = 0; at < bytes.length; ) {
      if (end === gathered.length) [gathered, end] = [memory.take(), 0];
      const part = bytes.subarray(at, at + gathered.length - end);
      gathered.set(part, end);
      at += part.length;
      end += part.length;
      if (end === gathered.length) yield gathered;
    }
  }
  if (end < gathered.length) yield gathered.subarray(0, end);
}

/** A file that is read ahead by one chunk. */
class SourceFile implements Source {
  readonly chunks = this.#read();
  readonly total: number | undefined;
  readonly #path: Path;
  readonly #descriptor: number;
  readonly #memory: ChunkMemory;
  #ahead: Promise<Uint8Array> | undefined;

  constructor(path: Path, descriptor: number, total: number | undefined, memory: ChunkMemory) {
    this.#path = path;
    this.#descriptor = descriptor;
    this.total = total;
    this.#memory = memory;
  }

  static open(path: Path, memory: ChunkMemory): Promise<SourceFile> {
    const { fstat, open: openFile } = process.getBuiltinModule('node:fs');
    return new Promise((resolve, reject) => {
      openFile(Buffer.from(toBytes(path)), 'r', (error, fd) => {
        if (error !== null) {
          reject(explainSource(error, path));
          return;
        }
        fstat(fd, (failed, found) => {
          resolve(new SourceFile(path, fd, failed === null && found.isFile() ? found.size : undefined, memory));
        });
      });
    });
  }

  #next(): Promise<Uint8Array> {
    const { read } = process.getBuiltinModule('node:fs');
    return new Promise((resolve, reject) => {
      read(this.#descriptor, this.#memory.take(), 0, CHUNK, null, (error, size, buffer) => {
        if (error === null) resolve(buffer.subarray(0, size));
        else reject(explainSource(error, this.#path));
      });
    });
  }

  async *#read(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const chunk = await (this.#ahead ?? this.#next());
      this.#ahead = undefined;
      if (chunk.length === 0) return;
      this.#ahead = this.#next();
      // Its error comes out when the chunk is asked for.
      this.#ahead.catch(() => {});
      yield chunk;
    }
  }

  /** A read under way still uses the descriptor. */
  async close(): Promise<void> {
    const { close: closeFile } = process.getBuiltinModule('node:fs');
    const release = (): Promise<void> => new Promise((resolve) => closeFile(this.#descriptor, () => resolve()));
    if (this.#ahead === undefined) await release();
    // It may never end, where the file is a pipe.
    else this.#ahead.then(release, release);
  }
}

function explainSource(error: NodeJS.ErrnoException, path: Path): unknown {
  const { errno = 0, syscall } = error;
  const fields = { errno: -errno, syscall, path: pathString(path) };
  const shown = quotePath(path);
  if (errno === -e.ENOENT)
    return new OverlayError({ ...fields, reason: 'path-missing', what: `the archive ${shown} does not exist` });
  if (errno === -e.EISDIR) {
    return new OverlayError({
      ...fields,
      reason: 'archive-invalid',
      what: `${shown} is a directory, not an archive`,
      hint: 'name a tar file',
    });
  }
  return new OverlayError(
    { ...fields, reason: 'path-inaccessible', what: `the archive ${shown} cannot be read` },
    { cause: error },
  );
}

/** Opens a path. An abort ends the wait for a program that writes to a pipe. */
async function openPath(path: Path, memory: ChunkMemory, signal: AbortSignal | undefined): Promise<SourceFile> {
  const { stat } = process.getBuiltinModule('node:fs');
  const isPipe = (): Promise<boolean> =>
    new Promise((resolve) => stat(Buffer.from(toBytes(path)), (_, found) => resolve(found?.isFIFO() === true)));
  if (signal === undefined || !(await isPipe())) return SourceFile.open(path, memory);
  const opening = SourceFile.open(path, memory);
  const { aborted, forget } = rejectOnAbort(signal);
  try {
    return await Promise.race([opening, aborted]);
  } catch (error) {
    await releaseReader(path, opening);
    throw error;
  } finally {
    forget();
  }
}

/** Opens a pipe for writing, so that Node's thread that waits in open(2), or is about to, goes on. */
async function releaseReader(path: Path, opening: Promise<SourceFile>): Promise<void> {
  let isOver = false;
  const close = async (): Promise<void> => {
    await (await opening).close();
    isOver = true;
  };
  close().catch(() => {
    isOver = true;
  });
  while (!isOver) {
    const plan = new Plan();
    plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_WRONLY | k.O_NONBLOCK | k.O_CLOEXEC, 0]);
    const outcome = await perform(plan);
    // No reader waits yet.
    if (outcome instanceof StepFailure && outcome.errno !== e.ENXIO) return;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Returns a promise that rejects when the signal aborts. */
function rejectOnAbort(signal: AbortSignal): { readonly aborted: Promise<never>; readonly forget: () => void } {
  let forget = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    forget = onAbort(signal, () => reject(abortError(signal)));
    if (signal.aborted) reject(abortError(signal));
  });
  aborted.catch(() => {});
  return { aborted, forget };
}

const isStream = (source: unknown): source is AsyncIterable<unknown> =>
  typeof source === 'object' && source !== null && Symbol.asyncIterator in source;

/** Opens a source, whose chunks are in this memory. */
async function open(source: unknown, memory: ChunkMemory, signal?: AbortSignal): Promise<Source> {
  if (source instanceof Uint8Array)
    return { chunks: ofCaller([source], memory), total: source.length, close: () => {} };
  if (isStream(source)) {
    const { all, close: end } = beginReading(source);
    return { chunks: ofCaller(all, memory), total: undefined, close: end };
  }
  if (typeof source !== 'string' && !(source instanceof URL)) {
    throw invalidArgumentType('source', 'a path, bytes, or a stream of bytes', source);
  }
  return openPath(toAbsolute(toPath(source, 'source')), memory, signal);
}

// ------------------------------------------------------------------------------------------------------ the target

interface Target {
  readonly path: Path;
  readonly parent: Descriptor;
  readonly root: Descriptor;
  /** The name that the directory has until it is complete; undefined if it existed before. */
  readonly temporary: Path | undefined;
}

const O_PATH_DIRECTORY = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;

/** Opens the directory, or makes one beside its place. */
async function openTarget(path: Path): Promise<Target> {
  const existing = new Plan();
  const root = existing.add(calls.openat2, [k.AT_FDCWD, path, O_PATH_DIRECTORY, 0], { keep: true, output: 0 });
  const found = await perform(existing);
  if (!(found instanceof StepFailure)) {
    return { path, parent: -1, root: found.result(existing.stepOf(root)), temporary: undefined };
  }
  if (found.errno !== e.ENOENT) throw explainTarget(path, found.errno);
  await refuseDangling(path);
  const [above, name] = splitPath(path);
  const { randomBytes } = process.getBuiltinModule('node:crypto');
  const temporary = `.overlayfs-${randomBytes(6).toString('hex')}`;
  const plan = new Plan();
  const parent = plan.add(calls.openat2, [k.AT_FDCWD, above, O_PATH_DIRECTORY, 0], { keep: true, output: 0 });
  plan.add(calls.mkdirat, [parent, temporary, 0o755], { undo: true });
  const made = plan.add(calls.openat2, [parent, temporary, O_PATH_DIRECTORY | k.O_NOFOLLOW, 0], {
    keep: true,
    output: 0,
  });
  const outcome = await perform(plan);
  if (outcome instanceof StepFailure) throw explainTarget(above, outcome.errno, name);
  return {
    path,
    parent: outcome.result(plan.stepOf(parent)),
    root: outcome.result(plan.stepOf(made)),
    temporary,
  };
}

/** Refuses a symbolic link in the place of a directory that is to be made. */
async function refuseDangling(path: Path): Promise<void> {
  const plan = new Plan();
  plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_NOFOLLOW | k.O_CLOEXEC, 0]);
  if ((await perform(plan)) instanceof StepFailure) return;
  const what = `${quotePath(path)} is a symbolic link that leads to nothing`;
  const hint = 'make the directory that it leads to, or remove it';
  throw new OverlayError({ errno: e.EEXIST, reason: 'path-exists', what, path: pathString(path), hint });
}

function explainTarget(path: Path, errno: number, name?: Path): OverlayError {
  const shown = quotePath(path);
  const own: Readonly<Record<number, Verdict>> = {
    [e.ENOTDIR]: { reason: 'path-not-directory', what: `${shown} is not a directory` },
    [e.EACCES]: { reason: 'permission-denied', what: `this process may not write to ${shown}` },
    [e.EPERM]: { reason: 'permission-denied', what: `this process may not write to ${shown}` },
  };
  const verdict = own[errno] ?? explainErrno(errno, { name: `the directory ${shown}`, purpose: `write to ${shown}` });
  return new OverlayError({ errno, path: pathString(name === undefined ? path : joinPath(path, name)), ...verdict });
}

/** Gives the complete directory its name. */
async function finishTarget({ path, parent, temporary }: Target): Promise<void> {
  if (temporary === undefined) return;
  const [, name] = splitPath(path);
  const plan = new Plan();
  plan.add(calls.renameat2, [parent, temporary, parent, name, k.RENAME_NOREPLACE]);
  let outcome = await perform(plan);
  if (outcome instanceof StepFailure && outcome.errno === e.EINVAL) {
    // The file system knows no flags. An empty directory in its place is the only one that this replaces.
    const again = new Plan();
    again.add(calls.renameat2, [parent, temporary, parent, name, 0]);
    outcome = await perform(again);
  }
  if (!(outcome instanceof StepFailure)) return;
  const what = `${quotePath(path)} was made by another program meanwhile`;
  throw new OverlayError({
    errno: outcome.errno,
    reason: 'path-exists',
    what,
    path: pathString(path),
    hint: 'remove it, or apply the layer again',
  });
}

/** Removes a directory that has not become complete. */
async function dropTarget({ parent, temporary }: Target): Promise<void> {
  if (temporary === undefined) return;
  const plan = new Plan();
  plan.add(calls.remove, [parent, temporary, 0, 0, 0, 0], { tolerate: 'any' });
  await perform(plan);
}

/** Adds the entries of a directory from before to the picture; with `isWhole`, those of all directories in it. */
async function see(
  [top, inside]: Unseen['directories'][number],
  isWhole: boolean,
  { root, path }: Target,
  { userxattr, signal }: Checked,
): Promise<void> {
  const space = userxattr ? 'user' : 'trusted';
  const walker = new Walker(toBytePath(inside), {
    at: root,
    atPath: path,
    attributes: 'directories',
    targets: true,
    unsorted: true,
    oneLevel: !isWhole,
  });
  const above: Directory[] = [top];
  try {
    while (await run(walker.more())) {
      if (signal?.aborted) throw abortError(signal);
      while (walker.advance()) {
        const { depth, type, name } = walker;
        const parent = above[depth - 1];
        // A directory that cannot be read is an error where it is needed.
        if (walker.error !== 0 && (isWhole || parent === undefined || type !== k.S_IFDIR)) throw walker.failure();
        if (type === k.S_IFDIR) {
          const directory = parent === undefined ? top : new Directory(false, parent.hides);
          above[depth] = directory;
          // This layer may have changed it since it was found.
          if (parent === undefined && inside !== '') continue;
          const marks = readMarks(walker.attributes, space);
          if (marks.opaque === 'y') directory.isOpaque = directory.hides = true;
          directory.before = walker.mtime;
          if (walker.hasAttributes) {
            directory.xattrs = [...walker.attributes.keys()].filter((name) => !isOverlays(name) && name !== SELINUX);
          }
          directory.isSeen = isWhole || walker.isOtherMount;
          parent?.entries.set(name, directory);
        } else if (type === k.S_IFLNK) {
          parent?.entries.set(name, new Leaf('symlink', false, walker.target.toString('latin1')));
        } else {
          const isWhiteout = isWhiteoutDevice(walker) || isWhiteoutEntry(walker, readMarks(walker.attributes, space));
          parent?.entries.set(name, isWhiteout ? oldWhiteout : oldOther);
        }
      }
    }
    top.isSeen = true;
  } finally {
    walker.close();
  }
}

const oldWhiteout = new Leaf('whiteout', false);
const oldOther = new Leaf('other', false);

// ------------------------------------------------------------------------------------------------------ unpacking

/** They become those of an operation without a copy, which would take longer than the rest. */
type WritableFields = { -readonly [Name in keyof OperationFields]: OperationFields[Name] } & { readonly mode: number };

/** A file whose data is coming. */
interface Open {
  readonly entry: FoundEntry;
  readonly path: string;
  readonly replaces: boolean;
  /** The data so far of a small file: parts that do not follow each other in memory. A large one is written as it comes. */
  readonly parts: Buffer[] | undefined;
}

const MARK = /^(trusted|user)\.overlay\./;
/** A mark that counts, not an escaped one. */
const isOverlays = (name: string): boolean => /^(trusted|user)\.overlay\.(?!overlay\.)/.test(name);
/** The kernel gives each file one. */
const SELINUX = 'security.selinux';

/** A mark in an archive would plant a redirect or hide files; with one level more it is plain data (Linux 6.7). */
const escapeMark = (name: string): string => name.replace(MARK, '$1.overlay.overlay.');

/** The part of the reader's work that writes. */
class Unpacking {
  readonly placement: Placement;
  readonly #writer: TreeWriter;
  readonly #checked: Checked;
  readonly #skipped = new Map<SkippedEntries['reason'], { count: number; first: string | undefined }>();
  /** The entries that operations come from: by operation, the byte at which the entry begins. */
  readonly #offsets: number[] = [];
  #open: Open | undefined;
  /** Data of a large file that is not passed on yet: more may follow it in memory. */
  #pending: { bytes: Buffer; readonly position: number } | undefined;
  #offset = 0;
  /** Directories that the next entry needs. It waits for them, and all after it. */
  unseen: Unseen | undefined;
  readonly #waiting: (() => void)[] = [];
  entries = 0;
  bytes = 0;
  whiteouts = 0;

  constructor(writer: TreeWriter, checked: Checked) {
    this.#writer = writer;
    this.#checked = checked;
    this.placement = new Placement(this, {
      layout: checked.layout,
      opaqueName: opaqueName(checked.userxattr),
      maxPathDepth: checked.maxPathDepth,
      ownerOfMissing: ownerOfMissing(checked.owners),
      describe: (entry) => this.#describe(entry),
    });
  }

  /** As the placement and this class pass operations on. */
  add(kind: OperationKind, path: Bytes, fields?: OperationFields): void {
    this.#offsets.push(this.#offset);
    this.#writer.add(kind, path, fields);
  }

  /** The number of operations so far. */
  get operations(): number {
    return this.#offsets.length;
  }

  /** The byte at which the entry of an operation begins. */
  offsetOf(operation: number): number {
    return this.#offsets[operation] ?? this.#offset;
  }

  /** Goes on when the unseen directories are in the picture. */
  resume(): void {
    this.unseen = undefined;
    while (this.unseen === undefined && this.#waiting.length > 0) this.#waiting.shift()?.();
  }

  entry(entry: FoundEntry): void {
    if (this.unseen !== undefined) {
      this.#waiting.push(() => this.entry(entry));
      return;
    }
    const { maxEntries, maxBytes, devices } = this.#checked;
    this.#offset = entry.offset;
    this.entries++;
    this.bytes += entry.size;
    const limit = (rule: Text): OverlayError => invalidArchive(entry.offset, entry.name, rule, 'archive-limit');
    if (this.entries > maxEntries) throw limit(text`it is one more than ${option('maxEntries')} allows, ${maxEntries}`);
    if (this.bytes > maxBytes)
      throw limit(text`with it, the files have more bytes than ${option('maxBytes')} allows, ${maxBytes}`);
    if (entry.unread.length > 0) this.#skip('attribute-unread', entry, entry.unread.length);
    const isDevice = entry.type === 'block' || (entry.type === 'character' && (entry.major !== 0 || entry.minor !== 0));
    if (isDevice && devices !== 'create') {
      if (devices === 'fail')
        throw invalidArchive(entry.offset, entry.name, text`it is a device, refused by ${option('devices', 'fail')}`);
      this.#skip('device', entry);
      return;
    }
    this.#place(entry);
  }

  #place(entry: FoundEntry): void {
    let placed: Placed;
    try {
      placed = this.placement.place(entry);
    } catch (error) {
      if (!(error instanceof Unseen)) throw error;
      this.unseen = error;
      this.#waiting.unshift(() => this.#place(entry));
      return;
    }
    if (placed.action === 'whiteout') this.whiteouts++;
    else if (placed.action === 'ignored') this.#skip('aufs', entry);
    else if (placed.action === 'opaque-root') this.#skip('opaque-root', entry);
    else if (placed.action === 'file') this.#begin(entry, placed.path, placed.replaces);
  }

  #skip(reason: SkippedEntries['reason'], { name }: FoundEntry, count = 1): void {
    const so = this.#skipped.get(reason);
    if (so === undefined) this.#skipped.set(reason, { count, first: Buffer.from(name, 'latin1').toString() });
    else so.count += count;
  }

  #describe(entry: FoundEntry): WritableFields {
    const { owners } = this.#checked;
    const { mode, mtime } = entry;
    const xattrs = entry.xattrs.size === 0 ? undefined : this.#xattrsOf(entry);
    if (owners === undefined) return { mode, mtime, xattrs };
    const [uid, gid] = [owners.uid(entry.uid), owners.gid(entry.gid)];
    // chown(2) takes the greatest number as "leave it".
    for (const [name, id, given] of [
      ['user', uid, entry.uid],
      ['group', gid, entry.gid],
    ] as const) {
      if (id >= 0 && id < 0xffffffff) continue;
      const rule = Number.isNaN(id)
        ? text`${option('owners')} does not map its ${name} ${given}`
        : `its ${name} ${given} is no id`;
      throw invalidArchive(entry.offset, entry.name, rule);
    }
    return { mode, uid, gid, mtime, xattrs };
  }

  #xattrsOf({ xattrs, type, offset, name: entryName }: FoundEntry): WrittenXattr[] {
    const isPrivileged = this.#checked.owners !== undefined;
    return Array.from(xattrs, ([given, value]) => {
      const name = escapeMark(given);
      if (name.length > 255) throw invalidArchive(offset, entryName, `an attribute has a name of ${name.length} bytes`);
      const isTrusted = name.startsWith('trusted.');
      const isUsers = name.startsWith('user.') && type !== 'file' && type !== 'directory';
      return {
        name,
        value,
        toleratesUnsupported: isTrusted,
        toleratesDenied: isTrusted || isUsers || (!isPrivileged && name.startsWith('security.')),
      };
    });
  }

  #begin(entry: FoundEntry, path: string, replaces: boolean): void {
    const isSmall = entry.size <= MOST_INLINE && entry.segments === undefined;
    this.#open = { entry, path, replaces, parts: isSmall ? [] : undefined };
    if (isSmall) return;
    // Its owner has to be able to open it again, whatever its mode.
    this.add('file', path, { mode: 0o600, ...(replaces && { flags: ['replace'] }) });
  }

  data(bytes: Buffer, position: number): void {
    if (this.unseen !== undefined) {
      this.#waiting.push(() => this.data(bytes, position));
      return;
    }
    if (this.#open === undefined) return;
    const { path, parts } = this.#open;
    if (parts !== undefined) {
      addPart(parts, bytes);
      return;
    }
    const joined = this.#pending && join(this.#pending.bytes, bytes, this.#pending.position, position);
    if (this.#pending !== undefined && joined !== undefined) this.#pending.bytes = joined;
    else {
      this.#flush(path);
      this.#pending = { bytes, position };
    }
  }

  #flush(path: string): void {
    if (this.#pending === undefined) return;
    const { bytes, position } = this.#pending;
    this.#pending = undefined;
    this.add('data', path, { data: bytes, number: position });
  }

  finish(): void {
    if (this.unseen !== undefined) {
      this.#waiting.push(() => this.finish());
      return;
    }
    if (this.#open === undefined) return;
    const { entry, path, replaces, parts } = this.#open;
    this.#open = undefined;
    const fields = this.#describe(entry);
    if (parts !== undefined) {
      const data = parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
      fields.data = data;
      if (replaces) fields.flags = ['replace'];
      this.add('file', path, fields);
      return;
    }
    this.#flush(path);
    if (entry.segments !== undefined) this.add('truncate', path, { number: entry.size });
    this.add('metadata', path, fields);
  }

  /** Gives directories without an entry the metadata that the layers below have for them. */
  *describeImplied(lowers: readonly Path[]): Task<void> {
    const { userxattr } = this.#checked;
    const { implied } = this.placement;
    if (lowers.length === 0 || implied.size === 0) return;
    const stack = yield* openLayers(lowers, { space: userxattr ? 'user' : 'trusted' });
    try {
      for (const [directory, path] of implied) {
        // Another entry may have taken its place.
        if (!this.placement.holds(directory, path)) continue;
        const [top] = path === '' ? [yield* findRoot(stack)] : yield* findPath(stack, path);
        if (top?.type !== k.S_IFDIR) continue;
        const xattrs = Array.from(shownAttributes(top.attributes, stack.space), ([name, value = Buffer.alloc(0)]) => ({
          name,
          value,
        }));
        const { mode, uid, gid, mtime } = top;
        const owner = this.#checked.owners === undefined ? {} : { uid, gid };
        this.add('metadata', path, { mode: mode & 0o7777, ...owner, xattrs });
        directory.mtime = mtime;
        if (this.#writer.isFull) yield* this.#writer.send();
      }
    } finally {
      stack.close();
    }
  }

  /** Ends with a chunk, which is about to be overwritten. Keeps what has come of a small file. */
  keep(): void {
    if (this.#open === undefined) return;
    const { parts, path } = this.#open;
    this.#flush(path);
    if (parts === undefined || parts.length === 0) return;
    parts[parts.length - 1] = Buffer.from(parts[parts.length - 1] as Buffer);
  }

  skipped(): SkippedEntries[] {
    const all = Array.from(this.#skipped, ([reason, rest]) => ({ reason, ...rest }));
    const { tolerated } = this.#writer.totals;
    return tolerated === 0 ? all : [...all, { reason: 'attribute', count: tolerated, first: undefined }];
  }
}

/** Returns both as one, if the second follows the first in memory and in the file. */
function join(first: Buffer, second: Buffer, position = 0, next = first.length): Buffer | undefined {
  const follows = first.buffer === second.buffer && first.byteOffset + first.length === second.byteOffset;
  if (!follows || position + first.length !== next) return undefined;
  return Buffer.from(first.buffer, first.byteOffset, first.length + second.length);
}

function addPart(parts: Buffer[], bytes: Buffer): void {
  const last = parts.at(-1);
  const joined = last && join(last, bytes);
  if (joined === undefined) parts.push(bytes);
  else parts[parts.length - 1] = joined;
}

/** Root, as far as it is mapped. */
function ownerOfMissing(owners: Checked['owners']): { uid?: number; gid?: number } {
  if (owners === undefined) return {};
  const [uid, gid] = [owners.uid(0), owners.gid(0)];
  return { ...(uid >= 0 && { uid }), ...(gid >= 0 && { gid }) };
}

function mismatch(name: string, expected: string, got: string): OverlayError {
  const what = text`the archive has the digest ${got}, and ${option(name)} is ${expected}`;
  return new OverlayError({ errno: e.EINVAL, reason: 'digest-mismatch', what });
}

/** Ends with an error as soon as the signal aborts, even if the next chunk never comes. */
async function* untilAborted(chunks: AsyncIterable<Uint8Array>, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]();
  if (signal === undefined) {
    yield* { [Symbol.asyncIterator]: () => iterator };
    return;
  }
  const { aborted, forget } = rejectOnAbort(signal);
  let isDone = false;
  try {
    while (!isDone) {
      const next = await Promise.race([iterator.next(), aborted]);
      if (next.done) isDone = true;
      else yield next.value;
    }
  } finally {
    forget();
    // A chunk that never comes would keep this waiting.
    if (!isDone) iterator.return?.()?.catch?.(() => {});
  }
}

async function unpack(source: Source, memory: ChunkMemory, target: Target, checked: Checked): Promise<LayerSummary> {
  const { signal, onProgress, maxBytes, maxRatio } = checked;
  const writer = new TreeWriter(target.root, { signal, lends: true });
  const unpacking = new Unpacking(writer, checked);
  const { root } = unpacking.placement;
  if (target.temporary === undefined && !checked.isNew) await see([root, ''], false, target, checked);
  else unpacking.placement.implied.set(root, '');
  // The umask may have taken bits of its mode.
  if (target.temporary !== undefined) unpacking.add('metadata', '', { mode: 0o755, ...ownerOfMissing(checked.owners) });
  const reader = new TarReader(unpacking);
  const intake = new Digester();
  const [start, all] = await peek(untilAborted(intake.pass(source.chunks, true), signal));
  const compression = detect(start);
  // Both digests of a plain archive are the same.
  const plain = compression === 'none' ? undefined : new Digester();
  const chunks = compression === 'none' ? all : decode(all, compression, memory);
  let bytes = 0;
  const slices = new Slices();
  const take = (piece: Uint8Array): void => {
    bytes += piece.length;
    const limit = (rule: Text): OverlayError => invalidArchive(bytes, undefined, rule, 'archive-limit');
    if (bytes > maxBytes) throw limit(text`it has more bytes than ${option('maxBytes')} allows, ${maxBytes}`);
    if (plain !== undefined && bytes > RATIO_BEGINS && bytes > maxRatio * intake.size) {
      throw limit(text`its ratio of compression is above ${maxRatio}, the limit that ${option('maxRatio')} sets`);
    }
    reader.write(piece);
  };
  try {
    for await (const chunk of untilAborted(chunks, signal)) {
      await plain?.update(chunk);
      for (let at = 0; at < chunk.length; at += PIECE) {
        take(chunk.subarray(at, at + PIECE));
        for (; unpacking.unseen !== undefined; unpacking.resume()) {
          const { directories, isWhole } = unpacking.unseen;
          for (const directory of directories) await see(directory, isWhole, target, checked);
        }
        if (writer.isFull) await run(writer.send());
        if (slices.isOver()) await run(slices.pause());
      }
      unpacking.keep();
      const { operations } = unpacking;
      const end = bytes;
      const digester = plain ?? intake;
      memory.give(chunk, () => writer.totals.operations >= operations && digester.isDone(end));
      onProgress?.({ entries: unpacking.entries, bytes, read: intake.size, total: source.total });
    }
    reader.end();
    await run(unpacking.describeImplied(await checked.lowers()));
    for (const [path, metadata] of unpacking.placement.directories()) {
      writer.addLast(path, metadata);
      if (slices.isOver()) await run(slices.pause());
    }
    await run(writer.finish());
    if (checked.syncs) {
      unpacking.add('sync', '');
      await run(writer.finish());
    }
  } catch (error) {
    await run(writer.stop());
    if (!(error instanceof WriteFailure)) throw error;
    throw explainWrite(error, target.path, { offset: unpacking.offsetOf(writer.totals.operations) });
  }
  const digest = await intake.digest();
  const diffId = (await plain?.digest()) ?? digest;
  const { expectedDigest = digest, expectedDiffId = diffId } = checked;
  if (digest !== expectedDigest) throw mismatch('expectedDigest', expectedDigest, digest);
  if (diffId !== expectedDiffId) throw mismatch('expectedDiffId', expectedDiffId, diffId);
  return {
    entries: unpacking.entries,
    bytes: unpacking.bytes,
    diffId,
    digest,
    size: intake.size,
    compression,
    whiteouts: unpacking.whiteouts,
    skipped: unpacking.skipped(),
  };
}

/**
 * Unpacks a layer archive into a directory: a tar archive, plain or compressed with gzip or zstd, which its first bytes
 * tell. Whiteouts (`.wh.NAME`) and opaque marks (`.wh..wh..opq`) become those of overlayfs, or with `layout: 'plain'`
 * remove what is there. docs/layers.md has all rules.
 *
 * A directory that does not exist is made under a temporary name, and gets its own when it is complete. One that exists
 * is written into; after a failure it keeps what was written, and `removeLayer` removes it. Nothing outside the
 * directory is made, changed or read, whatever the archive says: openat2(2) with RESOLVE_BENEATH (5.6), or a walk by
 * names.
 *
 * @throws {OverlayError} `reason` is `'archive-invalid'`, `'archive-limit'`, `'digest-mismatch'`, `'path-missing'`,
 * `'path-not-directory'`, `'permission-denied'`, `'xattr-denied'`, `'out-of-space'`, `'read-only'` or `'layer-changed'`
 * @throws {Error} `ABORT_ERR` when the signal aborts
 */
export async function applyLayer(source: ArchiveSource, dir: PathLike, options?: ApplyOptions): Promise<LayerSummary> {
  return apply(source, dir, check(options));
}

/**
 * Unpacks a layer archive into an empty directory, made for it, over layers that may be made meanwhile: `lowers` is
 * called at the end, and only there does the layer need them.
 */
export async function applyLayerOver(
  source: ArchiveSource,
  dir: PathLike,
  options: ApplyOptions,
  lowers: () => Promise<readonly Path[]>,
): Promise<LayerSummary> {
  return apply(source, dir, { ...check(options), isNew: true, lowers });
}

async function apply(source: ArchiveSource, dir: PathLike, checked: Checked): Promise<LayerSummary> {
  const path = withoutTrailingSlashes(toAbsolute(toPath(dir, 'dir')));
  if (checked.signal?.aborted) throw abortError(checked.signal);
  const memory = new ChunkMemory();
  const opened = await open(source, memory, checked.signal);
  let target: Target | undefined;
  try {
    // They are needed at the end, but a wrong path is an error before anything is written.
    if (!checked.isNew) (await run(openLayers(await checked.lowers()))).close();
    target = await openTarget(path);
    const summary = await unpack(opened, memory, target, checked);
    await finishTarget(target);
    return summary;
  } catch (error) {
    if (target !== undefined) await dropTarget(target);
    throw error;
  } finally {
    await opened.close();
    if (target !== undefined) {
      close({ descriptor: target.root });
      if (target.parent >= 0) close({ descriptor: target.parent });
    }
  }
}

/**
 * Yields the entries of an archive, those of a chunk at a time. The layer is not checked: only what no archive may say is
 * an error.
 */
export async function* readEntries(source: ArchiveSource): AsyncGenerator<FoundEntry[]> {
  const opened = await open(source, new ChunkMemory());
  try {
    let found: FoundEntry[] = [];
    const reader = new TarReader({ entry: (entry) => found.push(entry), data: () => {}, finish: () => {} });
    const [start, all] = await peek(opened.chunks);
    const compression = detect(start);
    for await (const chunk of compression === 'none' ? all : decode(all, compression)) {
      reader.write(chunk);
      if (found.length > 0) yield found;
      found = [];
    }
    reader.end();
  } finally {
    await opened.close();
  }
}
