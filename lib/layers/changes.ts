/** Finds the changes of an upper directory: the differences between the merged view and the layers below. */

import { toBooleanOptions } from '../arguments.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { Plan, type Step } from '../kernel/plan.js';
import { askTolerant, emit, type StreamTask, stream, type Task } from '../kernel/task.js';
import { formatBytes, type Path } from '../paths.js';
import { below, comparePaths, encodePath, type PathEncoding, toBytePath, toEncoding } from '../trees/encodings.js';
import { type GivenLayers, type Layers, toLayers, upperOf } from '../trees/given.js';
import { HANDLE_ROOM, IndexedFiles, ORIGIN } from '../trees/indexed.js';
import { isWhiteoutEntry, type MarkSpace, type Marks, readMarks, shownAttributes } from '../trees/marks.js';
import { MergedWalker } from '../trees/merged.js';
import { type Attributes, haveSameAttributes } from '../trees/records.js';
import {
  findChild,
  haveSameBytes,
  isAbsent,
  type LayerStack,
  openLayers,
  type Places,
  placesOf,
  type Source,
  toSource,
} from '../trees/stack.js';
import { examine, explainWalk, Walker } from '../trees/walk.js';

/** The types of entries, by their S_IFMT bits. */
const types = {
  [k.S_IFREG]: 'file',
  [k.S_IFDIR]: 'directory',
  [k.S_IFLNK]: 'symlink',
  [k.S_IFCHR]: 'character device',
  [k.S_IFBLK]: 'block device',
  [k.S_IFIFO]: 'fifo',
  [k.S_IFSOCK]: 'socket',
} as const;

export type EntryType = (typeof types)[keyof typeof types];

export const toEntryType = (type: number): EntryType => types[type as keyof typeof types];

/** A property in which an entry differs from the one below. */
export type ChangedProperty = 'content' | 'mode' | 'owner' | 'times' | 'xattrs';

/**
 * - `added`: nothing is there below
 * - `modified`: an entry of the same type is there below
 * - `replaced`: an entry of another type is there below, or a directory whose contents the upper hides. Nothing of it is
 *   left; the contents of a new directory follow as `added`
 * - `deleted`: an entry below is gone, with all that it holds
 * - `changed`: `added` or `modified`; only the layers below tell which
 */
export type ChangeKind = 'added' | 'modified' | 'deleted' | 'replaced' | 'changed';

export interface Change<P extends string | Buffer = string> {
  /** The path below the root of the overlay; `'.'` for the root itself. */
  path: P;
  kind: ChangeKind;
  /**
   * For a deleted entry, the fields from `type` to `mtime` describe the entry below. Without the layers below, its `type`
   * is undefined and its numbers are 0.
   */
  type: EntryType | undefined;
  /** The permission bits. */
  mode: number;
  uid: number;
  gid: number;
  /** The size in bytes. */
  size: number;
  /** The modification time in nanoseconds since 1970. */
  mtime: bigint;
  /** The properties that differ; empty unless the kind is `modified`. */
  what: readonly ChangedProperty[];
  /** For a renamed directory: its path in the layers below. */
  from?: P;
}

export interface ChangesOptions<E extends PathEncoding = PathEncoding> {
  /**
   * Compares the bytes of each file with those below, so that a file rewritten with the same bytes is not `modified` in
   * its content. Default: a file with another size or modification time counts as different. A file with the same ones
   * counts as the same if `overlay.origin` says that it is a copy of the file below; if not, its bytes are compared.
   */
  content?: boolean;
  /** Includes entries that were copied up and are the same as below, as `modified` with an empty `what`. */
  unchanged?: boolean;
  /** `'buffer'` for paths as bytes. Default: text, in which bytes that are not UTF-8 are replaced, as in node:fs. */
  encoding?: E;
}

const booleans: ReadonlySet<string> = new Set(['content', 'unchanged']);
const names: ReadonlySet<string> = new Set([...booleans, 'encoding']);

const MODE = 0o7777;

