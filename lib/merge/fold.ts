/**
 * Writes several layers as one directory: as a layer, with whiteouts and opaque marks for the layers below, or as a
 * plain directory with the merged view. The directory is written beside its place and renamed at the end.
 */
import { checkBoolean, checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { abortError, conflictingOptions, invalidArgumentValue, OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { Slices } from '../kernel/slices.js';
import { run, type Task } from '../kernel/task.js';
import type { OperationFlag } from '../native.js';
import {
  isAtOrBelow,
  type Path,
  type PathLike,
  pathString,
  quotePath,
  splitPath,
  toAbsolute,
  toBytes,
  toPath,
} from '../paths.js';
import type { Progress } from '../progress.js';
import { option, text } from '../text.js';
import { below, toBytePath } from '../trees/encodings.js';
import { type GivenLayers, type Layers, layersOf, toLayers } from '../trees/given.js';
import { IndexedFiles } from '../trees/indexed.js';
import { lockDirectory, unlock } from '../trees/lock.js';
import { isWhiteoutEntry, type MarkSpace, markName, readMarks, shownName } from '../trees/marks.js';
import { MergedWalker } from '../trees/merged.js';
import type { Attributes } from '../trees/records.js';
import { openRoot, type Root } from '../trees/root.js';
import { type LayerStack, openLayers } from '../trees/stack.js';
import { checkSync, type Sync, syncDirectory } from '../trees/synced.js';
import { examine, Walker } from '../trees/walk.js';
import {
  addSpecial,
  metadataOf,
  type OperationFields,
  TreeWriter,
  WriteFailure,
  type WrittenXattr,
} from '../trees/write.js';
import { explainWrite } from '../trees/written.js';

export interface SquashOptions {
  /** The directory to make. It must not exist or must be empty, and appears when it is complete, rename(2). */
  into: PathLike;
  /**
   * Writes the merged view of all layers as a plain directory without marks. By default the directory is a layer, with
   * whiteouts and opaque marks for the layers below. Default: false.
   */
  plain?: boolean;
  /**
   * `'end'`: the directory is on the disk before it gets its name, and both are there before the promise is fulfilled,
   * syncfs(2). `'none'`: the kernel writes it when it likes. Default: `'end'`.
   */
  sync?: Sync;
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
  /**
   * The kind of whiteouts. `'device'` makes character devices 0:0, mknod(2). `'xattr'` makes empty files with the
   * attribute `overlay.whiteout`, in directories that are marked for it (Linux 6.7). These need no mknod(2) and can be
   * made through a mounted overlay, but the kernel honours them only in a lower layer that is not the lowest. Default:
   * `'device'`.
   */
  mechanism?: 'device' | 'xattr';
}

export interface SquashSummary {
  /** Entries written, without the root. */
  readonly entries: number;
  readonly bytes: number;
}

const names = ['into', 'plain', 'sync', 'onProgress', 'signal', 'mechanism'];
const known: ReadonlySet<string> = new Set(names);
const ENTRIES = 32;

interface Settings {
  readonly isLayer: boolean;
  readonly usesXattr: boolean;
  readonly syncs: boolean;
  readonly onProgress: SquashOptions['onProgress'];
  readonly signal: AbortSignal | undefined;
}

/** A directory whose entries the walk is visiting. */
interface Frame {
  readonly depth: number;
  readonly target: string;
  readonly metadata: OperationFields;
  readonly isOpaque: boolean;
  hasXattrWhiteouts: boolean;
}

class Fold {
  readonly #stack: LayerStack;
  readonly #space: MarkSpace;
  readonly #settings: Settings;
  readonly #writer: TreeWriter;
  /** The path of the new tree, below the root of the writer. */
  readonly #root: string;
  readonly #frames: Frame[] = [];
  /** Maps the layer and inode of a file with several links to its first path. */
  readonly #links = new Map<string, string>();
  readonly #indexed: IndexedFiles;
  readonly #slices = new Slices();
  #entries = 0;

  constructor(stack: LayerStack, writer: TreeWriter, root: string, settings: Settings) {
    this.#stack = stack;
    this.#space = stack.space;
    this.#indexed = new IndexedFiles(stack);
    this.#writer = writer;
    this.#root = root;
    this.#settings = settings;
  }

  *run(): Task<SquashSummary> {
    const { isLayer, signal } = this.#settings;
    yield* this.#indexed.read();
    const walker = new MergedWalker(this.#stack, this.#stack.roots(0), {
      attributes: 'all',
      targets: true,
      whiteouts: isLayer,
    });
    try {
      for (let i = 0; yield* walker.next(); i++) {
        if (i % ENTRIES === 0) {
          if (signal?.aborted) throw abortError(signal);
          if (this.#slices.isOver()) yield* this.#slices.pause();
        }
        if (walker.entry.error !== 0) throw walker.entry.failure();
        const depth = walker.path === '' ? 0 : walker.path.split('/').length;
        while (this.#frames.length > 0 && depth <= (this.#frames.at(-1) as Frame).depth) this.#leave();
        yield* this.#enter(walker, depth);
        if (this.#writer.isFull) {
          yield* this.#writer.send();
          this.#report();
        }
      }
    } finally {
      walker.close();
    }
    while (this.#frames.length > 0) this.#leave();
    yield* this.#writer.finish();
    this.#report();
    return { entries: this.#entries, bytes: this.#writer.totals.copied };
  }

  #report(): void {
    this.#settings.onProgress?.({ entries: this.#entries, bytes: this.#writer.totals.copied });
  }

  *#enter(walker: MergedWalker, depth: number): Task<void> {
    const { path } = walker;
    const copy = yield* this.#indexed.copyOf(walker.layer, walker.layerPath, walker.entry.links);
    const entry = copy ?? walker.entry;
    const marks = readMarks(entry.attributes, this.#space);
    const target = path === '' ? this.#root : below(this.#root, path);
    const parent = this.#frames.at(-1);
    const fields = { ...metadataOf(entry), xattrs: this.#kept(entry.attributes, walker) };
    if (depth === 0 || (entry.type === k.S_IFDIR && !isWhiteoutEntry(entry, marks))) {
      if (this.#settings.isLayer && marks.redirect !== undefined && marks.opaque !== 'y') {
        throw this.#unsupported(walker, `${quotePath(toBytePath(path))} is a renamed directory`);
      }
      const isOpaque = this.#settings.isLayer && depth > 0 && (walker.isOpaque || parent?.isOpaque === true);
      const flags: OperationFlag[] = depth === 0 ? ['existing'] : [];
      this.#writer.add('directory', target, { mode: (entry.mode & 0o7777) | 0o700, flags });
      // A directory inside an opaque one needs no mark: nothing of the layers below shows in it.
      const metadata = isOpaque && parent?.isOpaque !== true ? this.#marked(fields, 'opaque', 'y') : fields;
      this.#frames.push({ depth, target, metadata, isOpaque, hasXattrWhiteouts: false });
      if (depth > 0) this.#entries++;
      return;
    }
    if (isWhiteoutEntry(entry, marks)) {
      if (parent === undefined || parent.isOpaque) return;
      this.#entries++;
      if (!this.#settings.usesXattr) this.#writer.add('whiteout', target);
      else {
        parent.hasXattrWhiteouts = true;
        this.#writer.add('file', target, this.#marked({ mode: 0o600 }, 'whiteout', 'y'));
      }
      return;
    }
    this.#entries++;
    if (walker.entry.links > 1) {
      // The copies in the index are files of the upper.
      const key = `${copy === undefined ? walker.layer : 0} ${entry.inode}`;
      const first = this.#links.get(key);
      if (first !== undefined) {
        this.#writer.add('link', target, { from: first });
        return;
      }
      this.#links.set(key, target);
    }
    if (entry.type !== k.S_IFREG) addSpecial(this.#writer, entry, target, fields);
    else if (marks.metacopy) yield* this.#copyData(walker, target, fields);
    else {
      const { inode, size } = entry;
      const from = { from: copy?.path ?? walker.layerPath, other: copy?.layer ?? walker.layer, number: inode, size };
      this.#writer.add('copy', target, { ...fields, ...from, flags: ['from_other'] });
    }
  }

  /** Copies a file whose entry has only the metadata; a layer below has its data. */
  *#copyData(walker: MergedWalker, target: string, fields: OperationFields): Task<void> {
    const data = (yield* walker.sources()).at(-1);
    if (data === undefined || data.type !== k.S_IFREG || data.marks.metacopy) {
      throw this.#unsupported(walker, `the data of ${quotePath(toBytePath(walker.path))} is in none of these layers`);
    }
    const { layer, path: from, inode, size, mtime } = data;
    this.#writer.add('copy', target, {
      ...fields,
      mtime,
      from,
      other: layer,
      number: inode,
      size,
      flags: ['from_other'],
    });
    this.#writer.add('metadata', target, { mtime: fields.mtime });
  }

  #leave(): void {
    const { target, metadata, isOpaque, hasXattrWhiteouts } = this.#frames.pop() as Frame;
    const marked = hasXattrWhiteouts && !isOpaque ? this.#marked(metadata, 'opaque', 'x') : metadata;
    this.#writer.add('metadata', target, marked);
  }

  #marked(fields: OperationFields, mark: string, value: string): OperationFields {
    const prefix = this.#space === 'user' ? 'user.overlay.' : 'trusted.overlay.';
    const xattr = { name: prefix + mark, value: Buffer.from(value) };
    return { ...fields, xattrs: [...(fields.xattrs ?? []), xattr] };
  }

  /** A layer keeps attributes as they are; a plain directory gets them as a mount shows them. Neither gets old marks. */
  #kept(attributes: Attributes, walker: MergedWalker): WrittenXattr[] {
    const kept: WrittenXattr[] = [];
    for (const [attribute, value] of attributes) {
      const isMark = markName(attribute, this.#space) !== undefined;
      const name = this.#settings.isLayer ? (isMark ? undefined : attribute) : shownName(attribute, this.#space);
      if (name === undefined) continue;
      if (value === undefined) {
        const shown = quotePath(toBytePath(walker.path));
        throw new OverlayError({
          errno: e.EACCES,
          reason: 'path-inaccessible',
          what: `this process may not read the attribute ${name} of ${shown}`,
          hint: 'run as its owner or as root',
          path: pathString(this.#stack.at(walker.layer).path),
        });
      }
      kept.push({ name, value: Buffer.from(value) });
    }
    return kept;
  }

  #unsupported(walker: MergedWalker, what: string): OverlayError {
    return new OverlayError({
      errno: e.EINVAL,
      reason: 'layers-incomplete',
      what: `${what}; layers below these are needed to resolve it`,
      hint: 'squash all layers of the overlay with plain: true instead',
      path: pathString(this.#stack.at(walker.layer).path),
    });
  }
}

interface Target {
  readonly path: Path;
  readonly parent: Path;
  readonly name: string;
  readonly partial: string;
}

function toTarget(value: unknown): Target {
  const path = toAbsolute(toPath(value, 'dir'));
  const [parent, nameBytes] = splitPath(path);
  const name = Buffer.from(toBytes(nameBytes)).toString('latin1');
  if (name === '' || name === '.' || name === '..') {
    throw invalidArgumentValue('dir', value, 'must end in the name of the directory to make');
  }
  return { path, parent, name, partial: `.${name.slice(0, 200)}.overlayfs-partial` };
}

function* refuseFull({ path, name }: Target, parent: Root): Task<void> {
  const there = yield* examine(parent.descriptor, [name]);
  if (!there.advance() || there.mode === 0) return;
  const fail = (what: string): OverlayError =>
    new OverlayError({
      errno: e.EEXIST,
      reason: 'path-exists',
      what: `${quotePath(path)} ${what}`,
      hint: 'name a directory that does not exist, or an empty one',
      path: pathString(path),
    });
  if (there.type !== k.S_IFDIR) throw fail('exists');
  const { descriptor, found } = yield* openRoot(path);
  close({ descriptor });
  if (found.mountId !== parent.found.mountId) throw fail('is a mount point');
  if (!(yield* isEmpty(parent.descriptor, name))) throw fail('is not empty');
}

/** The walk of the layer would meet the new directory. */
function* refuseInside({ path }: Target, parent: Path, layer: Path): Task<void> {
  const { descriptor, real } = yield* openRoot(layer);
  close({ descriptor });
  if (!isAtOrBelow(parent, real)) return;
  throw new OverlayError({
    errno: e.EINVAL,
    reason: 'layers-overlap',
    what: `${quotePath(path)} would lie inside the layer ${quotePath(layer)}`,
    hint: 'name a directory outside the layers',
    path: pathString(path),
  });
}

function* isEmpty(parent: number, name: string): Task<boolean> {
  const walker = new Walker(toBytePath(name), { at: parent, unsorted: true });
  try {
    let count = 0;
    while (count < 2 && (yield* walker.more())) while (count < 2 && walker.advance()) count++;
    return count < 2;
  } finally {
    walker.close();
  }
}

function* folded(from: Layers, given: SquashOptions): Task<SquashSummary> {
  const options = toOptions(given, known);
  const isLayer = checkBoolean(options.plain, 'plain') !== true;
  if (!isLayer && options.mechanism !== undefined) {
    throw conflictingOptions(
      text`${option('mechanism')} cannot go with ${option('plain')}, which writes no whiteouts`,
      'leave it out',
    );
  }
  const { onProgress } = options;
  checkFunction(onProgress, 'onProgress');
  const settings: Settings = {
    isLayer,
    usesXattr: checkWord(options.mechanism, 'mechanism', ['device', 'xattr']) === 'xattr',
    syncs: checkSync(options.sync),
    onProgress,
    signal: checkSignal(options.signal),
  };
  if (settings.signal?.aborted) throw abortError(settings.signal);
  const layers = toLayers(from);
  const paths = toSources(layers, isLayer);
  const target = toTarget(options.into);
  const parent = yield* openRoot(target.parent);
  try {
    yield* refuseFull(target, parent);
    for (const layer of [...paths, ...layers.dataPaths]) yield* refuseInside(target, parent.real, layer);
    const stack = yield* openLayers(paths, { ...layers, isTopLayer: true });
    try {
      return yield* write(stack, target, parent.descriptor, settings);
    } finally {
      stack.close();
    }
  } finally {
    close({ descriptor: parent.descriptor });
  }
}

/** Returns the layers that become one: without `plain` the uppers, or the lower layers if there is no upper. */
const toSources = (layers: GivenLayers, isLayer: boolean): readonly Path[] =>
  isLayer && layers.uppers.length > 0 ? layers.uppers : layersOf(layers);

function* write(stack: LayerStack, target: Target, parent: number, settings: Settings): Task<SquashSummary> {
  const { partial, name } = target;
  const writer = new TreeWriter(parent, { others: stack.descriptors, signal: settings.signal });
  // Another call that is still writing holds the lock. If no call holds it, a killed call has left the directory.
  writer.add('directory', partial, { mode: 0o700, flags: ['existing'] });
  let lock: Held | undefined;
  let made = partial;
  try {
    yield* writer.finish();
    const taken = yield* lockDirectory(toBytePath(partial), parent);
    if (taken === 'taken') {
      throw new OverlayError({
        errno: e.EBUSY,
        reason: 'layer-in-use',
        what: `another call is writing ${quotePath(target.path)}`,
        hint: 'wait for it',
        path: pathString(target.path),
      });
    }
    lock = taken;
    try {
      yield* clear(writer, parent, partial);
      const summary = yield* new Fold(stack, writer, partial, settings).run();
      if (settings.syncs) yield* writer.sync();
      writer.add('rename', name, { from: partial, flags: ['tree'] });
      yield* writer.finish();
      made = name;
      if (settings.syncs) yield* syncDirectory(parent, target.parent);
      return summary;
    } catch (error) {
      yield* writer.stop();
      yield* discard(parent, made);
      throw error;
    }
  } catch (error) {
    if (!(error instanceof WriteFailure)) throw error;
    throw yield* explainWrite(error, target.parent, { leftover: 'nothing of the new directory remains' });
  } finally {
    if (lock !== undefined) yield* unlock(lock);
  }
}

/** Removes the entries that a killed call has left in the directory. The directory stays, because it is locked. */
function* clear(writer: TreeWriter, parent: number, partial: string): Task<void> {
  const walker = new Walker(toBytePath(partial), { at: parent, unsorted: true });
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.depth === 0) continue;
        writer.add('remove', below(partial, walker.path));
        if (walker.type === k.S_IFDIR) walker.skip();
      }
    }
  } finally {
    walker.close();
  }
  yield* writer.finish();
}

function* discard(parent: number, name: string): Task<void> {
  const writer = new TreeWriter(parent);
  writer.add('remove', name);
  try {
    yield* writer.finish();
  } catch {
    // The caller throws the first error, which says why.
  }
}

/**
 * Writes the uppers as one layer, or the lower layers if no upper is named: files, whiteouts, opaque directories, hard
 * links, owners, modes, times and attributes. A mount with the new layer shows the same as a mount with the given
 * ones. With `plain`, the directory is the merged view of all layers without marks: renames and metacopies are
 * resolved, and for a mount with `index` so are the hard links that only the index knows.
 *
 * @throws {OverlayError} `reason` is `'layers-incomplete'` for a renamed directory (`redirectDir`) without `plain`, or for
 * a file without data in these layers (`metacopy`); `'path-exists'`, `'path-missing'`, `'path-not-directory'`,
 * `'layers-overlap'`, `'layer-changed'`, `'layer-in-use'`, `'out-of-space'`, `'read-only'`, `'permission-denied'`,
 * `'xattr-denied'`
 */
export async function squash(layers: Layers, options: SquashOptions): Promise<SquashSummary> {
  return run(folded(layers, options));
}
