/** The same layers by containerd's own overlay snapshotter and by this one: the same directories, owners, modes, options. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { mountAll, type SnapshotMount, Snapshotter, unmountAll } from 'overlayfs/snapshots';
import { startContainerd } from '../support/containerd.js';
import { mountTest, scratch } from '../support/index.js';

const LAYERS = 9;

/** Both print what they would mount in JSON, with other names. */
function parseMounts(printed: string): SnapshotMount[] {
  const mounts: Record<string, unknown>[] = JSON.parse(printed);
  return mounts.map((mount) => {
    const get = (name: string) => mount[name] ?? mount[name.toLowerCase()];
    return { type: get('Type'), source: get('Source'), options: get('Options') } as SnapshotMount;
  });
}

/** Changes a mounted layer, each one in another way. */
function changeLayer(target: string, layer: number): void {
  const at = (path: string) => join(target, path);
  mkdirSync(at(`layer-${layer}/sub`), { recursive: true });
  writeFileSync(at(`layer-${layer}/file`), `${layer}`.repeat(layer * 1000));
  chownSync(at(`layer-${layer}`), layer, 100 + layer);
  chmodSync(at(`layer-${layer}/file`), 0o600 + layer);
  if (layer === 1) {
    chmodSync(target, 0o711);
    chownSync(target, 11, 12);
    return;
  }
  symlinkSync(`layer-${layer}`, at(`link-${layer}`));
  rmSync(at(`layer-${layer - 1}/file`));
  if (layer % 3 === 0) {
    rmSync(at(`layer-${layer - 1}`), { recursive: true });
    mkdirSync(at(`layer-${layer - 1}`));
  }
}

/** Lists a directory, a line an entry, without the whiteout that the kernel keeps in a workdir. */
function describe(directory: string): string[] {
  const lines: string[] = [];
  const visit = (path: string): void => {
    const found = lstatSync(join(directory, path));
    const content = found.isSymbolicLink()
      ? readlinkSync(join(directory, path))
      : found.isFile()
        ? readFileSync(join(directory, path), 'utf8').slice(0, 20)
        : found.isCharacterDevice()
          ? found.rdev
          : '';
    lines.push(`${path} ${found.mode.toString(8)} ${found.uid}:${found.gid} ${content}`);
    if (found.isDirectory() && !path.endsWith('/work/work'))
      for (const name of readdirSync(join(directory, path)).sort()) visit(join(path, name));
  };
  visit('.');
  return lines;
}

const hasContainerd = ['containerd', 'ctr'].every((name) => spawnSync('which', [name]).status === 0);

mountTest(
  `nine layers: the same as by containerd's snapshotter${hasContainerd ? '' : ' (needs containerd)'}`,
  async (t) => {
    if (!hasContainerd) {
      t.pass();
      return;
    }
    t.timeout(120_000);
    const dir = scratch(t, 'disk');
    const target = join(dir, 'target');
    mkdirSync(target);
    const containerd = await startContainerd(t, join(dir, 'containerd'));
    const theirs = join(containerd.root, 'io.containerd.snapshotter.v1.overlayfs');
    const ctr = (...args: string[]): string => containerd.ctr('snapshots', ...args);
    const ours = join(dir, 'ours');
    const snapshotter = await Snapshotter.open(ours);
    t.teardown(() => snapshotter.close());

    const change = async (mounts: readonly SnapshotMount[], layer: number): Promise<void> => {
      await mountAll(mounts, target);
      try {
        changeLayer(target, layer);
      } finally {
        await unmountAll(mounts, target);
      }
    };
    const compareMounts = (mine: readonly SnapshotMount[], other: readonly SnapshotMount[]): void => {
      t.is(mine.length, other.length);
      for (const [i, mount] of mine.entries()) {
        const same = mount.options.map((option) => option.replaceAll(ours, theirs));
        const options = other[i]?.options ?? [];
        t.deepEqual([mount.type, mount.source.replace(ours, theirs)], [other[i]?.type, other[i]?.source]);
        // containerd 1.6 puts the configured options first, later ones last.
        t.deepEqual([...same].sort(), [...options].sort());
        const ofLayers = (list: readonly string[]) => list.filter((option) => option.includes('dir='));
        t.deepEqual(ofLayers(same), ofLayers(options));
      }
    };

    let parent = '';
    for (let layer = 1; layer <= LAYERS; layer++) {
      const parents = parent === '' ? [] : [parent];
      const key = `extract ${layer}`;
      const mine = await snapshotter.prepare(key, parent);
      const other = parseMounts(ctr('prepare', '--mounts', key, ...parents));
      compareMounts(mine, other);
      await change(mine, layer);
      await change(other, layer);
      await snapshotter.commit(key, { name: `layer ${layer}` });
      ctr('commit', `layer ${layer}`, key);
      parent = `layer ${layer}`;
    }
    const [view, theirView] = [await snapshotter.view('view', parent), parseMounts(viewOf(ctr, parent))];
    compareMounts(view, theirView);

    const directories = readdirSync(join(ours, 'snapshots')).sort();
    t.deepEqual(directories, readdirSync(join(theirs, 'snapshots')).sort());
    t.is(directories.length, LAYERS + 1);
    t.deepEqual(describe(join(ours, 'snapshots')), describe(join(theirs, 'snapshots')));
    t.is(lstatSync(ours).mode, lstatSync(theirs).mode);

    await mountAll(view, target);
    const shown = describe(target);
    await unmountAll(view, target);
    await mountAll(theirView, target);
    t.deepEqual(describe(target), shown);
    await unmountAll(theirView, target);
    t.true(existsSync(target));

    for (let layer = 1; layer <= LAYERS; layer++) {
      const { bytes: size, inodes } = await snapshotter.usage(`layer ${layer}`);
      const theirInodes = ctr('usage', `layer ${layer}`).trim().split(/\s+/).at(-1) as string;
      t.is(`${inodes}`, theirInodes, `layer ${layer}: ${size}`);
    }
  },
);

/** Makes a view of the last layer, and returns its mounts. */
function viewOf(ctr: (...args: string[]) => string, parent: string): string {
  return ctr('view', '--mounts', 'view', parent);
}
