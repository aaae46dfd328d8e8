/** The steps of failure rows: file systems in images, full ones, other namespaces. */
import { execFileSync, spawn } from 'node:child_process';
import { closeSync, constants, copyFileSync, mkdirSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { calls } from '#lib/kernel/calls.js';
import * as k from '#lib/kernel/constants.js';
import { performSync, StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { MNT_DETACH, MS_RDONLY, MS_REMOUNT, native } from '../../support/index.js';
import type { Step } from './row.js';

const makers = {
  ext4: { size: '16M', command: ['mkfs.ext4', '-q', '-F'] },
  'ext4 of few inodes': { size: '4M', command: ['mkfs.ext4', '-q', '-F', '-N', '32'] },
  xfs: { size: '320M', command: ['mkfs.xfs', '-q', '-f'] },
  btrfs: { size: '128M', command: ['mkfs.btrfs', '-q', '-f'] },
  vfat: { size: '4M', command: ['mkfs.vfat'] },
  'ext4 with casefold': { size: '16M', command: ['mkfs.ext4', '-q', '-F', '-O', 'casefold'] },
} as const;

export type Made = keyof typeof makers;

function mountLoop(image: string, target: string, ...options: string[]): void {
  mkdirSync(target, { recursive: true });
  execFileSync('mount', ['-o', ['loop', ...options].join(','), image, target], { stdio: ['ignore', 'ignore', 'pipe'] });
}

/** Returns the path of the image. */
function format(kind: Made, image: string): string {
  const { size, command } = makers[kind];
  const [program, ...args] = command;
  execFileSync('truncate', ['-s', size, image]);
  execFileSync(program, [...args, image], { stdio: 'ignore' });
  return image;
}

/** A file system of its own, with directories in it. */
export const made =
  (kind: Made, path: string, ...inside: string[]): Step =>
  (at) => {
    mountLoop(format(kind, at(`${path}.img`)), at(path));
    for (const name of inside) mkdirSync(at(`${path}/${name}`), { recursive: true });
  };

/** An ext4 with empty directories, the first of which counts as many subdirectories as it may have. */
export const crowded =
  (path: string, directory: string, ...others: string[]): Step =>
  (at) => {
    const image = format('ext4', at(`${path}.img`));
    const commands = [`mkdir ${directory}`, `set_inode_field ${directory} links_count 65000`];
    for (const command of commands) execFileSync('debugfs', ['-w', '-R', command, image], { stdio: 'ignore' });
    mountLoop(image, at(path));
    for (const name of others) mkdirSync(at(`${path}/${name}`));
  };

/** An ext4 by FUSE, which has no RENAME_WHITEOUT. */
export const fused =
  (path: string, ...inside: string[]): Step =>
  (at, t) => {
    const image = format('ext4', at(`${path}.img`));
    mkdirSync(at(path));
    execFileSync('fuse2fs', ['-o', 'rw', image, at(path)], { stdio: ['ignore', 'ignore', 'pipe'] });
    // Its process ends with its last mount.
    t.teardown(() => native.umount(at(path), MNT_DETACH));
    for (const name of inside) mkdirSync(at(`${path}/${name}`), { recursive: true });
  };

/** A subvolume of a btrfs in which nothing more can be made: a limit of its quota group is reached. */
export const limited =
  (path: string): Step =>
  (at) => {
    const [whole = '', part = ''] = path.split('/');
    execFileSync('btrfs', ['quota', 'enable', at(whole)]);
    execFileSync('btrfs', ['subvolume', 'create', at(`${whole}/${part}`)], { stdio: 'ignore' });
    for (const name of ['u', 'w']) mkdirSync(at(`${path}/${name}`));
    execFileSync('btrfs', ['quota', 'rescan', '-w', at(whole)], { stdio: 'ignore' });
    execFileSync('btrfs', ['qgroup', 'limit', '32K', at(path)]);
  };

/** A bind mount that shows files of 100000 on as those of 0 on, and those of others as nobody's. */
export const idmapped =
  (from: string, to: string): Step =>
  (at) => {
    mkdirSync(at(to), { recursive: true });
    const plan = new Plan();
    const map = Buffer.from('100000 0 1000\n');
    const namespace = plan.add(calls.userns, [map, map]);
    const tree = plan.add(calls.open_tree, [k.AT_FDCWD, at(from), k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC]);
    plan.add(calls.mount_setattr, [tree, '', k.AT_EMPTY_PATH, k.MOUNT_ATTR_IDMAP, 0, 0, namespace]);
    plan.add(calls.move_mount, [tree, '', k.AT_FDCWD, at(to), k.MOVE_MOUNT_F_EMPTY_PATH]);
    const outcome = performSync(plan);
    if (outcome instanceof StepFailure) throw new Error(`the setup's own mapped bind failed: errno ${outcome.errno}`);
  };

/** A file that is kept open. */
export const openedFile =
  (path: string): Step =>
  (at, t) => {
    const descriptor = openSync(at(path), constants.O_RDONLY);
    t.teardown(() => closeSync(descriptor));
  };

/** A descriptor of a directory that is removed then; `{fd}` is its number. */
export const removedOpen =
  (path: string): Step =>
  (at, t) => {
    mkdirSync(at(path));
    const descriptor = openSync(at(path), constants.O_DIRECTORY);
    t.teardown(() => closeSync(descriptor));
    rmSync(at(path), { recursive: true });
    return { fd: String(descriptor) };
  };

/** Directories as a squashfs, read-only. */
export const squashed =
  (from: string, path: string): Step =>
  (at) => {
    execFileSync('mksquashfs', [at(from), at(`${path}.img`), '-quiet', '-no-progress'], { stdio: 'ignore' });
    mountLoop(at(`${path}.img`), at(path));
  };

/** A copy of the image of a squashfs: the image itself would give the file system that there is. */
export const squashedAgain =
  (image: string, path: string): Step =>
  (at) => {
    copyFileSync(at(`${image}.img`), at(`${path}.img`));
    mountLoop(at(`${path}.img`), at(path));
  };

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
