import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { inspect } from 'node:util';
import test from 'ava';
import { mountOverlay, mountOverlaySync, OverlayError, type OverlayOptions, unmountSync } from 'overlayfs';
import { layers, makeTree, mountsBelow, mountTest, scratch } from '../support/index.js';

/** Both forms of mounting, for what must hold for each. */
const forms = {
  promise: (options: OverlayOptions) => mountOverlay(options),
  twin: async (options: OverlayOptions) => mountOverlaySync(options),
};

for (const [form, mount] of Object.entries(forms)) {
  mountTest(`an overlay shows both layers, and takes changes in the upper (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/in-both': 'lower', 'upper/in-both': 'upper', 'upper/from-upper': 'upper' });
    const mounted = await mount(options);
    const { target, upperdir, lowerdir } = options;

    t.deepEqual(readdirSync(target).sort(), ['from-lower', 'from-upper', 'in-both']);
    t.is(readFileSync(join(target, 'in-both'), 'latin1'), 'upper');

    writeFileSync(join(target, 'new'), 'new');
    t.true(existsSync(join(upperdir, 'new')));
    writeFileSync(join(target, 'from-lower'), '+', { flag: 'a' });
    t.is(readFileSync(join(upperdir, 'from-lower'), 'latin1'), 'lower+');
    t.is(readFileSync(join(lowerdir, 'from-lower'), 'latin1'), 'lower');
    rmSync(join(target, 'in-both'));
    const deleted = statSync(join(upperdir, 'in-both'));
    t.true(deleted.isCharacterDevice() && deleted.rdev === 0);

    t.is(mountsBelow(target).length, 1);
    await mounted.unmount();
    t.is(mountsBelow(target).length, 0);
  });

  mountTest(`the result says what it is (${form})`, async (t) => {
    const options = layers(scratch(t));
    const mounted = await mount({ ...options, source: 'mine', xino: 'off' });
    t.is(mounted.target, options.target);
    t.is(mounted.path, options.target);
    t.deepEqual(mounted.options, { ...options, source: 'mine', xino: 'off' });
    t.true(Number.isSafeInteger(mounted.id) && mounted.id > 0);
    t.regex(mountsBelow(options.target)[0]?.line ?? '', / - overlay mine rw,/);
    await mounted.unmount();
  });

  mountTest(`two lower layers make a read-only view (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/one': 'a', 'b/one': 'b', 'b/two': 'b', 'm/': '' });
    const target = join(dir, 'm');
    const mounted = await mount({ lowerdir: [join(dir, 'a'), join(dir, 'b')], target });
    t.is(readFileSync(join(target, 'one'), 'latin1'), 'a');
    t.is(readFileSync(join(target, 'two'), 'latin1'), 'b');
    t.throws(() => writeFileSync(join(target, 'three'), ''), { code: 'EROFS' });
    await mounted.unmount();
  });

  mountTest(`what is missing is made with create, and removed again on failure (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'lower/file': '' });
    const options = {
      lowerdir: join(dir, 'lower'),
      upperdir: join(dir, 'a/b/upper'),
      target: join(dir, 'c/d/merged/'),
    };
    const mounted = await mount({ ...options, create: true });
    t.is(String(mounted.options.workdir), join(dir, 'a/b/upper.work'));
    t.is(statSync(join(dir, 'a/b')).mode & 0o777, 0o755);
    await mounted.unmount({ removeWork: true });
    t.deepEqual(readdirSync(join(dir, 'a/b')), ['upper']);

    rmSync(join(dir, 'a'), { recursive: true });
    rmSync(join(dir, 'c'), { recursive: true });
    const failing = { ...options, lowerdir: join(dir, 'not-there'), create: true };
    await t.throwsAsync(async () => mount(failing), { code: 'ENOENT' });
    t.deepEqual(readdirSync(dir), ['lower']);
  });

  mountTest(`a mount point is refused as target unless stack is set (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const first = await mount(options);
    makeTree(dir, { 'lower2/second': '', 'upper2/': '', 'work2/': '' });
    const over = {
      ...options,
      lowerdir: join(dir, 'lower2'),
      upperdir: join(dir, 'upper2'),
      workdir: join(dir, 'work2'),
    };
    await t.throwsAsync(async () => mount(over), { code: 'EBUSY' });
    t.is(mountsBelow(options.target).length, 1);

    const second = await mount({ ...over, stack: true });
    t.deepEqual(readdirSync(options.target), ['second']);
    await t.throwsAsync(first.unmount(), { code: 'EINVAL' }, 'the one below is not the one at the target');
    await second.unmount();
    await first.unmount();
  });

  mountTest(`attributes of the mount (${form})`, async (t) => {
    const options = layers(scratch(t));
    const mounted = await mount({
      ...options,
      readonly: true,
      nosuid: true,
      nodev: true,
      noexec: true,
      nosymfollow: true,
      nodiratime: true,
      atime: 'noatime',
    });
    const [, mountOptions = '', superOptions = ''] =
      /merged (\S+) - overlay overlay (\S+)$/.exec(mountsBelow(options.target)[0]?.line ?? '') ?? [];
    t.deepEqual(
      mountOptions.split(',').sort(),
      ['noatime', 'nodev', 'nodiratime', 'noexec', 'nosuid', 'nosymfollow', 'ro'].sort(),
    );
    t.true(superOptions.startsWith('rw,'), 'the superblock stays writable');
    await mounted.unmount();
  });

  mountTest(`options of the overlay reach the kernel (${form})`, async (t) => {
    const options = layers(scratch(t, 'disk'));
    const mounted = await mount({
      ...options,
      redirectDir: 'on',
      index: true,
      metacopy: true,
      xino: 'off',
      uuid: 'null',
      nfsExport: false,
      volatile: true,
      defaultPermissions: true,
      userxattr: false,
      atime: 'strictatime',
    });
    const line = mountsBelow(options.target)[0]?.line ?? '';
    for (const shown of [
      'redirect_dir=on',
      'index=on',
      'metacopy=on',
      'uuid=null',
      'volatile',
      'default_permissions',
    ]) {
      t.true(line.includes(shown), `${shown} in ${line}`);
    }
    t.false(line.includes('userxattr'));
    await mounted.unmount();
  });

  mountTest(`paths may be Buffers, file URLs, relative, and end in slashes (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const before = process.cwd();
    process.chdir(dir);
    t.teardown(() => process.chdir(before));
    const pending = mount({
      lowerdir: [pathToFileURL(options.lowerdir)],
      upperdir: Buffer.from('upper/'),
      workdir: 'work//',
      target: 'merged/',
    });
    process.chdir('/');
    const mounted = await pending;
    t.deepEqual(readdirSync(options.target), ['from-lower']);
    t.is(mounted.target, 'merged/');
    t.is(mounted.path, options.target);
    await mounted.unmount();
  });

  mountTest(`a mount that would come out read-only fails, and nothing is mounted (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    makeTree(options.workdir, { 'work/a/b/leftover': '' });
    const error = await t.throwsAsync(async () => mount(options), { instanceOf: OverlayError });
    t.is(error?.code, 'EROFS');
    t.is(error?.reason, 'mounted-read-only');
    t.is(error?.path, options.workdir);
    t.is(mountsBelow(dir).length, 0);
    await t.throwsAsync(async () => mount({ ...options, readonly: true }), { code: 'EROFS' });
    t.is(mountsBelow(dir).length, 0);
  });
}

