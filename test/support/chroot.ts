/** Programs in a chroot. */
import { mkdirSync, readdirSync, readlinkSync, statSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { MS_BIND, MS_REC, native } from './native.js';
import { readablePackage } from './plain-user.js';

/** A command that runs another with the same root directory by another path, which no mount is at. */
export function chrooted(t: ExecutionContext, dir: string, ...options: readonly string[]): readonly string[] {
  const root = join(dir, 'root');
  mkdirSync(root);
  for (const entry of readdirSync('/', { withFileTypes: true })) {
    const [from, to] = [join('/', entry.name), join(root, entry.name)];
    if (entry.isSymbolicLink()) symlinkSync(readlinkSync(from), to);
    else if (entry.isDirectory() && statSync(from).size >= 0) {
      mkdirSync(to);
      t.is(native.mount(from, to, '', MS_BIND | MS_REC, ''), 0);
    }
  }
  const enter = ['sh', '-c', 'cd "$1" && shift && exec "$@"', 'sh', readablePackage()];
  return ['env', '-u', 'NODE_V8_COVERAGE', 'chroot', ...options, root, ...enter];
}
