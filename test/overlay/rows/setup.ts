/** The steps that make a row's directories what they have to be, by calls of the tests' own. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { MS_BIND, MS_RDONLY, MS_REMOUNT, makeTree, native } from '../../support/index.js';

/** Absolute, from a path below the row's directory. */
export type At = (path: string) => string;
export type Setup = (at: At) => void;

const MS_PRIVATE = 1 << 18;
const MS_SHARED = 1 << 20;
const MS_UNBINDABLE = 1 << 17;
const MS_NOEXEC = 8;

function mounts(source: string, target: string, type: string, flags = 0, data = ''): void {
  const errno = native.mount(source, target, type, flags, data);
  if (errno !== 0) throw new Error(`the setup's own mount at ${target} failed: errno ${errno}`);
}

/** Every row has this. */
export const base: Setup = (at) =>
  makeTree(at(''), {
    'l1/one': 'l1',
    'l2/one': 'l2',
    'l2/two': 'l2',
    'd1/data': 'd1',
    'd2/data': 'd2',
    'u/': '',
    'w/': '',
    'm/': '',
  });

export const dirs =
  (...paths: string[]): Setup =>
  (at) => {
    for (const path of paths) mkdirSync(at(path), { recursive: true });
  };
export const file =
  (path: string, content = ''): Setup =>
  (at) => {
    mkdirSync(dirname(at(path)), { recursive: true });
    writeFileSync(at(path), content);
  };
export const link =
  (path: string, to: string): Setup =>
  (at) =>
    symlinkSync(to, at(path));
export const removed =
  (path: string): Setup =>
  (at) =>
    rmSync(at(path), { recursive: true });
export const mode =
  (path: string, bits: number): Setup =>
  (at) =>
    chmodSync(at(path), bits);

/** A file system of its own, with directories in it. */
export const tmpfs =
  (path: string, ...inside: string[]): Setup =>
  (at) => {
    mkdirSync(at(path), { recursive: true });
    mounts('own', at(path), 'tmpfs');
    for (const name of inside) mkdirSync(at(`${path}/${name}`), { recursive: true });
  };
export const ramfs =
  (path: string, ...inside: string[]): Setup =>
  (at) => {
    mkdirSync(at(path), { recursive: true });
    mounts('own', at(path), 'ramfs');
    for (const name of inside) mkdirSync(at(`${path}/${name}`));
  };
export const bind =
  (from: string, to: string): Setup =>
  (at) => {
    mkdirSync(at(to), { recursive: true });
    mounts(at(from), at(to), '', MS_BIND);
  };
export const readonlyBind =
  (from: string, to: string): Setup =>
  (at) => {
    bind(from, to)(at);
    mounts('', at(to), '', MS_REMOUNT | MS_BIND | MS_RDONLY);
  };
export const noexec =
  (path: string): Setup =>
  (at) =>
    mounts('', at(path), '', MS_REMOUNT | MS_BIND | MS_NOEXEC);

const propagation =
  (flag: number) =>
  (path: string): Setup =>
  (at) =>
    mounts('', at(path), '', flag);
export const shared = propagation(MS_SHARED);
export const unshared = propagation(MS_PRIVATE);
export const unbindable = propagation(MS_UNBINDABLE);

/** An overlay by mount(2), its layers separated by commas: `lower:lower,upper,work`. */
export const overlay =
  (layers: string, target: string, ...options: string[]): Setup =>
  (at) => {
    const [lowers = '', upper, work] = layers.split(',');
    const data = [`lowerdir=${lowers.split(':').map(at).join(':')}`];
    if (upper !== undefined && work !== undefined) data.push(`upperdir=${at(upper)}`, `workdir=${at(work)}`);
    mkdirSync(at(target), { recursive: true });
    mounts('setup', at(target), 'overlay', 0, [...data, ...options].join(','));
  };
export const unmounted =
  (path: string, flags = 0): Setup =>
  (at) => {
    const errno = native.umount(at(path), flags);
    if (errno !== 0) throw new Error(`the setup's own unmount of ${path} failed: errno ${errno}`);
  };

/** Runs a command in the row's directory. */
export const runs =
  (command: string, ...args: string[]): Setup =>
  (at) => {
    execFileSync(command, args, { cwd: at('') });
  };