mountTest('a promise is kept on a thread of the library, with the main thread free', async (t) => {
  const options = layers(scratch(t));
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  for (let i = 0; i < 200; i++) await (await mountOverlay(options)).unmount();
  clearInterval(timer);
  t.true(turns > 0);
});

mountTest('both disposals unmount, once', async (t) => {
  const options = layers(scratch(t));
  const first = await mountOverlay(options);
  await first[Symbol.asyncDispose]();
  await first[Symbol.asyncDispose]();
  t.is(mountsBelow(options.target).length, 0);
  const second = mountOverlaySync(options);
  second[Symbol.dispose]();
  second[Symbol.dispose]();
  second.unmountSync();
  t.is(mountsBelow(options.target).length, 0);
});

mountTest('unmounts of one object at the same time are one', async (t) => {
  const mounted = await mountOverlay(layers(scratch(t)));
  await Promise.all([mounted.unmount(), mounted.unmount(), mounted.unmount()]);
  t.pass();
});

mountTest('a signal that aborts gives the mount up', async (t) => {
  const options = layers(scratch(t));
  const aborted = AbortSignal.abort(new Error('why'));
  const error = await t.throwsAsync(mountOverlay({ ...options, signal: aborted }), { code: 'ABORT_ERR' });
  t.is(error?.name, 'AbortError');
  t.like(error?.cause, { message: 'why' });
  t.throws(() => mountOverlaySync({ ...options, signal: aborted }), { code: 'ABORT_ERR' });

  for (let i = 0; i < 50; i++) {
    const controller = new AbortController();
    const pending = mountOverlay({ ...options, signal: controller.signal });
    if (i % 2) await new Promise(setImmediate);
    controller.abort();
    const outcome = await pending.catch((reason: unknown) => reason);
    if (outcome instanceof Error) t.is((outcome as NodeJS.ErrnoException).code, 'ABORT_ERR', inspect(outcome));
    else unmountSync(options.target);
    t.is(mountsBelow(options.target).length, 0);
  }
});

mountTest('many aborted while they wait for a thread never begin', async (t) => {
  const dir = scratch(t);
  const controller = new AbortController();
  const pending = Array.from({ length: 200 }, (_, i) =>
    mountOverlay({ ...layers(join(dir, String(i))), signal: controller.signal }),
  );
  controller.abort();
  const outcomes = await Promise.allSettled(pending);
  for (const outcome of outcomes) {
    t.is(outcome.status, 'rejected');
    if (outcome.status === 'rejected') t.is(outcome.reason.code, 'ABORT_ERR');
  }
  t.is(mountsBelow(dir).length, 1, 'only the scratch directory itself');
});

mountTest('the options of the caller are not changed, and later changes do not reach the mount', async (t) => {
  const dir = scratch(t);
  const options: OverlayOptions = Object.freeze({ ...layers(dir) });
  const mounted = await mountOverlay(options);
  t.not(mounted.options, options);
  await mounted.unmount();
});

mountTest('a work directory that is a link is followed, as the kernel does', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  mkdirSync(join(dir, 'elsewhere'));
  symlinkSync(join(dir, 'elsewhere'), join(options.upperdir, 'link'));
  const mounted = await mountOverlay({ ...options, workdir: join(options.upperdir, 'link') });
  await mounted.unmount();
  t.deepEqual(readdirSync(join(dir, 'elsewhere')), ['work']);
});

test('the error class and its name', (t) => {
  t.true(OverlayError.prototype instanceof Error);
  t.is(OverlayError.prototype.name, 'OverlayError');
});
