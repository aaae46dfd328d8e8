/** The layers that a command line names: by flags, or by the mount point of an overlay. */
import { realpathSync } from 'node:fs';
import type { MountEntry } from '../mount-table/entry.js';
import { findMount } from '../mount-table/list.js';
import { isSamePath, type Path, toBytes } from '../paths.js';
import type { Layers } from '../trees/given.js';
import { userxattrFlag } from './command.js';
import { ownFlag } from './flags.js';

/** Layers that are not mounted, by flags. */
export interface LayerFlags {
  readonly lowerdir?: Path[];
  readonly datadir?: Path[];
  readonly userxattr?: boolean;
}

export const layerFlags = [
  ownFlag('lowerdir', 'a layer below, the topmost first', { kind: 'path', isList: true, default: 'none' }),
  ownFlag('datadir', 'a layer that holds the data of metacopies only', { kind: 'path', isList: true, default: 'none' }),
  userxattrFlag,
];

/** Returns the overlay that is mounted at a path; undefined if none is. */
export async function mountedAt(path: Path): Promise<MountEntry<Buffer> | undefined> {
  const mount = await findMount(path, { encoding: 'buffer' });
  if (mount?.overlay === undefined || mount.root.length !== 1) return undefined;
  const real = realpathSync(Buffer.from(toBytes(path)), { encoding: 'buffer' });
  return isSamePath(mount.target, real) ? mount : undefined;
}

/**
 * Takes the layers from the options of a command. The path is a mounted overlay, or an upper directory. With --lowerdir or
 * --datadir, it is an upper.
 */
export async function takeLayers<O extends LayerFlags>(
  path: Path,
  { lowerdir, datadir, userxattr, ...options }: O,
): Promise<[layers: Layers, options: Omit<O, keyof LayerFlags>]> {
  const space = userxattr === undefined ? {} : { userxattr };
  const mounted = lowerdir === undefined && datadir === undefined ? await mountedAt(path) : undefined;
  if (mounted !== undefined) return [{ ...mounted, overlay: { ...mounted.overlay, ...space } }, options];
  return [{ upperdir: path, lowerdir, datadir, ...space }, options];
}
