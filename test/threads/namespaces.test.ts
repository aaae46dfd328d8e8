import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay, mountOverlaySync, unmount } from 'overlayfs';
import { countThreads, eventually, layers, mountsBelow, mountTest, native, scratch } from '../support/index.js';

mountTest('when the main thread has left its mount namespace, both forms mount in the new one', async (t) => {
  const dir = scratch(t);
  const before = layers(join(dir, 'before'));
  // Our threads are now parked in the namespace that is about to be left.
  await (await mountOverlay(before)).unmount();
  t.true(countThreads() > 0);

  t.is(native.unshareMounts(), 0);
  const promised = await mountOverlay(layers(join(dir, 'promised')));
  const other = mountOverlaySync(layers(join(dir, 'other')));
  t.is(mountsBelow(join(dir, 'promised')).length, 1);
  t.is(mountsBelow(join(dir, 'other')).length, 1);
  t.deepEqual(readdirSync(promised.path as string), ['from-lower']);
  await unmount(other.path);
  promised.unmountSync();
  t.is(mountsBelow(join(dir, 'promised')).length + mountsBelow(join(dir, 'other')).length, 0);

  // And again, with threads parked in two namespaces that are not the caller's.
  for (let i = 0; i < 20; i++) {
    t.is(native.unshareMounts(), 0);
    const again = await mountOverlay(layers(join(dir, `again-${i}`)));
    t.is(mountsBelow(again.path as string).length, 1);
    await again.unmount();
  }
  await eventually(t, () => countThreads() === 0);
});
