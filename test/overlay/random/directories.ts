/** The directories that random options name. */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { MS_BIND, MS_RDONLY, MS_REMOUNT, makeTree, native, scratch } from '../../support/index.js';
import { link } from '../rows/setup.js';
import { dataDirs, fresh, lowers } from './generator.js';

export function makeDirectories(t: ExecutionContext): string {
  const dir = scratch(t);
  const disk = scratch(t, 'disk');
  mkdirSync(join(dir, 'disk'));
  t.is(native.mount(disk, join(dir, 'disk'), '', MS_BIND, ''), 0);
  for (const path of [...lowers, ...dataDirs]) makeTree(join(dir, path), { [`of-${path.replace(/\//g, '-')}`]: '' });
  makeTree(dir, { 'tmp/file': '', 'disk/file': '', 'tmp/a/inside/': '', 'm/': '', 'x/u/': '', 'x/w/': '', 'o/': '' });
  link('tmp/link-to-a', 'a')((path) => join(dir, path));
  // An overlay, and a read-only mount, neither of which can hold an upper.
  makeTree(dir, { 'o1/u/': '', 'o2/w/': '', 'overlay/': '', 'readonly/': '' });
  t.is(native.mount('o', join(dir, 'overlay'), 'overlay', 0, `lowerdir=${dir}/o1:${dir}/o2`), 0);
  t.is(native.mount(join(dir, 'x'), join(dir, 'readonly'), '', MS_BIND, ''), 0);
  t.is(native.mount('', join(dir, 'readonly'), '', MS_REMOUNT | MS_BIND | MS_RDONLY, ''), 0);
  return dir;
}

/** Uppers and works as if they had never been used. */
export function freshen(dir: string): void {
  for (const path of [...fresh, 'tmp/a/inside/work', 'tmp/b/work', 'tmp/a/inside/index', 'tmp/b/index']) {
    rmSync(join(dir, path), { recursive: true, force: true });
  }
  for (const path of fresh) mkdirSync(join(dir, path));
  for (const path of ['tmp/u/inside', 'tmp/w/inside']) mkdirSync(join(dir, path));
}
