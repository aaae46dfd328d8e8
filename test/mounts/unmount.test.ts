/** `unmount`. Imports internals: it mounts as on kernels that lack features. */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { bind, type Mount, mountOverlaySync, type OverlayOptions, type UnmountOptions, unmount } from 'overlayfs';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import * as k from '#lib/kernel/constants.js';
import { mountOverlayWithSync } from '#lib/overlay/mount.js';
import {
  countDescriptors,
  type Expected,
  evaluateIn,
  failsAndLeaves,
  forms,
  layers,
  makeNamespace,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
  withoutCapabilities,
} from '../support/index.js';

/** Both ways of mounting: with descriptors, and with one string of escaped paths. */
const ways: Readonly<Record<string, (options: OverlayOptions) => Mount>> = {
  descriptors: (options) => mountOverlayWithSync(options, kernelFeaturesSync()),
  'mount(2)': (options) => mountOverlayWithSync(options, { ...kernelFeaturesSync(), mountApi: false }),
};

/** The call fails as expected, and all mounts below the directory are still there. */
const fails = (t: ExecutionContext, dir: string, run: () => Promise<unknown>, expected: Expected) =>
  failsAndLeaves(t, () => mountsBelow(dir), run, expected);

/** Layers without a workdir, which the mount makes. */
function layersWithoutWork(dir: string): ReturnType<typeof layers> & { readonly create: true } {
  const set = layers(dir);
  rmdirSync(set.workdir);
  return { ...set, create: true };
}

/** Restores the working directory at the end. */
function keepWorkingDirectory(t: ExecutionContext): void {
  const before = process.cwd();
  t.teardown(() => process.chdir(before));
}

