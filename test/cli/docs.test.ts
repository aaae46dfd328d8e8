/**
 * Runs the examples of docs/cli.md in a row: the lines after `$` in a shell, with their output. Imports internals: the
 * page has to agree with the help and the exit codes.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { commands } from '#lib/cli/commands.js';
import { parserOf } from '#lib/cli/parser.js';
import { umount } from '#lib/cli/umount.js';
import { whiteout } from '#lib/cli/whiteout.js';
import { render } from '#lib/text.js';
import { cliPage } from '../../docs/cli-page.js';
import { mountTest, packageRoot, scratch } from '../support/index.js';
import { program } from './run.js';

const page = readFileSync(join(packageRoot, 'docs/cli.md'), 'utf8');

/** `overlayfs` as a command in a directory of its own. */
function installed(dir: string): string {
  const path = join(dir, 'overlayfs');
  writeFileSync(path, `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`);
  chmodSync(path, 0o755);
  return `${dir}:${process.env['PATH']}`;
}

mountTest('docs/cli.md: the examples print what the page says', (t) => {
  const cwd = scratch(t);
  const PATH = installed(scratch(t));
  const blocks = Array.from(page.matchAll(/^```console\n([\s\S]*?)^```$/gm), ([, block = '']) => block);
  t.true(blocks.length > 5);
  for (const block of blocks) {
    for (const [, command = '', printed = ''] of block.matchAll(/^\$ (.*)\n((?:(?!\$ ).*\n)*)/gm)) {
      const env = { ...process.env, PATH, LC_ALL: 'C' };
      const shown = execFileSync('sh', ['-c', `{ ${command}\n} 2>&1 || true`], { cwd, env, encoding: 'utf8' });
      t.is(shown, printed, command);
    }
  }
});

test('docs/cli.md has the tables of the commands, and the JSON of each', (t) => {
  t.is(cliPage(page), page, 'npm run docs');
  const rows = page.slice(page.indexOf('## JSON'));
  for (const name of Object.keys(commands)) {
    const [first = '', second] = name.split(' ');
    const pattern = second === undefined ? `\\| \`${first}[ \`]` : `\\| \`${first} .*\\b${second}\\b`;
    t.regex(rows, new RegExp(`^${pattern}.* \\|$`, 'm'), name);
  }
});

test('docs/cli.md has the flags of the help, in lines of at most 100 columns', (t) => {
  for (const command of [umount, whiteout]) {
    for (const { spelling, about } of (command.groups ?? []).flatMap(({ flags }) => flags)) {
      const rows = page.split('\n').filter((line) => /^\| `--(\S+?)[` ]/.exec(line)?.[1] === spelling);
      const meanings = rows.map((row) => row.split(' | ')[1]?.replace(' |', '').replaceAll('`', '').toLowerCase());
      t.true(meanings.includes(render(about).toLowerCase()), spelling);
    }
  }
  for (const [name, command] of Object.entries(commands)) {
    const long = parserOf(name, command)
      .helpInformation()
      .split('\n')
      .filter((line) => line.length > 100);
    t.deepEqual(
      long.filter((line) => !line.startsWith('Usage:') && !line.includes('overlayfs ')),
      [],
      name,
    );
  }
});
