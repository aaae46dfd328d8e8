/** Writes docs/reference from the docstrings of the public entries, which package.json lists. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const here = import.meta.dirname;
const { exports } = JSON.parse(readFileSync(join(here, '../../package.json'), 'utf8'));
const entries = Object.values(exports).flatMap(({ types }) =>
  types === undefined ? [] : [types.replace('./dist/', '../../lib/').replace(/\.d\.ts$/, '.ts')],
);
const arguments_ = entries.flatMap((entry) => ['--entryPoints', entry]);
// The directory in which the reference goes can be another one, for a comparison.
const out = process.argv[2] === undefined ? [] : ['--out', process.argv[2]];
execFileSync(join(here, 'node_modules/.bin/typedoc'), [...arguments_, ...out], { cwd: here, stdio: 'inherit' });