for (const { form, of, method, suffix } of forms) {
  const unmount = of('unmount');
  /** The same, of the object. */
  const end = (mounted: Mount, options?: UnmountOptions) => method(mounted, 'unmount')(options);

  mountTest(`unmounts what is mounted at a path (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    mountOverlaySync(options);
    t.is(await unmount(options.target), undefined);
    t.is(mountsBelow(options.target).length, 0);
    t.deepEqual(readdirSync(options.target), []);
    t.deepEqual(readdirSync(options.workdir), ['work'], 'stays, since it was there before');
  });

  mountTest(`of any file system, and on a file too (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'mount/': '', file: 'below', other: 'above' });
    t.is(native.mount('inner', join(dir, 'mount'), 'tmpfs', 0, ''), 0);
    const MS_BIND = 4096;
    t.is(native.mount(join(dir, 'other'), join(dir, 'file'), '', MS_BIND, ''), 0);
    await unmount(join(dir, 'mount'));
    await unmount(join(dir, 'file'));
    t.is(mountsBelow(dir).length, 1);
    t.is(readFileSync(join(dir, 'file'), 'latin1'), 'below');
  });

  mountTest(`paths may be bytes, URLs, relative, and end in slashes (${form})`, async (t) => {
    const dir = scratch(t);
    keepWorkingDirectory(t);
    const options = layers(dir);
    const bytes = Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xff, 0x0a, 0x5c, 0x20])]);
    mkdirSync(bytes);
    const count = mountsBelow(dir).length;
    mountOverlaySync({ ...options, target: bytes });
    t.is(mountsBelow(dir).length, count + 1);
    await unmount(bytes);
    t.is(mountsBelow(dir).length, count);

    const { target } = options;
    for (const path of [pathToFileURL(target), Buffer.from(`${target}//`), `${target}/`, `${target}/../merged/.`]) {
      mountOverlaySync(options);
      await unmount(path);
      t.is(mountsBelow(target).length, 0, String(path));
    }
    for (const path of ['merged', './merged/', '../merged']) {
      mountOverlaySync(options);
      process.chdir(path.startsWith('..') ? options.lowerdir : dir);
      const pending = unmount(path);
      process.chdir('/');
      await pending;
      t.is(mountsBelow(target).length, 0, path);
    }
  });

  mountTest(`what is no mount point (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/sub/': '' });
    const mounted = mountOverlaySync(options);
    for (const path of [
      options.lowerdir,
      join(options.target, 'sub'),
      join(options.target, 'from-lower'),
      join(dir, 'lower/from-lower'),
    ]) {
      for (const flags of [{}, { detach: true }]) {
        await fails(t, dir, () => unmount(path, flags), {
          code: 'EINVAL',
          reason: 'not-mounted',
          path,
          syscall: 'umount2',
        });
      }
    }
    t.deepEqual(readdirSync(options.workdir), ['work']);
    await end(mounted);
    await fails(t, dir, () => unmount(options.target), { code: 'EINVAL', reason: 'not-mounted' });
  });

  mountTest(`what cannot be reached (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: '' });
    symlinkSync('loop', join(dir, 'loop'));
    const call = (path: string, code: string, reason: string) =>
      fails(t, dir, () => unmount(path), { code, reason, path, syscall: 'umount2' });
    await call(join(dir, 'missing'), 'ENOENT', 'target-missing');
    await call(join(dir, 'missing/more'), 'ENOENT', 'target-missing');
    await call(join(dir, 'file/more'), 'ENOTDIR', 'path-inaccessible');
    await call(join(dir, 'loop/more'), 'ELOOP', 'path-inaccessible');
    await call(join(dir, 'x'.repeat(256)), 'ENAMETOOLONG', 'path-inaccessible');
  });

  mountTest(`busy with an open file, a working directory, a mount inside; and then no more (${form})`, async (t) => {
    const dir = scratch(t);
    keepWorkingDirectory(t);
    const options = layersWithoutWork(dir);
    makeTree(dir, { 'lower/sub/': '' });
    const { target } = options;
    const expected = { code: 'EBUSY', reason: 'mount-busy', path: target, syscall: 'umount2' };
    const users: [take: () => unknown, release: (taken: unknown) => void][] = [
      [() => openSync(join(target, 'from-lower'), 'r'), (fd) => closeSync(fd as number)],
      [() => openSync(target, k.O_PATH), (fd) => closeSync(fd as number)],
      [() => process.chdir(join(target, 'sub')), () => process.chdir('/')],
      [
        () => t.is(native.mount('inner', join(target, 'sub'), 'tmpfs', 0, ''), 0),
        () => t.is(native.umount(join(target, 'sub'), 0), 0),
      ],
    ];
    for (const [take, release] of users) {
      const mounted = mountOverlaySync(options);
      const taken = take();
      await fails(t, dir, () => unmount(target), expected);
      await fails(t, dir, () => end(mounted), expected);
      t.true(existsSync(join(options.workdir, 'work')), 'the work directory of a mount that stays is left alone');
      writeFileSync(join(target, 'still-writable'), '');
      release(taken);
      await end(mounted);
      t.is(mountsBelow(target).length, 0);
      t.false(existsSync(options.workdir));
      await end(mounted);
    }
  });

  mountTest(`detach takes it out of sight, with what is mounted inside, for its users to end (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/sub/': '' });
    const { target } = options;
    const mounted = mountOverlaySync(options);
    t.is(native.mount('inner', join(target, 'sub'), 'tmpfs', 0, ''), 0);
    const fd = openSync(join(target, 'from-lower'), 'r');
    await unmount(target, { detach: true });
    t.is(mountsBelow(target).length, 0);
    t.deepEqual(readdirSync(target), []);
    t.is(readFileSync(fd, 'latin1'), 'lower');
    closeSync(fd);
    await fails(t, dir, () => end(mounted), { code: 'EINVAL', reason: 'not-mounted', path: target });

    const another = mountOverlaySync(options);
    const still = openSync(join(target, 'from-lower'), 'r');
    await end(another, { detach: true });
    t.is(mountsBelow(target).length, 0);
    await end(another);
    closeSync(still);
  });

  mountTest(`a link at the end of the path is not followed, slash or not (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    symlinkSync('merged', join(dir, 'link'));
    symlinkSync('link', join(dir, 'link-to-link'));
    symlinkSync('nowhere', join(dir, 'dangling'));
    symlinkSync('.', join(dir, 'dot'));
    mountOverlaySync(options);
    for (const name of ['link', 'link/', 'link//', 'link-to-link', 'dangling', 'dangling/']) {
      const target = `${dir}/${name}`;
      const expected = {
        code: 'EINVAL',
        reason: 'target-symlink',
        path: target.replace(/\/+$/, ''),
        syscall: 'umount2',
      };
      for (const path of [target, Buffer.from(target)]) {
        await fails(t, dir, () => unmount(path), expected);
        await fails(t, dir, () => unmount(path, { detach: true }), expected);
      }
    }
    await unmount(join(dir, 'dot/merged'));
    t.is(mountsBelow(options.target).length, 0, 'links on the way are followed');
  });

  mountTest(`of mounts stacked at one place the top one goes (${form})`, async (t) => {
    const dir = scratch(t);
    const target = join(dir, 'merged');
    const objects = [0, 1, 2].map((i) => {
      const options = { ...layersWithoutWork(join(dir, String(i))), target, stack: true };
      makeTree(dir, { 'merged/': '', [`${i}/lower/layer${i}`]: '' });
      return mountOverlaySync(options);
    });
    t.true(readdirSync(target).includes('layer2'));
    await fails(t, dir, () => end(objects[0] as Mount), { code: 'EINVAL', reason: 'mount-covered', path: target });
    await fails(t, dir, () => end(objects[1] as Mount, { detach: true }), {
      code: 'EINVAL',
      reason: 'mount-covered',
      path: target,
      syscall: undefined,
    });
    await end(objects[2] as Mount);
    t.deepEqual(
      [0, 1, 2].map((i) => existsSync(join(dir, String(i), 'work'))),
      [true, true, false],
      'the work directory that goes is that of the top one',
    );
    t.true(readdirSync(target).includes('layer1'));
    await unmount(target);
    t.true(readdirSync(target).includes('layer0'));
    await end(objects[0] as Mount);
    t.deepEqual(readdirSync(target), []);
    await fails(t, dir, () => unmount(target), { code: 'EINVAL', reason: 'not-mounted' });
    t.deepEqual(
      [0, 1, 2].map((i) => existsSync(join(dir, String(i), 'work'))),
      [false, true, false],
    );
  });

  mountTest(`another's mount over ours, or in its place, is left alone (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layersWithoutWork(dir);
    const { target } = options;
    const expected = { code: 'EINVAL', reason: 'not-mounted', path: target, syscall: undefined };
    const mounted = mountOverlaySync(options);
    t.is(native.mount('over', target, 'tmpfs', 0, ''), 0);
    writeFileSync(join(target, 'theirs'), '');
    for (const flags of [{}, { detach: true }]) {
      await fails(t, dir, () => end(mounted, flags), { ...expected, reason: 'mount-covered' });
    }
    t.deepEqual(readdirSync(target), ['theirs']);
    t.true(existsSync(join(options.workdir, 'work')));
    t.is(native.umount(target, 0), 0);
    await end(mounted);

    const replaced = mountOverlaySync(options);
    t.is(native.umount(target, 0), 0);
    await fails(t, dir, () => end(replaced), expected);
    rmdirSync(target);
    await fails(t, dir, () => end(replaced), { code: 'ENOENT', reason: 'target-missing', path: target });
    writeFileSync(target, 'a file now');
    await fails(t, dir, () => end(replaced), expected);
  });

  // An id that is used again, for a mount of the same layers, is the same mount as far as can be seen.
  mountTest(`nor is one like it in its place (${form})`, { needs: 'uniqueMountId' }, async (t) => {
    const dir = scratch(t);
    const options = layersWithoutWork(dir);
    const { target } = options;
    const replaced = mountOverlaySync(options);
    t.is(native.umount(target, 0), 0);
    const other = mountOverlaySync(options);
    await fails(t, dir, () => end(replaced), {
      code: 'EINVAL',
      reason: 'not-mounted',
      path: target,
      syscall: undefined,
    });
    await end(other);
    t.true(existsSync(join(options.workdir, 'work')));
  });

  mountTest(`a target that was moved, or turned into a link, is not followed to another mount (${form})`, async (t) => {
    const dir = scratch(t);
    const first = mountOverlaySync(layers(join(dir, 'first')));
    const second = mountOverlaySync(layers(join(dir, 'second')));
    t.is(native.umount(first.path, 0), 0);
    rmdirSync(first.path);
    symlinkSync(second.path, first.path);
    await fails(t, dir, () => end(first), { code: 'EINVAL', reason: 'not-mounted' });
    await end(second);
  });

  for (const [way, mount] of Object.entries(ways)) {
    mountTest(`a made workdir goes after a deletion, from which a whiteout is left (${form}, ${way})`, async (t) => {
      const dir = scratch(t, 'disk');
      const options = layersWithoutWork(dir);
      makeTree(dir, { 'lower/second': '', 'lower/d/file': '' });
      const mounted = mount(options);
      rmSync(join(options.target, 'from-lower'));
      rmSync(join(options.target, 'second'));
      rmSync(join(options.target, 'd'), { recursive: true });
      t.true(readdirSync(join(options.workdir, 'work')).length > 0, 'what has to be removed');
      await end(mounted);
      t.is(mountsBelow(dir).length, 0);
      t.deepEqual(readdirSync(dir).sort(), ['lower', 'merged', 'upper']);
      t.deepEqual(readdirSync(options.upperdir).sort(), ['d', 'from-lower', 'second']);
    });

    const names = [
      'plain',
      'w,o',
      'w:o',
      'w\\o',
      'w\no',
      'w\to',
      'w o',
      'w=o',
      '#o',
      'w\\',
      '\\,\\:\\\\',
      ',',
      'ö',
      '"',
    ];
    const oddNames = [...names.map((name) => Buffer.from(name)), Buffer.from([0xff, 0x2c, 0x5c])];
    mountTest(`a made workdir goes, whatever its name (${form}, ${way})`, async (t) => {
      for (const name of oddNames) {
        const dir = scratch(t);
        const options = { ...layers(dir), workdir: Buffer.concat([Buffer.from(`${dir}/in/`), name]), create: true };
        makeTree(dir, { 'in/w,o-/work/': '', 'in/w\\,o/work/': '' });
        const before = readdirSync(join(dir, 'in'));
        const mounted = mount(options);
        rmSync(join(options.target, 'from-lower'));
        await end(mounted);
        t.is(mountsBelow(options.target).length, 0, String(name));
        t.deepEqual(readdirSync(join(dir, 'in')), before, String(name));
        t.deepEqual(readdirSync(dir).sort(), ['in', 'lower', 'merged', 'upper', 'work'], String(name));
      }
    });

    mountTest(`a made workdir with more in it than the kernel's own stays (${form}, ${way})`, async (t) => {
      for (const foreign of ['work/file', 'work/directory/', 'work/sub/file', 'file', 'directory/']) {
        const dir = scratch(t);
        const options = layersWithoutWork(dir);
        const mounted = mount(options);
        makeTree(options.workdir, { [foreign]: 'mine' });
        await end(mounted);
        t.is(mountsBelow(options.target).length, 0, 'the mount is gone');
        t.true(existsSync(join(options.workdir, foreign)));
        await end(mounted);
        await mounted[Symbol.asyncDispose]();
        t.true(existsSync(join(options.workdir, foreign)));
      }
    });
  }

  mountTest(`a made workdir that is gone already (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layersWithoutWork(dir);
    const mounted = mountOverlaySync(options);
    rmSync(options.workdir, { recursive: true });
    await end(mounted);
    t.is(mountsBelow(options.target).length, 0);
    t.deepEqual(readdirSync(dir).sort(), ['lower', 'merged', 'upper']);
  });

  mountTest(`a made workdir goes with the index, and with a volatile mount, which leave more (${form})`, async (t) => {
    for (const more of [{ index: true }, { volatile: true }]) {
      const dir = scratch(t, 'disk');
      const mounted = mountOverlaySync({ ...layersWithoutWork(dir), ...more });
      await end(mounted);
      t.deepEqual(readdirSync(dir).sort(), ['lower', 'merged', 'upper']);
    }
  });

  mountTest(`a made workdir stays while the overlay lives on (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layersWithoutWork(dir);
    makeTree(dir, { 'lower/1': '', 'lower/2': '', 'second/': '' });
    const second = join(dir, 'second');
    const mounted = mountOverlaySync(options);
    await bind(options.target, second);
    rmSync(join(options.target, '1'));
    await end(mounted);
    t.true(existsSync(join(options.workdir, 'work')));
    rmSync(join(second, '2'));
    await t.throwsAsync(async () => mountOverlaySync(options), { code: 'EBUSY' }, 'and its upper is in use');
    await unmount(second);
    t.deepEqual(readdirSync(options.workdir), ['work'], 'nobody knows any more that it was made');

    rmSync(options.workdir, { recursive: true });
    const { target: _, ...detached } = options;
    const open = mountOverlaySync(detached);
    const file = openSync(join(open.path, 'from-lower'), 'r');
    await end(open);
    closeSync(file);
    t.deepEqual(readdirSync(options.workdir), ['work']);
  });

  mountTest(`the made workdir of a mount in another namespace is that of the path here (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layersWithoutWork(dir);
    makeTree(dir, { 'cover/work/': '' });
    const namespace = makeNamespace();
    const mounted = mountOverlaySync({ ...options, namespace });
    await bind(join(dir, 'cover/work'), options.upperdir, { namespace });
    await end(mounted);
    closeSync(namespace);
    t.false(existsSync(options.workdir));
    t.true(existsSync(join(dir, 'cover/work')));
  });

  mountTest(`a made workdir stays after a detach (${form})`, async (t) => {
    const options = layersWithoutWork(scratch(t));
    await end(mountOverlaySync(options), { detach: true });
    t.deepEqual(readdirSync(options.workdir), ['work']);
  });

  mountTest(`a mount is not told in which namespace it is (${form})`, async (t) => {
    const mounted = mountOverlaySync(layers(scratch(t)));
    const elsewhere = { namespace: '/proc/1/ns/mnt' };
    await t.throwsAsync(() => end(mounted, elsewhere), { code: 'ERR_INVALID_ARG_VALUE', message: /"namespace"/ });
    await end(mounted);
  });

  mountTest(`arguments are checked before anything is done (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mounted = mountOverlaySync(options);
    for (const bad of [0, null, undefined, {}, [options.target], mounted]) {
      await t.throwsAsync(unmount(bad as never), { code: 'ERR_INVALID_ARG_TYPE', message: /"target"/ });
    }
    for (const bad of ['', 'a\0b', Buffer.from(`${options.target}\0`)]) {
      await t.throwsAsync(unmount(bad), { code: 'ERR_INVALID_ARG_VALUE', message: /"target"/ });
    }
    const calls = [
      (more: unknown) => unmount(options.target, more as UnmountOptions),
      (more: unknown) => end(mounted, more as UnmountOptions),
    ];
    for (const call of calls) {
      const refused = (more: unknown, code: string, message: RegExp) =>
        t.throwsAsync(call(more), { code, message, instanceOf: TypeError });
      await refused({ lazy: true }, 'ERR_INVALID_ARG_VALUE', /detach/);
      await refused({ detatch: true }, 'ERR_INVALID_ARG_VALUE', /did you mean "detach"\?/);
      await refused({ detach: 1 }, 'ERR_INVALID_ARG_TYPE', /"detach"/);
      for (const gone of ['force', 'followSymlinks', 'bulk', 'removeWork']) {
        await refused({ [gone]: true }, 'ERR_INVALID_ARG_VALUE', new RegExp(`"${gone}"|${gone}`));
      }
      await refused(null, 'ERR_INVALID_ARG_TYPE', /"options"/);
      await refused(['detach'], 'ERR_INVALID_ARG_TYPE', /"options"/);
    }
    t.is(mountsBelow(options.target).length, 1);
    await end(mounted);
    await t.throwsAsync(end(mounted, { lazy: true } as never), { code: 'ERR_INVALID_ARG_VALUE' });
  });

  mountTest(`without a capability (${form})`, (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    mountOverlaySync(options);
    const run = (args: string, path: string) =>
      evaluateIn(withoutCapabilities, `overlayfs.unmount${suffix}(args[0]${args})`, path);
    const { target } = options;
    for (const args of ['', ', { detach: true }']) {
      t.like(run(args, target), { code: 'EPERM', reason: 'no-privilege', path: target, syscall: 'umount2' });
    }
    t.like(run('', join(dir, 'missing')), { code: 'ENOENT', reason: 'target-missing' });
    t.is(mountsBelow(target).length, 1);
    t.true(existsSync(join(options.workdir, 'work')));
  });

  mountTest(`a mount inherited into a user namespace is locked there (${form})`, (t) => {
    const { target } = layers(scratch(t));
    t.is(native.mount('theirs', target, 'tmpfs', 0, ''), 0);
    const error = evaluateIn(
      ['unshare', '--user', '--map-root-user', '--mount'],
      `overlayfs.unmount${suffix}(args[0])`,
      target,
    );
    t.like(error, { code: 'EINVAL', reason: 'mount-locked', path: target, syscall: 'umount2' });
  });

  mountTest(`a detached mount is none that a path unmounts (${form})`, { needs: 'fsContext' }, async (t) => {
    const dir = scratch(t);
    const { target: _, ...options } = layers(dir);
    const detached = mountOverlaySync(options);
    const error = { code: 'EINVAL', reason: 'not-mounted', path: detached.path, syscall: 'umount2' };
    await fails(t, dir, () => unmount(detached.path), error);
    detached.unmountSync();
  });

  mountTest(`a thousand failures leave nothing (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mounted = mountOverlaySync(options);
    const fd = openSync(join(options.target, 'from-lower'), 'r');
    const before = mountsBelow(dir);
    const descriptors = countDescriptors();
    let failures = 0;
    const failing = [
      () => unmount(options.lowerdir),
      () => unmount(join(dir, 'missing')),
      () => unmount(options.target),
      () => end(mounted),
    ];
    const rounds = scaled(250);
    for (let i = 0; i < rounds; i++) {
      for (const run of failing) await run().catch(() => failures++);
    }
    t.is(failures, rounds * failing.length);
    t.is(countDescriptors(), descriptors);
    t.deepEqual(mountsBelow(dir), before);
    closeSync(fd);
    await end(mounted);
  });
}

mountTest(
  'of two unmounts of one object at once, the one that finds it busy ends with the one that detaches it',
  async (t) => {
    const options = layers(scratch(t));
    const mounted = mountOverlaySync(options);
    const fd = openSync(join(options.target, 'from-lower'), 'r');
    await Promise.all([mounted.unmount(), mounted.unmount({ detach: true })]);
    closeSync(fd);
    t.is(mountsBelow(options.target).length, 0);
  },
);

mountTest('the synchronous form while the promise is pending', async (t) => {
  const options = layers(scratch(t));
  for (let i = 0; i < scaled(100); i++) {
    const mounted = mountOverlaySync(options);
    const pending = mounted.unmount();
    const outcomes = await Promise.allSettled([pending, (async () => mounted.unmountSync())()]);
    t.is(mountsBelow(options.target).length, 0);
    t.deepEqual(
      outcomes.map(({ status }) => status),
      ['fulfilled', 'fulfilled'],
    );
    mounted.unmountSync();
  }
});

mountTest('of many unmounts of one path at once, one is the one', async (t) => {
  const options = layers(scratch(t));
  mountOverlaySync(options);
  const outcomes = await Promise.allSettled(Array.from({ length: 50 }, () => unmount(options.target)));
  t.is(outcomes.filter(({ status }) => status === 'fulfilled').length, 1);
  for (const outcome of outcomes) {
    if (outcome.status === 'rejected') t.like(outcome.reason, { code: 'EINVAL', reason: 'not-mounted' });
  }
  t.is(mountsBelow(options.target).length, 0);
});

mountTest('a disposal that fails can be done again', async (t) => {
  const options = layers(scratch(t));
  const mounted = mountOverlaySync(options);
  const fd = openSync(join(options.target, 'from-lower'), 'r');
  await t.throwsAsync(mounted[Symbol.asyncDispose](), { code: 'EBUSY' });
  t.throws(() => mounted[Symbol.dispose](), { code: 'EBUSY' });
  closeSync(fd);
  await mounted[Symbol.asyncDispose]();
  t.is(mountsBelow(options.target).length, 0);
});

test.serial('the promise forms throw nothing, they reject', async (t) => {
  for (const call of [() => unmount(5 as never), () => unmount('/', { recursive: true }), () => unmount('/no/where')]) {
    let promise: Promise<unknown> | undefined;
    t.notThrows(() => {
      promise = call();
    });
    await t.throwsAsync(promise as Promise<unknown>);
  }
});
