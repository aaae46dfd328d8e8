/** The layers that a caller names: by paths, by a mounted overlay, or by its entry in the mount table. */

import { checkBoolean, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { optionRows } from '../options/table.js';
import { isAbsolute, joinPath, type Path, type PathLike, quotePath, toAbsolute, toPath } from '../paths.js';
import type { MarkSpace } from './marks.js';

/** The layers of an overlay by their paths, the topmost first. Other options of `mountOverlay` have no effect here. */
export interface LayerPaths {
  /** The upper directory; a list stands for several uppers whose changes count as one. Only `squash` takes a list. */
  readonly upperdir?: PathLike | readonly PathLike[] | undefined;
  /** The layers below. An empty list says that there are none; without the option, they are not known. */
  readonly lowerdir?: PathLike | readonly PathLike[] | undefined;
  /** Layers that hold the data of metacopies only. */
  readonly datadir?: PathLike | readonly PathLike[] | undefined;
  /** With `index` or `nfsExport`: the workdir, whose index knows the hard links of changed files. */
  readonly workdir?: PathLike | undefined;
  readonly index?: boolean | undefined;
  readonly nfsExport?: boolean | undefined;
  /**
   * True if the marks of the layers are `user.overlay.*`, false if they are `trusted.overlay.*`. Default: the marks on
   * the roots of the layers tell. If they do not, marks of both kinds count.
   */
  readonly userxattr?: boolean | undefined;
}

/** A mounted overlay, as `mountOverlay` returns it: its options name its layers. */
export interface MountedLayers {
  readonly options: LayerPaths & { readonly rootless?: unknown };
}

/** An overlay in the mount table, as `listMounts` and `findMount` return it. */
export interface ListedLayers {
  readonly overlay: LayerPaths | undefined;
  /** The directory of the overlay that the mount shows: `'/'`. */
  readonly root: string | Buffer;
}

/** The layers of an overlay. A path alone is one directory, which is not a mount. */
export type Layers = PathLike | LayerPaths | MountedLayers | ListedLayers;

export interface GivenLayers {
  readonly uppers: readonly Path[];
  readonly lowers: readonly Path[];
  readonly dataPaths: readonly Path[];
  readonly space: MarkSpace | undefined;
  /** The index of an overlay with `index`. */
  readonly index: Path | undefined;
  /** False if nothing is known of the layers below. */
  readonly hasLowers: boolean;
  /** True for the layers of an overlay that the kernel has mounted, which are layers for certain. */
  readonly isMounted: boolean;
}

const known: ReadonlySet<string> = new Set(Object.keys(optionRows));

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null;
const isPath = (value: unknown): value is PathLike =>
  typeof value === 'string' || value instanceof Uint8Array || value instanceof URL;

/** Returns one path or several as a list. */
export function toPaths(value: unknown, name: string): Path[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) return [toAbsolute(toPath(value, name))];
  return value.map((one, i) => toAbsolute(toPath(one, `${name}[${i}]`)));
}

function toIndex({ workdir, index, nfsExport }: LayerPaths): Path | undefined {
  const isIndexed = index ?? nfsExport ?? false;
  return workdir === undefined || !isIndexed ? undefined : joinPath(toAbsolute(toPath(workdir, 'workdir')), 'index');
}

/** Returns the layers. If the options of a mount leave out `userxattr`, `unsaid` stands in its place. */
function toGiven(paths: LayerPaths, isMounted = false, unsaid?: false): GivenLayers {
  const userxattr = checkBoolean(paths.userxattr, 'userxattr') ?? unsaid;
  return {
    uppers: toPaths(paths.upperdir, 'upperdir'),
    lowers: toPaths(paths.lowerdir, 'lowerdir'),
    dataPaths: toPaths(paths.datadir, 'datadir'),
    space: userxattr === undefined ? undefined : userxattr ? 'user' : 'trusted',
    index: toIndex(paths),
    hasLowers: paths.lowerdir !== undefined,
    isMounted,
  };
}

/** Refuses an entry of the mount table that does not tell the layers of what it shows. */
function toListed(entry: ListedLayers): LayerPaths {
  const { overlay, root } = entry;
  if (!isObject(overlay))
    throw invalidArgumentValue('layers', entry, 'must be the entry of an overlay, not of another mount');
  if (String(root) !== '/') {
    throw invalidArgumentValue(
      'layers',
      entry,
      `must be the entry of a whole overlay, not of its directory ${quotePath(root)}`,
    );
  }
  const { upperdir, lowerdir, datadir } = overlay;
  for (const [name, value] of Object.entries({ upperdir, lowerdir, datadir })) {
    for (const path of [value ?? []].flat() as PathLike[]) {
      const own = toPath(path, name);
      if (isAbsolute(own)) continue;
      const where = 'must have absolute paths: a relative one counts from the directory of the program that mounted it';
      throw invalidArgumentValue(name, path, where);
    }
  }
  return overlay;
}

/** Returns the layers that an argument names. */
export function toLayers(from: unknown): GivenLayers {
  if (isPath(from)) return toGiven({ upperdir: from });
  if (!isObject(from) || Array.isArray(from)) {
    const expected =
      'a directory, an object with "upperdir" or "lowerdir", a mounted overlay or its entry in the mount table';
    throw invalidArgumentType('layers', expected, from);
  }
  if ('options' in from && isObject(from.options)) {
    const { options } = from as MountedLayers;
    // A rootless mount may have `userxattr` without being told.
    return toGiven(options, true, options.rootless ? undefined : false);
  }
  if ('overlay' in from) return toGiven(toListed(from as ListedLayers), true, false);
  const paths = toOptions<LayerPaths>(from, known, 'layers');
  const given = toGiven(paths);
  if (given.uppers.length + given.lowers.length === 0) {
    throw invalidArgumentValue('layers', from, 'must name an upperdir or a lowerdir');
  }
  return given;
}

/** Returns the only upper, for a call about the changes of one. */
export function upperOf({ uppers }: GivenLayers, from: unknown): Path {
  const [upper, ...more] = uppers;
  if (upper === undefined) {
    throw invalidArgumentValue('layers', from, 'must name an upperdir, since only an upperdir has changes');
  }
  if (more.length > 0)
    throw invalidArgumentValue('upperdir', uppers, 'must be one directory; squash makes one of several');
  return upper;
}

/** Returns all layers, the topmost first. */
export const layersOf = ({ uppers, lowers }: GivenLayers): Path[] => [...uppers, ...lowers];
