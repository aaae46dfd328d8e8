/**
 * Finds the addon. The development build comes first: a packed package has none. A static import of a CommonJS module
 * would start Node's lexer for CommonJS, which takes longer than the rest of the import.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Addon } from './native.js';

const places = ['../build/Release', `../prebuilds/linux-${process.arch}`];

const inPackage = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

function missing(what: string): Error {
  return new Error(
    `overlayfs has no ${what} for ${process.platform}-${process.arch} in this installation. ` +
      'Build it in the package directory: npx node-gyp rebuild',
  );
}

export function load(): Addon {
  const require = process.getBuiltinModule('node:module').createRequire(import.meta.url);
  for (const place of places) {
    try {
      return require(`${place}/overlayfs.node`);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw error;
    }
  }
  throw missing('native addon');
}

/**
 * Returns the path of the program that starts other programs with mounts at places of their own. It is next to the
 * addon.
 */
export function launcher(): string {
  const [development, release] = places;
  const paths = [`${development}/launch`, release].map((place) => inPackage(`${place}/overlayfs-launch`));
  const found = paths.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw missing('launcher');
}
