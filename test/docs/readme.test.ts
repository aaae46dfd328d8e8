/** README.md is short, and the reference names all exports and options. Imports internals: the table of options. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { optionTable } from '#lib/options/table.js';
import { isLong, packageRoot, scratch } from '../support/index.js';

const read = (path: string): string => readFileSync(join(packageRoot, path), 'utf8');

test('the README has fewer than 700 words', (t) => {
  t.true(read('README.md').split(/\s+/).length < 700);
});

const { exports } = JSON.parse(read('package.json')) as { exports: Record<string, { types?: string }> };
const entries = Object.entries(exports).flatMap(([name, { types }]) =>
  types === undefined
    ? []
    : [{ source: types.replace('./dist/', 'lib/').replace('.d.ts', '.ts'), page: join(name, 'README.md') }],
);

test('every export is in the reference (npm run docs)', (t) => {
  for (const { source, page } of entries) {
    const lists = read(source).matchAll(/^export (?:type )?\{([^}]*)\}/gm);
    const names = Array.from(lists, ([, list = '']) => list.match(/\w+/g) ?? []).flat();
    t.true(names.length > 0);
    const text = read(join('docs/reference', page));
    for (const name of names.filter((word) => word !== 'type')) t.regex(text, new RegExp(`^### ${name}\\b`, 'm'), name);
  }
});

test('every option of a mount is in the reference (npm run docs)', (t) => {
  const [, section = ''] = read('docs/reference/README.md').split(/^### OverlayOptions$/m);
  const [properties = ''] = section.split(/^### /m);
  for (const name of Object.keys(optionTable)) t.regex(properties, new RegExp(`\`${name}\\??\``), name);
});

// The reference is made by a compiler in JavaScript, which takes long.
if (isLong) {
  test('docs/reference is up to date (npm run docs)', (t) => {
    const dir = scratch(t, 'disk');
    execFileSync(process.execPath, [join(packageRoot, 'docs/typedoc/generate.mjs'), dir], { stdio: 'inherit' });
    for (const { page } of entries) {
      t.is(read(join('docs/reference', page)), readFileSync(join(dir, page), 'utf8'));
    }
  });
}
