/** Programs in TypeScript that need no cast: this file has to compile. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import test from 'ava';
import { type Mount, type OverlayMount, spawn } from 'overlayfs';

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const isSame = <A, B>(_: Same<A, B>): void => {};

const programs = (mount: Mount, overlay: OverlayMount): void => {
  readFileSync(mount.path);
  readFileSync(join(overlay.path, 'file'));
  readFileSync(mount.pathBytes);
  const at = '/';
  const piped = [
    spawn('ls', [], { mounts: [{ source: mount, target: at }], stdio: 'pipe' }),
    spawn('ls', [], { mounts: [{ source: mount, target: at }] }),
    spawn('ls', { mounts: [{ source: mount, target: at }] }),
    spawn('ls', { mounts: [{ source: mount, target: at }], stdio: ['pipe', 'pipe', 'pipe'] }),
  ];
  for (const child of piped) child.stdout.pipe(child.stdin);
  const some = spawn('ls', [], { mounts: [{ source: mount, target: at }], stdio: ['ignore', 'pipe', 'inherit'] });
  isSame<typeof some.stdin, null>(true);
  isSame<typeof some.stdout, Readable>(true);
  isSame<typeof some.stderr, null>(true);
  const input = spawn('ls', { mounts: [{ source: mount, target: at }], stdio: ['pipe', 'ignore', 'ignore'] });
  isSame<typeof input.stdin, Writable>(true);
  const any = spawn('ls', [], { mounts: [{ source: mount, target: at }], stdio: [0, mount.fd ?? 1, 'pipe'] });
  isSame<typeof any.stdout, Readable | null>(true);
  const inherited = spawn('ls', [], { mounts: [{ source: mount, target: at }], stdio: 'inherit' });
  isSame<typeof inherited.stdout, Readable | null>(true);
};

test('the types are those of node:fs, node:path and node:child_process', (t) => {
  t.is(typeof programs, 'function');
});
