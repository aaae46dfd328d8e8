/** Calls beside each other: each ends well, or says which call was quicker. */
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import {
  bind,
  bindSync,
  mountOverlay,
  mountOverlaySync,
  type OverlayError,
  type OverlayMount,
  type OverlayOptions,
  unmount,
} from 'overlayfs';
import {
  countDescriptors,
  layers,
  mountsBelow,
  mountTest,
  native,
  openPaths,
  scaled,
  scratch,
} from '../support/index.js';

/** Read-only overlays: an upper of which one is still in use is no part of these tests. */
function lowers(dir: string): OverlayOptions & { target: string } {
  const { lowerdir, target } = layers(dir);
  mkdirSync(join(dir, 'other'), { recursive: true });
  return { lowerdir: [lowerdir, join(dir, 'other')], target };
}

const fileOf = ({ target }: { target: string }) => join(target, 'from-lower');

/** The reasons with which calls were rejected. */
function reasonsOf(outcomes: readonly PromiseSettledResult<unknown>[]): string[] {
  return outcomes.flatMap((outcome) => {
    if (outcome.status === 'fulfilled') return [];
    const { reason, message, code } = outcome.reason as OverlayError;
    return [reason ?? code ?? message];
  });
}

for (const stacked of [false, true]) {
  mountTest(
    `an unmount beside one that detaches names no holder of what is beneath (${stacked ? 'stacked' : 'alone'})`,
    async (t) => {
      const dir = scratch(t);
      const options = lowers(dir);
      const beneath = stacked ? mountOverlaySync(options) : undefined;
      // A holder of the mount beneath, or of the file system on which the target is.
      const held = openSync(stacked ? fileOf(options) : join(dir, 'lower/from-lower'), 'r');
      for (let round = 0; round < scaled(100, 20); round++) {
        mountOverlaySync({ ...options, stack: true });
        const fd = openSync(fileOf(options), 'r');
        const outcomes = await Promise.allSettled([unmount(options.target), unmount(options.target, { detach: true })]);
        for (const outcome of outcomes) {
          if (outcome.status === 'fulfilled') continue;
          const { reason, holders = [] } = outcome.reason as OverlayError;
          t.true(reason === 'not-mounted' || reason === 'mount-busy', `round ${round}: ${outcome.reason}`);
          const wrong = holders.filter(({ descriptor }) => descriptor !== fd && !(stacked && descriptor === held));
          t.deepEqual(wrong, [], `round ${round}`);
          if (reason === 'mount-busy' && !stacked)
            t.deepEqual(
              holders.map(({ descriptor }) => descriptor),
              [fd],
            );
        }
        closeSync(fd);
        // At most the one that was asked for twice.
        t.true(mountsBelow(options.target).length <= (stacked ? 1 : 0), `round ${round}`);
      }
      closeSync(held);
      beneath?.unmountSync({ detach: true });
    },
  );
}

mountTest('of calls that mount at one target exactly one mounts: overlays, binds, detached mounts', async (t) => {
  const dir = scratch(t);
  const { lowerdir, target } = lowers(dir);
  for (let round = 0; round < scaled(300); round++) {
    const detached = [mountOverlaySync({ lowerdir }), mountOverlaySync({ lowerdir })] as const;
    const calls = [
      () => bind(join(dir, 'other'), target),
      () => detached[0].attach(target),
      () => mountOverlay({ lowerdir, target }),
      async () => detached[1].attachSync(target),
      async () => bindSync(join(dir, 'other'), target),
    ];
    const order = [...calls.slice(round % calls.length), ...calls.slice(0, round % calls.length)];
    const reasons = reasonsOf(await Promise.allSettled(order.map((call) => call())));
    t.is(reasons.length, calls.length - 1, `round ${round}: ${reasons}`);
    for (const reason of reasons) t.regex(reason, /^(?:target-mounted|mount-busy)$/);
    t.is(mountsBelow(target).length, 1);
    await unmount(target);
    for (const mount of detached) if (mount.target === undefined) await mount.unmount();
  }
});

mountTest('an unmount that finds nobody who holds the mount is tried again', async (t) => {
  const options = lowers(scratch(t));
  for (let round = 0; round < scaled(100, 20); round++) {
    mountOverlaySync(options);
    const fd = openSync(fileOf(options), 'r');
    const pending = unmount(options.target);
    // By then it has mostly found the mount busy, and begins to search.
    for (let turn = 0; turn < round % 5; turn++) await new Promise(setImmediate);
    closeSync(fd);
    const [reason] = reasonsOf(await Promise.allSettled([pending]));
    t.is(reason, undefined, `round ${round}`);
    t.is(mountsBelow(options.target).length, 0);
  }
});

