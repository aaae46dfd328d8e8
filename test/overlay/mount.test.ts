import { execFileSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { inspect } from 'node:util';
import test from 'ava';
import {
  mountOverlay,
  mountOverlaySync,
  OverlayError,
  OverlayMount,
  type OverlayOptions,
  unmountSync,
} from 'overlayfs';
import {
  countDescriptors,
  forms,
  hasFeature,
  layers,
  makeTree,
  mountsBelow,
  mountTest,
  packageRoot,
  scaled,
  scratch,
} from '../support/index.js';
import { type Way, ways } from '../support/ways.js';

for (const { form, of } of forms) {
  const mount = of('mountOverlay');

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
    await mounted.unmount();
    t.deepEqual(readdirSync(join(dir, 'a/b')), ['upper']);

    rmSync(join(dir, 'a'), { recursive: true });
    rmSync(join(dir, 'c'), { recursive: true });
    const failing = { ...options, lowerdir: join(dir, 'not-there'), create: true };
    await t.throwsAsync(async () => mount(failing), { code: 'ENOENT' });
    t.deepEqual(readdirSync(dir), ['lower']);
  });

  mountTest(`a refused mount with create takes nothing from the workdir of a live one (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'lower2/': '', 'other/': '', 'lower/1': '', 'lower/2': '', 'lower/3': '', 'lower/4': '' });
    const options = { ...layers(dir), create: true };
    const live = await mount(options);
    const refusals: [name: string, more: OverlayOptions][] = [
      ['the same again', options],
      ['another target', { ...options, target: join(dir, 'other') }],
      [
        'not exclusive, and a lower that is not there',
        { ...options, exclusive: false, stack: true, lowerdir: join(dir, 'none') },
      ],
      ['another workdir, to be made', { ...options, target: join(dir, 'other'), workdir: join(dir, 'work2') }],
    ];
    for (const [i, [name, more]] of refusals.entries()) {
      const error = await t.throwsAsync(async () => mount(more), { instanceOf: OverlayError }, name);
      t.not(error?.reason, 'unexplained', name);
      t.deepEqual(readdirSync(options.workdir), ['work'], name);
      rmSync(join(options.target, String(i + 1)));
    }
    t.false(existsSync(join(dir, 'work2')));
    await live.unmount();
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
      ...(hasFeature('uuid=null') && { uuid: 'null' }),
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
      ...(hasFeature('uuid=null') ? ['uuid=null'] : []),
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
    t.is(mounted.target, options.target);
    t.is(mounted.path, options.target);
    await mounted.unmount();
  });

  mountTest(`a mount that would come out read-only fails, and nothing is mounted (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    makeTree(options.workdir, { 'work/a/b/leftover': '' });
    const error = await t.throwsAsync(async () => mount(options), { instanceOf: OverlayError });
    t.is(error?.code, 'EROFS');
    t.is(error?.reason, 'work-leftovers');
    t.is(error?.path, options.workdir);
    t.is(mountsBelow(dir).length, 0);
    await t.throwsAsync(async () => mount({ ...options, readonly: true }), { code: 'EROFS' });
    t.is(mountsBelow(dir).length, 0);
  });
}

