import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { Worker } from 'node:worker_threads';
import type { ExecutionContext } from 'ava';
import {
  bindSync,
  findHolders,
  type Mount,
  mountOverlay,
  mountOverlaySync,
  OverlayError,
  OverlayMount,
  unmount,
} from 'overlayfs';
import {
  countDescriptors,
  eventually,
  forms,
  layers,
  makeNamespace,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
} from '../support/index.js';

const failing = { instanceOf: OverlayError };

function withoutTarget(dir: string) {
  const { target: _, ...rest } = layers(dir);
  return rest;
}

for (const { form, method } of forms) {
  const calls = {
    attach: (mount: Mount, ...args: Parameters<Mount['attach']>) => method(mount, 'attach')(...args),
    clone: (mount: Mount) => method(mount, 'clone')(),
    remount: (mount: Mount, ...args: Parameters<Mount['remount']>) => method(mount, 'remount')(...args),
    effective: (mount: OverlayMount) => method(mount, 'effective')(),
    replace: (mount: OverlayMount, ...args: Parameters<OverlayMount['replace']>) => method(mount, 'replace')(...args),
  };

  mountTest(`a detached mount gets a place, and is one like others then (${form})`, async (t) => {
    const dir = scratch(t);
    const descriptors = countDescriptors();
    const mounted = mountOverlaySync(withoutTarget(dir));
    t.is(mounted.target, undefined);
    writeFileSync(join(mounted.path, 'new'), 'x');
    const target = join(dir, 'merged');
    const { id } = mounted;
    await calls.attach(mounted, target);
    t.deepEqual([mounted.target, mounted.path, mounted.fd, mounted.id], [target, target, undefined, id]);
    t.deepEqual(readdirSync(target).sort(), ['from-lower', 'new']);
    t.is(countDescriptors(), descriptors);
    await t.throwsAsync(calls.attach(mounted, target), {
      code: 'ERR_INVALID_ARG_VALUE',
      message: /is already attached/,
    });
    await mounted.unmount();
    t.is(mountsBelow(target).length, 0);
    await mounted.unmount();
  });

  mountTest(`where a detached mount cannot be attached, it stays what it was (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'mounted/': '', file: '' });
    native.mount('x', join(dir, 'mounted'), 'tmpfs', 0, '');
    const mounted = mountOverlaySync(withoutTarget(dir));
    const cases = [
      ['none', 'target-missing'],
      ['mounted', 'target-mounted'],
      ['file', 'target-not-directory'],
      ['link', 'target-symlink'],
    ] as const;
    symlinkSync('merged', join(dir, 'link'));
    for (const [name, reason] of cases) {
      t.like(await t.throwsAsync(calls.attach(mounted, join(dir, name)), failing), { reason, path: join(dir, name) });
    }
    t.deepEqual(readdirSync(mounted.path), ['from-lower']);
    await calls.attach(mounted, join(dir, 'mounted'), { stack: true });
    await mounted.unmount();
    await t.throwsAsync(calls.attach(mounted, 'x', { stac: true } as never), { message: /did you mean "stack"/ });
    const closed = mountOverlaySync(withoutTarget(dir));
    await closed.unmount();
    t.like(await t.throwsAsync(calls.attach(closed, join(dir, 'merged')), failing), { reason: 'not-mounted' });
  });

  mountTest(`attached in another namespace (${form})`, async (t) => {
    const dir = scratch(t);
    const namespace = makeNamespace();
    const mounted = mountOverlaySync(withoutTarget(dir));
    await calls.attach(mounted, join(dir, 'merged'), { namespace });
    t.is(mountsBelow(join(dir, 'merged')).length, 0);
    await mounted.unmount();
    closeSync(namespace);
  });

  mountTest(`a clone shows the same files, and lives on by itself (${form})`, async (t) => {
    const dir = scratch(t);
    const mounted = mountOverlaySync(layers(dir));
    const clone = await calls.clone(mounted);
    t.not(clone.id, mounted.id);
    t.true(clone instanceof OverlayMount);
    t.deepEqual(clone instanceof OverlayMount && clone.options.upperdir, mounted.options.upperdir);
    t.regex(inspect(clone), /^OverlayMount /);
    await mounted.unmount();
    writeFileSync(join(clone.path, 'new'), 'x');
    t.is(readFileSync(join(dir, 'upper/new'), 'utf8'), 'x');
    await calls.attach(clone, join(dir, 'merged'));
    await clone.unmount();
    t.like(await t.throwsAsync(calls.clone(mounted), failing), { reason: 'not-mounted' });
  });

  mountTest(
    `read-only and writable again, the mount and the superblock (${form})`,
    { needs: 'mountSetattr' },
    async (t) => {
      const dir = scratch(t);
      makeTree(dir, { 'bound/': '' });
      const mounted = mountOverlaySync({ ...layers(dir), nosuid: true });
      const bound = bindSync(mounted.path, join(dir, 'bound'));
      const write = (at: Mount) => () => writeFileSync(join(at.path, 'new'), 'x');
      await calls.remount(mounted, { readonly: true });
      t.throws(write(mounted), { code: 'EROFS' });
      t.notThrows(write(bound));
      t.regex(mountsBelow(mounted.path)[0]?.line ?? '', / ro,nosuid,relatime /);
      await calls.remount(mounted, { readonly: false });
      t.notThrows(write(mounted));

      const fd = openSync(join(mounted.path, 'new'), 'w');
      t.like(await t.throwsAsync(calls.remount(mounted, { readonly: true }), failing), {
        reason: 'mount-busy',
        code: 'EBUSY',
      });
      closeSync(fd);
      await calls.remount(mounted, { readonlySuperblock: true });
      t.throws(write(bound), { code: 'EROFS' });
      await calls.remount(mounted, { readonlySuperblock: false });
      t.notThrows(write(bound));
      await t.throwsAsync(calls.remount(mounted, { readonly: 1 } as never), { code: 'ERR_INVALID_ARG_TYPE' });
      await bound.unmount();
      await mounted.unmount();
      t.like(await t.throwsAsync(calls.remount(mounted, { readonly: true }), failing), { reason: 'not-mounted' });
    },
  );

  mountTest(`the options in force, attached and detached (${form})`, { needs: 'pathDescriptors' }, async (t) => {
    const dir = scratch(t, 'disk');
    const options = { ...layers(dir), index: true, noexec: true, source: 'it' };
    const mounted = mountOverlaySync(options);
    const { lowerdir, upperdir, workdir } = options;
    const expected = {
      index: true,
      lowerdir: [lowerdir],
      upperdir,
      workdir,
      noexec: true,
      readonly: false,
      readonlySuperblock: false,
      source: 'it',
    };
    t.like(await calls.effective(mounted), expected);
    await mounted.unmount();
    t.like(await t.throwsAsync(calls.effective(mounted), failing), { reason: 'not-mounted' });
    const { target: _, ...rest } = options;
    const detached = mountOverlaySync(rest);
    t.like(await calls.effective(detached), expected);
    await detached.unmount();
  });

  mountTest(
    `other layers in the place of a mount; open files stay those of the old one (${form})`,
    { needs: 'mountBeneath' },
    async (t) => {
      const dir = scratch(t);
      const mounted = mountOverlaySync(layers(dir));
      makeTree(dir, { 'second/lower/other': 'other', 'second/upper/': '', 'second/work/': '' });
      const second = {
        lowerdir: join(dir, 'second/lower'),
        upperdir: join(dir, 'second/upper'),
        workdir: join(dir, 'second/work'),
      };
      const target = mounted.path;
      const fd = openSync(join(target, 'from-lower'), 'r');
      const { id } = mounted;
      const descriptors = countDescriptors();
      await calls.replace(mounted, second);
      t.is(countDescriptors(), descriptors);
      t.deepEqual(readdirSync(target), ['other']);
      t.not(mounted.id, id);
      t.is(mounted.target, target);
      t.like(mounted.options, { ...second, target });
      const buffer = Buffer.alloc(5);
      t.is(readSync(fd, buffer), 5);
      t.is(buffer.toString(), 'lower');
      closeSync(fd);
      t.is(mountsBelow(target).length, 1);

      const wrong = { ...second, lowerdir: join(dir, 'none'), exclusive: false };
      t.like(await t.throwsAsync(calls.replace(mounted, wrong), failing), { reason: 'lower-missing' });
      t.deepEqual(readdirSync(target), ['other'], 'the old one is still there');
      await t.throwsAsync(calls.replace(mounted, { ...second, target: '/x' } as never), {
        code: 'ERR_INVALID_ARG_VALUE',
      });
      t.is(countDescriptors(), descriptors - 1);
      await mounted.unmount();
      t.is(mountsBelow(target).length, 0);
      t.like(
        await t.throwsAsync(
          calls.replace(mounted, { lowerdir: [join(dir, 'lower'), join(dir, 'second/lower')] }),
          failing,
        ),
        { reason: 'not-mounted' },
      );
      t.is(mountsBelow(target).length, 0);
    },
  );

  mountTest(
    `a mount with others inside is not replaced, nothing is mounted (${form})`,
    { needs: 'mountBeneath' },
    async (t) => {
      const dir = scratch(t);
      makeTree(dir, { 'lower/sub/': '', 'lower/deep/in/': '', 'other/other': 'x' });
      const mounted = mountOverlaySync(layers(dir));
      const target = mounted.path;
      const next = { lowerdir: [join(dir, 'other'), join(dir, 'lower')] };
      const inside = [bindSync(join(dir, 'other'), join(target, 'sub')), bindSync(dir, join(target, 'deep/in'))];
      const [descriptors, count] = [countDescriptors(), mountsBelow(target).length];
      const error = await t.throwsAsync<OverlayError>(calls.replace(mounted, next), failing);
      t.like(error, { reason: 'mount-inside', code: 'EBUSY', path: target, syscall: undefined });
      t.deepEqual(error?.holders?.map(({ what, path }) => [what, path]).sort(), [
        ['inside', join(target, 'deep/in')],
        ['inside', join(target, 'sub')],
      ]);
      t.true(error?.message.includes(`'${join(target, 'sub')}'`), error?.message);
      t.deepEqual([countDescriptors(), mountsBelow(target).length], [descriptors, count]);
      t.deepEqual(readdirSync(join(target, 'sub')), ['other']);
      for (const each of inside) each.unmountSync();
      await calls.replace(mounted, next);
      t.true(readdirSync(target).includes('other'));
      await mounted.unmount();
    },
  );

  mountTest(`a mount that is covered, or has another path now: each call says so (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '' });
    const mounted = mountOverlaySync(layers(join(dir, 'a/b')));
    const every = async (reason: string, says: RegExp) => {
      for (const call of [
        () => calls.attach(mounted, join(dir, 'other')),
        () => calls.clone(mounted),
        () => calls.remount(mounted, { readonly: true }),
        () => calls.effective(mounted),
        () => calls.replace(mounted, { lowerdir: [join(dir, 'a'), dir] }),
        () => method(mounted, 'unmount')(),
      ]) {
        const error = await t.throwsAsync(call, failing);
        t.like(error, { reason, path: mounted.path });
        t.regex(error?.message ?? '', says);
      }
      t.is(mountsBelow(dir).filter(({ line }) => / - overlay /.test(line)).length, 1);
    };
    for (const isThere of [false, true]) {
      t.is(native.mount('x', join(dir, 'a'), 'tmpfs', 0, ''), 0);
      if (isThere) makeTree(dir, { 'a/b/merged/': '' });
      await every('mount-covered', /the mount at '.*\/a' covers .*Unmount the one at '.*\/a' first/);
      await t.throwsAsync(findHolders(mounted.path), { message: /covers the mount/ });
      await t.throwsAsync(unmount(mounted.path), { message: /covers the mount/ });
      t.is(native.umount(join(dir, 'a'), 0), 0);
    }
    renameSync(join(dir, 'a'), join(dir, 'c'));
    await every('not-mounted', /is at '.*\/c\/b\/merged' now/);
    renameSync(join(dir, 'c'), join(dir, 'a'));
    await mounted.unmount();
  });

  mountTest(`what has been unmounted is not attached, and says so (${form})`, async (t) => {
    const dir = scratch(t);
    const mounted = mountOverlaySync(layers(dir));
    makeTree(dir, { 'other/': '' });
    await mounted.unmount();
    const unmounted = { reason: 'not-mounted', code: 'EINVAL', path: join(dir, 'merged') } as const;
    const error = await t.throwsAsync(calls.attach(mounted, join(dir, 'other')), failing);
    t.like(error, unmounted);
    t.regex(error?.message ?? '', /has been unmounted/);
    rmSync(join(dir, 'merged'), { recursive: true });
    t.regex(String(await t.throwsAsync(calls.attach(mounted, join(dir, 'other')), failing)), /has been unmounted/);
  });

  mountTest(`each call on a closed detached mount says that it has been unmounted (${form})`, async (t) => {
    const dir = scratch(t);
    const { target: _, ...options } = layers(dir);
    const mounted = mountOverlaySync(options);
    await mounted.unmount();
    for (const call of [
      () => calls.attach(mounted, join(dir, 'merged')),
      () => calls.clone(mounted),
      () => calls.remount(mounted, { readonly: true }),
      () => calls.effective(mounted),
    ]) {
      const error = await t.throwsAsync(call, failing);
      t.like(error, { reason: 'not-mounted', code: 'EBADF', hint: 'Mount it again.' });
      t.true(error?.message.includes(`the detached mount '${mounted.path}' has been unmounted`));
    }
  });
}

