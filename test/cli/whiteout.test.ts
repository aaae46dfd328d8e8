/**
 * `overlayfs whiteout`, for real. It needs no privilege. Imports internals: the parser of standard input takes any
 * bytes.
 */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { isWhiteoutSync } from 'overlayfs';
import { splitPaths } from '#lib/cli/stdin.js';
import { makeTree, mountTest, scratch } from '../support/index.js';
import { json, overlayfs, run, runBytes } from './run.js';

const silent = { code: 0, stdout: '', stderr: '' };

mountTest('several at once, all or none', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'sub/': '', there: 'content' });
  const [one, two, there] = ['one', 'sub/two', 'there'].map((name) => join(dir, name)) as [string, string, string];
  const failed = await overlayfs('whiteout', one, there);
  t.is(failed.code, 2);
  t.regex(failed.stderr, /reason: path-exists\n {2}hint: Remove it first, or pass --replace to put/);
  t.false(existsSync(one));
  t.deepEqual(await overlayfs('whiteout', one, two), silent);
  t.true([one, two].every((path) => isWhiteoutSync(path)));
  t.like(await json('whiteout', '--replace', there), { code: 0, document: { whiteouts: [there] } });
  t.true(isWhiteoutSync(there));
});

mountTest('--replace --recursive', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'tree/with/files': 'x' });
  const tree = join(dir, 'tree');
  t.regex(
    (await overlayfs('whiteout', '--replace', tree)).stderr,
    /reason: path-is-directory\n.*pass --recursive with --replace/,
  );
  t.deepEqual(await overlayfs('whiteout', '--replace', '--recursive', tree), silent);
  t.true(isWhiteoutSync(tree));
});

mountTest('from standard input: one a line, or NUL-separated with any bytes; beside others', (t) => {
  const dir = scratch(t);
  t.deepEqual(run(['whiteout', '-'], { cwd: dir, input: 'one\ntwo words\nlast' }), silent);
  t.deepEqual(readdirSync(dir).sort(), ['last', 'one', 'two words']);
  const input = Buffer.from('new\nline\0no-utf8-\xff\0', 'latin1');
  t.deepEqual(run(['whiteout', '-0', 'before', '-', 'after'], { cwd: dir, input }), silent);
  t.true(isWhiteoutSync(Buffer.concat([Buffer.from(`${dir}/no-utf8-`), Buffer.from([0xff])])));
  for (const name of ['before', 'new\nline', 'after']) t.true(isWhiteoutSync(join(dir, name)), name);
  t.deepEqual(run(['whiteout', '-'], { cwd: dir, input: '' }), silent, 'none is none');
  t.is(run(['whiteout', '-'], { cwd: dir, input: 'x\n\ny\n' }).code, 2, 'an empty line is no path');
  t.false(existsSync(join(dir, 'x')));
  t.deepEqual(run(['whiteout', './-'], { cwd: dir }), silent);
  t.true(isWhiteoutSync(join(dir, '-')));
});

mountTest('thousands from standard input', (t) => {
  const dir = scratch(t);
  const names = Array.from({ length: 5000 }, (_, i) => `file-${i}`);
  t.deepEqual(run(['whiteout', '-'], { cwd: dir, input: names.join('\n') }), silent);
  t.is(readdirSync(dir).length, 5000);
});

mountTest('an argument of any bytes', (t) => {
  const dir = scratch(t);
  mkdirSync(join(dir, 'layer'));
  writeFileSync(join(dir, 'layer/kept'), '');
  const path = Buffer.from(`${dir}/layer/\xff\xfe`, 'latin1');
  const made = runBytes(['whiteout', path, '--json']);
  t.deepEqual(JSON.parse(made.stdout), { whiteouts: [{ base64: path.toString('base64') }] });
  t.true(isWhiteoutSync(path));
});

test('lists are split at separators, the last of which may be missing', (t) => {
  const split = (text: string, separator: '\n' | '\0' = '\n') => splitPaths(Buffer.from(text), separator);
  t.deepEqual(split(''), []);
  t.deepEqual(split('a\nb'), ['a', 'b']);
  t.deepEqual(split('a\nb\n'), ['a', 'b']);
  t.deepEqual(split('a\n\n'), ['a', '']);
  t.deepEqual(split('a\nb\0c\0', '\0'), ['a\nb', 'c']);
});
