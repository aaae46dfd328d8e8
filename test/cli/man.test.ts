/** The man pages: each as man(1), groff(1) and mandoc(1) read it, where they are installed. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { commands } from '#lib/cli/commands.js';
import { manPages } from '../../docs/man-pages.js';
import { scratch } from '../support/index.js';

/** Runs a program; returns undefined if it is not installed. */
function output(t: ExecutionContext, program: string, ...args: string[]): string | undefined {
  const { error, stdout, stderr } = spawnSync(program, args, {
    encoding: 'utf8',
    env: { ...process.env, MANWIDTH: '80', MAN_KEEP_FORMATTING: '', LC_ALL: 'C.UTF-8' },
  });
  if (error !== undefined) t.log(`no ${program} here`);
  return error === undefined ? stderr + stdout : undefined;
}

test('man pages: one for the program and one for each command, without a warning of groff and mandoc', (t) => {
  const pages = manPages();
  const names = ['overlayfs', ...Object.keys(commands).map((name) => `overlayfs-${name.replace(' ', '-')}`)];
  t.deepEqual(Object.keys(pages).sort(), names.map((name) => `${name}.1`).sort());
  const dir = scratch(t);
  const files = Object.entries(pages).map(([name, page]) => {
    writeFileSync(join(dir, name), page);
    return join(dir, name);
  });
  t.is(output(t, 'groff', '-man', '-ww', '-z', ...files) ?? '', '');
  t.is(output(t, 'mandoc', '-T', 'lint', '-W', 'warning', ...files) ?? '', '');
  const shown = output(t, 'man', '-l', join(dir, 'overlayfs-run.1'));
  if (shown === undefined) return;
  t.regex(shown, /^NAME\n +overlayfs-run +- +runs +a +program/m);
  t.regex(shown, /--lowerdir DIR\.\.\.\n/);
  t.regex(shown, /^ +overlayfs run --lowerdir "\$PWD" --temporary npm test$/m);
});