mountTest('replacements that are asked for at once come one after the other', { needs: 'mountBeneath' }, async (t) => {
  const dir = scratch(t);
  const mounted = mountOverlaySync(layers(dir));
  const target = mounted.path;
  const names = Array.from({ length: 8 }, (_, i) => `next${i}`);
  makeTree(dir, Object.fromEntries(names.map((name) => [`${name}/${name}`, name])));
  const descriptors = countDescriptors();
  const all = names.map((name) => mounted.replace({ lowerdir: [join(dir, name), join(dir, 'lower')] }));
  t.throws(() => mounted.replaceSync({ lowerdir: [join(dir, 'lower'), join(dir, 'upper')] }), underWay);
  t.throws(() => mounted.unmountSync(), underWay);
  const after = mounted.effective();
  await Promise.all(all);
  t.deepEqual(readdirSync(target).sort(), ['from-lower', 'next7']);
  t.deepEqual((await after).lowerdir, [join(dir, 'next7'), join(dir, 'lower')]);
  t.is(mountsBelow(target).length, 1);
  const replaced = mounted.replace({ lowerdir: [join(dir, 'next0'), join(dir, 'lower')] });
  await mounted.unmount();
  await replaced;
  t.is(mountsBelow(target).length, 0, 'replaced, and then unmounted');
  t.is(countDescriptors(), descriptors);
});

