/** A disk that runs full at each step of each verb: the error says so, nothing is lost, and with room all goes on. */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  statfsSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { OverlayError } from 'overlayfs';
import { Snapshotter } from 'overlayfs/snapshots';
import { mountTest, native, packageRoot, scratch } from '../support/index.js';
import { checkRoot } from './check-root.js';

const MS_REMOUNT = 32;

/** A file system whose free space a test sets. */
interface Disk {
  readonly dir: string;
  /** Leaves this many free blocks or inodes. */
  leave(count: number): void;
  /** Makes room. */
  relieve(): void;
}

function tmpfsDisk(t: ExecutionContext, limit: 'size' | 'nr_inodes'): Disk {
  const dir = scratch(t);
  t.is(native.mount('none', dir, 'tmpfs', 0, 'size=64m,nr_inodes=100000'), 0);
  const set = (option: string) => t.is(native.mount('', dir, 'tmpfs', MS_REMOUNT, option), 0, option);
  return {
    dir,
    leave(count) {
      const { blocks, bfree, files, ffree, bsize } = statfsSync(dir);
      if (limit === 'nr_inodes') set(`nr_inodes=${files - ffree + count}`);
      else set(`size=${Math.max(1, blocks - bfree + count) * bsize}`);
    },
    relieve: () => set('size=64m,nr_inodes=100000'),
  };
}

function ext4Disk(t: ExecutionContext): Disk {
  const dir = join(scratch(t), 'disk');
  const image = `${dir}.img`;
  mkdirSync(dir);
  closeSync(openSync(image, 'w'));
  truncateSync(image, 16 * 2 ** 20);
  execFileSync('mkfs.ext4', ['-q', '-F', '-m', '0', '-b', '4096', image]);
  execFileSync('mount', ['-o', 'loop', image, dir]);
  const filler = join(dir, 'filler');
  return {
    dir,
    leave(count) {
      const file = openSync(filler, 'a');
      const block = Buffer.alloc(4096, 1);
      let size = 0;
      try {
        for (;;) size += writeSync(file, block);
      } catch {
        // It is full.
      }
      ftruncateSync(file, Math.max(0, size - count * 4096));
      closeSync(file);
      execFileSync('sync', ['-f', dir]);
    },
    relieve() {
      rmSync(filler, { force: true });
      execFileSync('sync', ['-f', dir]);
    },
  };
}

/** A verb, and the keys that are there afterwards, and not before, or the other way round. */
interface Attempt {
  prepare?(snapshotter: Snapshotter): Promise<unknown>;
  perform(snapshotter: Snapshotter): Promise<unknown>;
  readonly comes?: string;
  readonly goes?: string;
}

const filler = { filler: 'x'.repeat(3000) };

const attempts: Readonly<Record<string, (name: string) => Attempt>> = {
  prepare: (name) => ({ perform: (on) => on.prepare(name, 'base', { labels: filler }), comes: name }),
  view: (name) => ({ perform: (on) => on.view(name, 'base', { labels: filler }), comes: name }),
  commit: (name) => ({
    prepare: (on) => on.prepare(`${name} active`, 'base'),
    perform: (on) => on.commit(`${name} active`, { name, labels: filler }),
    comes: name,
    goes: `${name} active`,
  }),
  update: (name) => ({
    prepare: (on) => on.prepare(name, 'base'),
    perform: (on) => on.setLabels(name, filler, { replace: true }),
  }),
  remove: (name) => ({ prepare: (on) => on.prepare(name, 'base'), perform: (on) => on.remove(name), goes: name }),
  cleanup: (name) => ({
    async prepare(on) {
      await on.prepare(name, 'base');
      await on.remove(name);
    },
    perform: (on) => on.cleanup(),
  }),
};

const saysFull = (error: unknown): boolean => OverlayError.is(error) && error.reason === 'out-of-space';

/** Attempts that have to succeed in a row before a verb counts as one with enough space. */
const ENOUGH = 4;
const MOST = 200;

/** Opens new roots with more and more space. */
async function sweepOpen(t: ExecutionContext, disk: Disk): Promise<void> {
  let failures = 0;
  for (let left = 0, successes = 0; successes < ENOUGH; left++) {
    if (left === MOST) return t.fail(`open fails with ${left} free`);
    const root = join(disk.dir, `new ${left}`);
    disk.leave(left);
    try {
      await (await Snapshotter.open(root)).close();
      successes++;
    } catch (error) {
      successes = 0;
      failures++;
      t.true(saysFull(error), `${left} free: ${error}`);
    }
    disk.relieve();
    await (await Snapshotter.open(root)).close();
    t.deepEqual((await checkRoot(root, true)).problems, []);
  }
  return t.log(`open: ${failures} failures`);
}

