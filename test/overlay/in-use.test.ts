/**
 * `exclusive`: directories in use, whoever uses them, and directories that are free again. Imports internals: it
 * mounts as on kernels that lack features.
 */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, symlinkSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import {
  mountOverlay,
  mountOverlaySync,
  OverlayError,
  type OverlayOptions,
  spawn,
  unmount,
  unmountSync,
} from 'overlayfs';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import { mountOverlayWith } from '#lib/overlay/mount.js';
import {
  countDescriptors,
  evaluateIn,
  eventually,
  forms,
  hasFeature,
  layers,
  MNT_DETACH,
  makeNamespace,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scratch,
  startWorker,
  withUserAttributes,
} from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

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

for (const { form, of } of forms) {
  const mount = of('mountOverlay');

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

  mountTest(`what another program has detached and is still used stays in use (${form})`, async (t) => {
    const { one, sameUpper, sameWork } = two(scratch(t));
    await mount(one);
    const file = openSync(join(String(one.target), 'from-lower'), 'r');
    native.umount(String(one.target), MNT_DETACH);
    for (let i = 0; i < 2; i++) {
      t.like(await t.throwsAsync(mount(sameUpper), upperInUse), { reason: 'upper-in-use', path: one.upperdir });
      t.like(await t.throwsAsync(mount(sameWork), upperInUse), { reason: 'work-in-use', path: one.workdir });
    }
    closeSync(file);
    await (await mount(sameUpper)).unmount();
    await (await mount(sameWork)).unmount();
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

for (const { form, of, method } of forms) {
  const mount = of('mountOverlay');

  const detached = ({ target: _, ...rest }: OverlayOptions): OverlayOptions => rest;

  mountTest(`what a detached mount uses is in use until it is closed (${form})`, async (t) => {
    const { one, sameUpper, sameWork } = two(scratch(t));
    const mounted = await mount(detached(one));
    for (const [options, reason, path] of [
      [detached(sameUpper), 'upper-in-use', one.upperdir],
      [detached(sameWork), 'work-in-use', one.workdir],
      [sameUpper, 'upper-in-use', one.upperdir],
      [sameWork, 'work-in-use', one.workdir],
    ] as const) {
      const error = await t.throwsAsync(mount(options), upperInUse);
      t.like(error, { reason, path, dest: mounted.path, syscall: undefined });
      t.regex(
        String(error),
        /of the detached overlay '\/proc\/self\/fd\/\d+'\. Unmount it by its `unmount`, or use other/,
      );
    }
    await (await mount(detached({ ...sameUpper, exclusive: false }))).unmount();
    await t.throwsAsync(mount(detached(sameUpper)), upperInUse, 'one that took no claim gives none up');
    await mounted.unmount();
    for (const options of [detached(sameUpper), detached(one), sameWork]) await (await mount(options)).unmount();
  });

  mountTest(`an upper that two overlays had is in use until both have ended (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    const first = await mount(one);
    // The kernel counts only the first as the user.
    const second = await mount({ ...sameUpper, exclusive: false });
    const third = await mount({ ...detached(sameUpper), exclusive: false });
    const file = openSync(join(String(second.path), 'from-lower'), 'r');
    await first.unmount();
    await second.unmount({ detach: true });
    await t.throwsAsync(mount(one), upperInUse, 'a file of the second is open');
    closeSync(file);
    await t.throwsAsync(mount(one), upperInUse, 'the third is detached');
    await third.unmount();
    await (await mount(one)).unmount();
  });

  mountTest(`an upper that an attached mount uses is refused to a detached one (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    const mounted = await mount(one);
    t.like(await t.throwsAsync(mount(detached(sameUpper)), upperInUse), { dest: one.target });
    await mounted.unmount();
    const next = await mount(detached(sameUpper));
    next[Symbol.dispose]();
    await (await mount(one)).unmount();
  });

  mountTest(`a detached mount that gets a place keeps what it uses (${form})`, async (t) => {
    const { dir, one, sameUpper } = two(scratch(t));
    const mounted = await mount(detached(one));
    await method(mounted, 'attach')(String(one.target));
    const error = await t.throwsAsync(mount(detached(sameUpper)), upperInUse);
    t.like(error, { reason: 'upper-in-use', dest: join(dir, 'merged') });
    // By another hand: only the kernel tells that it is gone.
    t.is(native.umount(join(dir, 'merged'), 0), 0);
    await (await mount(detached(sameUpper))).unmount();
  });

  mountTest(`what a copy of a mount uses is in use after the mount itself (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    for (const options of [one, ...(hasFeature('detached mounts that can be cloned') ? [detached(one)] : [])]) {
      const mounted = await mount(options);
      const clone = await method(mounted, 'clone')();
      await mounted.unmount();
      await t.throwsAsync(mount(sameUpper), upperInUse);
      await clone.unmount();
      await (await mount(sameUpper)).unmount();
    }
  });

  mountTest(`what a program sees is in use until it has ended (${form})`, async (t) => {
    const { one, sameUpper, sameWork } = two(scratch(t));
    for (const options of [one, detached(one)]) {
      const mounted = await mount(options);
      const children = [1, 2].slice(0, hasFeature('detached mounts that can be cloned') ? 2 : 1).map(() =>
        spawn('sh', ['-c', 'echo ready; exec sleep 600'], {
          mounts: [{ source: mounted, target: String(one.lowerdir) }],
        }),
      );
      t.teardown(() => children.forEach((child) => void child.kill('SIGKILL')));
      for (const child of children) await once(child.stdout as Readable, 'data');
      await mounted.unmount();
      for (const child of children) {
        t.like(await t.throwsAsync(mount(sameUpper), upperInUse), { reason: 'upper-in-use', path: one.upperdir });
        const error = await t.throwsAsync(mount(sameWork), upperInUse);
        t.like(error, { reason: 'work-in-use', path: one.workdir, dest: undefined });
        t.regex(String(error), /still exists, although this mount namespace does not show it\. End what keeps it/);
        child.kill('SIGKILL');
        await once(child, 'close');
      }
      await (await mount(sameUpper)).unmount();
      await (await mount(one)).unmount();
    }
  });

  mountTest(`after a program has ended a mount uses what it did before (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    const mounted = await mount(one);
    await once(spawn('true', [], { mounts: [{ source: mounted, target: String(one.lowerdir) }] }), 'close');
    t.like(await t.throwsAsync(mount(sameUpper), upperInUse), { dest: one.target });
    await mounted.unmount();
    await (await mount(sameUpper)).unmount();
  });

  mountTest(
    `a path that the kernel does not cache is followed, too (${form})`,
    { needs: 'uniqueMountId' },
    async (t) => {
      const { dir, one, sameWork } = two(scratch(t));
      // The kernel follows this link anew in each walk.
      const link = `/proc/${process.pid}/root${dir}`;
      const set = `lowerdir=${one.lowerdir},upperdir=${link}/upper,workdir=${link}/work`;
      t.is(native.mount('other', String(one.target), 'overlay', 0, set), 0);
      t.like(await t.throwsAsync(mount(sameWork), upperInUse), { reason: 'work-in-use', dest: one.target });
      t.is(native.umount(String(one.target), 0), 0);
    },
  );

  mountTest(`what a mount in another namespace uses is in use (${form})`, async (t) => {
    const { one, sameUpper } = two(scratch(t));
    const namespace = makeNamespace();
    t.teardown(() => closeSync(namespace));
    const mounted = await mount({ ...one, namespace });
    const error = await t.throwsAsync(mount(sameUpper), upperInUse);
    t.like(error, { reason: 'upper-in-use', path: one.upperdir, dest: undefined });
    await mounted.unmount();
    await (await mount(sameUpper)).unmount();
  });

  mountTest(
    `a replacement uses what it has, and the one before it nothing (${form})`,
    { needs: 'mountBeneath' },
    async (t) => {
      const { dir, one, sameUpper } = two(scratch(t));
      const mounted = await mount(one);
      const next = { lowerdir: String(one.lowerdir), upperdir: join(dir, 'upper2'), workdir: join(dir, 'work2') };
      const replace = (options: typeof next) => method(mounted, 'replace')(options);
      await t.throwsAsync(
        async () => replace({ ...next, upperdir: String(one.upperdir) }),
        upperInUse,
        'the same upper',
      );
      await replace(next);
      await t.throwsAsync(mount({ ...sameUpper, upperdir: next.upperdir, workdir: String(one.workdir) }), upperInUse);
      await (await mount({ ...one, target: sameUpper.target as string })).unmount();
      await mounted.unmount();
      await (await mount(sameUpper)).unmount();
    },
  );
}

mountTest('a mount without privilege has its upper for itself', { needs: 'rootless' }, async (t) => {
  const { one, sameUpper } = two(scratch(t, withUserAttributes()));
  const rootless = ({ target: _, ...rest }: OverlayOptions): OverlayOptions => ({ ...rest, rootless: true });
  const mounted = mountOverlaySync(rootless(one));
  for (const options of [rootless(sameUpper), { ...rootless(sameUpper), rootless: 'keep' as const }, sameUpper]) {
    t.like(await t.throwsAsync(mountOverlay(options), upperInUse), { reason: 'upper-in-use', dest: mounted.path });
  }
  await mounted.unmount();
  for (const options of [rootless(sameUpper), sameUpper]) await (await mountOverlay(options)).unmount();
});

mountTest(
  "a plain user's upper is refused while its view exists, from inside the view too",
  { needs: 'rootless' },
  (t) => {
    const dir = scratch(t, withUserAttributes());
    makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '', 'work2/': '' });
    giveTo(dir, ...['lower', 'upper', 'work', 'work2'].map((name) => join(dir, name)));
    const outcome = evaluateAsNobody(
      `const [dir] = args;
    const at = (name) => join(dir, name);
    const layers = (work, more) =>
      ({ lowerdir: at('lower'), upperdir: at('upper'), workdir: at(work), rootless: true, ...more });
    const attempt = (options) =>
      overlayfs.mountOverlay(options).then((mount) => mount.unmount().then(() => 'mounted'), fields);
    const view = await overlayfs.mountOverlay(layers('work'));
    const beside = [];
    for (const rootless of [true, 'keep', 'auto']) beside.push(await attempt(layers('work2', { rootless })));
    beside.push(await attempt(layers('work2', { lowerdir: view.path })));
    const script = 'import("overlayfs").then(async ({ mountOverlay }) => {' +
      'const { reason } = await mountOverlay(JSON.parse(process.argv[1])).catch((error) => error);' +
      'console.log(reason); })';
    const inside = [];
    for (const root of [false, true]) {
      const program = [process.execPath, ['-e', script, JSON.stringify(layers('work2'))]];
      const child = overlayfs.spawn(...program, { mounts: [{ source: view, target: at('lower') }], cwd: process.cwd(), mapRoot: root });
      let text = '';
      child.stdout.on('data', (piece) => (text += piece));
      await new Promise((resolve) => child.once('close', resolve));
      inside.push(text.trim());
    }
    const ofView = await attempt(layers('work2', { upperdir: view.path }));
    await view.unmount();
    return { beside, inside, ofView, after: await attempt(layers('work2')) };`,
      dir,
    ) as Record<'beside' | 'inside', unknown[]> &
      Record<'ofView', { reason: string; message: string }> & { after: unknown };
    for (const one of outcome.beside) t.like(one, { code: 'EBUSY', reason: 'upper-in-use', path: join(dir, 'upper') });
    t.deepEqual(outcome.inside, ['upper-in-use', 'upper-in-use']);
    t.is(outcome.ofView.reason, 'upper-unsupported');
    t.regex(outcome.ofView.message, /it is overlay/);
    t.is(outcome.after, 'mounted');
  },
);

mountTest('what a program of a plain user sees is in use until it has ended', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, withUserAttributes());
  makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '', 'work2/': '' });
  giveTo(dir, ...['lower', 'upper', 'work', 'work2'].map((name) => join(dir, name)));
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const at = join(dir, 'lower');
    const attempt = async (work) => {
      try {
        return await overlayfs.mountOverlay({
          lowerdir: at, upperdir: join(dir, 'upper'), workdir: join(dir, work), rootless: true,
        });
      } catch ({ reason }) {
        return reason;
      }
    };
    const mount = await attempt('work');
    const child = overlayfs.spawn('sh', ['-c', 'echo ready; exec sleep 600'], { mounts: [{ source: mount, target: at }] });
    await new Promise((resolve) => child.stdout.once('data', resolve));
    await mount.unmount();
    const during = await attempt('work2');
    child.kill('SIGKILL');
    await new Promise((resolve) => child.once('close', resolve));
    const after = await attempt('work2');
    return [during, typeof after];`,
    dir,
  );
  t.deepEqual(outcome, ['upper-in-use', 'object']);
});

mountTest(
  'mapped layers by way of a namespace of their own are in use too',
  { needs: 'idmapped layers' },
  async (t) => {
    const { one, sameUpper } = two(scratch(t, 'disk'));
    const before615 = { ...kernelFeaturesSync(), openTreeAttr: false as const };
    const mapped = (options: OverlayOptions): OverlayOptions => ({
      ...options,
      idmap: { lowerdir: [{ container: 0, host: 0, size: 10 }] },
    });
    const mounted = await mountOverlayWith(mapped(one), before615);
    t.like(await t.throwsAsync(mountOverlayWith(mapped(sameUpper), before615), upperInUse), { dest: one.target });
    t.like(await t.throwsAsync(mountOverlay(sameUpper), upperInUse), { dest: one.target });
    await mounted.unmount();
    await (await mountOverlayWith(mapped(sameUpper), before615)).unmount();
  },
);

mountTest('a detached mount that is forgotten uses nothing when it has been closed', async (t) => {
  const { one, sameUpper } = two(scratch(t));
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const { target: _, ...rest } = one;
  const descriptors = countDescriptors();
  const warned = new Promise((resolve) => process.once('warning', resolve));
  await (async () => void (await mountOverlay(rest)))();
  await eventually(t, () => {
    collect();
    return countDescriptors() === descriptors;
  });
  await warned;
  await (await mountOverlay(sameUpper)).unmount();
});

mountTest('two detached mounts at once for one upper: one of them is mounted', async (t) => {
  const { dir, one } = two(scratch(t));
  symlinkSync(join(dir, 'upper'), join(dir, 'link'));
  const { target: _, ...rest } = one;
  const all = Array.from({ length: 8 }, (_, i): OverlayOptions => {
    mkdirSync(join(dir, `w${i}`));
    return { ...rest, upperdir: join(dir, i % 2 ? 'link' : 'upper'), workdir: join(dir, `w${i}`) };
  });
  const outcomes = await Promise.allSettled(all.map((options) => mountOverlay(options)));
  const mounted = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
  t.true(mounted.length <= 1, `${mounted.length} mounts`);
  for (const each of mounted) await each.unmount();
  await (await mountOverlay(rest)).unmount();
});

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

mountTest('a mount without privilege sees what the mount table shows', { needs: 'uniqueMountId' }, async (t) => {
  const { one, sameUpper } = two(scratch(t));
  const options = `lowerdir=${one.lowerdir},upperdir=${one.upperdir},workdir=${one.workdir}`;
  execFileSync('mount', ['-t', 'overlay', 'other', '-o', options, String(one.target)]);
  const { target: _, ...detached } = sameUpper;
  for (const rootless of [true, 'keep'] as const) {
    const set = { ...detached, rootless };
    t.like(await t.throwsAsync(mountOverlay(set), upperInUse), { reason: 'upper-in-use', dest: one.target });
    t.throws(() => mountOverlaySync(set), upperInUse);
  }
  execFileSync('umount', [String(one.target)]);
  await (await mountOverlay({ ...detached, rootless: true })).unmount();
});

mountTest('what a worker mounts is seen', { needs: 'uniqueMountId' }, async (t) => {
  const { one, sameUpper } = two(scratch(t));
  const worker = startWorker('overlayfs.mountOverlaySync(workerData);', one);
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

mountTest(
  'an upper by way of a link is in use when the link leads elsewhere',
  { needs: ['layerDescriptors', 'uniqueMountId'] },
  async (t) => {
    for (const mount of [mountOverlay, mountOverlaySync]) {
      const dir = scratch(t);
      makeTree(dir, { 'l/': '', 'm/': '', 'other/': '', '1/u/': '', '1/w/': '', '2/u/': '', '2/w/work/': '' });
      symlinkSync('1', join(dir, 'link'));
      const options = (name: string, target: string) => ({
        lowerdir: join(dir, 'l'),
        upperdir: join(dir, name, 'u'),
        workdir: join(dir, name, 'w'),
        target: join(dir, target),
      });
      await mount(options('link', 'm'));
      unlinkSync(join(dir, 'link'));
      symlinkSync('2', join(dir, 'link'));
      const mountElsewhere = (name: string) =>
        evaluateIn(
          ['env'],
          `overlayfs.mountOverlay(JSON.parse(args[0])).then((mount) => mount.unmount())`,
          JSON.stringify(options(name, 'other')),
        );
      t.like(mountElsewhere('1'), { code: 'EBUSY', reason: 'upper-in-use' });
      t.is(mountElsewhere('2'), null);
      await unmount(join(dir, 'm'));
    }
  },
);
