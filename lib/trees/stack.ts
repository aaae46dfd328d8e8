/**
 * Looks paths up in a stack of layers, by the rules of the kernel (ovl_lookup in fs/overlayfs) for whiteouts, opaque
 * directories, redirects and metacopies.
 */

import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close, closeWith, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { Path } from '../paths.js';
import { below, toBytePath } from './encodings.js';
import { isValidRedirect, isWhiteoutDevice, type MarkSpace, type Marks, readMarks, spaceOf } from './marks.js';
import type { Attributes, Records, Time } from './records.js';
import { refuseMerged } from './root.js';
import { examine, explainWalk } from './walk.js';

export interface Layer {
  readonly path: Path;
  readonly root: Descriptor;
}

/** The path of a directory in each layer, by the layer's index; undefined if the layer has no part in it. */
export type Places = readonly (string | undefined)[];

/** The entry of one layer at a path. */
export interface Source {
  readonly layer: number;
  /** The path below the layer's root, one character for each byte. */
  readonly path: string;
  /** The S_IFMT bits of the mode. */
  readonly type: number;
  /** All bits of the mode. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly device: number;
  readonly inode: bigint;
  readonly links: number;
  readonly mtime: Time;
  readonly mtimeNs: bigint;
  readonly target: Buffer;
  readonly attributes: Attributes;
  readonly marks: Marks;
  readonly isWhiteout: boolean;
}

/** Copies the current entry out of the records. */
export function toSource(entry: Records, layer: number, path: string, space: MarkSpace): Source {
  const { type, attributes } = entry;
  const marks = readMarks(attributes, space);
  const isEmptyFile = type === k.S_IFREG && entry.size === 0;
  return {
    layer,
    path,
    type,
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    size: entry.size,
    rdevMajor: entry.rdevMajor,
    rdevMinor: entry.rdevMinor,
    device: entry.device,
    inode: entry.inode,
    links: entry.links,
    mtime: entry.mtime,
    mtimeNs: entry.mtimeNs,
    target: entry.target,
    attributes,
    marks,
    isWhiteout: isWhiteoutDevice(entry) || (isEmptyFile && marks.whiteout === true),
  };
}

const forgottenText = (descriptor: number): string =>
  `The layer of descriptor ${descriptor} is closed by garbage collection: call the iterator to its end, or its return()`;

/** Open layers, the topmost first. The caller of openLayers closes them. */
export class LayerStack {
  readonly layers: readonly Layer[];
  /** Layers that hold the data of metacopies only. */
  readonly dataLayers: readonly Layer[];
  readonly space: MarkSpace;
  /** The index in the workdir, if the overlay shows the files that it has. */
  readonly index: Layer | undefined;
  readonly #held: readonly Held[];

