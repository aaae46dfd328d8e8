/** Finds the layer that answers for a path, and the entries of the other layers there. */

import { toOptions } from '../arguments.js';
import { invalidArgumentValue } from '../errors.js';
import * as k from '../kernel/constants.js';
import { run, type Task } from '../kernel/task.js';
import { type PathLike, toPath } from '../paths.js';
import { encodePath, type PathEncoding, toEncoding } from '../trees/encodings.js';
import { type GivenLayers, type Layers, layersOf, toLayers } from '../trees/given.js';
import { findChild, isAbsent, type LayerStack, openLayers, placesOf, type Source, toSource } from '../trees/stack.js';
import { examine, explainWalk } from '../trees/walk.js';
import { type EntryType, toEntryType } from './changes.js';

/** An entry of a layer above that hides another one. It has the path of that entry, or of a directory above it. */
export interface Hider<P extends string | Buffer = string> {
  /** The index of the layer. */
  layer: number;
  /** The path of the hiding entry below the layer's root. */
  path: P;
  /** The kind of the hiding entry. */
  as: 'whiteout' | 'opaque' | 'redirect' | EntryType;
}

/**
 * - `'answers'`: the mount shows this entry
 * - `'merged'`: a directory whose contents show in the one that answers
 * - `'data'`: the file that holds the data of the metacopy that answers
 * - `'whiteout'`: a whiteout, which hides the entries of the layers below
 * - `'hidden'`: a layer above hides the entry
 * - `'nothing'`: the layer has nothing there
 */
export type LayerRole = 'answers' | 'merged' | 'data' | 'whiteout' | 'hidden' | 'nothing';

export interface LayerLookup<P extends string | Buffer = string> {
  /** The directory of the layer. */
  layer: P;
  role: LayerRole;
  /** The path below the layer's root. It differs from the requested path if a redirect leads elsewhere. */
  path: P;
  type?: EntryType;
  /** True for a directory that hides the contents of the directories below. */
  opaque?: true;
  /** True for a file that takes its data from a layer below. */
  metacopy?: true;
  /**
   * The path at which the layers below hold the entry's contents or data. It counts from the root if it begins with a
   * slash; otherwise, it is a name in the same directory.
   */
  redirect?: P;
  hiddenBy?: Hider<P>;
}

export interface Lookup<P extends string | Buffer = string> {
  /** The index of the layer that answers; undefined if the mount shows nothing at the path. */
  layer: number | undefined;
  type: EntryType | undefined;
  /** One record for each layer: the topmost first, then the layers that hold the data of metacopies only. */
  layers: LayerLookup<P>[];
}

export interface LookupOptions<E extends PathEncoding = PathEncoding> {
  /** `'buffer'` for paths as bytes. Default: text. */
  encoding?: E;
}

const names: ReadonlySet<string> = new Set(['encoding']);

interface Asked {
  readonly layers: GivenLayers;
  readonly components: readonly string[];
  readonly encoding: PathEncoding;
}

function toAsked(from: Layers, path: PathLike, given: LookupOptions | undefined): Asked {
  const { encoding } = toOptions(given, names);
  const text = Buffer.from(toPath(path, 'path')).toString('latin1');
  const components = text.split('/').filter((name) => name !== '' && name !== '.');
  if (components.includes('..')) throw invalidArgumentValue('path', path, 'must be a path without ".."');
  return { layers: toLayers(from), components, encoding: toEncoding(encoding) };
}

/** Returns the entries of each layer at the path and at the directories that lead to it, hidden ones too. */
function* askLayers(stack: LayerStack, prefixes: readonly string[]): Task<(Source | undefined)[][]> {
  const answers: (Source | undefined)[][] = [];
  for (const [layer, { root, path }] of stack.layers.entries()) {
    const records = yield* examine(root, prefixes, { attributes: 'all', targets: true });
    const found: (Source | undefined)[] = [];
    for (const prefix of prefixes) {
      records.advance();
      const { error } = records;
      if (error !== 0 && !isAbsent(error)) throw explainWalk(path, error, prefix);
      found.push(error === 0 ? toSource(records, layer, prefix, stack.space) : undefined);
    }
    answers.push(found);
  }
  return answers;
}

/** Returns how an entry hides the entries of the layers below; undefined if it hides none. */
function hides(source: Source, isLast: boolean): Hider['as'] | undefined {
  if (source.isWhiteout) return 'whiteout';
  if (source.type !== k.S_IFDIR) return toEntryType(source.type);
  if (isLast && source.marks.opaque === undefined && source.marks.redirect === undefined) return 'directory';
  if (source.marks.opaque === 'y') return 'opaque';
  return source.marks.redirect === undefined ? undefined : 'redirect';
}

