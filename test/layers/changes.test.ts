/** Tests the changes of an upper against the kernel: a mount shows the differences with the upper and without it. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { mountOverlaySync, type OverlayOptions } from 'overlayfs';
import { type Change, changes } from 'overlayfs/layers';
import { comparePaths } from '#lib/trees/encodings.js';
import { fromAsync, generator, mountTest, scaled, scratch } from '../support/index.js';
import { changeTree, growTree, type SeenEntry, seeTree } from './random-tree.js';

const S_IFDIR = 0o040000;

/** The difference of two trees, as `changes` is to report it. */
function difference(before: Map<string, SeenEntry>, after: Map<string, SeenEntry>): object[] {
  const found: object[] = [];
  const gone: string[] = [];
  const paths = [...new Set([...before.keys(), ...after.keys()])].sort(comparePaths);
  for (const path of paths) {
    const isGone = gone.some((directory) => path.startsWith(`${directory}/`));
    const old = isGone ? undefined : before.get(path);
    const now = after.get(path);
    const add = (kind: string, entry: SeenEntry, what: string[] = []): void => {
      const { type, mode, uid, gid, size, mtime } = entry;
      const ownSize = type === S_IFDIR ? undefined : size;
      found.push({ path: path === '' ? '.' : path, kind, type, mode, uid, gid, size: ownSize, mtime, what });
    };
    if (now === undefined) {
      if (old === undefined) continue;
      add('deleted', old);
      gone.push(path);
    } else if (old === undefined) add('added', now);
    // The kernel gives a merged directory the number of the one below.
    else if (old.type !== now.type || (now.type === S_IFDIR && path !== '' && old.inode !== now.inode)) {
      add('replaced', now);
      gone.push(path);
    } else {
      const what = [
        ...(old.content !== now.content ? ['content'] : []),
        ...(old.mode !== now.mode ? ['mode'] : []),
        ...(old.uid !== now.uid || old.gid !== now.gid ? ['owner'] : []),
        ...(old.mtime !== now.mtime ? ['times'] : []),
        ...(old.attributes !== now.attributes ? ['xattrs'] : []),
      ];
      if (what.length > 0) add('modified', now, what);
    }
  }
  return found;
}

const types: Readonly<Record<string, number>> = {
  file: 0o100000,
  directory: S_IFDIR,
  symlink: 0o120000,
  fifo: 0o010000,
  socket: 0o140000,
  'character device': 0o020000,
  'block device': 0o060000,
};

/** A change in the form of `difference`. */
function plain({ path, kind, type, mode, uid, gid, size, mtime, what }: Change<Buffer>): object {
  const ownSize = type === 'directory' ? undefined : size;
  return {
    path: path.toString('latin1'),
    kind,
    type: types[type ?? ''],
    mode,
    uid,
    gid,
    size: ownSize,
    mtime,
    what: [...what],
  };
}

/** The kernel's view of layers. */
function seeLayers(
  t: ExecutionContext,
  dir: string,
  lowerdir: string[],
  options: Partial<OverlayOptions>,
): Map<string, SeenEntry> {
  if (lowerdir.length === 1) return seeTree(lowerdir[0] as string);
  const target = join(dir, 'view');
  mkdirSync(target, { recursive: true });
  const mount = mountOverlaySync({ lowerdir, target, ...options });
  const seen = seeTree(target);
  mount.unmountSync();
  t.true(seen.size > 0);
  return seen;
}

interface Checked {
  readonly upper: string;
  readonly lowerdir: string[];
  readonly expected: object[];
  readonly after: Map<string, SeenEntry>;
  readonly before: Map<string, SeenEntry>;
}

async function checkUpper(t: ExecutionContext, { upper, lowerdir, expected, after, before }: Checked): Promise<void> {
  const exact = await fromAsync(changes({ upperdir: upper, lowerdir }, { content: true, encoding: 'buffer' }));
  t.deepEqual(exact.map(plain), expected);
  for (const { from, path } of exact) {
    if (from === undefined) continue;
    t.is(before.get(from.toString('latin1'))?.inode, after.get(path.toString('latin1'))?.inode);
  }
  const later: Change<Buffer>[] = [];
  for await (const change of changes({ upperdir: upper, lowerdir }, { content: true, encoding: 'buffer' }))
    later.push(change);
  t.deepEqual(later, exact);
  // By default, another time counts as other content.
  const quick = (await fromAsync(changes({ upperdir: upper, lowerdir }, { encoding: 'buffer' }))).map(plain) as {
    what: string[];
  }[];
  const without = (list: readonly object[]): object[] =>
    (list as { what: string[] }[]).map((one) => ({ ...one, what: one.what.filter((word) => word !== 'content') }));
  t.deepEqual(without(quick), without(expected));
  (expected as { what: string[] }[]).forEach(({ what }, i) => {
    const found = quick[i]?.what ?? [];
    if (what.includes('content')) t.true(found.includes('content'));
    else if (!what.includes('times')) t.false(found.includes('content'));
  });
}