mountTest('a promise is kept on a thread of the library, with the main thread free', async (t) => {
  const options = layers(scratch(t));
  let turns = 0;
  let next = setImmediate(function turn() {
    turns++;
    next = setImmediate(turn);
  });
  for (let i = 0; i < 200 && turns === 0; i++) await (await mountOverlay(options)).unmount();
  clearImmediate(next);
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

  for (let i = 0; i < scaled(50, 10); i++) {
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

mountTest('nor is an abort lost that comes while something else is waited for', { needs: 'rootless' }, async (t) => {
  const { target: _, ...options } = layers(scratch(t));
  const descriptors = countDescriptors();
  for (const rootless of [true, 'keep'] as const) {
    const controller = new AbortController();
    const pending = mountOverlay({ ...options, rootless, signal: controller.signal });
    controller.abort();
    await t.throwsAsync(pending, { code: 'ABORT_ERR' });
  }
  t.true(countDescriptors() <= descriptors + 2, 'namespaces may be kept');
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

  makeTree(dir, { 'second/': '' });
  const lowerdir = [options.lowerdir as string, join(dir, 'second')];
  const changed = { ...options, lowerdir };
  const pending = mountOverlay(changed);
  changed.target = join(dir, 'none');
  lowerdir.length = 1;
  const other = await pending;
  t.is(other.path, options.target as string);
  t.deepEqual(other.options.lowerdir, [options.lowerdir as string, join(dir, 'second')]);
  await other.unmount();
});

mountTest('options are read once: from accessors, classes, prototypes', async (t) => {
  const dir = scratch(t);
  const plain = layers(dir);
  makeTree(dir, { 'lower2/': '', 'other/': '' });
  class Options {
    reads: string[] = [];
    get lowerdir() {
      return this.#read('lowerdir', [plain.lowerdir, join(dir, 'lower2')]);
    }
    get upperdir() {
      return this.#read('upperdir', plain.upperdir);
    }
    get workdir() {
      return this.#read('workdir', plain.workdir);
    }
    get target() {
      return this.#read('target', this.reads.includes('target') ? join(dir, 'other') : plain.target);
    }
    #read<T>(name: string, value: T): T {
      this.reads.push(name);
      return value;
    }
  }
  const options = new Options();
  Object.defineProperty(options, 'reads', { enumerable: false });
  for (const given of [options, Object.create(plain)]) {
    const mounted = await mountOverlay(given);
    t.is(mounted.target, plain.target);
    t.is(mounted.path, plain.target);
    t.is(mounted.options.upperdir, plain.upperdir);
    t.true(mountsBelow(plain.target)[0]?.line.includes(`upperdir=${plain.upperdir}`));
    await mounted.unmount();
  }
  t.deepEqual(options.reads.sort(), ['lowerdir', 'target', 'upperdir', 'workdir']);
  t.throws(() => mountOverlaySync(Object.create({ ...plain, misspelt: 1 })), { code: 'ERR_INVALID_ARG_VALUE' });
});

mountTest("a Buffer is the caller's to use again", async (t) => {
  const plain = layers(scratch(t));
  const target = Buffer.from(plain.target);
  const pending = mountOverlay({ ...plain, target });
  target.fill(0x78);
  const mounted = await pending;
  t.is(mountsBelow(plain.target).length, 1);
  await mounted.unmount();
});

mountTest('of many at once for one target, one is mounted', async (t) => {
  const plain = layers(scratch(t));
  for (let round = 0; round < 50; round++) {
    const outcomes = await Promise.allSettled(
      Array.from({ length: 8 }, (_, i) => mountOverlay({ ...plain, target: plain.target + '/'.repeat(i % 3) })),
    );
    const made = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    t.is(made.length, 1);
    for (const outcome of outcomes) {
      if (outcome.status === 'fulfilled') continue;
      t.is(outcome.reason.code, 'EBUSY');
      t.true(['target-mounted', 'mount-busy', 'upper-in-use'].includes(outcome.reason.reason), outcome.reason.message);
    }
    t.is(mountsBelow(plain.target).length, 1);
    await made[0]?.unmount();
  }
});

mountTest('of many at once for one target in other words, one is mounted', { needs: 'lowerdirAppend' }, async (t) => {
  const dir = scratch(t);
  // So many that the mount takes its time between the look at the target and the last step.
  const lowerdir = Array.from({ length: 400 }, (_, i) => join(dir, `l${i}`));
  for (const layer of lowerdir) mkdirSync(layer);
  makeTree(dir, { 'at é/merged/': '' });
  const target = join(dir, 'at é/merged');
  const texts = [target, `${dir}/./at é//merged`, `${dir}//at é/.//./merged/.`, `${target}/./`, Buffer.from(target)];
  for (let round = 0; round < scaled(20); round++) {
    const outcomes = await Promise.allSettled(texts.map((text) => mountOverlay({ lowerdir, target: text })));
    const made = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    t.is(made.length, 1);
    t.is(mountsBelow(dir).length, 2, 'and the test directory');
    await made[0]?.unmount();
  }
});

mountTest('a target that is exchanged for a link meanwhile is not followed', async (t) => {
  const dir = scratch(t);
  const plain = layers(dir);
  makeTree(dir, { 'victim/': '' });
  const [target, link] = [plain.target, join(dir, 'link')];
  symlinkSync(join(dir, 'victim'), link);
  const aside = join(dir, 'aside');
  for (let round = 0; round < 200; round++) {
    const pending = mountOverlay(plain).catch((error: unknown) => error);
    // Exchanged while the call is under way.
    try {
      renameSync(target, aside);
      renameSync(link, target);
    } catch {
      // it was mounted by then
    }
    const outcome = await pending;
    t.is(mountsBelow(join(dir, 'victim')).length, 0);
    for (const { target: at } of mountsBelow(dir).slice(1).reverse()) unmountSync(at);
    if (!(outcome instanceof Error)) t.true(outcome instanceof OverlayMount);
    if (lstatSync(target, { throwIfNoEntry: false })?.isSymbolicLink()) renameSync(target, link);
    if (existsSync(aside)) renameSync(aside, target);
  }
});

mountTest('an abort takes back its own mount only, whatever is stacked over it', async (t) => {
  const dir = scratch(t);
  // So that the other mounts of the namespace have been looked at, for which a promise needs this thread.
  mountOverlaySync(layers(join(dir, 'first'))).unmountSync();
  for (let round = 0; round < 20; round++) {
    // They have tests of their own: about an upper that was in use before, the promise may have to ask.
    const below = layers(join(dir, `a${round}`));
    const above = { ...layers(join(dir, `b${round}`)), target: below.target, stack: true };
    const controller = new AbortController();
    const pending = mountOverlay({ ...below, signal: controller.signal });
    // It is there, and this thread has not been told yet.
    while (mountsBelow(below.target).length === 0);
    const stacked = mountOverlaySync(above);
    controller.abort();
    const error = await t.throwsAsync(pending, { code: 'ABORT_ERR' });
    t.regex(error?.message ?? '', /could not be undone/);
    await stacked.unmount();
    t.is(mountsBelow(below.target).length, 1);
    unmountSync(below.target);
  }
});

mountTest('an abort leaves the directories of its mount if another mount is inside', async (t) => {
  const dir = scratch(t);
  mountOverlaySync(layers(join(dir, 'first'))).unmountSync();
  for (const name of ['as it comes', 'by mount(2)']) {
    for (let round = 0; round < 10; round++) {
      const at = join(dir, `${name}${round}`);
      const inner = layers(join(at, 'inner'));
      makeTree(at, { 'lower/inside/': '' });
      const made = {
        upperdir: join(at, 'made/upper'),
        workdir: join(at, 'made/work'),
        target: join(at, 'made/target'),
      };
      const controller = new AbortController();
      const options = { lowerdir: join(at, 'lower'), ...made, volatile: true, create: true, signal: controller.signal };
      const pending = (ways[name] as Way).mount(options);
      while (mountsBelow(made.target).length === 0);
      const inside = mountOverlaySync({ ...inner, target: join(made.target, 'inside') });
      controller.abort();
      const error = await t.throwsAsync(pending, { code: 'ABORT_ERR' });
      t.regex(error?.message ?? '', /could not be undone/);
      await inside.unmount();
      writeFileSync(join(made.target, 'new'), 'new');
      t.true(existsSync(join(made.upperdir, 'new')) && existsSync(join(made.workdir, 'work')));
      unmountSync(made.target);
    }
  }
});

mountTest(
  'a program that exits leaves no mount that differs from what it asked for',
  { needs: 'uuid=off over one file system only' },
  (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/': '', 'targets/': '' });
    const targets = Array.from({ length: 64 }, (_, i) => join(dir, 'targets', String(i)));
    for (const target of targets) mkdirSync(target);
    const script = `
    import { mountOverlay } from 'overlayfs';
    const [a, b, ...targets] = process.argv.slice(1);
    for (const target of targets) {
      mountOverlay({ lowerdir: [a, b], target, uuid: 'off' }).catch(({ reason }) => {
        console.log(reason);
        // Not before the other calls have taken the results that are there.
        setImmediate(() => process.exit());
      });
    }`;
    for (let round = 0; round < scaled(50, 5); round++) {
      const args = ['--input-type=module', '-e', script, join(dir, 'a'), join(dir, 'b'), ...targets];
      t.is(
        execFileSync(process.execPath, args, { cwd: packageRoot, encoding: 'utf8' }).slice(0, 16),
        'feature-dropped\n',
      );
      t.is(mountsBelow(join(dir, 'targets')).length, 0);
    }
  },
);

mountTest('an error tells what an earlier try has left behind', (t) => {
  const dir = scratch(t, 'disk');
  const { target: _, ...options } = layers(dir);
  mkdirSync(join(dir, 'append-only'));
  execFileSync('chattr', ['+a', join(dir, 'append-only')]);
  t.teardown(() => execFileSync('chattr', ['-a', join(dir, 'append-only')]));
  const made = { upperdir: join(dir, 'append-only/upper'), workdir: join(dir, 'append-only/work') };
  const error = t.throws(() => mountOverlaySync({ ...options, ...made, lowerdir: join(dir, 'missing'), create: true }));
  t.regex(error?.message ?? '', /could not be undone/);
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
