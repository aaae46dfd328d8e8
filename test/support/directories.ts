/** Directories of a test's own, and the files in them. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { OverlayOptions } from 'overlayfs';
import { mountsBelow } from './mount-table.js';
import { MNT_DETACH, native } from './native.js';
import { cannotMount, hasFeature } from './probes.js';

/** Makes a directory for the test, on tmpfs or on the disk. It is removed with all mounts in it when the test ends. */
export function scratch(t: ExecutionContext, kind: 'tmpfs' | 'disk' = 'tmpfs'): string {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-test-'));
  if (kind === 'tmpfs' && cannotMount === undefined) t.is(native.mount('scratch', dir, 'tmpfs', 0, ''), 0);
  t.teardown(() => {
    for (const { target } of mountsBelow(dir).reverse()) native.umount(target, MNT_DETACH);
    rmSync(dir, { recursive: true, force: true });
  });
  return dir;
}

/** A kind of directory whose files take attributes of users; on tmpfs they do from 6.6 on. */
export const withUserAttributes = (): 'tmpfs' | 'disk' => (hasFeature('user xattrs on tmpfs') ? 'tmpfs' : 'disk');

/** Makes files by path and content; a path that ends in a slash is a directory. */
export function makeTree(dir: string, tree: Readonly<Record<string, string>>): void {
  mkdirSync(dir, { recursive: true });
  for (const [path, content] of Object.entries(tree)) {
    const whole = join(dir, path);
    mkdirSync(path.endsWith('/') ? whole : dirname(whole), { recursive: true });
    if (!path.endsWith('/')) writeFileSync(whole, content);
  }
}

/** Makes one lower (with a file `from-lower`), upper, work and target below a directory. */
export function layers(dir: string): Required<Pick<OverlayOptions, 'lowerdir' | 'upperdir' | 'workdir' | 'target'>> & {
  lowerdir: string;
  upperdir: string;
  workdir: string;
  target: string;
} {
  makeTree(dir, { 'lower/from-lower': 'lower', 'upper/': '', 'work/': '', 'merged/': '' });
  return {
    lowerdir: join(dir, 'lower'),
    upperdir: join(dir, 'upper'),
    workdir: join(dir, 'work'),
    target: join(dir, 'merged'),
  };
}