const variants: Readonly<Record<string, Partial<OverlayOptions>>> = {
  'no options': {},
  redirect_dir: { redirectDir: 'on' },
  'redirect_dir and metacopy': { redirectDir: 'on', metacopy: true },
  userxattr: { userxattr: true },
  rootless: { rootless: true },
  index: { index: true },
  'index, redirect_dir and metacopy': { index: true, redirectDir: 'on', metacopy: true },
};

for (const [title, options] of Object.entries(variants)) {
  const needs = title === 'userxattr' ? 'userxattr' : title === 'rootless' ? 'rootless' : undefined;
  mountTest(`random changes through a mount: ${title}`, { needs }, async (t) => {
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
    for (let seed = first; seed < first + scaled(50, 2); seed++) {
      t.log(`seed ${seed}`);
      const random = generator(seed);
      const dir = scratch(t);
      const [base, target] = [join(dir, 'base'), join(dir, 'merged')];
      mkdirSync(base);
      mkdirSync(target);
      const owners = options.rootless === undefined;
      growTree(base, random, 150);
      changeTree(base, random, 50, { owners });
      let lowerdir = [base];
      for (const level of [1, 2, 3]) {
        const [upperdir, workdir] = [join(dir, `upper${level}`), join(dir, `work${level}`)];
        mkdirSync(upperdir);
        mkdirSync(workdir);
        const isRootless = options.rootless !== undefined;
        const { index, ...others } = options;
        const before = seeLayers(t, dir, lowerdir, isRootless ? { userxattr: true } : others);
        const mount = mountOverlaySync({ lowerdir, upperdir, workdir, ...(isRootless ? {} : { target }), ...options });
        changeTree(mount.path, random, 40 * level * level, { owners });
        const after = seeTree(mount.path);
        const ofMount = (await fromAsync(changes(mount, { content: true, encoding: 'buffer' }))).map(plain);
        mount.unmountSync();
        const expected = difference(before, after);
        t.deepEqual(ofMount, expected, `seed ${seed}, level ${level}`);
        // Only the index, which belongs to the mount, has the other names of the files in the upper.
        if (index !== true) await checkUpper(t, { upper: upperdir, lowerdir, expected, after, before });
        lowerdir = [upperdir, ...lowerdir];
      }
    }
  });
}

const oneUpper: Readonly<Record<string, Partial<OverlayOptions>>> = {
  'renames and metacopies': { redirectDir: 'on', metacopy: true },
  rootless: { rootless: true },
};

for (const [title, options] of Object.entries(oneUpper)) {
  const isRootless = options.rootless === true;
  const needs = isRootless ? 'rootless' : undefined;
  mountTest(`thousands of random changes in one upper: ${title}`, { needs }, async (t) => {
    t.timeout(36_000_000);
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 5);
    const steps = Math.min(scaled(5000, 1000), 5000);
    let renamed = 0;
    for (let seed = first; seed < first + scaled(scaled(5)); seed++) {
      t.log(`seed ${seed}, ${steps} steps`);
      const random = generator(seed);
      const dir = scratch(t);
      const [lower, upper, workdir, target] = ['lower', 'upper', 'work', 'merged'].map((name) => join(dir, name)) as [
        string,
        string,
        string,
        string,
      ];
      for (const path of [lower, upper, workdir, target]) mkdirSync(path);
      growTree(lower, random, 300);
      changeTree(lower, random, 100, { owners: !isRootless });
      const lowerdir = [lower];
      const place = isRootless ? {} : { target };
      const mount = mountOverlaySync({ lowerdir, upperdir: upper, workdir, ...place, ...options });
      changeTree(mount.path, random, steps, { owners: !isRootless });
      const [before, after] = [seeTree(lower), seeTree(mount.path)];
      mount.unmountSync();
      const expected = difference(before, after);
      if ((await fromAsync(changes({ upperdir: upper, lowerdir }))).some(({ from }) => from !== undefined)) renamed++;
      t.true(expected.length > 50, `seed ${seed}: ${expected.length} changes of ${before.size} entries`);
      await checkUpper(t, { upper, lowerdir, expected, after, before });
      t.true(t.passed, `seed ${seed}`);
    }
    t.is(renamed > 0, options.redirectDir === 'on');
  });
}
