import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import {
  bindSync,
  mountOverlay,
  mountOverlaySync,
  OverlayError,
  type OverlayMount,
  type OverlayOptions,
  spawn,
  unmount,
} from 'overlayfs';
import { remove } from 'overlayfs/layers';
import {
  generator,
  hasFeature,
  layers,
  mountsBelow,
  mountTest,
  scaled,
  scratch,
  startWorker,
} from '../support/index.js';

const inUse = { instanceOf: OverlayError, code: 'EBUSY' } as const;

/** Layers of their own, beside each other. */
function many(dir: string, count: number): OverlayOptions[] {
  return Array.from({ length: count }, (_, i) => {
    const own = join(dir, String(i));
    mkdirSync(own);
    return layers(own);
  });
}

/** Upper, work and target made anew, used and removed. */
async function withFreshUpper(dir: string, use: (options: Required<OverlayOptions>) => Promise<unknown>) {
  const own = join(dir, 'fresh');
  mkdirSync(own);
  await use(layers(own) as unknown as Required<OverlayOptions>);
  rmSync(own, { recursive: true });
}

mountTest('64 loops by path at once on uppers of their own meet no false refusal', async (t) => {
  const rounds = scaled(50, 5);
  await Promise.all(
    many(scratch(t), 64).map(async (options) => {
      for (let i = 0; i < rounds; i++) {
        await mountOverlay(options);
        await unmount(options.target as string);
      }
    }),
  );
  t.pass();
});

for (const kind of ['tmpfs', 'disk'] as const) {
  mountTest(`an upper that is made and removed for each job is never refused (${kind})`, async (t) => {
    const dir = scratch(t, kind);
    for (let i = 0; i < scaled(200); i++) {
      await withFreshUpper(dir, async (options) => {
        const mounted = await mountOverlay(options);
        await mounted.unmount({ detach: true });
      });
      if (hasFeature('detached mounts that can be cloned')) {
        await withFreshUpper(dir, async (options) => {
          const mounted = await mountOverlay(options);
          const clone = await mounted.clone();
          await mounted.unmount();
          await clone.unmount();
        });
      }
    }
    t.pass();
  });
}

mountTest('replaced mounts leave uppers of jobs free', { needs: 'mountBeneath' }, async (t) => {
  const dir = scratch(t, 'disk');
  const mounted = await mountOverlay(layers(dir));
  const views = [join(dir, 'lower'), join(dir, 'upper')];
  for (let i = 0; i < scaled(200); i++) {
    const own = join(dir, 'job');
    mkdirSync(own);
    const { target: _, ...job } = layers(own);
    await mounted.replace(job);
    await mounted.replace({ lowerdir: views });
    rmSync(own, { recursive: true });
  }
  await mounted.unmount();
  t.pass();
});

mountTest('a detached mount that is closed while a file of it is open keeps its upper', async (t) => {
  for (let i = 0; i < scaled(100); i++) {
    const own = join(scratch(t), String(i));
    mkdirSync(own);
    const { target: _, ...options } = layers(own);
    const mounted = await mountOverlay(options);
    const file = openSync(join(String(mounted.path), 'from-lower'), 'r');
    await mounted.unmount();
    t.like(await t.throwsAsync(mountOverlay(options), inUse), { reason: 'upper-in-use' });
    closeSync(file);
    await (await mountOverlay(options)).unmount();
  }
});

