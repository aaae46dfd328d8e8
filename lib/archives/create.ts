/** Layer directories packed: a stream of tar that says what an upper changes. */
import type { Readable } from 'node:stream';
import { checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import { EINVAL } from '../errnos.js';
import { abortError, conflictingOptions, invalidArgumentType, OverlayError, outOfRange } from '../errors.js';
import * as k from '../kernel/constants.js';
import { Slices } from '../kernel/slices.js';
import { run, type Task } from '../kernel/task.js';
import { joinPath, type Path, type PathLike, pathString, quotePath, toPath } from '../paths.js';
import type { Progress } from '../progress.js';
import { withResolvers } from '../promises.js';
import type { Reason } from '../reasons.js';
import { CHUNK, type Compression, encode, levels } from '../tar/compression.js';
import { Digester } from '../tar/digest.js';
import { type EntryType, type Moment, NO_XATTRS } from '../tar/entry.js';
import { END_OF_ARCHIVE, encodeEntry } from '../tar/writer.js';
import { either, option, type Text, text } from '../text.js';
import { below, comparePaths, toBytePath } from '../trees/encodings.js';
import { type GivenLayers, type Layers, toLayers, upperOf } from '../trees/given.js';
import { IndexedFiles } from '../trees/indexed.js';
import { isWhiteoutDevice, isWhiteoutEntry, shownAttributes } from '../trees/marks.js';
import { MergedWalker } from '../trees/merged.js';
import { haveSameAttributes } from '../trees/records.js';
import {
  findChild,
  findPath,
  haveSameBytes,
  type LayerStack,
  openLayers,
  type Places,
  placesOf,
  type Source,
  toSource,
} from '../trees/stack.js';
import { Walker } from '../trees/walk.js';
import type { ApplySummary } from './apply.js';
import { checkOwnerMaps, type MappedOwners, type OwnerMaps } from './owner-maps.js';
import type { Layout } from './placement.js';
import { Piece, type ReadFile } from './read-files.js';

export interface PackOptions {
  /** `'plain'`: the directory is packed as it is, marks and devices 0:0 included. Default: `'overlay'`. */
  readonly layout?: Layout | undefined;
  /** Default: `'none'`. */
  readonly compression?: Compression | undefined;
  /** 0 to 9 for gzip, 1 to 22 for zstd. Default: 6 and 3. */
  readonly level?: number | undefined;
  /**
   * Times after this one, in seconds since 1970, are set back to it. Default: the environment's SOURCE_DATE_EPOCH; times
   * stay as they are without one.
   */
  readonly sourceDateEpoch?: number | undefined;
  /** Maps replace the ids of the files by those of the archive. Default: they are the same. */
  readonly owners?: OwnerMaps | undefined;
  /** Extended attributes that are left out. Default: `['security.selinux']`. */
  readonly excludeXattrs?: readonly string[] | undefined;
  /** Called after each chunk, about 2 MiB. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface PackSummary extends Omit<ApplySummary, 'skipped'> {
  /** The number of sockets, which no archive can hold. */
  readonly sockets: number;
}

/** A stream of the archive. */
export interface LayerArchive extends Readable {
  /** Resolves at the end of the stream; rejects with the stream's error. */
  readonly summary: Promise<PackSummary>;
}

const known: ReadonlySet<string> = new Set<keyof PackOptions>([
  'layout',
  'compression',
  'level',
  'sourceDateEpoch',
  'owners',
  'excludeXattrs',
  'onProgress',
  'signal',
]);

const UPPER = 0;
/** The room of a piece: headers that begin in it may need more than a chunk. */
const ROOM = CHUNK + 64 * 1024;
/** Pieces that are read while others are hashed, compressed and consumed. */
const AHEAD = 4;
const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';
const EPOCH: Moment = { seconds: 0, nanoseconds: 0 };

const types: Readonly<Record<number, EntryType>> = {
  [k.S_IFREG]: 'file',
  [k.S_IFDIR]: 'directory',
  [k.S_IFLNK]: 'symlink',
  [k.S_IFCHR]: 'character',
  [k.S_IFBLK]: 'block',
  [k.S_IFIFO]: 'fifo',
};

interface Checked {
  /** The source is a directory in two states. */
  readonly hasStates: boolean;
  readonly isPlain: boolean;
  readonly compression: Compression;
  readonly level: number;
  readonly latest: number | undefined;
  readonly owners: MappedOwners | undefined;
  readonly excluded: ReadonlySet<string>;
  readonly onProgress: ((progress: Progress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

/** In seconds: the latest time that a Date can be. */
const MOST_EPOCH = 8.64e12;

function checkLevel(value: unknown, compression: Compression): number {
  if (compression === 'none') {
    if (value === undefined) return 0;
    throw conflictingOptions(
      text`${option('level')} needs a compression`,
      text`pass ${option('compression', 'gzip')} or 'zstd'`,
    );
  }
  const { least, most, usual } = levels[compression];
  if (value === undefined) return usual;
  if (typeof value !== 'number') throw invalidArgumentType('level', 'a number', value);
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw outOfRange('level', `an integer from ${least} to ${most} for ${compression}`, String(value));
}

/** Returns the time in seconds since 1970, or that of the variable SOURCE_DATE_EPOCH. */
export function checkEpoch(value: unknown): number | undefined {
  const variable = process.env['SOURCE_DATE_EPOCH'];
  const given = value ?? (variable === undefined || variable === '' ? undefined : Number(variable));
  if (given === undefined) return undefined;
  const name = value === undefined ? 'SOURCE_DATE_EPOCH' : 'sourceDateEpoch';
  if (typeof given !== 'number') throw invalidArgumentType(name, 'a number of seconds', given);
  if (!Number.isInteger(given) || Math.abs(given) > MOST_EPOCH)
    throw outOfRange(name, 'an integer, in seconds since 1970', String(value ?? variable));
  return given;
}

function checkOwners(value: unknown): Checked['owners'] {
  if (value === undefined) return undefined;
  if (typeof value !== 'object' || value === null) throw invalidArgumentType('owners', 'an object of maps', value);
  return checkOwnerMaps(value, 'container');
}

function checkExcluded(value: unknown): ReadonlySet<string> {
  if (value === undefined) return new Set(['security.selinux']);
  const isList = Array.isArray(value) && value.every((name) => typeof name === 'string');
  if (!isList) throw invalidArgumentType('excludeXattrs', 'a list of names', value);
  return new Set(value.map((name) => Buffer.from(name).toString('latin1')));
}

export function checkPackOptions(options: PackOptions, isOfStates = false): Checked {
  const { onProgress } = options;
  checkFunction(onProgress, 'onProgress');
  if (isOfStates && options.layout !== undefined) {
    throw conflictingOptions(
      text`${option('layout')} cannot go with two states of a directory, which are plain directories`,
      'leave it out',
    );
  }
  const compression = checkWord(options.compression, 'compression', ['none', 'gzip', 'zstd']) ?? 'none';
  return {
    hasStates: isOfStates,
    isPlain: checkWord(options.layout, 'layout', ['overlay', 'plain']) === 'plain' || isOfStates,
    compression,
    level: checkLevel(options.level, compression),
    latest: checkEpoch(options.sourceDateEpoch),
    owners: checkOwners(options.owners),
    excluded: checkExcluded(options.excludeXattrs),
    onProgress,
    signal: checkSignal(options.signal),
  };
}

/** A directory in two states: the archive has what changed from one to the other. */
export interface DirectoryStates {
  readonly before: PathLike;
  readonly after: PathLike;
}

const hasStates = (source: unknown): source is DirectoryStates =>
  typeof source === 'object' && source !== null && 'before' in source && 'after' in source;

/** A directory on the way to the current entry. */
interface Frame {
  readonly name: string;
  readonly parent: Frame | undefined;
  redirect: string | undefined;
  /** Its places in the layers below: found when they are needed. */
  places: Places | undefined;
  /** The places of its contents in the layers below, if these are elsewhere. */
  from: Places | undefined;
}

const newFrame = (name: string, parent: Frame | undefined): Frame => ({
  name,
  parent,
  redirect: undefined,
  places: undefined,
  from: undefined,
});

/** A walk of one state. */
interface State {
  readonly layer: number;
  readonly walker: Walker;
  isThere: boolean;
}

const lastOf = (path: string): string => path.slice(path.lastIndexOf('/') + 1);

/** Makes the entries of an archive, and puts them into pieces. */
class Packing {
  readonly #stack: LayerStack;
  readonly #checked: Checked;
  readonly #hasLower: boolean;
  /** The names of files with several links that are in the archive: by layer, device and inode. */
  readonly #linked = new Map<string, string>();
  #piece = new Piece(ROOM);
  readonly #full: Piece[] = [];
  /** A file whose data is not in pieces yet, and the place from which on. */
  #file: { readonly file: ReadFile; at: number } | undefined;
  readonly #slices = new Slices();
  entries = 0;
  bytes = 0;
  whiteouts = 0;
  sockets = 0;

  constructor(stack: LayerStack, hasLower: boolean, checked: Checked) {
    this.#stack = stack;
    this.#checked = checked;
    this.#hasLower = hasLower;
  }

  #next(room = ROOM): void {
    if (this.#piece.size > 0) this.#full.push(this.#piece);
    this.#piece = new Piece(Math.max(room, ROOM));
  }

  /** Returns room in the archive. */
  readonly #take = (size: number): Buffer => {
    if (this.#piece.size >= CHUNK || size > this.#piece.room) this.#next(size);
    return this.#piece.take(size);
  };

  /** Adds as much of the current file as the piece has room for. */
  #addData(): void {
    if (this.#file === undefined) return;
    const { file } = this.#file;
    if (this.#piece.size >= CHUNK) this.#next();
    const size = Math.min(file.size - this.#file.at, CHUNK - this.#piece.size);
    this.#piece.addFile(file, this.#file.at, size);
    this.#file.at += size;
    if (this.#file.at === file.size) this.#file = undefined;
  }

  #fail(path: string, what: string, hint: Text, reason: Reason = 'layer-unpackable'): never {
    const whole = joinPath(this.#stack.at(UPPER).path, toBytePath(path));
    throw new OverlayError({
      errno: EINVAL,
      reason,
      what: `${quotePath(whole)} ${what}`,
      path: pathString(whole),
      hint,
    });
  }

  /**
   * Walks two states of a directory, the later one in the place of the upper and the earlier one below it. Yields pieces
   * as they are complete.
   */
  async *walkStates(): AsyncGenerator<Piece> {
    const [after, before] = [UPPER, UPPER + 1].map((layer): State => {
      const { root: at, path: atPath } = this.#stack.at(layer);
      const walker = new Walker('', { at, atPath, attributes: 'all', targets: true });
      return { layer, walker, isThere: false };
    }) as [State, State];
    /** Directories on the way that are as before: they are added as soon as something in them is. */
    const unchanged: (Source | undefined)[] = [];
    try {
      await this.#advance(after);
      await this.#advance(before);
      while (after.isThere || before.isThere) {
        const order = !after.isThere ? 1 : !before.isThere ? -1 : comparePaths(after.walker.path, before.walker.path);
        const { path, name, depth } = (order > 0 ? before : after).walker;
        unchanged.length = Math.min(unchanged.length, depth);
        const own = order <= 0 ? this.#stateOf(after) : undefined;
        const old = order >= 0 ? this.#stateOf(before) : undefined;
        const isSame = own !== undefined && old !== undefined && (await run(this.#isSame(own, old)));
        if (isSame && own.type === k.S_IFDIR) unchanged[depth] = own;
        else if (!isSame) {
          for (const directory of unchanged) {
            if (directory !== undefined) this.#addEntry(directory, directory.path, lastOf(directory.path), directory);
          }
          unchanged.fill(undefined);
          if (own === undefined) this.#addWhiteout(path, name);
          else this.#addEntry(own, path, path === '' ? '' : name, own);
        }
        yield* this.#complete();
        // The contents of a directory go with it.
        if (old?.type === k.S_IFDIR && own?.type !== k.S_IFDIR) before.walker.skip();
        if (order <= 0) await this.#advance(after);
        if (order >= 0) await this.#advance(before);
      }
    } finally {
      after.walker.close();
      before.walker.close();
    }
    yield* this.#end();
  }

  async #advance(state: State): Promise<void> {
    const { walker } = state;
    state.isThere = false;
    while (!walker.advance()) {
      if (!(await run(walker.more()))) return;
    }
    if (walker.error !== 0) throw walker.failure();
    state.isThere = true;
  }

  #stateOf({ walker, layer }: State): Source {
    return toSource(walker, layer, walker.path, this.#stack.space);
  }

  /** Returns whether an entry is as before. One with several links never is, so that its links stay together. */
  *#isSame(own: Source, old: Source): Task<boolean> {
    const hasSameMetadata =
      own.mode === old.mode &&
      own.uid === old.uid &&
      own.gid === old.gid &&
      own.mtimeNs === old.mtimeNs &&
      own.rdevMajor === old.rdevMajor &&
      own.rdevMinor === old.rdevMinor &&
      (own.type === k.S_IFDIR || (own.size === old.size && own.links === 1 && old.links === 1)) &&
      own.target.equals(old.target) &&
      haveSameAttributes(own.attributes, old.attributes);
    if (!hasSameMetadata || own.type !== k.S_IFREG || own.size === 0) return hasSameMetadata;
    return yield* haveSameBytes(this.#stack, own, old);
  }

  /** Refuses to leave out a changed file where only the index in the workdir knows that the overlay shows it. */
  *#refuseIndexed(): Task<void> {
    const indexed = new IndexedFiles(this.#stack);
    yield* indexed.read();
    const refuse = ({ path }: MergedWalker): never =>
      this.#fail(
        path,
        'is missing: only the index in the workdir has what the overlay shows there, a changed hard link',
        text`mount the overlay again with index and the same workdir, run chmod --reference=FILE FILE there, and pack again`,
        'layers-incomplete',
      );
    yield* indexed.visit(refuse);
  }

  /** Walks the upper. Yields pieces as they are complete. */
  async *walk(): AsyncGenerator<Piece> {
    if (!this.#checked.isPlain) await run(this.#refuseIndexed());
    const { root, path } = this.#stack.at(UPPER);
    const walker = new Walker('', { at: root, atPath: path, attributes: 'all', targets: true });
    const frames: Frame[] = [];
    try {
      while (await run(walker.more())) {
        while (walker.advance()) {
          if (walker.error !== 0) throw walker.failure();
          const parent = frames[walker.depth - 1];
          const visited = this.#visitPlain(walker, parent) ?? this.#visit(walker, parent);
          const frame = visited instanceof Promise ? await visited : visited;
          if (frame !== undefined && frame !== 'done') frames[walker.depth] = frame;
          if (frame instanceof Object && frame.from !== undefined) {
            walker.skip();
            yield* this.#visitMerged(walker.path, frame.from);
          }
          // Most entries complete nothing, and each wait takes longer than an entry.
          if (this.#full.length > 0 || this.#file !== undefined || this.#slices.isOver()) yield* this.#complete();
        }
      }
    } finally {
      walker.close();
    }
    yield* this.#end();
  }

  async *#end(): AsyncGenerator<Piece> {
    this.#take(END_OF_ARCHIVE.length).fill(0);
    this.#next();
    yield* this.#complete();
  }

  async *#complete(): AsyncGenerator<Piece> {
    // A large file is more than memory may hold, so its pieces come one by one.
    for (; this.#file !== undefined; this.#addData()) yield* this.#full.splice(0);
    if (this.#full.length > 0) yield* this.#full.splice(0);
    if (this.#slices.isOver()) await run(this.#slices.pause());
  }

  /** Adds an entry that means nothing but itself. Returns undefined for others. */
  #visitPlain(walker: Walker, parent: Frame | undefined): Frame | 'done' | undefined {
    const isMarked = !this.#checked.isPlain && (walker.hasAttributes || isWhiteoutDevice(walker));
    if (isMarked || parent === undefined) return undefined;
    const source = toSource(walker, UPPER, walker.path, this.#stack.space);
    const { name } = walker;
    this.#addEntry(source, source.path, name, source);
    return source.type === k.S_IFDIR ? newFrame(name, parent) : 'done';
  }

  /** Returns the frame of a directory. */
  async #visit(walker: Walker, parent: Frame | undefined): Promise<Frame | undefined> {
    const { space } = this.#stack;
    const source = toSource(walker, UPPER, walker.path, space);
    const { path, type, marks } = source;
    const { isPlain } = this.#checked;
    const name = parent === undefined ? '' : walker.name;
    if (!isPlain && isWhiteoutEntry(walker, marks)) {
      if (!this.#hasLower || (await run(this.#find(parent, name))).length > 0) this.#addWhiteout(path, name);
      return undefined;
    }
    const isMetacopy = !isPlain && type === k.S_IFREG && marks.metacopy === true;
    const data = isMetacopy ? await this.#dataOf(source, parent, name) : source;
    this.#addEntry(source, path, name, data);
    if (type !== k.S_IFDIR) return undefined;
    const frame = newFrame(name, parent);
    if (parent === undefined) {
      // Marks on the root have no effect.
      frame.places = this.#stack.roots(UPPER + 1);
      return frame;
    }
    if (isPlain || (marks.opaque !== 'y' && marks.redirect === undefined)) return frame;
    const here = this.#hasLower ? await run(this.#find(parent, name)) : [];
    const hides = !this.#hasLower || here[0]?.type === k.S_IFDIR;
    if (marks.opaque === 'y') {
      frame.places = [];
      if (hides) this.#addOpaque(path);
      return frame;
    }
    if (!this.#hasLower) {
      this.#fail(
        path,
        'was renamed, and its contents are in the layers below',
        text`pass them as ${option('lowerdir')}`,
        'layers-incomplete',
      );
    }
    frame.redirect = marks.redirect;
    const places = await run(this.#placesOf(frame));
    const placesHere = placesOf(this.#stack, here);
    // A redirect may lead to where it is, or nowhere.
    if (places.every((place, i) => place === placesHere[i])) return frame;
    if (hides) this.#addOpaque(path);
    if (places.some((place) => place !== undefined)) frame.from = places;
    return frame;
  }

  *#find(
    parent: Frame | undefined,
    name: string,
    more: { redirect?: string | undefined; isMetacopy?: boolean } = {},
  ): Task<Source[]> {
    return yield* findChild(this.#stack, yield* this.#placesOf(parent), name, { first: UPPER + 1, ...more });
  }

  *#placesOf(frame: Frame | undefined): Task<Places> {
    if (frame === undefined) return [];
    const { parent, name, redirect } = frame;
    frame.places ??= placesOf(this.#stack, yield* this.#find(parent, name, { redirect }));
    return frame.places;
  }

  /** Finds the file that has the data of a metacopy. */
  async #dataOf({ path, marks, size }: Source, parent: Frame | undefined, name: string): Promise<Source> {
    const hint = text`pass the layers below as ${option('lowerdir')}, and data-only layers as ${option('datadir')}`;
    if (!this.#hasLower)
      this.#fail(path, 'is a metacopy, whose data is in the layers below', hint, 'layers-incomplete');
    const found = (await run(this.#find(parent, name, { redirect: marks.redirect, isMetacopy: true }))).at(-1);
    if (found === undefined || found.marks.metacopy || found.size !== size) {
      this.#fail(path, 'is a metacopy, whose data is not in the layers below', hint, 'layers-incomplete');
    }
    return found;
  }

  /** Adds all that is merged into a renamed directory. */
  async *#visitMerged(top: string, places: Places): AsyncGenerator<Piece> {
    const merged = new MergedWalker(this.#stack, places.with(UPPER, top), { attributes: 'all', targets: true });
    try {
      while (await run(merged.next())) {
        const { entry, layer, layerPath } = merged;
        if (merged.path === '') continue;
        if (entry.error !== 0) throw entry.failure();
        const path = below(top, merged.path);
        const source = toSource(entry, layer, layerPath, this.#stack.space);
        const isMetacopy = source.type === k.S_IFREG && source.marks.metacopy === true;
        const data = isMetacopy ? (await run(findPath(this.#stack, path))).at(-1) : source;
        if (data === undefined || (isMetacopy && data.marks.metacopy)) {
          this.#fail(
            path,
            'is a metacopy, whose data is not in the layers below',
            text`pass data-only layers as ${option('datadir')}`,
            'layers-incomplete',
          );
        }
        this.#addEntry(source, path, entry.name, data);
        yield* this.#complete();
      }
    } finally {
      merged.close();
    }
  }

  #addWhiteout(path: string, name: string): void {
    if (name.startsWith(WHITEOUT)) {
      this.#fail(path, 'is deleted, and its name means a whiteout in an archive', 'rename it in the layer below');
    }
    this.#addEmpty(`${path.slice(0, path.length - name.length)}${WHITEOUT}${name}`);
    this.whiteouts++;
  }

  #addOpaque(path: string): void {
    this.#addEmpty(below(path, OPAQUE));
  }

  #addEmpty(name: string): void {
    const nothing = { linkname: '', mode: 0o600, uid: 0, gid: 0, size: 0, mtime: EPOCH, major: 0, minor: 0 };
    encodeEntry({ name, type: 'file', xattrs: NO_XATTRS, ...nothing }, this.#take);
    this.entries++;
  }

  /** Adds an entry at a path of the archive. `data` is the file that holds its data. */
  #addEntry(source: Source, path: string, name: string, data: Source): void {
    if (source.type === k.S_IFSOCK) {
      this.sockets++;
      return;
    }
    if (name.startsWith(WHITEOUT)) {
      this.#fail(path, 'has a name that means a whiteout in an archive', 'rename it');
    }
    const found = types[source.type];
    if (found === undefined) this.#fail(path, 'is of a type that no archive can hold', 'remove it');
    let type: EntryType = found;
    let linkname = found === 'symlink' ? source.target.toString('latin1') : '';
    if (source.links > 1 && found !== 'directory') {
      const key = `${source.layer}:${source.device}:${source.inode}`;
      const first = this.#linked.get(key);
      if (first === undefined) this.#linked.set(key, path);
      else {
        type = 'link';
        linkname = first;
      }
    }
    const isFile = type === 'file';
    const hasNumber = type === 'character' || type === 'block';
    // A spread would take longer than all the rest.
    const { uid, gid } = this.#ownersOf(source, path);
    encodeEntry(
      {
        name: type === 'directory' ? `${path === '' ? '.' : path}/` : path,
        type,
        linkname,
        mode: source.mode & 0o7777,
        uid,
        gid,
        size: isFile ? data.size : 0,
        mtime: this.#clamp(source.mtime),
        major: hasNumber ? source.rdevMajor : 0,
        minor: hasNumber ? source.rdevMinor : 0,
        xattrs: type === 'link' ? NO_XATTRS : this.#xattrsOf(source, path),
      },
      this.#take,
    );
    this.entries++;
    if (!isFile || data.size === 0) return;
    this.bytes += data.size;
    const { root, path: rootPath } = this.#stack.at(data.layer);
    const { path: dataPath, inode, size, mtime } = data;
    this.#file = { file: { root, rootPath, path: dataPath, inode, size, mtime }, at: 0 };
    this.#addData();
  }

  #ownersOf(source: Source, path: string): { readonly uid: number; readonly gid: number } {
    const { owners } = this.#checked;
    if (owners === undefined) return source;
    const { uid, gid } = source;
    const mapped = { uid: owners.uid(uid), gid: owners.gid(gid) };
    if (Number.isNaN(mapped.uid) || Number.isNaN(mapped.gid)) {
      this.#fail(
        path,
        `has the owner ${uid}:${gid}`,
        either(text`add a range for it to ${option('owners')}`, 'give it another owner'),
      );
    }
    return mapped;
  }

  #clamp(time: Moment): Moment {
    const { latest } = this.#checked;
    if (latest === undefined || time.seconds < latest) return time;
    return { seconds: latest, nanoseconds: 0 };
  }

  #xattrsOf({ attributes }: Source, path: string): ReadonlyMap<string, Buffer> {
    if (attributes.size === 0) return NO_XATTRS;
    const { isPlain, excluded } = this.#checked;
    const shown = new Map<string, Buffer>();
    for (const [name, value] of isPlain ? attributes : shownAttributes(attributes, this.#stack.space)) {
      if (excluded.has(name)) continue;
      if (value === undefined) {
        this.#fail(
          path,
          `has the attribute ${name}, which this process may not read`,
          either('run as root', text`name it in ${option('excludeXattrs')}`),
          'path-inaccessible',
        );
      }
      shown.set(name, value);
    }
    return shown;
  }
}

interface Hashed {
  readonly chunk: Buffer;
  /** The bytes of the archive with this chunk: the caller gets it when they are hashed. */
  readonly end: number;
}

/** The bytes of the archive. The next pieces are read while the caller uses one. */
async function* read(
  packing: Packing,
  pieces: AsyncIterable<Piece>,
  digester: Digester,
  { signal, onProgress }: Checked,
): AsyncGenerator<Uint8Array> {
  const reading: Promise<Hashed>[] = [];
  let hashed: Promise<unknown> = Promise.resolve();
  let bytes = 0;
  const next = async (): Promise<Buffer> => {
    const { chunk, end } = (await reading.shift()) as Hashed;
    await digester.done(end);
    if (signal?.aborted) throw abortError(signal);
    bytes += chunk.length;
    onProgress?.({ entries: packing.entries, bytes });
    return chunk;
  };
  try {
    for await (const piece of pieces) {
      const [before, read] = [hashed, piece.read()];
      // Its error comes out when its turn is.
      read.catch(() => {});
      const data = (async (): Promise<Hashed> => {
        // All reads end before the descriptors are closed, also after an error.
        const chunk = await read;
        await before;
        await digester.update(chunk);
        return { chunk, end: digester.size };
      })();
      hashed = data;
      data.catch(() => {});
      reading.push(data);
      if (reading.length > AHEAD) yield await next();
    }
    while (reading.length > 0) yield await next();
  } finally {
    // They use descriptors that are closed next.
    await Promise.allSettled(reading);
  }
}

async function* packed(
  upper: Path,
  layers: GivenLayers & { readonly isTopLayer: boolean },
  checked: Checked,
  done: (summary: PackSummary) => void,
): AsyncGenerator<Uint8Array> {
  const stack = await run(openLayers([upper, ...layers.lowers], layers));
  let archive: AsyncGenerator<Uint8Array> | undefined;
  try {
    const packing = new Packing(stack, layers.hasLowers, checked);
    const { compression, level } = checked;
    const [plain, out] = [new Digester(), new Digester()];
    const pieces = checked.hasStates ? packing.walkStates() : packing.walk();
    archive = read(packing, pieces, plain, checked);
    if (compression === 'none') yield* archive;
    else yield* out.pass(encode(archive, compression, level), false);
    const diffId = await plain.digest();
    const { entries, bytes, whiteouts, sockets } = packing;
    const stream =
      compression === 'none' ? { digest: diffId, size: plain.size } : { digest: await out.digest(), size: out.size };
    done({ entries, bytes, diffId, ...stream, compression, whiteouts, sockets });
  } finally {
    // A compressor that gives up leaves it in the middle.
    await archive?.return(undefined).catch(() => {});
    stack.close();
  }
}

/**
 * Packs a layer directory: the upper of an overlay, or one that is mounted, as a tar archive of what it changes.
 * Whiteouts become `.wh.NAME`, opaque directories hold `.wh..wh..opq`. With the layers below, renamed directories and
 * metacopies are written in full; without them they are an error. docs/layers.md has all rules.
 *
 * `{ before, after }` are two states of a plain directory: the archive has what changed from one to the other. An entry
 * is the same if owner, mode, time, attributes and bytes are. Files with several links are always in the archive.
 *
 * The same tree gives the same bytes: parents come first, the names of a directory in byte order. getdents64(2),
 * statx(2), listxattr(2), openat2(2) with RESOLVE_BENEATH (5.6).
 *
 * @throws {OverlayError} the stream's error; `reason` is `'path-missing'`, `'path-not-directory'`,
 * `'path-inaccessible'`, `'layer-unpackable'`, or `'layer-changed'` if the layer changes meanwhile
 */
export function pack(layers: Layers | DirectoryStates, options?: PackOptions): LayerArchive {
  const checked = checkPackOptions(toOptions(options, known), hasStates(layers));
  const source = hasStates(layers)
    ? { upperdir: toPath(layers.after, 'after'), lowerdir: toPath(layers.before, 'before'), userxattr: false }
    : layers;
  const given = toLayers(source);
  const upper = upperOf(given, source);
  const { Readable: Stream } = process.getBuiltinModule('node:stream');
  const { promise, resolve, reject } = withResolvers<PackSummary>();
  // A caller may not care.
  promise.catch(() => {});
  const { signal } = checked;
  const stream = Stream.from(packed(upper, { ...given, isTopLayer: !checked.isPlain }, checked, resolve), {
    objectMode: false,
    highWaterMark: CHUNK,
    ...(signal !== undefined && { signal }),
  });
  stream.once('error', reject);
  stream.once('close', () => reject(new Error('the stream of the archive was closed before its end')));
  return Object.assign(stream, { summary: promise });
}
