/** The program in the packed package: installed without scripts, it can be executed. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot, scratch } from '../support/index.js';

test('npm pack, npm install, overlayfs --version', (t) => {
  const dir = scratch(t, 'disk');
  const run = (command: string, ...args: string[]) =>
    execFileSync(command, args, {
      cwd: dir,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'inherit'],
      // npm writes to it.
      env: { ...process.env, HOME: dir },
    });
  const source = join(dir, 'source');
  mkdirSync(source);
  for (const name of ['package.json', 'dist']) cpSync(join(packageRoot, name), join(source, name), { recursive: true });
  const packed = run('npm', 'pack', '--ignore-scripts', '--silent', './source').trim();
  writeFileSync(join(dir, 'package.json'), '{ "private": true }');
  run('npm', 'install', '--ignore-scripts', '--offline', '--no-audit', '--no-fund', '--silent', `./${packed}`);
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
  t.is(run(join(dir, 'node_modules/.bin/overlayfs'), '--version'), `overlayfs ${version}\n`);
});
