/** Random changes of a tree by system calls, and what a tree holds. */
import {
  appendFileSync,
  chmodSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { calls } from '#lib/kernel/calls.js';
import { performSync } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { runSync } from '#lib/kernel/task.js';
import { Walker } from '#lib/trees/walk.js';

export type Random = (below: number) => number;

const S_IFIFO = 0o010000;
/** Node has no name for it. The kernel returns it for some renames in rootless mounts. */
const ESTALE = 116;

function makeFifo(path: Buffer): void {
  const plan = new Plan();
  plan.add(calls.mknodat, [-100, path, S_IFIFO | 0o644, 0], { tolerate: 'any' });
  performSync(plan);
}

function setUserAttribute(path: Buffer, name: string, value: string): void {
  const plan = new Plan();
  plan.add(calls.setxattr, [path, name, value, 0], { tolerate: 'any' });
  performSync(plan);
}

const join = (dir: Buffer, name: Buffer): Buffer => Buffer.concat([dir, Buffer.from('/'), name]);

/** Few names, so that they meet again; some are no text, or sort between a directory and what it holds. */
const names = ['a', 'b', 'c', 'd', 'a b', 'a-', 'a.x', 'ab', '\xff\xfe', 'é', 'Z', 'b0', 'c!'].map((name) =>
  Buffer.from(name, 'latin1'),
);

/** All paths below a directory, with it, by kind. */
function list(dir: Buffer): { directories: Buffer[]; files: Buffer[]; others: Buffer[] } {
  const found = { directories: [dir], files: [] as Buffer[], others: [] as Buffer[] };
  for (let i = 0; i < found.directories.length; i++) {
    const at = found.directories[i] as Buffer;
    for (const entry of readdirSync(at, { withFileTypes: true, encoding: 'buffer' })) {
      const path = join(at, entry.name as unknown as Buffer);
      if (entry.isDirectory()) found.directories.push(path);
      else if (entry.isFile()) found.files.push(path);
      else found.others.push(path);
    }
  }
  return found;
}

/** Makes about this many directories, files and links in a tree. */
export function growTree(root: string, random: Random, entries: number): void {
  const directories: Buffer[] = [Buffer.from(root)];
  for (let i = 0; i < entries; i++) {
    const parent = directories[random(directories.length)] as Buffer;
    const path = join(parent, names[random(names.length)] as Buffer);
    if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) continue;
    const kind = random(10);
    if (kind < 3) {
      mkdirSync(path);
      directories.push(path);
    } else if (kind === 3) symlinkSync('a', path);
    else writeFileSync(path, `${i}`.repeat(1 + random(20)));
  }
}

/** The calls that may fail: the tree is as it is. */
const expectedCodes = new Set([
  'ENOENT',
  'EEXIST',
  'ENOTDIR',
  'EISDIR',
  'ENOTEMPTY',
  'EXDEV',
  'EINVAL',
  'EPERM',
  'EMLINK',
  'EACCES',
  'ELOOP',
  'EOVERFLOW',
]);

/**
 * Makes this many random changes in a tree, with modes, owners, times, attributes and links. Without `owners`, all stays
 * with the user of the process.
 */
