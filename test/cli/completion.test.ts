/** The scripts of `overlayfs completion`, in the shells that are there. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { scratch } from '../support/index.js';
import { overlayfs } from './run.js';

/** The words that bash offers for the last word of a line. */
function offered(script: string, ...words: string[]): string[] {
  const ask = `COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _overlayfs; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { stdout, stderr } = spawnSync('bash', ['-c', `${script}\n${ask}`, 'bash', 'overlayfs', ...words], {
    encoding: 'utf8',
  });
  return `${stderr}${stdout}`.trim().split('\n');
}

test.serial('completion in bash: commands, their second words, flags, words of flags', async (t) => {
  const { code, stdout } = await overlayfs('completion', 'bash');
  t.is(code, 0);
  t.deepEqual(offered(stdout, 'un'), ['unshare']);
  t.deepEqual(offered(stdout, 'image', ''), ['run', 'unpack', 'ls', 'commit']);
  t.deepEqual(offered(stdout, 'completion', 'f'), ['fish']);
  t.deepEqual(offered(stdout, 'mount', '--up'), ['--upperdir']);
  t.deepEqual(offered(stdout, 'image', 'run', '--vol'), ['--volume']);
  t.deepEqual(offered(stdout, 'mount', '--atime', 'n'), ['noatime']);
  t.deepEqual(offered(stdout, 'mount', '--upperdir', ''), [''], 'files');
});

for (const shell of ['bash', 'zsh', 'fish']) {
  test.serial(`completion: ${shell} can read its script`, async (t) => {
    const { stdout } = await overlayfs('completion', shell);
    t.true(stdout.includes('readonly-superblock'));
    const file = join(scratch(t), 'script');
    writeFileSync(file, stdout);
    const { error, stderr } = spawnSync(shell, ['-n', file], { encoding: 'utf8' });
    if (error === undefined) t.is(stderr, '');
    else t.log(`no ${shell} here`);
  });
}

test.serial('completion for a shell without a script', async (t) => {
  t.like(await overlayfs('completion', 'csh'), { code: 2 });
});