mountTest('a server that a program leaves running loses no write', async (t) => {
  const options = layers(scratch(t));
  const { target: _, ...rest } = options;
  const script = '(while :; do echo line >> "$1/log"; done) >&- 2>&- & echo $!';
  for (let i = 0; i < scaled(20, 2); i++) {
    const mounted = await mountOverlay(rest);
    const child = spawn('sh', ['-c', script, 'sh', String(options.lowerdir)], {
      mounts: [{ source: mounted, target: String(options.lowerdir) }],
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const [pid] = (await once(child.stdout as Readable, 'data')) as [Buffer];
    if (child.exitCode === null) await once(child, 'exit');
    await mounted.unmount();
    await t.throwsAsync(mountOverlay(rest), inUse, 'the server still writes');
    process.kill(Number(pid), 'SIGKILL');
    for (;;) {
      try {
        await (await mountOverlay(rest)).unmount();
        break;
      } catch (error) {
        t.true(error instanceof OverlayError && error.reason === 'upper-in-use', String(error));
      }
    }
    t.regex(readFileSync(join(String(options.upperdir), 'log'), 'utf8'), /^(?:line\n)+$/);
  }
});

mountTest('a bind keeps the upper of a mount that is unmounted', async (t) => {
  const options = layers(scratch(t));
  const place = join(options.target, '../place');
  mkdirSync(place);
  for (let i = 0; i < scaled(200); i++) {
    const mounted = await mountOverlay(options);
    const bound = bindSync(options.target, place);
    await mounted.unmount();
    await t.throwsAsync(mountOverlay(options), inUse);
    writeFileSync(join(place, 'from-lower'), `copied up ${i}`);
    bound.unmountSync();
  }
});

mountTest('a mount with exclusive: false in between makes nobody forget the first', async (t) => {
  const options = layers(scratch(t));
  const { target: _, ...rest } = options;
  for (let i = 0; i < scaled(100); i++) {
    const first = await mountOverlay(rest);
    await (await mountOverlay({ ...rest, exclusive: false })).unmount();
    await t.throwsAsync(mountOverlay(rest), inUse);
    await first.unmount();
  }
});

mountTest('a promise under way and a synchronous call: one of them mounts', async (t) => {
  const options = layers(scratch(t));
  const other = `${options.target}-other`;
  mkdirSync(other);
  for (let i = 0; i < scaled(300); i++) {
    // By target, and by upper.
    const second =
      i % 2 ? { lowerdir: [options.lowerdir, other], target: options.target } : { ...options, target: other };
    const promise = mountOverlay(options);
    let made: OverlayMount | undefined;
    let refusal: unknown;
    try {
      made = mountOverlaySync(second);
    } catch (error) {
      refusal = error;
      t.regex((error as OverlayError).reason, /^(?:mount-busy|target-mounted|upper-in-use|work-in-use)$/);
    }
    const [outcome] = await Promise.allSettled([promise]);
    const promised = outcome.status === 'rejected' ? outcome.reason : 'mounted';
    t.true(
      (made === undefined) === (outcome.status === 'fulfilled'),
      `round ${i}: ${refusal ?? 'mounted'}, ${promised}`,
    );
    t.is(mountsBelow(options.target).length + mountsBelow(other).length, 1);
    if (outcome.status === 'fulfilled') await outcome.value.unmount();
    made?.unmountSync();
  }
});

mountTest('of two workers that race for one upper, one wins and the other is told', async (t) => {
  const { target: _, ...options } = layers(scratch(t));
  const code = `
    const { options, start, rounds } = workerData;
    const word = new Int32Array(start);
    parentPort.postMessage('ready');
    for (let round = 1; round <= rounds; round++) {
      while (Atomics.load(word, 0) < round);
      let mounted, reason = 'mounted';
      try { mounted = overlayfs.mountOverlaySync(options); } catch (error) { reason = error.reason ?? String(error); }
      Atomics.add(word, 1, 1);
      while (Atomics.load(word, 1) < 2 * round);
      mounted?.unmountSync();
      parentPort.postMessage(reason);
    }`;
  const start = new SharedArrayBuffer(8);
  const word = new Int32Array(start);
  const rounds = scaled(300, 30);
  const workers = [0, 1].map(() => startWorker(code, { options, start, rounds }));
  t.teardown(() => Promise.all(workers.map((worker) => worker.terminate())));
  await Promise.all(workers.map((worker) => once(worker, 'message')));
  for (let round = 1; round <= rounds; round++) {
    const answers = Promise.all(workers.map((worker) => once(worker, 'message')));
    Atomics.store(word, 0, round);
    const reasons = (await answers).map(([reason]) => reason as string).sort();
    t.deepEqual(reasons, ['mounted', 'upper-in-use'], `round ${round}`);
  }
});

mountTest('of calls that create one upper exactly one mounts, and the others leave it what it uses', async (t) => {
  const dir = scratch(t);
  const lowerdir = join(dir, 'lower');
  mkdirSync(lowerdir);
  for (let i = 0; i < scaled(300); i++) {
    const own = join(dir, String(i));
    const options = { lowerdir, upperdir: join(own, 'upper'), create: true };
    mkdirSync(own);
    const calls = ['a', 'b', 'c'].map((name) => mountOverlay({ ...options, target: join(own, name) }));
    const outcomes = await Promise.allSettled(calls);
    const mounts = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    t.is(mounts.length, 1, `round ${i}`);
    const [mount] = mounts as [OverlayMount];
    writeFileSync(join(mount.path, 'file'), '');
    t.notThrows(() => readFileSync(join(options.upperdir, 'file')), `round ${i}`);
    await mount.unmount();
  }
});

mountTest(
  'a made workdir goes beside programs that start and run',
  { needs: 'detached mounts that can be cloned' },
  async (t) => {
    const dir = scratch(t);
    const base = layers(dir);
    const { target: _, ...shown } = base;
    const mount = await mountOverlay(shown);
    const at = String(base.lowerdir);
    const running = spawn('sleep', ['600'], { mounts: [{ source: mount, target: at }], stdio: 'ignore' });
    t.teardown(() => running.kill('SIGKILL'));
    for (let i = 0; i < scaled(150, 10); i++) {
      const own = join(dir, `job${i}`);
      mkdirSync(own);
      const job = await mountOverlay({ ...layers(own), workdir: join(own, 'made'), create: true });
      const program = spawn('true', [], { mounts: [{ source: mount, target: at }], stdio: 'ignore' });
      await job.unmount();
      t.false(existsSync(join(own, 'made')), `job ${i}`);
      if (program.exitCode === null) await once(program, 'exit');
    }
    // Mounted before the program began, and so copied into its namespace.
    const own = join(dir, 'before');
    mkdirSync(own);
    const before = await mountOverlay({ ...layers(own), workdir: join(own, 'made'), create: true });
    const late = spawn('sh', ['-c', 'echo; exec sleep 600'], {
      mounts: [{ source: mount, target: at }],
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    t.teardown(() => late.kill('SIGKILL'));
    await once(late.stdout as Readable, 'data');
    await before.unmount();
    t.false(existsSync(join(own, 'made')));
    for (const child of [running, late]) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    await mount.unmount();
  },
);

const keeps = ['rootless', 'uniqueMountId'] as const;
mountTest("a made workdir goes right after a mount with rootless: 'keep'", { needs: keeps }, async (t) => {
  const dir = scratch(t);
  const [kept, ...jobs] = many(dir, 1 + scaled(20, 3));
  const { target: _, ...options } = kept as OverlayOptions;
  for (const job of jobs) {
    const workdir = `${job.workdir}-made`;
    const mounted = await mountOverlay({ ...job, workdir, create: true });
    await (await mountOverlay({ ...options, rootless: 'keep' })).unmount();
    await mounted.unmount();
    t.false(existsSync(workdir));
  }
});

mountTest('a made workdir stays while others keep the overlay, in both forms', async (t) => {
  const set = layers(scratch(t));
  const place = join(set.target, '../place');
  mkdirSync(place);
  const options = { ...set, workdir: `${set.workdir}-made`, create: true };
  for (const end of ['unmount', 'unmountSync'] as const) {
    const mounted = await mountOverlay(options);
    const bound = bindSync(options.target, place);
    await mounted[end]();
    t.true(existsSync(join(options.workdir, 'work')));
    bound.unmountSync();
    await remove(options.workdir);
  }
});

mountTest(
  'aborted mounts with `create` leave nothing, and none is refused, while inode numbers are reused',
  async (t) => {
    const dir = scratch(t, 'disk');
    const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);
    t.log(`seed ${seed}`);
    const random = generator(seed);
    mkdirSync(join(dir, 'lower'));
    mkdirSync(join(dir, 'made'));
    // Its mounts come and go beside: each takes inode numbers that others have given back.
    const beside = startWorker(
      `import { rmSync } from "node:fs";
    for (let i = 0; ; i++) {
      const options = { lowerdir: workerData.lower, upperdir: workerData.made + '/u' + i, workdir: workerData.made + '/w' + i };
      (await overlayfs.mountOverlay({ ...options, create: true })).unmountSync();
      for (const path of [options.upperdir, options.workdir]) rmSync(path, { recursive: true, force: true });
      await new Promise(setImmediate);
    }`,
      { lower: join(dir, 'lower'), made: dir },
    );
    const refused: unknown[] = [];
    for (let round = 0; round < scaled(40, 5); round++) {
      await Promise.all(
        Array.from({ length: 30 }, async (_, i) => {
          const own = join(dir, 'made', String(i));
          const controller = new AbortController();
          setTimeout(() => controller.abort(), random(40));
          const options = {
            lowerdir: join(dir, 'lower'),
            upperdir: `${own}/upper`,
            workdir: `${own}/work`,
            create: true,
          };
          try {
            const mounted = await mountOverlay({ ...options, target: `${own}/target`, signal: controller.signal });
            await mounted.unmount();
            rmSync(own, { recursive: true });
          } catch (error) {
            if ((error as Error).name !== 'AbortError') refused.push(error);
          }
        }),
      );
      t.deepEqual(readdirSync(join(dir, 'made')), [], `round ${round}`);
      t.deepEqual(refused, []);
    }
    await beside.terminate();
  },
);
