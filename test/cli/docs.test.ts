/**
 * Runs the examples of docs/cli.md in a row: the lines after `$` in a shell, with their output. Imports internals: the
 * page has to agree with the help and the exit codes.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { commandHelp, exitCodes } from '#lib/cli/help.js';
import { umount } from '#lib/cli/umount.js';
import { whiteout } from '#lib/cli/whiteout.js';
import { render } from '#lib/text.js';
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

test('docs/cli.md has the JSON of each command', (t) => {
  const rows = page.slice(page.indexOf('## JSON'));
  const commands = Array.from(page.matchAll(/^\| `overlayfs (\w+) /gm), ([, name = '']) => name);
  t.true(commands.length > 5);
  for (const name of commands) t.true(rows.includes(`\n| \`${name}\` |`), name);
});

test('docs/cli.md has the flags and exit codes of the help', (t) => {
  for (const command of [umount, whiteout]) {
    for (const { spellings, about } of command.groups.flatMap(({ flags }) => flags)) {
      const row = page.split('\n').find((line) => /^\| `--(\S+?)[` ]/.exec(line)?.[1] === spellings[0]);
      t.is(row?.split(' | ')[1]?.replace(' |', '').replaceAll('`', '').toLowerCase(), render(about).toLowerCase());
    }
  }
  for (const [code, meaning] of exitCodes) t.true(page.includes(`| ${code} | ${meaning.split(':')[0]}`));
  t.true(
    commandHelp('umount', umount)
      .split('\n')
      .every((line) => line.length <= 100),
  );
});
