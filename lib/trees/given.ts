/** The layers that a caller names: directories, or the layers of a mounted overlay. */

import { conflictingOptions, invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { joinPath, type Path, type PathLike, toAbsolute, toPath } from '../paths.js';
import type { MarkSpace } from './marks.js';

/** A mounted overlay, as `mountOverlay` returns it: its options name its layers. */
export interface MountedLayers {
  readonly options: {
    readonly lowerdir: PathLike | readonly PathLike[];
    readonly datadir?: PathLike | readonly PathLike[];
    readonly upperdir?: PathLike;
    readonly workdir?: PathLike;
    readonly index?: boolean;
    readonly nfsExport?: boolean;
    readonly userxattr?: boolean;
    readonly rootless?: unknown;
  };
}

/** An upper directory, or a mounted overlay. */
export type LayersLike = PathLike | MountedLayers;

interface LayerOptions {
  readonly lowerdir?: PathLike | readonly PathLike[] | undefined;
  readonly datadir?: PathLike | readonly PathLike[] | undefined;
  readonly userxattr?: boolean | undefined;
}

export interface GivenLayers {
  readonly upper: Path;
  readonly lowers: readonly Path[];
  readonly dataPaths: readonly Path[];
  readonly space: MarkSpace | undefined;
  /** The index of a mount with `index`. */
  readonly index: Path | undefined;
}

export const isMount = (value: unknown): value is MountedLayers =>
  typeof value === 'object' && value !== null && 'options' in value && typeof value.options === 'object';

/** Returns one path or several as a list. */
export function toPaths(value: unknown, name: string): Path[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) return [toAbsolute(toPath(value, name))];
  return value.map((one, i) => toAbsolute(toPath(one, `${name}[${i}]`)));
}

/** Returns the namespace of the marks; undefined if the options do not say it. */
export function toSpace(userxattr: boolean | undefined, rootless?: unknown): MarkSpace | undefined {
  if (userxattr !== undefined) return userxattr ? 'user' : 'trusted';
  return rootless === undefined ? undefined : rootless === false ? 'trusted' : undefined;
}

function toIndex({ workdir, index, nfsExport }: MountedLayers['options']): Path | undefined {
  const isIndexed = index ?? nfsExport ?? false;
  return workdir === undefined || !isIndexed ? undefined : joinPath(toAbsolute(toPath(workdir, 'workdir')), 'index');
}

/** Returns an upper with its lower layers. The options of a mounted overlay name both. */
export function toLayers(from: LayersLike, { lowerdir, datadir, userxattr }: LayerOptions): GivenLayers {
  if (!isMount(from)) {
    if (typeof from === 'object' && !(from instanceof Uint8Array) && !(from instanceof URL)) {
      throw invalidArgumentType('upper', 'the path of an upper directory, or a mounted overlay', from);
    }
    return {
      upper: toAbsolute(toPath(from, 'upper')),
      lowers: toPaths(lowerdir, 'lowerdir'),
      dataPaths: toPaths(datadir, 'datadir'),
      space: toSpace(userxattr),
      index: undefined,
    };
  }
  if (lowerdir !== undefined || datadir !== undefined) {
    throw conflictingOptions(
      '"lowerdir" and "datadir" cannot go with a mount, which names its own layers',
      'leave them out',
    );
  }
  const { options } = from;
  if (options.upperdir === undefined) {
    throw invalidArgumentValue('upper', from, 'must be a mount with an upperdir, since only an upperdir has changes');
  }
  return {
    upper: toAbsolute(toPath(options.upperdir, 'upperdir')),
    lowers: toPaths(options.lowerdir, 'lowerdir'),
    dataPaths: toPaths(options.datadir, 'datadir'),
    space: toSpace(userxattr ?? options.userxattr, options.rootless ?? false),
    index: toIndex(options),
  };
}
