/** `exclusive`: what is known to be in use, by whichever hand, and what is not any more. */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { mountOverlay, mountOverlaySync, OverlayError, type OverlayOptions, unmount, unmountSync } from 'overlayfs';
import { eventually, layers, mountsBelow, mountTest, native, packageRoot, scratch } from '../support/index.js';

const MNT_DETACH = 2;

interface Two {
  readonly dir: string;
  readonly one: OverlayOptions;
  /** The same upper with another work, at another target. */
  readonly sameUpper: OverlayOptions;
  readonly sameWork: OverlayOptions;
}

function two(dir: string): Two {
  const one = layers(dir);
  for (const name of ['upper2', 'work2', 'merged2']) mkdirSync(join(dir, name));
  const target = join(dir, 'merged2');
  return {
    dir,
    one,
    sameUpper: { ...one, target, workdir: join(dir, 'work2') },
    sameWork: { ...one, target, upperdir: join(dir, 'upper2') },
  };
}

const upperInUse = { instanceOf: OverlayError, code: 'EBUSY' } as const;

for (const [form, mount] of [
  ['promise', mountOverlay],
  ['twin', async (options: OverlayOptions) => mountOverlaySync(options)],
] as const) {
  mountTest(`an upper or work that was taken here is refused, until it is unmounted (${form})`, async (t) => {
    const { one, sameUpper, sameWork } = two(scratch(t));
    const mounted = await mount(one);
    const error = await t.throwsAsync(mount(sameUpper), upperInUse);
    t.like(error, { reason: 'upper-in-use', path: one.upperdir, dest: one.target, syscall: undefined });
    t.like(await t.throwsAsync(mount(sameWork), upperInUse), { reason: 'work-in-use', path: one.workdir });
    await (await mount({ ...sameUpper, exclusive: false })).unmount();
    await mounted.unmount();
    await (await mount(sameUpper)).unmount();
  });

  mountTest(`a mount that went by another way is forgotten (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    await mount(one);
    await unmount(one.target as string);
    await mount(one);
    unmountSync(one.target as string);
    await mount(one);
    native.umount(String(one.target), 0);
    await (await mount(sameUpper)).unmount();
  });

  mountTest(`what is detached and still used stays in use (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    const mounted = await mount(one);
    const file = openSync(join(String(one.target), 'from-lower'), 'r');
    await mounted.unmount({ detach: true });
    await t.throwsAsync(mount(sameUpper), upperInUse);
    closeSync(file);
    await (await mount(sameUpper)).unmount();
  });
}

mountTest('other names of an upper are the same upper', async (t) => {
  const { dir, one, sameUpper } = two(scratch(t));
  symlinkSync(join(dir, 'upper'), join(dir, 'link'));
  mkdirSync(join(dir, 'bound'));
  t.is(native.mount(dir, join(dir, 'bound'), '', 4096, ''), 0);
  const mounted = await mountOverlay(one);
  for (const upperdir of [join(dir, 'link'), `${one.upperdir}/../upper/`]) {
    await t.throwsAsync(mountOverlay({ ...sameUpper, upperdir }), upperInUse, upperdir);
  }
  const bound = { upperdir: join(dir, 'bound/upper'), workdir: join(dir, 'bound/work2') };
  await t.throwsAsync(mountOverlay({ ...sameUpper, ...bound }), upperInUse);
  await mounted.unmount();
});

mountTest('of many at once for one upper, one is mounted, whatever it is called', async (t) => {
  const dir = scratch(t);
  const { one } = two(dir);
  symlinkSync(join(dir, 'upper'), join(dir, 'link'));
  for (let round = 0; round < 5; round++) {
    const all = Array.from({ length: 8 }, (_, i): OverlayOptions => {
      for (const name of [`m${i}`, `w${i}`]) mkdirSync(join(dir, name), { recursive: true });
      const upperdir = join(dir, i % 2 ? 'link' : 'upper');
      return { ...one, upperdir, workdir: join(dir, `w${i}`), target: join(dir, `m${i}`) };
    });
    const outcomes = await Promise.allSettled(all.map((options) => mountOverlay(options)));
    const mounted = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    for (const outcome of outcomes) {
      if (outcome.status === 'rejected') t.is(outcome.reason.code, 'EBUSY', String(outcome.reason));
    }
    t.true(mounted.length <= 1);
    t.is(mountsBelow(dir).length, 1 + mounted.length);
    for (const each of mounted) await each.unmount();
  }
});

mountTest('what other programs mount in this namespace is seen', { needs: 'uniqueMountId' }, async (t) => {
  const { one, sameUpper, sameWork } = two(scratch(t));
  await (await mountOverlay(one)).unmount();
  const options = `lowerdir=${one.lowerdir},upperdir=${one.upperdir},workdir=${one.workdir}`;
  execFileSync('mount', ['-t', 'overlay', 'other', '-o', options, String(one.target)]);
  for (const [set, reason] of [
    [sameUpper, 'upper-in-use'],
    [sameWork, 'work-in-use'],
  ] as const) {
    const error = await t.throwsAsync(mountOverlay(set), upperInUse);
    t.like(error, { reason, dest: one.target });
    t.like(
      t.throws(() => mountOverlaySync(set), upperInUse),
      { reason },
    );
  }
  execFileSync('umount', [String(one.target)]);
  await (await mountOverlay(sameUpper)).unmount();
});

mountTest('what a worker mounts is seen', { needs: 'uniqueMountId' }, async (t) => {
  const { one, sameUpper } = two(scratch(t));
  const script = `import { mountOverlaySync } from 'file://${packageRoot}/dist/index.js';
    import { workerData } from 'node:worker_threads';
    mountOverlaySync(workerData);`;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`), {
    workerData: one,
    execArgv: [],
  });
  await new Promise<void>((resolve, reject) => {
    worker.once('error', reject);
    worker.once('exit', () => resolve());
  });
  t.is(mountsBelow(String(one.target)).length, 1);
  await t.throwsAsync(mountOverlay(sameUpper), upperInUse);
  t.is(native.umount(String(one.target), MNT_DETACH), 0);
  await (await mountOverlay(sameUpper)).unmount();
});

mountTest('many mounts of others, and of this process, are no hindrance', async (t) => {
  const dir = scratch(t);
  const { one } = two(dir);
  for (let i = 0; i < 600; i++) {
    if (i % 200 === 0) await (await mountOverlay(one)).unmount();
    mkdirSync(join(dir, `t${i}`));
    t.is(native.mount(one.lowerdir as string, join(dir, `t${i}`), '', 4096, ''), 0);
  }
  await eventually(t, () => true);
  for (let i = 0; i < 20; i++) mountOverlaySync(one).unmountSync();
  for (let i = 0; i < 600; i++) native.umount(join(dir, `t${i}`), MNT_DETACH);
  t.is(mountsBelow(dir).length, 1);
});
