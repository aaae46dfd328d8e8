/** Disks whose writes are logged, and what a power cut leaves of them. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { collectGarbage } from '../support/garbage.js';
import { generator, packageRoot } from '../support/index.js';

export type FileSystem = 'ext4' | 'xfs' | 'btrfs';

/** xfs has no smaller ones. */
const SIZE = 320 * 2 ** 20;

const makers: Readonly<Record<FileSystem, readonly string[]>> = {
  ext4: ['mkfs.ext4', '-q', '-F', '-E', 'nodiscard,lazy_itable_init=1'],
  xfs: ['mkfs.xfs', '-q', '-f', '-K'],
  btrfs: ['mkfs.btrfs', '-q', '-f', '-K'],
};

const call = ([program = '', ...args]: readonly string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

export interface Recording {
  readonly fs: FileSystem;
  readonly log: string;
  /** The size of the log when the setup was on the disk: cuts begin there. */
  readonly start: number;
}

/**
 * Makes a disk with a file system. `setUp` has its effect before all cuts; `work` gets a function that returns the present
 * size of the log: a cut after it must keep what was acknowledged before.
 */
export async function recordDisk(
  dir: string,
  fs: FileSystem,
  setUp: (root: string) => Promise<void>,
  work: (root: string, now: () => number) => Promise<void>,
): Promise<Recording> {
  const [disk, log, root] = ['disk', 'log', 'root'].map((name) => join(dir, name)) as [string, string, string];
  for (const path of [disk, log]) writeFileSync(path, '');
  mkdirSync(root);
  const server = spawn(
    process.execPath,
    [join(packageRoot, 'dist-test/test/power-cuts/block-log.js'), disk, log, String(SIZE)],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const ended = once(server, 'exit');
  const now = (): number => statSync(log).size;
  let start = 0;
  try {
    await Promise.race([once(server.stdout, 'data'), ended.then(() => Promise.reject(new Error('no disk')))]);
    const device = call(['losetup', '--find', '--show', disk]).trim();
    try {
      call([...makers[fs], device]);
      call(['mount', '-t', fs, device, root]);
      try {
        await setUp(root);
        call(['sync', '-f', root]);
        start = now();
        await work(root, now);
      } finally {
        await collectGarbage();
        call(['umount', root]);
      }
    } finally {
      call(['losetup', '--detach', device]);
    }
  } finally {
    call(['umount', disk]);
    await ended;
  }
  return { fs, log, start };
}

interface Entry {
  /** The size of the log with this entry. */
  readonly end: number;
  readonly isFlush: boolean;
  readonly offset: number;
  readonly data: Buffer;
}

function* entriesOf(log: Buffer): Generator<Entry> {
  for (let at = 0; at < log.length; ) {
    const length = log.readUInt32LE(at + 4);
    const data = log.subarray(at + 16, at + 16 + length);
    const [isFlush, offset] = [log.readUInt32LE(at) === 1, Number(log.readBigUInt64LE(at + 8))];
    at += 16 + length;
    yield { end: at, isFlush, offset, data };
  }
}

export interface Cut {
  /** The disk, mounted. */
  readonly root: string;
  /** The size of the log at the cut. */
  readonly end: number;
  readonly name: string;
}

/**
 * Cuts the power `count` times: at flushes, and between two flushes. The disk has kept the writes before the last flush;
 * of those after it, the first ones or any.
 */
export async function replay(
  { fs, log, start }: Recording,
  dir: string,
  count: number,
  seed: number,
  check: (cut: Cut) => Promise<void>,
): Promise<number> {
  const below = generator(seed);
  const entries = [...entriesOf(readFileSync(log))];
  const later = entries.findIndex(({ end }) => end > start);
  const flushes = entries.flatMap(({ isFlush }, i) => (isFlush && i >= later ? [i] : []));
  const pick = (): readonly [at: number, way: number] => {
    if (below(3) === 0) return [flushes[below(flushes.length)] as number, 0];
    return [later + below(entries.length - later), 1 + below(2)];
  };
  // Every flush once, if the count allows.
  const cuts = [...flushes.slice(0, count >> 1).map((i) => [i, 0] as const), ...Array.from({ length: count }, pick)]
    .slice(0, count)
    .sort(([a], [b]) => a - b);
  const [kept, image, root] = ['kept', 'image', 'cut'].map((name) => join(dir, name)) as [string, string, string];
  mkdirSync(root, { recursive: true });
  const write = (fd: number, { data, offset }: Entry): unknown => writeSync(fd, data, 0, data.length, offset);
  const base = openSync(kept, 'w+');
  writeSync(base, Buffer.alloc(1), 0, 1, SIZE - 1);
  let flushed = 0; // entries that are in `kept`
  for (const [at, way] of cuts) {
    const lastFlush = entries.findLastIndex(({ isFlush }, i) => isFlush && i <= at) + 1;
    for (; flushed < lastFlush; flushed++) write(base, entries[flushed] as Entry);
    call(['cp', '--sparse=always', kept, image]);
    const open = entries.slice(lastFlush, at + 1);
    const left = way === 2 ? open.filter(() => below(2) === 0) : open;
    const fd = openSync(image, 'r+');
    for (const entry of left) write(fd, entry);
    closeSync(fd);
    const { end } = entries[at] as Entry;
    const name = `${fs}, seed ${seed}: ${left.length} of ${open.length} writes after the last flush, entry ${at} of ${entries.length}`;
    call(['mount', '-t', fs, '-o', 'loop', image, root]);
    try {
      await check({ root, end, name });
    } catch (cause) {
      throw new Error(`${name}: ${(cause as Error).message}`, { cause });
    } finally {
      await collectGarbage();
      call(['umount', root]);
    }
  }
  closeSync(base);
  return cuts.length;
}
