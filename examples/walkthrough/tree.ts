/** Directories as trees and files as lines of `ls -ln`, with the marks of OverlayFS made visible. */
import type { Stats } from 'node:fs';
import { lstat, readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { isOpaque, isWhiteout, type OpaqueOptions } from 'overlayfs';
import { paint } from './terminal.js';

interface Entry {
  readonly label: string;
  readonly children: readonly Entry[];
}

/** `options` say in which attributes the marks are. */
export async function tree(dir: string, { userxattr = false }: OpaqueOptions): Promise<string[]> {
  const entries = await readEntries(dir, { userxattr });
  return [paint('bold', basename(dir)), ...(entries.length === 0 ? [paint('dim', '(empty)')] : draw(entries))];
}

async function readEntries(dir: string, options: OpaqueOptions): Promise<Entry[]> {
  const names = (await readdir(dir)).sort();
  return Promise.all(names.map((name) => readEntry(join(dir, name), name, options)));
}

async function readEntry(path: string, label: string, options: OpaqueOptions): Promise<Entry> {
  const stats = await lstat(path);
  if (!stats.isDirectory()) return { label: await describe(path, label, stats), children: [] };
  if (await isOpaque(path, options)) {
    return { label: `${label}/ ${paint('magenta', '(opaque)')}`, children: await readEntries(path, options) };
  }
  const children = await readdir(path);
  const [only] = children;
  // A directory that holds nothing but another one goes on one line with it.
  if (only !== undefined && children.length === 1 && (await lstat(join(path, only))).isDirectory()) {
    return readEntry(join(path, only), `${label}/${only}`, options);
  }
  return { label: `${label}/`, children: await readEntries(path, options) };
}

async function describe(path: string, label: string, stats: Stats): Promise<string> {
  if (await isWhiteout(path)) return `${label} ${paint('red', '(whiteout)')}`;
  return stats.size < 1e4 ? label : `${label} ${paint('dim', formatSize(stats.size))}`;
}

const formatSize = (bytes: number): string =>
  bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

function draw(entries: readonly Entry[]): string[] {
  return entries.flatMap(({ label, children }, i) => {
    const isLast = i === entries.length - 1;
    const [branch, stem] = isLast ? ['└── ', '    '] : ['├── ', '│   '];
    return [paint('dim', branch) + label, ...draw(children).map((line) => paint('dim', stem) + line)];
  });
}

/** As `ls -ln` has it: a device shows its two numbers in the place of the size. */
export function longLine(name: string, stats: Stats): string {
  const size = stats.isCharacterDevice() ? `${major(stats.rdev)}, ${minor(stats.rdev)}` : String(stats.size);
  return [modeString(stats), stats.nlink, stats.uid, stats.gid, size.padStart(6), name].join(' ');
}

// makedev(3): twelve bits of major number lie between two pieces of the minor one.
const major = (device: number): number => (device >>> 8) & 0xfff;
const minor = (device: number): number => (device & 0xff) | ((device >>> 12) & 0xfff00);

function modeString(stats: Stats): string {
  const type = stats.isDirectory() ? 'd' : stats.isCharacterDevice() ? 'c' : stats.isSymbolicLink() ? 'l' : '-';
  const bits = Array.from('rwxrwxrwx', (letter, i) => ((stats.mode >> (8 - i)) & 1 ? letter : '-'));
  return type + bits.join('');
}