/** Trees of mounts, also inside each other. */
function mountTree(t: ExecutionContext, tree: string): number {
  let count = 0;
  const mount = (target: string): void => {
    mkdirSync(target, { recursive: true });
    t.is(native.mount('beside', target, 'tmpfs', 0, ''), 0);
    count++;
  };
  for (let i = 0; i < 30; i++) {
    mount(join(tree, `${i}`));
    mount(join(tree, `${i}/inside`));
  }
  return count;
}

mountTest('two unmounts of one tree at once both end well', async (t) => {
  const tree = join(scratch(t), 'tree');
  for (let round = 0; round < scaled(100, 10); round++) {
    mountTree(t, tree);
    const one = { recursive: true };
    await Promise.all([unmount(tree, { ...one, detach: round % 4 === 3 }), unmount(tree, one), unmount(tree, one)]);
    t.is(mountsBelow(tree).length, 0, `round ${round}`);
  }
});

type Beside = (mounted: OverlayMount, options: OverlayOptions) => Promise<unknown>;

const besides: Readonly<Record<string, Beside>> = {
  clone: async (mounted) => (await mounted.clone()).unmount(),
  remount: (mounted) => mounted.remount({ readonly: true }),
  replace: (mounted, { lowerdir }) => mounted.replace({ lowerdir }),
};

for (const [name, beside] of Object.entries(besides)) {
  mountTest(
    `an unmount beside ${name}: both end well, or the later one says so`,
    { needs: 'mountBeneath' },
    async (t) => {
      const options = lowers(scratch(t));
      const descriptors = countDescriptors();
      for (let round = 0; round < scaled(100, 20); round++) {
        for (const calls of [
          (mounted: OverlayMount) => [mounted.unmount(), beside(mounted, options)],
          (mounted: OverlayMount) => [beside(mounted, options), mounted.unmount()],
          (mounted: OverlayMount) => [beside(mounted, options), unmount(options.target)],
          (mounted: OverlayMount) => [unmount(options.target), beside(mounted, options), mounted.unmount()],
        ]) {
          const reasons = reasonsOf(await Promise.allSettled(calls(mountOverlaySync(options))));
          for (const reason of reasons) t.is(reason, 'not-mounted', `round ${round}`);
          for (const { target } of mountsBelow(options.target)) await unmount(target);
        }
      }
      t.is(countDescriptors(), descriptors);
    },
  );
}

mountTest('a replacement holds the new mount by no descriptor', { needs: 'mountBeneath' }, async (t) => {
  const options = lowers(scratch(t));
  for (let round = 0; round < scaled(1000, 100); round++) {
    const mounted = mountOverlaySync(options);
    const { id } = mounted;
    const replaced = mounted.replace({ lowerdir: options.lowerdir });
    while (mounted.id === id) await new Promise(setImmediate);
    // An unmount by path that begins now must not find the mount busy.
    t.false(openPaths().includes(options.target), `round ${round}`);
    await replaced;
    await mounted.unmount();
  }
});

mountTest(
  'one that waits does not stop a replacement, nor what detaches that',
  { needs: 'mountBeneath' },
  async (t) => {
    const options = lowers(scratch(t));
    for (let round = 0; round < scaled(50, 10); round++) {
      const mounted = mountOverlaySync(options);
      const fd = openSync(fileOf(options), 'r');
      const waiting = mounted.unmount({ timeout: 60_000 });
      const replaced = mounted.replace({ lowerdir: options.lowerdir });
      const detached = mounted.unmount({ detach: true });
      await Promise.all([waiting, replaced, detached]);
      t.is(mountsBelow(options.target).length, 0);
      closeSync(fd);
    }
  },
);

mountTest('many unmounts wait with one signal, without a warning', async (t) => {
  const dir = scratch(t);
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on('warning', onWarning);
  const busy = Array.from({ length: 60 }, (_, i) => lowers(join(dir, String(i))));
  const fds = busy.map((options) => {
    mountOverlaySync(options);
    return openSync(fileOf(options), 'r');
  });
  const controller = new AbortController();
  const pending = busy.map(({ target }) => unmount(target, { signal: controller.signal, timeout: Infinity }));
  await new Promise((resolve) => setTimeout(resolve, 200));
  for (const fd of fds.slice(0, 30)) closeSync(fd);
  await Promise.all(pending.slice(0, 30));
  controller.abort();
  t.deepEqual(reasonsOf(await Promise.allSettled(pending.slice(30))), Array(30).fill('ABORT_ERR'));
  for (const fd of fds.slice(30)) closeSync(fd);
  await unmount(dir, { recursive: true });
  process.off('warning', onWarning);
  t.deepEqual(warnings, []);
});