export function changeTree(root: string, random: Random, steps: number, { owners = true } = {}): void {
  const dir = Buffer.from(root);
  let found = list(dir);
  const pick = <T>(from: readonly T[]): T | undefined => from[random(from.length)];
  const place = (): Buffer => join(pick(found.directories) as Buffer, pick(names) as Buffer);
  const isFile = (path: Buffer): boolean => lstatSync(path, { throwIfNoEntry: false })?.isFile() === true;
  /** Never a pipe, which would wait for a reader. */
  const anyFile = (): Buffer => {
    const path = pick(found.files);
    return path !== undefined && isFile(path) ? path : join(dir, Buffer.from('none'));
  };
  const inner = (): Buffer => found.directories[1 + random(Math.max(1, found.directories.length - 1))] ?? place();
  const anything = (): Buffer => [anyFile, inner, () => pick(found.others) ?? place()][random(3)]?.() as Buffer;
  /** A tree that is small is rarely made smaller. */
  const less = (remove: () => void): void => {
    if (found.files.length + found.directories.length > 150 || random(50) === 0) remove();
  };
  /** Not of half the tree at once. */
  const removeSmall = (at: Buffer): void => {
    if (lstatSync(at).isDirectory() && list(at).directories.length > 4) return;
    less(() => rmSync(at, { recursive: true }));
  };
  const text = (): string => `${random(1000)}`.repeat(1 + random(20));
  const time = (): number => 1e9 + random(5);
  const operations: (() => void)[] = [
    () => writeFileSync(place(), text(), { flag: 'wx' }),
    () => writeFileSync(place(), '', { flag: 'wx' }),
    () => writeFileSync(anyFile(), text()),
    () => appendFileSync(anyFile(), text()),
    () => truncateSync(anyFile(), random(10)),
    () => chmodSync(anything(), [0o700, 0o744, 0o755, 0o4711, 0o2775, 0o1777][random(6)] as number),
    () => (owners ? lchownSync(anything(), random(3), random(3)) : undefined),
    () => setUserAttribute(anyFile(), `user.${random(3)}`, text()),
    () => setUserAttribute(inner(), `user.${random(3)}`, text()),
    () => linkSync(anyFile(), place()),
    () => symlinkSync(pick(names) as Buffer, place()),
    () => makeFifo(place()),
    () => renameSync(anyFile(), place()),
    () => less(() => renameSync(anyFile(), anyFile())),
    () => renameSync(inner(), place()),
    () => renameSync(inner(), inner()),
    () => less(() => unlinkSync(anyFile())),
    () => less(() => unlinkSync(pick(found.others) ?? place())),
    () => less(() => rmdirSync(inner())),
    () => mkdirSync(place()),
    () => mkdirSync(place()),
    () => utimesSync(anyFile(), time(), time()),
    () => {
      const from = anyFile();
      // copyFileSync() never ends if the file is shorter than its size, as one with links of a rootless mount may be.
      writeFileSync(place(), readFileSync(from), { flag: 'wx' });
    },
    () => {
      // Away and made again, with other contents.
      const at = inner();
      if (!lstatSync(at).isDirectory()) return;
      removeSmall(at);
      mkdirSync(at);
      writeFileSync(join(at, pick(names) as Buffer), text());
    },
    () => {
      // A directory in the place of a file, and the other way round.
      const at = anyFile();
      less(() => unlinkSync(at));
      mkdirSync(at);
    },
    () => {
      const at = inner();
      removeSmall(at);
      // There may be a pipe, which would wait for a reader.
      writeFileSync(at, text(), { flag: 'wx' });
    },
  ];
  for (let i = 0; i < steps; i++) {
    if (i % 10 === 0) found = list(dir);
    try {
      operations[random(operations.length)]?.();
    } catch (error) {
      const { code = '', errno } = error as NodeJS.ErrnoException;
      if (!expectedCodes.has(code) && errno !== -ESTALE) throw error;
    }
  }
}

export interface SeenEntry {
  readonly path: string;
  readonly type: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtime: bigint;
  readonly inode: bigint;
  readonly content: string;
  readonly attributes: string;
}

const S_IFMT = 0o170000;
const S_IFREG = 0o100000;

/** Returns the entries of a tree by path. A path has one character for each byte. */
export function seeTree(root: string): Map<string, SeenEntry> {
  const seen = new Map<string, SeenEntry>();
  const walker = new Walker(root, { attributes: 'all', targets: true });
  while (runSync(walker.more())) {
    while (walker.advance()) {
      const { path, mode, uid, gid, size, mtimeNs, inode, target, attributes } = walker;
      const type = mode & S_IFMT;
      const place = Buffer.concat([Buffer.from(`${root}/`), Buffer.from(path, 'latin1')]);
      const content = type === S_IFREG ? readFileSync(place, 'latin1') : target.toString('latin1');
      const pairs = [...attributes].map(([name, value]) => `${name}=${value?.toString('latin1')}`).sort();
      seen.set(path, {
        path,
        type,
        mode: mode & 0o7777,
        uid,
        gid,
        size,
        mtime: mtimeNs,
        inode,
        content,
        attributes: pairs.join('\n'),
      });
    }
  }
  walker.close();
  return seen;
}