mountTest('a replacement in another namespace', { needs: 'mountBeneath' }, async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'other/other': 'x' });
  const namespace = makeNamespace();
  const mounted = await mountOverlay({ ...layers(dir), namespace });
  await mounted.replace({ lowerdir: [join(dir, 'other'), join(dir, 'lower')] });
  await mounted.unmount();
  closeSync(namespace);
});

/** Something that looks at the place all the time, and what it has seen. */
async function observer(t: ExecutionContext, target: string) {
  const seen = new Int32Array(new SharedArrayBuffer(16)); // old, new, neither, stop
  const script = `
    const { workerData: { target, seen } } = require('node:worker_threads');
    const { readdirSync, writeFileSync } = require('node:fs');
    while (Atomics.load(seen, 3) === 0) {
      let names = '';
      try { names = readdirSync(target).join(); writeFileSync(target + '/written', 'x'); } catch (error) { names = error.code; }
      Atomics.add(seen, names.includes('one') ? 0 : names.includes('two') ? 1 : 2, 1);
    }`;
  const worker = new Worker(script, { eval: true, workerData: { target, seen } });
  const ended = once(worker, 'exit');
  await eventually(t, () => (seen[0] ?? 0) > 0);
  return {
    seen,
    async end() {
      Atomics.store(seen, 3, 1);
      await ended;
    },
  };
}

