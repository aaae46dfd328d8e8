/** Usage from project quotas. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountAll, Snapshotter, unmountAll } from 'overlayfs/snapshots';
import { run } from '#lib/kernel/task.js';
import { measure } from '#lib/layers/usage.js';
import { mountTest, scratch } from '../support/index.js';

mountTest(
  'usage comes from the project quota, and is what a walk counts',
  { needs: 'project quotas of xfs' },
  async (t) => {
    const dir = scratch(t);
    const [image, disk] = [join(dir, 'image'), join(dir, 'disk')];
    mkdirSync(disk);
    execFileSync('truncate', ['-s', '320M', image]);
    execFileSync('mkfs.xfs', ['-q', image]);
    execFileSync('mount', ['-o', 'loop,prjquota', image, disk]);
    const [root, target] = [join(disk, 'root'), join(disk, 'target')];
    mkdirSync(target);
    const snapshotter = await Snapshotter.open(root);
    t.teardown(() => snapshotter.close());
    const walked = (id: number) => run(measure(join(root, `snapshots/${id}/fs`)));

    await snapshotter.prepare('a');
    const fs = join(root, 'snapshots/1/fs');
    writeFileSync(join(fs, 'file'), Buffer.alloc(1_000_000, 1));
    mkdirSync(join(fs, 'directory'));
    execFileSync('sync');
    await snapshotter.commit('a', { name: 'A' });
    t.deepEqual(await snapshotter.usage('A'), await walked(1));
    t.is((await snapshotter.usage('A')).inodes, 3);

    const mounts = await snapshotter.prepare('b', 'A');
    await mountAll(mounts, target);
    writeFileSync(join(target, 'new'), Buffer.alloc(2_000_000, 1));
    for (const name of ['file', 'directory']) rmSync(join(target, name), { recursive: true });
    mkdirSync(join(target, 'directory'));
    execFileSync('sync');
    t.deepEqual(await snapshotter.usage('b'), await walked(2));
    await unmountAll(mounts, target);
    t.deepEqual(await snapshotter.usage('b'), await walked(2));
    await snapshotter.close();
    await unmountAll([{ type: 'bind', source: disk, options: ['bind'] }], disk);
  },
);