async function sweep(t: ExecutionContext, disk: Disk, open: typeof Snapshotter.open): Promise<void> {
  if (open === Snapshotter.open) await sweepOpen(t, disk);
  const root = join(disk.dir, 'root');
  const asyncRemove = true;
  let snapshotter = await open(root, { asyncRemove });
  await snapshotter.prepare('preparing');
  await snapshotter.commit('preparing', { name: 'base' });
  const expected = new Set(['base']);
  for (const [verb, make] of Object.entries(attempts)) {
    let failures = 0;
    for (let left = 0, successes = 0; successes < ENOUGH; left += left < 4 || left > 14 ? 1 : 5) {
      if (left > MOST) return t.fail(`${verb} fails with ${left} free`);
      const name = `${verb} ${left}`;
      const attempt = make(name);
      await attempt.prepare?.(snapshotter);
      if (attempt.prepare && verb !== 'cleanup') expected.add(attempt.goes ?? name);
      disk.leave(left);
      try {
        await attempt.perform(snapshotter);
        successes++;
        if (attempt.comes !== undefined) expected.add(attempt.comes);
        if (attempt.goes !== undefined) expected.delete(attempt.goes);
      } catch (error) {
        successes = 0;
        failures++;
        t.true(saysFull(error), `${name}: ${error}`);
        t.false(['remove', 'cleanup'].includes(verb), `${name} fails on a full disk`);
      }
      disk.relieve();
      const { records, problems } = await checkRoot(root, false);
      t.deepEqual(problems, [], name);
      t.deepEqual([...records.keys()].sort(), [...expected].sort(), name);
    }
    t.log(`${verb}: ${failures} failures`);
    t.deepEqual((await snapshotter.cleanup()).kept, []);
    await snapshotter.close();
    t.deepEqual((await checkRoot(root, true)).problems, []);
    snapshotter = await open(root, { asyncRemove });
  }
  return snapshotter.close();
}

for (const [how, open] of [
  ['', Snapshotter.open],
  [', writes on the calling thread', Snapshotter.openBlocking],
] as const) {
  mountTest(`tmpfs without free blocks${how}`, (t) => sweep(t, tmpfsDisk(t, 'size'), open));
  mountTest(`tmpfs without free inodes${how}`, (t) => sweep(t, tmpfsDisk(t, 'nr_inodes'), open));
  mountTest(`ext4 without free blocks${how}`, (t) => sweep(t, ext4Disk(t), open));
}

/** Fills a directory, and performs verbs: a write to a mapped page that finds no space ends the process. */
const onFullDisk = `import { execFileSync } from 'node:child_process';
  import { closeSync, openSync, writeSync } from 'node:fs';
  import { Snapshotter } from 'overlayfs/snapshots';
  const dir = process.argv[1];
  const snapshotter = await Snapshotter.open(dir + '/root');
  for (let i = 0; i < 10; i++) await snapshotter.prepare('old ' + i);
  const filler = openSync(dir + '/filler', 'w');
  for (const size of [2 ** 20, 2 ** 12, 2 ** 9]) {
    try {
      for (;;) writeSync(filler, Buffer.alloc(size, 1));
    } catch {}
  }
  closeSync(filler);
  const sync = () => execFileSync('sync', ['-f', dir]);
  sync();
  for (let i = 0; i < 10; i++) {
    await snapshotter.setLabels('old ' + i, { long: 'x'.repeat(4000) }, { replace: true }).catch(({ reason, message }) => console.log(reason, message));
    sync();
  }
  for (let i = 0; i < 10; i++) {
    await snapshotter.remove('old ' + i);
    sync();
  }
  await snapshotter.close();`;

mountTest(
  'a full btrfs ends no process that has a store open',
  { needs: 'btrfs without copies on write (Linux 6.17)' },
  (t) => {
    const disk = join(scratch(t), 'disk');
    mkdirSync(disk);
    execFileSync('truncate', ['-s', '128M', `${disk}.img`]);
    execFileSync('mkfs.btrfs', ['-q', `${disk}.img`], { stdio: 'pipe' });
    execFileSync('mount', ['-o', 'loop', `${disk}.img`, disk]);
    const args = ['--input-type=module', '-e', onFullDisk, disk];
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, args, {
      cwd: packageRoot,
      encoding: 'utf8',
    });
    t.deepEqual([status, signal], [0, null], stderr);
    t.regex(stdout, /^(out-of-space .*\n)+$/);
    t.deepEqual(readdirSync(join(disk, 'root/snapshots')), []);
  },
);