mountTest(
  'under load, the place shows the old or the new, and nothing is left of a thousand replacements',
  { needs: 'mountBeneath' },
  async (t) => {
    const dir = scratch(t);
    const make = (name: string) => {
      makeTree(dir, { [`${name}/lower/${name}`]: name, [`${name}/upper/`]: '', [`${name}/work/`]: '' });
      return {
        lowerdir: join(dir, name, 'lower'),
        upperdir: join(dir, name, 'upper'),
        workdir: join(dir, name, 'work'),
        exclusive: false,
      };
    };
    // The upper that the observer still reads is in use: `exclusive` would refuse to come back to it.
    const [one, two] = [make('one'), make('two')];
    makeTree(dir, { 'merged/': '' });
    const target = join(dir, 'merged');
    const mounted = await mountOverlay({ ...one, target });
    const descriptors = countDescriptors();
    const { seen, end } = await observer(t, target);
    for (let i = 0; i < scaled(500, 10); i++) {
      await mounted.replace(two);
      mounted.replaceSync(one);
    }
    await end();
    t.is(seen[2], 0, 'neither');
    t.is(countDescriptors(), descriptors);
    t.is(mountsBelow(target).length, 1);
    await mounted.unmount();
  },
);

mountTest('a mount made by another program is replaced by none of ours', { needs: 'mountBeneath' }, async (t) => {
  const dir = scratch(t);
  const mounted = mountOverlaySync(layers(dir));
  const target = mounted.path;
  native.mount('above', target, 'tmpfs', 0, '');
  const error = await t.throwsAsync(mounted.replace({ lowerdir: [join(dir, 'lower'), dir] }), failing);
  t.true(['mount-covered', 'layers-overlap'].includes(error?.reason ?? ''), error?.message);
  const made = { upperdir: join(dir, 'made/upper'), workdir: join(dir, 'made/work'), create: true };
  const late = await t.throwsAsync(mounted.replace({ lowerdir: join(dir, 'lower'), ...made }), failing);
  t.is(late?.reason, 'mount-covered');
  t.false(existsSync(join(dir, 'made')), 'what was made for the replacement is gone');
  t.is(mountsBelow(target).length, 2);
  native.umount(target, 0);
  await mounted.unmount();
});

