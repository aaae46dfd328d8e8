/** `watchMounts` with `existing` and filters. Imports internals: it forces each way of watching. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { listMounts, type MountEvent, mountOverlaySync, type WatchMountsOptions } from 'overlayfs';
import type { WatchWay } from '#lib/mount-table/events.js';
import { watchMountsWith } from '#lib/mount-table/watch.js';
import { eventually, generator, layers, makeTree, mountTest, native, scaled, scratch } from '../support/index.js';

type AnyEvent = MountEvent<string | Buffer>;

const show = ({ type, mount }: AnyEvent): string => `${type} ${mount?.source}`;

/** Mounts, unmounts and moves in the directories 0 to 9 of the directory, until its input ends. */
const RESTLESS = `
cd "$1"; RANDOM=$2
while ! read -rt 0; do
  a=$((RANDOM % 10)) b=$((RANDOM % 10))
  case $((RANDOM % 4)) in
    0) mount -t tmpfs "tmpfs-$a" $a;;
    1) mount -t overlay "overlay-$a" -o lowerdir=l1:l2 $a;;
    2) umount $a;;
    3) mount --move $a $b;;
  esac 2>/dev/null
done
`;

const ways: readonly WatchWay[] = ['events', 'table'];

for (const way of ways) {
  const needs = way === 'events' ? ('mountEvents' as const) : undefined;

  mountTest(`existing: the mounts that are there come first, and a filter selects (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'in/a/': '', 'in/b/': '', 'out/': '' });
    const overlay = layers(join(dir, 'in/layers'));
    native.mount('early', join(dir, 'in/a'), 'tmpfs', 0, '');
    native.mount('elsewhere', join(dir, 'out'), 'tmpfs', 0, '');
    const mounted = mountOverlaySync({ ...overlay, source: 'overlay' });
    const watch = (options: WatchMountsOptions) => {
      const opened = watchMountsWith(way, options);
      t.teardown(() => opened.return?.());
      return async () => show((await opened.next()).value as AnyEvent);
    };
    const below = watch({ target: join(dir, 'in'), existing: true });
    const ofType = watch({ type: 'overlay', target: dir, existing: true });
    const ofLayer = watch({ layer: overlay.upperdir });
    t.is(await below(), 'mounted early');
    t.is(await below(), 'mounted overlay');
    t.is(await ofType(), 'mounted overlay');
    native.mount('late', join(dir, 'in/b'), 'tmpfs', 0, '');
    native.umount(join(dir, 'out'), 0);
    t.is(await below(), 'mounted late');
    const next = ofLayer();
    await mounted.unmount();
    t.deepEqual(await Promise.all([below(), ofType(), next]), Array(3).fill('unmounted overlay'));
    native.umount(join(dir, 'in/b'), 0);
    t.is(await below(), 'unmounted late');
  });

  mountTest(
    `existing: a table kept up to date is that of the kernel, beside another process (${way})`,
    { needs },
    async (t) => {
      const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
      t.log(`seed ${seed}`);
      const random = generator(seed);
      for (let round = 0; round < scaled(100, 2); round++) {
        const dir = scratch(t);
        const names = Array.from({ length: 10 }, (_, i) => [`${i}/`, '']);
        makeTree(dir, { ...Object.fromEntries(names), 'l1/': '', 'l2/': '' });
        const other = spawn('bash', ['-c', RESTLESS, 'bash', dir, String(random(32_768))], {
          stdio: ['pipe', 'ignore', 'inherit'],
        });
        const filters: WatchMountsOptions[] = [
          { target: dir },
          { target: dir, type: 'overlay' },
          { target: dir, layer: join(dir, 'l2') },
        ];
        const watched = await Promise.all(
          filters.map(async (filter) => {
            await new Promise((resolve) => setTimeout(resolve, random(40)));
            const events = watchMountsWith(way, { ...filter, existing: true });
            const table = new Map<string, string>();
            const ended = (async () => {
              for await (const { type, id, mount } of events) {
                if (type === 'unmounted')
                  t.true(table.delete(String(id)), `round ${round}: the end of one that was not told`);
                else if (type !== 'lost') {
                  t.is(table.has(String(id)), type === 'moved', `round ${round}: ${type} ${id}`);
                  table.set(String(id), String(mount?.target));
                }
              }
            })();
            return { filter, events, table, ended };
          }),
        );
        await new Promise((resolve) => setTimeout(resolve, 50 + random(100)));
        other.stdin.end('stop\n');
        await once(other, 'exit');
        for (const { filter, events, table, ended } of watched) {
          const expected = async () => (await listMounts(filter)).map(({ id, target }) => `${id} ${target}`).sort();
          const kept = () => Array.from(table, ([id, target]) => `${id} ${target}`).sort();
          const wanted = await expected();
          await eventually(t, () => String(kept()) === String(wanted));
          t.deepEqual(kept(), wanted, `round ${round}: ${JSON.stringify(filter)}`);
          await events.return?.();
          await ended;
        }
        for (const { target } of (await listMounts({ target: dir })).reverse()) native.umount(target, 0);
      }
    },
  );
}