  constructor(layers: readonly Layer[], dataLayers: readonly Layer[], space: MarkSpace, index?: Layer) {
    this.layers = layers;
    this.dataLayers = dataLayers;
    this.space = space;
    this.index = index;
    this.#held = this.descriptors.map((descriptor) => ({ descriptor }));
    // A caller may drop an iterator before its end.
    for (const [i, held] of this.#held.entries()) closeWith(this, held, i === 0 ? forgottenText : () => undefined);
  }

  close(): void {
    for (const held of this.#held) close(held);
  }

  /** The number of the index among the layers. */
  get indexLayer(): number {
    return this.layers.length + this.dataLayers.length;
  }

  /** The descriptors of all layers, by their numbers. */
  get descriptors(): readonly Descriptor[] {
    const last = this.index === undefined ? [] : [this.index];
    return [...this.layers, ...this.dataLayers, ...last].map(({ root }) => root);
  }

  /** Returns the layer with this number. The data layers come after the others, and the index last. */
  at(layer: number): Layer {
    return (this.layers[layer] ?? this.dataLayers[layer - this.layers.length] ?? this.index) as Layer;
  }

  /** Returns the places of the root, in the layers from the number `first` on. */
  roots(first: number): Places {
    return this.layers.map((_, i) => (i >= first ? '' : undefined));
  }
}

function* openLayer(path: Path): Task<Layer> {
  const plan = new Plan();
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  const root = plan.add(calls.openat2, [k.AT_FDCWD, path, flags, 0], { keep: true, output: 0 });
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainWalk(path, outcome.errno);
  return { path, root: outcome.result(plan.stepOf(root)) };
}

/** An overlay has no index if the kernel cannot make one for its layers. */
function* openIndex(path: Path): Task<Layer | undefined> {
  try {
    return yield* openLayer(path);
  } catch (error) {
    if (error instanceof OverlayError && error.reason === 'path-missing') return undefined;
    throw error;
  }
}

interface StackOptions {
  readonly dataPaths?: readonly Path[];
  readonly space?: MarkSpace | undefined;
  readonly index?: Path | undefined;
  /** The topmost path has to be a layer. By default it may be a mounted overlay, which counts as a plain tree. */
  readonly isTopLayer?: boolean;
}

/**
 * Opens layers, the topmost first. If `space` is not given, the marks on their roots decide which namespace of attributes
 * counts.
 */
export function* openLayers(
  paths: readonly Path[],
  { dataPaths = [], space, index: indexPath, isTopLayer = false }: StackOptions = {},
): Task<LayerStack> {
  const layers: Layer[] = [];
  let index: Layer | undefined;
  try {
    for (const path of [...paths, ...dataPaths]) layers.push(yield* openLayer(path));
    if (isTopLayer && layers[0] !== undefined) yield* refuseMerged(layers[0].path, layers[0].root);
    if (indexPath !== undefined) index = yield* openIndex(indexPath);
    const own = layers.slice(0, paths.length);
    const data = layers.slice(paths.length);
    return new LayerStack(own, data, space ?? (yield* findSpace(own)), index);
  } catch (error) {
    new LayerStack(layers, [], 'either', index).close();
    throw error;
  }
}

function* findSpace(layers: readonly Layer[]): Task<MarkSpace> {
  for (const { root } of layers) {
    const records = yield* examine(root, [''], { attributes: 'directories' });
    if (!records.advance()) continue;
    const space = spaceOf(records.attributes);
    if (space !== 'either') return space;
  }
  return 'either';
}

/** The state of a look-up, like `struct ovl_lookup_data` of the kernel. */
interface LookUp {
  /** A name in a directory, or a path from the root, which begins with a slash. */
  name: string;
  isDirectory: boolean;
  isMetacopy: boolean;
  stops: boolean;
}

/** Applies a redirect to the name to look up in the layers below. */
function followRedirect(lookUp: LookUp, redirect: string, before: string, after: string): void {
  if (!isValidRedirect(redirect)) lookUp.stops = true;
  else if (redirect.startsWith('/')) {
    // An opaque directory on the way does not hide the target of an absolute redirect.
    lookUp.stops = false;
    lookUp.name = redirect + after;
  } else {
    lookUp.name = before + redirect + after;
  }
}

/** Looks a name up in one layer. Returns its entry, or undefined if the layer has no part in the name. */
function* findInLayer(stack: LayerStack, layer: number, base: string, lookUp: LookUp): Task<Source | undefined> {
  const { name } = lookUp;
  const isAbsolute = name.startsWith('/');
  const components = isAbsolute ? name.slice(1).split('/') : [name];
  const paths: string[] = [];
  for (const component of components) paths.push(below(paths.at(-1) ?? (isAbsolute ? '' : base), component));
  const records = yield* examine(stack.at(layer).root, paths, { attributes: 'all', targets: true });
  let before = isAbsolute ? 1 : 0;
  for (const [i, component] of components.entries()) {
    records.advance();
    const end = before + component.length;
    if (records.error !== 0 && records.mode === 0) {
      if (isAbsent(records.error)) return undefined;
      throw explainWalk(stack.at(layer).path, records.error, paths[i]);
    }
    const source = toSource(records, layer, paths[i] as string, stack.space);
    const isLast = i === components.length - 1;
    const isDirectory = source.type === k.S_IFDIR;
    if (source.isWhiteout || (isLast && lookUp.isMetacopy && source.type !== k.S_IFREG)) {
      lookUp.stops = true;
      return undefined;
    }
    if (!isDirectory && (lookUp.isDirectory || !isLast)) {
      lookUp.stops = true;
      return undefined;
    }
    const isLowest = layer === stack.layers.length - 1;
    if (!isDirectory) {
      lookUp.isMetacopy = source.marks.metacopy === true && source.type === k.S_IFREG;
      lookUp.stops = !lookUp.isMetacopy;
      if (!lookUp.isMetacopy) return source;
    } else {
      if (isLast) lookUp.isDirectory = true;
      if (!isLowest && source.marks.opaque === 'y') lookUp.stops = true;
    }
    const { redirect } = source.marks;
    // The kernel ignores the redirect of an opaque directory.
    if (redirect !== undefined && !(isDirectory && source.marks.opaque === 'y')) {
      // A redirect on the way may have changed the part before this component.
      const prefix = lookUp.name.slice(0, lookUp.name.length - name.length + before);
      followRedirect(lookUp, redirect, prefix, name.slice(end));
    }
    if (isLast) return source;
    before = end + 1;
  }
  return undefined;
}

/** True if the errno says that a layer has nothing at a path. */
export const isAbsent = (errno: number): boolean =>
  errno === e.ENOENT || errno === e.ENOTDIR || errno === e.ELOOP || errno === e.ENAMETOOLONG;

export interface FindOptions {
  /** The redirect of an entry above, looked up instead of the name. */
  readonly redirect?: string | undefined;
  /** True to look for the data of a metacopy above. */
  readonly isMetacopy?: boolean;
  /** The index of the first layer to search. */
  readonly first?: number;
}

/**
 * Finds the entries of the layers at a name in a directory, the topmost first: a file, or all directories that are
 * merged. The file with the data of a metacopy follows it. Returns an empty list if there is nothing.
 */
export function* findChild(
  stack: LayerStack,
  parent: Places,
  name: string,
  { redirect, isMetacopy = false, first = 0 }: FindOptions = {},
): Task<Source[]> {
  const lookUp: LookUp = { name: redirect ?? name, isDirectory: false, isMetacopy, stops: false };
  if (redirect !== undefined && !isValidRedirect(redirect)) return [];
  const found: Source[] = [];
  for (let i = first; i < stack.layers.length && !lookUp.stops; i++) {
    const base = lookUp.name.startsWith('/') ? '' : parent[i];
    if (base === undefined) continue;
    const source = yield* findInLayer(stack, i, base, lookUp);
    if (source !== undefined) found.push(source);
  }
  if (lookUp.isMetacopy && lookUp.name.startsWith('/')) {
    const data = yield* findData(stack, lookUp.name.slice(1));
    if (data !== undefined) found.push(data);
  }
  return found;
}

function* findData(stack: LayerStack, path: string): Task<Source | undefined> {
  for (const [i, { root }] of stack.dataLayers.entries()) {
    const records = yield* examine(root, [path], { attributes: 'all' });
    if (records.advance() && records.type === k.S_IFREG) {
      return toSource(records, stack.layers.length + i, path, stack.space);
    }
  }
  return undefined;
}

/** Returns the places of the directory into which these sources are merged. */
export function placesOf(stack: LayerStack, sources: readonly Source[]): Places {
  const places: (string | undefined)[] = new Array(stack.layers.length).fill(undefined);
  for (const { layer, path, type } of sources) if (type === k.S_IFDIR) places[layer] = path;
  return places;
}

/** Returns the root of the topmost layer, which is that of the merged view. */
export function* findRoot(stack: LayerStack): Task<Source> {
  const records = yield* examine((stack.layers[0] as Layer).root, [''], { attributes: 'all', targets: true });
  records.advance();
  if (records.error !== 0) throw explainWalk((stack.layers[0] as Layer).path, records.error);
  return toSource(records, 0, '', stack.space);
}

/** Finds the entries of the layers from `first` on at a path below the root of the overlay. */
export function* findPath(stack: LayerStack, path: string, first = 0): Task<Source[]> {
  let places = stack.roots(first);
  let found: Source[] = [];
  for (const name of path === '' ? [] : path.split('/')) {
    found = yield* findChild(stack, places, name, { first });
    places = placesOf(stack, found);
  }
  return found;
}

/** Returns whether two files hold the same bytes. */
export function* haveSameBytes(stack: LayerStack, a: Source, b: Source): Task<boolean> {
  const plan = new Plan();
  const args = [stack.at(a.layer).root, toBytePath(a.path), stack.at(b.layer).root, toBytePath(b.path)] as const;
  const step = plan.stepOf(plan.add(calls.compare, args, { output: 0 }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) {
    throw explainWalk(stack.at(a.layer).path, outcome.errno, a.path);
  }
  return outcome.result(step) === 1;
}