const bit = { content: 1, mode: 2, owner: 4, times: 8, xattrs: 16 } as const;

/** The lists of changed properties by their bits. All records share them, since there may be millions of records. */
const lists: readonly (readonly ChangedProperty[])[] = Array.from({ length: 32 }, (_, bits) =>
  Object.freeze((Object.keys(bit) as ChangedProperty[]).filter((name) => bits & bit[name])),
);
const nothing = lists[0] as readonly ChangedProperty[];

type AnyChange = Change<string | Buffer>;

const noPlaces: (string | undefined)[] = [];
const noSources: Source[] = [];
const noAttributes: Attributes = new Map();
const noMarks: Marks = {};

/** An entry of the upper, with the entries of the layers below at its path. */
class Entry {
  /** The path below the root of the overlay, one character for each byte. */
  readonly path: string;
  /** The record of the entry if it is a change. A deleted entry gets a record of its own. */
  readonly change: AnyChange;
  readonly type: number;
  readonly attributes: Attributes;
  readonly isWhiteout: boolean;
  readonly isOpaque: boolean;
  readonly redirect: string | undefined;
  /** The directory that it is in; undefined for the root. */
  readonly parent: Entry | undefined;
  /** For a directory: true if nothing below is merged into it, so its contents are new. Set by the comparison. */
  isNew = false;
  /** For a directory: its path in each layer below, by the layer's index. */
  places = noPlaces;
  /** The entries of the layers below at its path, the topmost first. */
  below = noSources;
  /** True if the layers further down have no part in the entry. */
  isOver = false;
  /** The path to look up in the current layer; undefined if that layer is not asked. */
  asked: string | undefined = undefined;
  /** True until the current layer has answered. */
  isAsked = false;
  /** True if a directory below has a redirect, so the directories further down have another path. */
  isRedirectedBelow = false;
  /** The entry, read again with all attributes. Only for a non-directory with an entry of its type below. */
  own: Source | undefined = undefined;
  /** True if `overlay.origin` says that the entry is a copy of the one below. */
  isCopy = false;

  constructor(walker: Walker, parent: Entry | undefined, space: MarkSpace, encoding: PathEncoding) {
    const { type, path } = walker;
    const hasAttributes = walker.hasAttributes;
    const attributes = hasAttributes ? walker.attributes : noAttributes;
    const marks = hasAttributes ? readMarks(attributes, space) : noMarks;
    // On the root, these marks have no effect.
    const isInner = type === k.S_IFDIR && parent !== undefined;
    this.path = path;
    this.type = type;
    this.attributes = attributes;
    this.isWhiteout = isWhiteoutEntry(walker, marks);
    this.isOpaque = isInner && marks.opaque === 'y';
    this.redirect = isInner && !this.isOpaque ? marks.redirect : undefined;
    this.parent = parent;
    this.change = {
      path: encodePath(path === '' ? '.' : path, encoding, walker.hasAsciiPath),
      kind: 'added',
      type: toEntryType(type),
      mode: walker.mode & MODE,
      uid: walker.uid,
      gid: walker.gid,
      size: walker.size,
      mtime: walker.mtimeNs,
      what: nothing,
    };
  }

  get name(): string {
    return this.path.slice(this.path.lastIndexOf('/') + 1);
  }

  /** Forgets the entries that were found below. */
  reset(): void {
    this.places = noPlaces;
    this.below = noSources;
    this.isOver = false;
    this.isRedirectedBelow = false;
    this.own = undefined;
    this.isCopy = false;
  }
}

/** The index of the upper among the layers. */
const UPPER = 0;

/** The number of file handles that one plan asks for. */
const HANDLES_AT_ONCE = 256;

/** A file that the overlay shows in the place of one below, because of `index`. The upper has nothing at its path. */
interface Shared {
  readonly path: string;
  readonly copy: Source;
  readonly top: Source;
}

class Comparison {
  readonly #stack: LayerStack;
  /** True if the layers below are known, even if there are none. */
  readonly #hasLower: boolean;
  readonly #encoding: PathEncoding;
  readonly #comparesBytes: boolean;
  readonly #showsUnchanged: boolean;
  /** In the order of their paths. */
  #shared: Shared[] = [];
  #out: AnyChange[] = [];