const underWay = {
  instanceOf: OverlayError,
  code: 'EBUSY',
  message: /a promise of this mount is still pending/,
};

mountTest(
  'what is done at once to a detached mount comes one after the other, and nothing closes it meanwhile',
  { needs: 'detached mounts that can be cloned' },
  async (t) => {
    const dir = scratch(t);
    const options = withoutTarget(dir);
    const target = join(dir, 'merged');
    mountOverlaySync(options).unmountSync();
    await mountOverlaySync(options).unmount();
    const descriptors = countDescriptors();
    for (let i = 0; i < scaled(100); i++) {
      const mounted = mountOverlaySync(options);
      const { fd } = mounted;
      const [cloning, attaching, closing] = [mounted.clone(), mounted.attach(target), mounted.unmount()];
      t.throws(() => mounted.unmountSync(), underWay);
      t.throws(() => mounted[Symbol.dispose](), underWay);
      t.throws(() => mounted.attachSync(target), underWay);
      t.throws(() => mounted.cloneSync(), underWay);
      t.throws(() => mounted.effectiveSync(), underWay);
      t.is(mounted.fd, fd);
      const [clone] = await Promise.all([cloning, attaching, closing]);
      t.is(readFileSync(join(clone.path, 'from-lower'), 'utf8'), 'lower');
      t.is(mountsBelow(target).length, 0, 'attached, and then unmounted');
      mounted.unmountSync();

      const ending = clone.unmount();
      t.throws(() => clone.unmountSync(), underWay);
      t.throws(() => clone.remountSync({ readonly: true }), underWay);
      const late = clone.clone();
      // It may have the number of the clone.
      const other = openSync(join(dir, 'lower/from-lower'), 'r');
      await Promise.all([ending, clone.unmount()]);
      t.like(await t.throwsAsync(late, failing), { reason: 'not-mounted' });
      clone.unmountSync();
      closeSync(other);
    }
    t.is(countDescriptors(), descriptors);
    // The upper is free when the promise is kept.
    mountOverlaySync({ ...options, index: true }).unmountSync();
  },
);

mountTest(
  'an unmount waits for what uses the detached mount, however many there are',
  { needs: 'mountSetattr' },
  async (t) => {
    const dir = scratch(t);
    const mounted = mountOverlaySync(withoutTarget(dir));
    const descriptors = countDescriptors();
    const uses = Array.from({ length: 64 }, (_, i) => mounted.remount({ readonly: i % 2 === 0 }));
    await mounted.unmount();
    t.is((await Promise.allSettled(uses)).filter(({ status }) => status === 'fulfilled').length, 64);
    t.is(countDescriptors(), descriptors - 1);
  },
);
