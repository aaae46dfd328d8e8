/** Writes docs/reference from the docstrings of the public entries, which package.json lists. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const here = import.meta.dirname;
const { exports } = JSON.parse(readFileSync(join(here, '../../package.json'), 'utf8'));
// The reference can go to another directory, for a comparison.
const [reference = join(here, '../reference')] = process.argv.slice(2);
const typedoc = join(here, 'node_modules/.bin/typedoc');
if (!existsSync(typedoc)) {
  console.error(
    'docs/reference is not written: typedoc is not installed. Run `npm ci`, then `npm run docs:reference`.',
  );
  process.exit(1);
}
// A directory for each entry. typedoc empties it first, so the outermost comes first.
for (const [name, { types }] of Object.entries(exports)) {
  if (types === undefined) continue;
  const source = types.replace('./dist/', '../../lib/').replace(/\.d\.ts$/, '.ts');
  const options = ['--entryPoints', source, '--out', join(reference, name), '--name', join('overlayfs', name)];
  execFileSync(typedoc, options, { cwd: here, stdio: 'inherit' });
}
