/**
 * Finds the files that the library needs at run time: the addon, the launcher and the deferred modules. A static import
 * of a CommonJS module would start Node's lexer for CommonJS, which takes longer than the rest of the import.
 */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { explainUnloaded } from './errors.js';

/** The development build comes first: a packed package has none. Beside a bundled program, `prebuilds` is next to it. */
const release = `prebuilds/linux-${process.arch}`;
const places = {
  addon: ['../build/Release/overlayfs.node', `../${release}/overlayfs.node`, `${release}/overlayfs.node`],
  launcher: [
    '../build/Release/launch/overlayfs-launch',
    `../${release}/overlayfs-launch`,
    `${release}/overlayfs-launch`,
  ],
  deferred: ['deferred.cjs'],
};

declare const __filename: string;

/** The path of a module in CommonJS. webpack replaces `typeof __filename` also in ES modules, which have none. */
function ownFile(): string | undefined {
  try {
    return __filename;
  } catch {
    return undefined;
  }
}

/**
 * The directories from which the places lead. A bundle in CommonJS by esbuild has no `import.meta.url`, and one by
 * webpack has the path from when it was bundled. The last directory, the program's own, helps these.
 */
function* directories(): Generator<string> {
  const url: string | undefined = import.meta.url;
  if (url !== undefined) yield dirname(fileURLToPath(url));
  for (const path of [ownFile(), process.argv[1]]) if (path !== undefined) yield dirname(path);
}

function find(name: keyof typeof places): string {
  for (const directory of directories()) {
    for (const place of places[name]) {
      const path = join(directory, place);
      if (existsSync(path)) return path;
    }
  }
  const [what, script] =
    name === 'deferred'
      ? ['deferred.cjs', 'build:ts']
      : [`${name} for ${process.platform}-${process.arch}`, 'build:native'];
  throw new Error(
    `overlayfs finds no ${what}. In a clone of the repository, run \`npm run ${script}\`. ` +
      "Beside a bundled program, put copies of the package's prebuilds and dist/deferred.cjs. " +
      'For a processor that the package has no binary for, build the package from a clone of its repository. ' +
      'See https://github.com/overlayfs/overlayfs-node/blob/main/docs/bundlers.md',
  );
}

const load = (path: string): unknown => process.getBuiltinModule('node:module').createRequire(path)(path);

export const loadAddon = (): unknown => load(find('addon'));

/** Returns the function that makes the deferred modules from the modules that they share with the others. */
export function loadDeferred(): unknown {
  const path = find('deferred');
  try {
    return load(path);
  } catch (error) {
    throw explainUnloaded(error);
  }
}

/**
 * Returns the path of the program that starts other programs with mounts at places of their own. It is next to the
 * addon.
 */
export const launcher = (): string => find('launcher');
