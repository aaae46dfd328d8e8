/** Mounts in the mount namespace of a container that a runtime has made. */
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { findMount, listMounts, OverlayError } from 'overlayfs';
import { startContainer } from '../support/container.js';
import { countDescriptors, forms, layers, mountsBelow, mountTest, scratch } from '../support/index.js';

for (const { form, of } of forms) {
  const calls = { mount: of('mountOverlay'), unmount: of('unmount') };

  mountTest(`an overlay in a container of crun's (${form})`, { needs: 'crun' }, async (t) => {
    const dir = scratch(t);
    const { target: _, ...options } = layers(dir);
    const descriptors = countDescriptors();
    const { pid, exec } = startContainer(t, scratch(t), { withUser: false });
    const namespace = `/proc/${pid}/ns/mnt`;
    const before = readFileSync(`/proc/${pid}/mountinfo`, 'utf8');
    t.is(exec('ls', '/x'), '');

    const mounted = await calls.mount({ ...options, namespace, target: '/x' });
    t.is(exec('cat', '/x/from-lower'), 'lower');
    exec('sh', '-c', 'echo inside > /x/new && rm /x/from-lower');
    t.is(readFileSync(join(options.upperdir, 'new'), 'utf8'), 'inside\n');
    t.deepEqual(readdirSync(`/proc/${pid}/root/x`), ['new']);
    const found = await findMount('/x', { namespace });
    t.is(found?.id, mounted.id);
    t.deepEqual(
      (await listMounts({ namespace, type: 'overlay' })).map(({ target }) => target),
      ['/x'],
    );
    t.deepEqual(mountsBelow('/x'), [], 'not here');
    t.deepEqual(await listMounts({ target: '/x' }), []);

    for (const [exclusive, reason, path] of [
      [true, 'upper-in-use', options.upperdir],
      [false, 'target-mounted', '/x'],
    ] as const) {
      const again = await t.throwsAsync(() => calls.mount({ ...options, namespace, target: '/x', exclusive }), {
        instanceOf: OverlayError,
      });
      t.like(again, { reason, path });
    }
    await calls.unmount('/x', { namespace });
    t.is(exec('ls', '/x'), '');

    // By a descriptor, and in a directory that is made there.
    const fd = openSync(namespace, 'r');
    await calls.mount({ ...options, namespace: fd, target: '/x/made', create: true });
    t.is(exec('cat', '/x/made/new'), 'inside\n');
    await calls.unmount('/x/made', { namespace: fd });
    closeSync(fd);
    t.is(readFileSync(`/proc/${pid}/mountinfo`, 'utf8'), before);
    t.is(countDescriptors(), descriptors + 1, "the container's log");
  });

  mountTest(
    `an overlay in a container whose root is no root here (${form})`,
    { needs: ['crun', 'user namespaces'] },
    async (t) => {
      const dir = scratch(t);
      const { target: _, ...options } = layers(dir);
      const { pid, exec } = startContainer(t, scratch(t), { withUser: true });
      const namespace = `/proc/${pid}/ns/mnt`;
      await calls.mount({ ...options, namespace, target: '/x' });
      t.is(exec('cat', '/x/from-lower'), 'lower');
      t.is(exec('stat', '--format=%u', '/x/from-lower'), '65534\n', 'an owner that it does not know');
      t.deepEqual(mountsBelow('/x'), []);
      await calls.unmount('/x', { namespace });
      t.is(exec('ls', '/x'), '');
    },
  );
}
