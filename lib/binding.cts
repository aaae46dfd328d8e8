// Loads the addon. CommonJS with literal paths, which Node, Bun, Deno and the bundlers all follow. The
// development build comes first: in a packed tree there is none.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Addon } from './native.js';

export function load(): Addon {
  try {
    return require('../build/Release/overlayfs.node');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw error;
  }
  try {
    if (process.arch === 'x64') return require('../prebuilds/linux-x64/overlayfs.node');
    if (process.arch === 'arm64') return require('../prebuilds/linux-arm64/overlayfs.node');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw error;
  }
  throw new Error(
    `overlayfs has no native addon for ${process.platform}-${process.arch} in this installation. ` +
      'Build it in the package directory: npx node-gyp rebuild',
  );
}

/** The program that starts others where mounts are at places of their own; it lies beside the addon. */
export function launcher(): string {
  const places = ['../build/Release/launch', `../prebuilds/linux-${process.arch}`];
  const paths = places.map((place) => join(__dirname, place, 'overlayfs-launch'));
  const found = paths.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new Error(
    `overlayfs has no launcher for ${process.platform}-${process.arch} in this installation. ` +
      'Build it in the package directory: npx node-gyp rebuild',
  );
}
