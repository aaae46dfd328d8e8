/** The layers of the rows: the plain user's, and in them what is another's. */
import { chmodSync, chownSync, copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeTree } from '../../support/index.js';
import { giveTo } from '../../support/plain-user.js';

export function makeLayers(dir: string, mknod: (path: string) => boolean): { hasDevice: boolean } {
  const lower = join(dir, 'lower');
  makeTree(lower, {
    file: 'file',
    gone: 'gone',
    old: 'old',
    'tree/a': 'a',
    'tree/b': 'b',
    'again/x': 'x',
    'module.cjs': '',
    'merged/below': '',
  });
  for (const name of ['upper', 'work', 'upper/merged']) mkdirSync(join(dir, name));
  copyFileSync('/bin/true', join(lower, 'true'));
  writeFileSync(join(lower, 'script'), '#!/bin/sh\nexit 0\n', { mode: 0o755 });
  for (const name of [
    '',
    'file',
    'gone',
    'old',
    'tree',
    'tree/a',
    'tree/b',
    'again',
    'again/x',
    'merged',
    'merged/below',
    'module.cjs',
    'true',
    'script',
  ]) {
    giveTo(join(lower, name));
  }
  giveTo(dir, join(dir, 'upper'), join(dir, 'upper/merged'), join(dir, 'work'));
  writeFileSync(join(lower, 'roots'), 'roots');
  chmodSync(join(lower, 'roots'), 0o666);
  writeFileSync(join(lower, 'roots-own'), 'own', { mode: 0o600 });
  writeFileSync(join(lower, 'roots-gone'), 'gone');
  copyFileSync('/usr/bin/id', join(lower, 'setuid'));
  chownSync(join(lower, 'setuid'), 0, 0);
  chmodSync(join(lower, 'setuid'), 0o4755);
  return { hasDevice: mknod(join(lower, 'null')) };
}