interface Hidden {
  readonly layer: number;
  readonly path: string;
  readonly as: Hider['as'];
}

function* lookUp({ layers: given, components, encoding }: Asked): Task<Lookup<string | Buffer>> {
  const layers = layersOf(given);
  const stack = yield* openLayers(layers, { ...given, isTopLayer: true });
  try {
    const prefixes = components.map((_, i) => components.slice(0, i + 1).join('/'));
    if (prefixes.length === 0) prefixes.push('');
    const answers = yield* askLayers(stack, prefixes);
    let places = stack.roots(0);
    let found: Source[] = components.length === 0 ? answers.flatMap(([root]) => root ?? []) : [];
    const hiddenBy: (Hidden | undefined)[] = new Array(layers.length).fill(undefined);
    let alive = layers.map((_, i) => i);
    for (const [i, name] of components.entries()) {
      found = yield* findChild(stack, places, name);
      places = placesOf(stack, found);
      const isLast = i === components.length - 1;
      const part = new Set(found.map(({ layer }) => layer));
      for (const layer of alive) {
        if (part.has(layer) || answers[layer]?.[i] === undefined) continue;
        hiddenBy[layer] = findHider(answers, alive, layer, i, isLast);
      }
      alive = alive.filter((layer) => part.has(layer) || (answers[layer]?.[i]?.isWhiteout && isLast));
    }
    const path = components.join('/');
    return describe(stack, found, answers, hiddenBy, path, encoding);
  } finally {
    stack.close();
  }
}

function findHider(
  answers: readonly (Source | undefined)[][],
  alive: readonly number[],
  layer: number,
  i: number,
  isLast: boolean,
): Hidden | undefined {
  for (const other of alive) {
    const source = other < layer ? answers[other]?.[i] : undefined;
    const as = source && hides(source, isLast);
    if (source !== undefined && as !== undefined) return { layer: other, path: source.path, as };
  }
  return undefined;
}

function describe(
  stack: LayerStack,
  found: readonly Source[],
  answers: readonly (Source | undefined)[][],
  hiddenBy: readonly (Hidden | undefined)[],
  path: string,
  encoding: PathEncoding,
): Lookup<string | Buffer> {
  const [top] = found;
  const encode = (text: string): string | Buffer => encodePath(text, encoding);
  const layers = [...stack.layers, ...stack.dataLayers].map((layer, index): LayerLookup<string | Buffer> => {
    const own = found.find((source) => source.layer === index);
    const raw = answers[index]?.at(-1);
    const hider = hiddenBy[index];
    const shown = own ?? raw;
    const role = toRole(own, raw, hider, top);
    const bytes = Buffer.from(layer.path);
    return {
      layer: encoding === 'buffer' ? bytes : bytes.toString(),
      role,
      path: encode(own?.path ?? path),
      ...(shown === undefined || role === 'nothing' ? {} : { type: toEntryType(shown.type) }),
      ...(shown?.marks.opaque === 'y' && shown.type === k.S_IFDIR && path !== '' ? { opaque: true } : {}),
      ...(shown?.marks.metacopy ? { metacopy: true } : {}),
      ...(shown?.marks.redirect === undefined ? {} : { redirect: encode(shown.marks.redirect) }),
      ...(hider === undefined || role !== 'hidden' ? {} : { hiddenBy: { ...hider, path: encode(hider.path) } }),
    };
  });
  return { layer: top?.layer, type: top && toEntryType(top.type), layers };
}

function toRole(
  own: Source | undefined,
  raw: Source | undefined,
  hider: Hidden | undefined,
  top: Source | undefined,
): LayerRole {
  if (own !== undefined) {
    if (own === top) return 'answers';
    return own.type === k.S_IFDIR ? 'merged' : 'data';
  }
  if (raw === undefined) return 'nothing';
  if (hider !== undefined) return 'hidden';
  return raw.isWhiteout ? 'whiteout' : 'hidden';
}

/**
 * Returns which layer answers for a path of an overlay, and what each other layer has there. The path counts from the
 * root of the overlay. Makes no mount: the look-up follows the kernel's rules for whiteouts, opaque directories, redirects
 * and metacopies. statx(2), listxattr(2).
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'` or `'path-inaccessible'`, of a layer
 */
export async function lookup<E extends PathEncoding = 'utf8'>(
  layers: Layers,
  path: PathLike,
  options?: LookupOptions<E>,
): Promise<Lookup<E extends 'buffer' ? Buffer : string>> {
  return run(lookUp(toAsked(layers, path, options))) as never;
}
