/** The layers that a command line names: by flags, or by the mount point of an overlay. */
import { realpathSync } from 'node:fs';
import { findMount } from '../mount-table/list.js';
import { isSamePath, type Path } from '../paths.js';
import type { MountedLayers } from '../trees/given.js';
import { ownFlag } from './command.js';
import type { Parsed } from './parse.js';

/** Flags for layers that are not mounted. */
export const layerFlags = [
  ownFlag('lowerdir', 'a layer below, the topmost first', {
    kind: 'path',
    isList: true,
    spellings: ['lower', 'lowerdir'],
    default: 'none',
  }),
  ownFlag('datadir', 'a layer that holds the data of metacopies only', {
    kind: 'path',
    isList: true,
    spellings: ['data', 'datadir'],
    default: 'none',
  }),
  ownFlag('userxattr', 'the marks begin with user., as those of rootless mounts'),
];

export const hasLayers = ({ options }: Parsed): boolean =>
  options['lowerdir'] !== undefined || options['datadir'] !== undefined;

/** Returns the layers of the overlay that is mounted at a path; undefined if none is. */
export async function mountedLayers(path: Path): Promise<MountedLayers | undefined> {
  const mount = await findMount(path, { encoding: 'buffer' });
  if (mount?.overlay === undefined || mount.root.length !== 1) return undefined;
  const real = realpathSync(typeof path === 'string' ? path : Buffer.from(path), { encoding: 'buffer' });
  if (!isSamePath(mount.target, real)) return undefined;
  const { lowerdir, datadir, upperdir, userxattr } = mount.overlay;
  return {
    options: {
      lowerdir,
      datadir,
      ...(upperdir === undefined ? {} : { upperdir }),
      ...(userxattr === undefined ? {} : { userxattr }),
    },
  };
}
