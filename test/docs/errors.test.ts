/**
 * docs/errors.md and docs/reference/ agree with the table of reasons, and the code uses no other reason. Imports
 * internals: this table.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { reasons } from '#lib/reasons.js';
import { errorsPage, sections } from '../../docs/errors-page.js';
import { packageRoot } from '../support/index.js';

test('docs/errors.md is up to date (npm run docs)', (t) => {
  t.is(readFileSync(join(packageRoot, 'docs/errors.md'), 'utf8'), errorsPage());
});

test('every reason has one row, in a section, and is in the reference', (t) => {
  const page = errorsPage();
  const reference = readFileSync(join(packageRoot, 'docs/reference/README.md'), 'utf8');
  for (const reason of Object.keys(reasons)) {
    t.true(reference.includes(`\`"${reason}"\``), reason);
    t.is(page.match(new RegExp(`^\\| \`${reason}\` \\|`, 'gm'))?.length, 1, reason);
  }
  t.true(page.indexOf('| `lower-missing`') > page.indexOf('\n## '));
});

const lib = join(packageRoot, 'lib');

test('the table of reasons and the page have the same headings', (t) => {
  const table = readFileSync(join(lib, 'reasons.ts'), 'utf8');
  const headings = Array.from(table.matchAll(/^ {2}\/\/ (.*)\n {2}'?([\w-]+)/gm), ([, title, first]) => [first, title]);
  t.deepEqual(Object.fromEntries(headings), sections);
});

const sources = readdirSync(lib, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => ({ file, code: readFileSync(join(lib, file), 'utf8') }));

test('a text names an option by `option`, so that each interface spells it', (t) => {
  const inText = /'[^'`]*`\w+`|\\`(?!using\\`)\w+(?:: [^`]*)?\\`/;
  // The table has texts of docs/options.md too, and so has `when` of a conflict.
  const isShown = (line: string) => !/^\s*(?:\*|\/[/*]|when: )/.test(line);
  const plain = sources
    .filter(({ file }) => file !== 'options/table.ts')
    .flatMap(({ file, code }) => code.split('\n').map((line, i) => ({ at: `${file}:${i + 1}`, line })))
    .filter(({ line }) => isShown(line) && inText.test(line));
  t.deepEqual(plain, []);
});

test('every reason is given by some code', (t) => {
  const code = sources
    .filter(({ file }) => file !== 'reasons.ts')
    .map(({ code }) => code)
    .join('\n');
  // Made of a role and what is wrong with it.
  const composed = /^(lower|upper|work|target|path)-(missing|not-directory)$/;
  const unused = Object.keys(reasons).filter((reason) => !composed.test(reason) && !code.includes(`'${reason}'`));
  t.deepEqual(unused, []);
});