  constructor(stack: LayerStack, hasLower: boolean, { content = false, unchanged = false, encoding }: ChangesOptions) {
    this.#stack = stack;
    this.#hasLower = hasLower;
    this.#encoding = toEncoding(encoding);
    this.#comparesBytes = content;
    this.#showsUnchanged = unchanged;
  }

  *run(): StreamTask<AnyChange> {
    const { root, path } = this.#stack.at(UPPER);
    const walker = new Walker('', { at: root, atPath: path, attributes: 'directories' });
    /** The directories that lead to the current entry, by depth. */
    const parents: Entry[] = [];
    let entries: Entry[] = [];
    try {
      yield* this.#findShared();
      while (yield* walker.more()) {
        while (walker.advance()) {
          const { depth, error } = walker;
          if (error !== 0) throw walker.failure();
          if (this.#hasSharedBefore(walker.path)) {
            yield* this.#compare(entries);
            entries = [];
            yield* this.#addShared(walker.path);
          }
          const entry = new Entry(walker, parents[depth - 1], this.#stack.space, this.#encoding);
          if (entry.type === k.S_IFDIR) parents[depth] = entry;
          if (entry.redirect === undefined || !this.#hasLower) {
            entries.push(entry);
            continue;
          }
          yield* this.#compare(entries);
          entries = [];
          yield* emit(this.#taken());
          if (yield* this.#compareRedirected(entry, entry.redirect)) walker.skip();
        }
        yield* this.#compare(entries);
        entries = [];
        yield* emit(this.#taken());
      }
      yield* this.#addShared(undefined);
      yield* emit(this.#taken());
    } finally {
      walker.close();
    }
  }

  /** Finds the names that only the index knows. Looks at the whole overlay if the index has files. */
  *#findShared(): Task<void> {
    const indexed = new IndexedFiles(this.#stack);
    yield* indexed.read();
    yield* indexed.visit((merged, copy) => this.#addSharedName(merged, copy));
  }

  *#addSharedName(merged: MergedWalker, copy: Source): Task<void> {
    const { entry, path, layer, layerPath } = merged;
    const top = toSource(entry, layer, layerPath, this.#stack.space);
    // The data of a copy that has only metadata is that of the file below.
    const own = copy.marks.metacopy ? { ...copy, marks: { metacopy: true } as const } : copy;
    const data = top.marks.metacopy ? (yield* merged.sources()).at(-1) : undefined;
    const whole = data && { layer: data.layer, path: data.path, marks: data.marks };
    this.#shared.push({ path, copy: own, top: { ...top, ...whole } });
  }

  #hasSharedBefore(path: string | undefined): boolean {
    const first = this.#shared[0];
    return first !== undefined && (path === undefined || comparePaths(first.path, path) < 0);
  }

  *#addShared(before: string | undefined): Task<void> {
    while (this.#hasSharedBefore(before)) {
      const { path, copy, top } = this.#shared.shift() as Shared;
      const compared = { own: copy, isCopy: true, type: copy.type };
      const what = lists[yield* this.#differences(compared as Entry, top)] as readonly ChangedProperty[];
      if (what.length === 0 && !this.#showsUnchanged) continue;
      this.#out.push({ ...this.#recordOf(path, copy), kind: 'modified', what });
    }
  }

  #recordOf(path: string, entry: Pick<Source, 'type' | 'mode' | 'uid' | 'gid' | 'size' | 'mtimeNs'>): AnyChange {
    const { type, mode, uid, gid, size, mtimeNs } = entry;
    return {
      path: encodePath(path, this.#encoding),
      kind: 'added',
      type: toEntryType(type),
      mode: mode & MODE,
      uid,
      gid,
      size,
      mtime: mtimeNs,
      what: nothing,
    };
  }

  #taken(): AnyChange[] {
    const out = this.#out;
    this.#out = [];
    return out;
  }

  /** Compares entries that follow each other. */
  *#compare(entries: readonly Entry[]): Task<void> {
    for (let rest = entries; rest.length > 0; ) {
      if (this.#hasLower) {
        yield* this.#lookBelow(rest);
        yield* this.#lookAgain(rest);
        yield* this.#findCopies(rest);
      }
      rest = yield* this.#addChanges(rest);
    }
  }

  /** Looks the entries up in one layer after the other. */
  *#lookBelow(entries: readonly Entry[]): Task<void> {
    const directories = entries.filter(({ type }) => type === k.S_IFDIR);
    const others = entries.filter(({ type }) => type !== k.S_IFDIR);
    for (let layer = UPPER + 1; layer < this.#stack.layers.length; layer++) {
      // Directories come first: most files of an upper are in new directories, and need no look-up below.
      yield* this.#ask(directories, layer);
      yield* this.#ask(others, layer);
    }
  }

  /**
   * Looks entries up in a layer by one native call, which asks for a directory and for the entries in it at once. The
   * answers for the entries count only if the directory has a place in the layer.
   */
  *#ask(entries: readonly Entry[], layer: number): Task<void> {
    const asked: Entry[] = [];
    for (const entry of entries) {
      entry.asked = askedPath(entry, layer);
      entry.isAsked = entry.asked !== undefined;
      if (entry.isAsked) asked.push(entry);
    }
    if (asked.length === 0) return;
    const { root, path } = this.#stack.at(layer);
    const paths = asked.map((entry) => entry.asked as string);
    const records = yield* examine(root, paths, { attributes: 'all', targets: true });
    for (const entry of asked) {
      records.advance();
      const { parent, asked: place } = entry;
      entry.isAsked = false;
      if (parent !== undefined && parent.places[layer] === undefined) continue;
      const { error } = records;
      if (error !== 0 && isAbsent(error)) continue;
      if (error !== 0) throw explainWalk(path, error, place);
      this.#addBelow(entry, toSource(records, layer, place as string, this.#stack.space));
    }
  }

  /** Adds the entry that a layer has below another one, by the kernel's rules; see stack.ts. */
  #addBelow(entry: Entry, source: Source): void {
    const isDirectory = source.type === k.S_IFDIR;
    if (source.isWhiteout || (entry.below.length > 0 && !isDirectory)) {
      entry.isOver = true;
      return;
    }
    if (entry.below.length === 0) entry.below = [source];
    else entry.below.push(source);
    if (!isDirectory || entry.type !== k.S_IFDIR || entry.isOpaque) {
      entry.isOver = true;
      return;
    }
    if (entry.places === noPlaces) entry.places = [];
    entry.places[source.layer] = source.path;
    if (entry.parent === undefined) return;
    const { opaque, redirect } = source.marks;
    const isLowest = source.layer === this.#stack.layers.length - 1;
    entry.isRedirectedBelow = opaque !== 'y' && redirect !== undefined && !isLowest;
    entry.isOver = opaque === 'y' || entry.isRedirectedBelow;
  }

  /** Reads all attributes of those entries of the upper that have an entry of their type below. */
  *#lookAgain(entries: readonly Entry[]): Task<void> {
    const { root, path } = this.#stack.at(UPPER);
    const both = entries.filter(({ type, below: [top] }) => top?.type === type && type !== k.S_IFDIR);
    if (both.length === 0) return;
    const paths = both.map((entry) => entry.path);
    const records = yield* examine(root, paths, { attributes: 'all', targets: true });
    for (const entry of both) {
      records.advance();
      const { error } = records;
      if (error !== 0 && !isAbsent(error)) throw explainWalk(path, error, entry.path);
      // If the entry is gone or has another type by now, the comparison uses the record of the walk.
      if (error === 0 && records.type === entry.type)
        entry.own = toSource(records, UPPER, entry.path, this.#stack.space);
    }
  }

  /** Finds the files that look like the ones below and are copies of them. */
  *#findCopies(entries: readonly Entry[]): Task<void> {
    if (this.#comparesBytes) return;
    const alike = entries.filter(
      ({ own, below: [top] }) => own !== undefined && top !== undefined && looksSame(own, top),
    );
    for (let i = 0; i < alike.length; i += HANDLES_AT_ONCE) {
      const asked = alike.slice(i, i + HANDLES_AT_ONCE);
      const plan = new Plan();
      const steps = asked.map(({ below: [top] }) => {
        const { layer, path } = top as Source;
        const args = [this.#stack.at(layer).root, toBytePath(path), 0] as const;
        return plan.stepOf(plan.add(calls.name_to_handle_at, args, { output: HANDLE_ROOM, tolerate: 'any' }));
      });
      const outputs = yield* askTolerant(plan);
      asked.forEach(({ own }, j) => {
        const step = steps[j] as Step;
        const entry = asked[j] as Entry;
        const origin = own?.marks.origin;
        if (outputs.result(step) < 0 || origin?.[ORIGIN.magicAt] !== ORIGIN.magic) return;
        const [type, size] = [outputs.number(step, 0), outputs.number(step, 1)];
        const handle = outputs.bytes(step, 16 + size).subarray(16);
        entry.isCopy = origin[ORIGIN.typeAt] === type && origin.subarray(ORIGIN.handleAt).equals(handle);
      });
    }
  }

  /** Adds the changes. Returns the entries to look up again, because a redirect above them leads elsewhere. */
  *#addChanges(entries: readonly Entry[]): Task<Entry[]> {
    for (let i = 0; i < entries.length; i++) {
      const entry = entries[i] as Entry;
      if (entry.isRedirectedBelow) {
        const { parent, name } = entry;
        entry.below = yield* findChild(this.#stack, parent?.places ?? noPlaces, name, { first: UPPER + 1 });
        entry.places = [...placesOf(this.#stack, entry.below)];
      }
      // A generator for each entry would take as long as all other work.
      if (!this.#addUncompared(entry)) yield* this.#addCompared(entry);
      if (!entry.isRedirectedBelow) continue;
      const rest = entries.slice(i + 1);
      for (const again of rest) again.reset();
      return rest;
    }
    return [];
  }

  /** Adds the change of an entry. Returns false if the entry must be compared with the one below first. */
  #addUncompared(entry: Entry): boolean {
    const { type, isOpaque, parent } = entry;
    const isInNew = parent?.isNew === true;
    const top = entry.below[0];
    const isDirectory = type === k.S_IFDIR;
    if (entry.isWhiteout) {
      if (top !== undefined) this.#addDeleted(entry, top);
      else if (!this.#hasLower && !isInNew) this.#addDeleted(entry, undefined);
    } else if (!this.#hasLower) {
      entry.isNew = isOpaque || isInNew;
      this.#add(entry, isInNew ? 'added' : isOpaque ? 'replaced' : 'changed');
      if (entry.redirect !== undefined) this.#setFrom(entry, entry.redirect);
    } else if (top === undefined || top.type !== type || isOpaque) {
      entry.isNew = isDirectory;
      this.#add(entry, top === undefined ? 'added' : 'replaced');
    } else {
      return false;
    }
    return true;
  }

  *#addCompared(entry: Entry): Task<void> {
    const what = lists[yield* this.#differences(entry, entry.below[0] as Source)] as readonly ChangedProperty[];
    if (what.length > 0 || this.#showsUnchanged) this.#add(entry, 'modified', what);
  }

  #add({ change }: Entry, kind: ChangeKind, what = nothing): void {
    change.kind = kind;
    change.what = what;
    this.#out.push(change);
  }

  #addDeleted({ change: { path } }: Entry, top: Source | undefined): void {
    const { type = 0, mode = 0, uid = 0, gid = 0, size = 0, mtimeNs = 0n } = top ?? {};
    const rest = { type: toEntryType(type), mode: mode & MODE, uid, gid, size, mtime: mtimeNs, what: nothing };
    this.#out.push({ path, kind: 'deleted', ...rest });
  }

  #setFrom({ parent, change }: Entry, redirect: string): void {
    const from = redirect.startsWith('/') ? redirect.slice(1) : below(parent?.path ?? '', redirect);
    change.from = encodePath(from, this.#encoding);
  }

  /** Returns the bits of the properties in which an entry differs from the one below, of the same type. */
  *#differences(entry: Entry, top: Source): Task<number> {
    const { own } = entry;
    const { mode, uid, gid } = own ?? entry.change;
    const attributes = own?.attributes ?? entry.attributes;
    const { space } = this.#stack;
    return (
      ((yield* this.#hasOtherContent(entry, top)) ? bit.content : 0) |
      ((mode & MODE) !== (top.mode & MODE) ? bit.mode : 0) |
      (uid !== top.uid || gid !== top.gid ? bit.owner : 0) |
      ((own?.mtimeNs ?? entry.change.mtime) !== top.mtimeNs ? bit.times : 0) |
      (haveSameAttributes(shownAttributes(attributes, space), shownAttributes(top.attributes, space)) ? 0 : bit.xattrs)
    );
  }

  *#hasOtherContent(entry: Entry, top: Source): Task<boolean> {
    const { own, isCopy } = entry;
    if (own === undefined) return entry.type !== k.S_IFDIR;
    if (own.type === k.S_IFLNK) return !own.target.equals(top.target);
    if (own.type === k.S_IFCHR || own.type === k.S_IFBLK) {
      return own.rdevMajor !== top.rdevMajor || own.rdevMinor !== top.rdevMinor;
    }
    if (own.type !== k.S_IFREG || (own.size === 0 && top.size === 0)) return false;
    if (own.size !== top.size) return true;
    const { metacopy, redirect } = own.marks;
    if (metacopy && redirect === undefined) return false;
    if (!metacopy && !this.#comparesBytes) {
      if (own.mtimeNs !== top.mtimeNs) return true;
      if (isCopy) return false;
    }
    const data = metacopy ? yield* this.#dataBelow(entry, redirect) : own;
    const dataBelow = top.marks.metacopy ? yield* this.#dataBelow(entry, undefined) : top;
    if (data === undefined || dataBelow === undefined) return true;
    if (data.layer === dataBelow.layer && data.path === dataBelow.path) return false;
    return !(yield* haveSameBytes(this.#stack, data, dataBelow));
  }

  /** Finds the file that holds the data of a metacopy. */
  *#dataBelow({ parent, name }: Entry, redirect: string | undefined): Task<Source | undefined> {
    const options = { first: UPPER + 1, redirect, isMetacopy: true };
    return (yield* findChild(this.#stack, parent?.places ?? noPlaces, name, options)).at(-1);
  }

  /** Compares a directory with a redirect. If the redirect leads elsewhere, adds all of its contents and returns true. */
  *#compareRedirected(entry: Entry, redirect: string): StreamTask<AnyChange, boolean> {
    const stack = this.#stack;
    const { parent, name } = entry;
    const around = parent?.places ?? noPlaces;
    const first = UPPER + 1;
    const source = yield* findChild(stack, around, name, { first, redirect });
    entry.below = yield* findChild(stack, around, name, { first });
    const [places, placesHere] = [placesOf(stack, source), placesOf(stack, entry.below)];
    if (source[0]?.type !== k.S_IFDIR) {
      // The redirect leads nowhere, and it hides the directory below at this path.
      entry.isNew = true;
      this.#add(entry, entry.below.length === 0 ? 'added' : 'replaced');
      return false;
    }
    if (places.every((place, i) => place === placesHere[i])) {
      entry.places = [...places];
      yield* this.#addCompared(entry);
      return false;
    }
    this.#add(entry, entry.below.length === 0 ? 'added' : 'replaced');
    this.#setFrom(entry, redirect);
    yield* this.#addMerged(entry, places.with(UPPER, entry.path));
    return true;
  }

  /** Adds the contents that a redirect merges into a directory from another path. */
  *#addMerged(directory: Entry, places: Places): StreamTask<AnyChange> {
    const merged = new MergedWalker(this.#stack, places);
    try {
      while (yield* merged.next()) {
        const { entry, path } = merged;
        if (entry.error !== 0) throw entry.failure();
        if (path === '') continue;
        const place = below(directory.path, path);
        const isShared = this.#shared[0]?.path === place;
        this.#out.push(this.#recordOf(place, isShared ? (this.#shared.shift() as Shared).copy : entry));
        if (this.#out.length >= MERGED_AT_ONCE) yield* emit(this.#taken());
      }
    } finally {
      merged.close();
    }
  }
}

const MERGED_AT_ONCE = 1000;
/** Returns the path to look up in a layer for an entry; undefined if the layer has no part in it. */
function askedPath({ parent, name, isOver }: Entry, layer: number): string | undefined {
  if (isOver) return undefined;
  if (parent === undefined) return '';
  if (parent.isNew || parent.isOpaque) return undefined;
  const place = parent.isAsked ? parent.asked : parent.places[layer];
  return place === undefined ? undefined : below(place, name);
}

/** True if two files differ at most in their bytes. */
const looksSame = (a: Source, b: Source): boolean =>
  a.type === k.S_IFREG && a.size === b.size && a.size > 0 && a.mtimeNs === b.mtimeNs && a.marks.metacopy !== true;

/** Checks the arguments at once. The walk starts when the caller asks for the first record. */
function compared(from: Layers, given: ChangesOptions | undefined): StreamTask<AnyChange> {
  const options = toBooleanOptions(given, names, booleans);
  const layers = toLayers(from);
  const upper = upperOf(layers, from);
  toEncoding(options.encoding);
  return compare(upper, layers, options);
}

function* compare(upper: Path, layers: GivenLayers, options: ChangesOptions): StreamTask<AnyChange> {
  const stack = yield* openLayers([upper, ...layers.lowers], { ...layers, isTopLayer: true });
  try {
    yield* new Comparison(stack, layers.hasLowers, options).run();
  } finally {
    stack.close();
  }
}

/**
 * Returns the changes that an upper directory makes to the layers below: one record for each path, parents first, the
 * names of a directory in byte order. It yields each record when it finds it, so its memory does not grow with their
 * number. getdents64(2), statx(2), listxattr(2) by descriptors.
 *
 * A whiteout with nothing below it is no change. A renamed directory (redirect_dir) is `added` or `replaced`, with `from`.
 * Its contents are `added`, and its old path is `deleted`. Without the layers below, the contents that it has from there
 * are left out.
 *
 * With `index`, the kernel shows a changed file under all its hard links. If the layers name the workdir, as those of a
 * mount do, `changes` finds the names that the upper lacks by the index there; it then looks at the whole overlay,
 * name_to_handle_at(2).
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'`, `'path-inaccessible'`, or
 * `'layer-changed'` if a directory was moved away meanwhile
 */
export function changes<E extends PathEncoding = 'utf8'>(
  layers: Layers,
  options?: ChangesOptions<E>,
): AsyncIterableIterator<Change<E extends 'buffer' ? Buffer : string>> {
  return stream(compared(layers, options)) as never;
}

const letters: Readonly<Record<ChangeKind, string>> = {
  added: 'A',
  modified: 'M',
  deleted: 'D',
  replaced: 'R',
  changed: 'C',
};

/**
 * Returns a change as one line, in the manner of `git status --short`: `A path/`, `M path (mode, times)`,
 * `A new/ <- old/`. Control characters, backslashes and bytes that are not UTF-8 are escaped.
 */
export function formatChange(change: Change<string | Buffer>): string {
  const { path, kind, type, what, from } = change;
  const slash = type === 'directory' ? '/' : '';
  const details = what.length === 0 ? '' : ` (${what.join(', ')})`;
  const origin = from === undefined ? '' : ` <- ${formatBytes(from)}${slash}`;
  return `${letters[kind]} ${formatBytes(path)}${slash}${origin}${details}`;
}
