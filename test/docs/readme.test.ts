/** README.md names all exports and options. Imports internals: the table of options. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { optionTable } from '#lib/options/table.js';
import { packageRoot } from '../support/index.js';

const read = (path: string): string => readFileSync(join(packageRoot, path), 'utf8');

test('every export is named, a synchronous form by its promise form', (t) => {
  const lists = read('lib/index.ts').matchAll(/^export (?:type )?\{([^}]*)\}/gm);
  const names = Array.from(lists, ([, list = '']) => list.match(/\w+/g) ?? []).flat();
  t.true(names.length > 40);
  for (const name of names.filter((word) => word !== 'type' && !word.endsWith('Sync'))) {
    t.regex(read('README.md'), new RegExp(`\`${name}\\b`), name);
  }
});

test('every option of a mount is named', (t) => {
  const [, section = ''] = /### Options of a mount\n(.*?)\n## /s.exec(read('README.md')) ?? [];
  for (const name of Object.keys(optionTable)) t.true(section.includes(`\`${name}\``), name);
});
