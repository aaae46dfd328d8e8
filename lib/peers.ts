/** Packages that are optional peer dependencies: what to run when one is missing. */
import { fileURLToPath } from 'node:url';

/** Returns the command that puts packages where this installation of the library finds them. */
function installCommand(packages: readonly string[]): string {
  const names = packages.join(' ');
  const [, modules, cache] = /^(.*?(?:\/(_npx)\/[^/]+)?)\/node_modules\//.exec(fileURLToPath(import.meta.url)) ?? [];
  if (cache !== undefined) return `npx ${packages.map((name) => `-p ${name}`).join(' ')} -p overlayfs overlayfs`;
  // npm has its global packages in PREFIX/lib/node_modules.
  if (modules?.endsWith('/lib') === true) return `npm install -g ${names}`;
  return `npm install ${names}`;
}

/** The message and the hint of an error for packages that cannot be loaded. */
export function missingPackages(
  user: string,
  packages: readonly string[],
  more?: string,
): { readonly what: string; readonly hint: string } {
  const names = packages.map((name) => name.replace(/(?<!^)@.*/, '')).join(' and ');
  const isOne = packages.length === 1;
  return {
    what: `${user} needs the package${isOne ? '' : 's'} ${names}, which ${isOne ? 'is' : 'are'} not installed or cannot be loaded`,
    hint: `run ${installCommand(packages)}${more === undefined ? '' : `; ${more}`}`,
  };
}
