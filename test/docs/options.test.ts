/** docs/options.md agrees with the tables of the code. Imports internals: these tables. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { optionTable } from '#lib/options/table.js';
import { optionsPage } from '../../docs/options-page.js';
import { packageRoot } from '../support/index.js';

test('docs/options.md is up to date (npm run docs)', (t) => {
  t.is(readFileSync(join(packageRoot, 'docs/options.md'), 'utf8'), optionsPage());
});

test('every option has one row', (t) => {
  for (const name of Object.keys(optionTable)) {
    t.is(optionsPage().match(new RegExp(`^\\| \`${name}\` \\|`, 'gm'))?.length, 1, name);
  }
});
