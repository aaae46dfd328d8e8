/** README.md is short, and the reference names all exports. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot } from '../support/index.js';

const read = (path: string): string => readFileSync(join(packageRoot, path), 'utf8');

test('the README has fewer than 700 words', (t) => {
  t.true(read('README.md').split(/\s+/).length < 700);
});

test('every export is in the reference (npm run docs)', (t) => {
  const lists = read('lib/index.ts').matchAll(/^export (?:type )?\{([^}]*)\}/gm);
  const names = Array.from(lists, ([, list = '']) => list.match(/\w+/g) ?? []).flat();
  t.true(names.length > 40);
  for (const name of names.filter((word) => word !== 'type')) {
    t.regex(read('docs/reference/README.md'), new RegExp(`^### ${name}\\b`, 'm'), name);
  }
});
