/** The steps of failure rows: file systems in images, full ones, other namespaces. */
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { native } from '../../support/index.js';
import type { Step } from './row.js';

const MS_RDONLY = 1;
const MS_REMOUNT = 32;
const MNT_DETACH = 2;

const makers = {
  ext4: { size: '16M', command: ['mkfs.ext4', '-q', '-F'] },
  'ext4 of few inodes': { size: '4M', command: ['mkfs.ext4', '-q', '-F', '-N', '32'] },
  xfs: { size: '320M', command: ['mkfs.xfs', '-q', '-f'] },
  btrfs: { size: '128M', command: ['mkfs.btrfs', '-q', '-f'] },
  vfat: { size: '4M', command: ['mkfs.vfat'] },
} as const;

export type Made = keyof typeof makers;

function mountLoop(image: string, target: string, ...options: string[]): void {
  mkdirSync(target, { recursive: true });
  execFileSync('mount', ['-o', ['loop', ...options].join(','), image, target], { stdio: ['ignore', 'ignore', 'pipe'] });
}

/** A file system of its own, with directories in it. */
export const made =
  (kind: Made, path: string, ...inside: string[]): Step =>
  (at) => {
    const { size, command } = makers[kind];
    const [program, ...args] = command;
    const image = at(`${path}.img`);
    execFileSync('truncate', ['-s', size, image]);
    execFileSync(program, [...args, image], { stdio: 'ignore' });
    mountLoop(image, at(path));
    for (const name of inside) mkdirSync(at(`${path}/${name}`), { recursive: true });
  };

/** Directories as a squashfs, read-only. */
export const squashed =
  (from: string, path: string): Step =>
  (at) => {
    execFileSync('mksquashfs', [at(from), at(`${path}.img`), '-quiet', '-no-progress'], { stdio: 'ignore' });
    mountLoop(at(`${path}.img`), at(path));
  };

/** The image of a squashfs another time. */
export const squashedAgain =
  (image: string, path: string): Step =>
  (at) =>
    mountLoop(at(`${image}.img`), at(path));

export const ofType =
  (type: string, path: string, data = ''): Step =>
  (at) => {
    mkdirSync(at(path), { recursive: true });
    const errno = native.mount('own', at(path), type, 0, data);
    if (errno !== 0) throw new Error(`the setup's own mount of ${type} failed: errno ${errno}`);
  };

export const remounted =
  (path: string, mode: 'ro' | 'rw'): Step =>
  (at) => {
    const errno = native.mount('', at(path), '', MS_REMOUNT | (mode === 'ro' ? MS_RDONLY : 0), '');
    if (errno !== 0) throw new Error(`the setup's own remount of ${path} failed: errno ${errno}`);
  };

export const detached =
  (path: string): Step =>
  (at) => {
    native.umount(at(path), MNT_DETACH);
  };

/** Until nothing is left. */
export const filled =
  (path: string): Step =>
  (at) => {
    try {
      for (let size = 1 << 20; size > 0; size >>= 1) {
        try {
          for (let i = 0; ; i++) writeFileSync(at(`${path}/${size}-${i}`), Buffer.alloc(size));
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
        }
        if (size <= 1024) break;
      }
    } finally {
      execFileSync('sync', ['-f', at(path)]);
    }
  };

export const withoutInodes =
  (path: string): Step =>
  (at) => {
    try {
      for (let i = 0; ; i++) writeFileSync(at(`${path}/file-${i}`), '');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    }
  };

export const without =
  (...paths: string[]): Step =>
  (at) => {
    for (const path of paths) rmSync(at(path), { recursive: true, force: true });
  };

/** chattr(1) */
export const attributed =
  (change: string, path: string): Step =>
  (at) => {
    execFileSync('chattr', [change, at(path)]);
  };

/** A process in a mount namespace of its own, in which commands are run; `{pid}` is its number. */
export const elsewhere =
  (script: string): Step =>
  (at, t) => {
    const ready = at('ready');
    const child = spawn('unshare', ['-m', 'sh', '-ec', `${script}\n: > ready\nread _`], {
      cwd: at(''),
      stdio: ['pipe', 'ignore', 'inherit'],
    });
    t.teardown(() => child.stdin.end());
    execFileSync('sh', ['-c', `while [ ! -e '${ready}' ]; do sleep 0.02; done`], { timeout: 60_000 });
    rmSync(ready);
    return { pid: String(child.pid) };
  };

/** Runs a command in the row's directory. */
export const runs =
  (command: string, ...args: string[]): Step =>
  (at) => {
    execFileSync(command, args, { cwd: at('') });
  };
