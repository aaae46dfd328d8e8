/**
 * Layers whose files show with other owners than they have on disk. Imports internals: it mounts as on kernels that
 * lack features, and explains their failures.
 */
import { spawn } from 'node:child_process';
import { chownSync, closeSync, mkdirSync, openSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import {
  bindSync,
  type IdMapOption,
  mountOverlay,
  mountOverlaySync,
  OverlayError,
  type OverlayOptions,
} from 'overlayfs';
import { explainMount } from '#lib/diagnosis/explain.js';
import { emptyFacts } from '#lib/diagnosis/facts.js';
import { ENOSYS } from '#lib/errnos.js';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import { calls } from '#lib/kernel/calls.js';
import { MOUNT_ATTR_IDMAP } from '#lib/kernel/constants.js';
import { StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { checkOptions } from '#lib/options/check.js';
import { commonDirectory } from '#lib/options/idmap.js';
import { mountOverlayWithSync } from '#lib/overlay/mount.js';
import {
  countDescriptors,
  layers,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
} from '../support/index.js';
import { evaluateAsNobody } from '../support/plain-user.js';

const map = [{ container: 0, host: 100_000, size: 65_536 }];
/** Whose files show as the mounting user's, so that it can write. */
const upperMap = [{ container: 100_000, host: 0, size: 65_536 }];

/** On the kernel's own way, and attached in a mount namespace of the plan's, as before 6.15. */
const ways: Readonly<Record<string, (options: OverlayOptions) => ReturnType<typeof mountOverlaySync>>> = {
  'the best way': (options) => mountOverlayWithSync(options, kernelFeaturesSync()),
  'as before 6.15': (options) => mountOverlayWithSync(options, { ...kernelFeaturesSync(), openTreeAttr: false }),
  'as before 6.7': (options) =>
    mountOverlayWithSync(options, {
      ...kernelFeaturesSync(),
      openTreeAttr: false,
      fsContext: kernelFeaturesSync().fsContext,
      lowerdirAppend: false,
      layerDescriptors: false,
    }),
};

for (const [way, mount] of Object.entries(ways)) {
  const needs = 'idmapped layers';

  mountTest(`lower layers: files of 0 show as those of 100000 (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    const descriptors = countDescriptors();
    const mounted = mount({ ...options, idmap: { lowerdir: map } });
    const file = join(options.target, 'from-lower');
    t.is(statSync(file).uid, 100_000);
    t.is(statSync(file).gid, 100_000);
    t.is(statSync(join(options.lowerdir, 'from-lower')).uid, 0);
    t.is(mountsBelow(dir).length, 1, 'nothing else is mounted');
    t.is(countDescriptors(), descriptors);
    mounted.unmountSync();
  });

  mountTest(`upper and work: what root makes is stored as 100000 (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    for (const name of [options.upperdir, options.workdir]) chownSync(name, 100_000, 100_000);
    const mounted = mount({ ...options, idmap: { upperdir: upperMap } });
    writeFileSync(join(options.target, 'new'), 'new');
    t.is(statSync(join(options.target, 'new')).uid, 0);
    t.is(statSync(join(options.upperdir, 'new')).uid, 100_000);
    t.is(statSync(join(options.target, 'from-lower')).uid, 0, 'the lower is as it is');
    mounted.unmountSync();
  });

  mountTest(`all layers, users and groups by ranges of their own (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    for (const name of ['lower', 'lower/from-lower', 'upper', 'work']) chownSync(join(dir, name), 1000, 2000);
    const idmap = [
      { container: 1000, host: 0, size: 1, ids: 'uid' as const },
      { container: 2000, host: 0, size: 1, ids: 'gid' as const },
    ];
    const mounted = mount({ ...options, idmap });
    const { uid, gid } = statSync(join(options.target, 'from-lower'));
    t.deepEqual([uid, gid], [0, 0]);
    writeFileSync(join(options.target, 'from-lower'), 'changed');
    const stored = statSync(join(options.upperdir, 'from-lower'));
    t.deepEqual([stored.uid, stored.gid], [1000, 2000]);
    mounted.unmountSync();
  });

  mountTest(`a map for the lowers and another one for upper and work (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    makeTree(dir, { 'second/from-second': '' });
    for (const name of [options.upperdir, options.workdir]) chownSync(name, 100_000, 100_000);
    const descriptors = countDescriptors();
    const lowerdir = [options.lowerdir, join(dir, 'second')];
    const mounted = mount({ ...options, lowerdir, idmap: { lowerdir: map, upperdir: upperMap } });
    const ownerOf = (path: string): number => statSync(join(dir, path)).uid;
    t.deepEqual(['merged/from-lower', 'merged/from-second'].map(ownerOf), [100_000, 100_000]);
    writeFileSync(join(options.target, 'new'), 'new');
    t.deepEqual(['merged/new', 'upper/new'].map(ownerOf), [0, 100_000]);
    t.is(mountsBelow(dir).length, 1, 'nothing else is mounted');
    mounted.unmountSync();
    t.is(countDescriptors(), descriptors);
  });

  mountTest(`several lowers, with paths of any kind (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const { target } = layers(dir);
    const lowerdir = ['a:b,c', `long-${'x'.repeat(200)}`, 'sp ace'].map((name) => join(dir, name));
    for (const lower of lowerdir) {
      mkdirSync(lower);
      writeFileSync(join(lower, `in-${lower.length}`), '');
    }
    const mounted = mount({ lowerdir, target, idmap: map });
    for (const lower of lowerdir) t.is(statSync(join(target, `in-${lower.length}`)).uid, 100_000);
    mounted.unmountSync();
  });

  mountTest(`failures say why and leave nothing (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    const descriptors = countDescriptors();
    const fails = (given: Partial<OverlayOptions>, expected: object, message: RegExp) => {
      const error = t.throws(() => mount({ ...options, ...given }), { instanceOf: OverlayError, message });
      t.like(error, expected);
    };
    fails({ idmap: map, lowerdir: join(dir, 'none') }, { code: 'ENOENT', reason: 'lower-missing' }, /none/);
    const overlapping = [...map, { container: 5, host: 5, size: 10 }];
    fails({ idmap: overlapping }, { code: 'EINVAL', reason: 'idmap-refused' }, /ranges/);
    fails({ idmap: { lowerdir: 0 } }, { reason: 'idmap-refused' }, /cannot be mapped|ranges/);
    fails({ idmap: map }, { code: 'EROFS', reason: 'work-idmapped' }, /mounting user/);
    fails(
      { idmap: { lowerdir: map }, lowerdir: '/proc/self' },
      { code: 'EINVAL', reason: 'idmap-unsupported', path: '/proc/self' },
      /cannot map the file system of the lowerdir '\/proc\/self', proc/,
    );
    symlinkSync(options.upperdir, join(dir, 'link'));
    fails(
      { idmap: { upperdir: upperMap }, upperdir: join(dir, 'link') },
      { reason: 'idmap-unsupported' },
      /through a symbolic link or another mount/,
    );
    t.is(mountsBelow(dir).length, 0);
    t.is(countDescriptors(), descriptors);
  });

  mountTest(`layers inside each other are refused, through clones with a map too (${way})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    const { target } = layers(dir);
    makeTree(dir, { 'lower/in/u/l/': '', 'lower/in/w/': '', 'beside/u/l/': '', 'beside/w/': '', 'bound/': '' });
    symlinkSync('lower/in', join(dir, 'link'));
    const at = (path: string) => join(dir, path);
    bindSync(at('lower/in'), at('bound'));
    const descriptors = countDescriptors();
    // The upper's clone takes neither a link nor a bind on the way to it.
    const straight = [{ upperdir: upperMap }, { lowerdir: map, upperdir: upperMap }];
    const rows: readonly [idmaps: readonly IdMapOption[], lower: string, upper: string, work: string][] = [
      [[map, { lowerdir: map }, ...straight], 'lower', 'lower/in/u', 'lower/in/w'],
      [[map, { lowerdir: map }, ...straight], 'beside/u/l', 'beside/u', 'beside/w'],
      [[{ lowerdir: map }], 'lower', 'link/u', 'link/w'],
      [[{ lowerdir: map }], 'lower', 'bound/u', 'bound/w'],
      [[{ lowerdir: map }], 'bound', 'lower/in/u', 'lower/in/w'],
      [[{ lowerdir: map }], 'link/u/l', 'bound/u', 'bound/w'],
    ];
    for (const [idmaps, lower, upper, work] of rows) {
      for (const idmap of idmaps) {
        const options = { lowerdir: [at(lower)], upperdir: at(upper), workdir: at(work), target, idmap };
        const shown = JSON.stringify([lower, upper, idmap]);
        const error = t.throws(() => mount(options), { instanceOf: OverlayError }, shown);
        t.is(error?.reason, 'layers-overlap', `${shown} ${error?.message}`);
      }
    }
    t.is(mountsBelow(target).length, 0);
    t.is(countDescriptors(), descriptors);
  });
}

mountTest('a map by the descriptor of a user namespace', { needs: 'idmapped layers' }, async (t) => {
  const dir = scratch(t, 'disk');
  const options = layers(dir);
  const child = spawn('unshare', ['-U', 'sh', '-c', 'echo; read line'], { stdio: ['pipe', 'pipe', 'inherit'] });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  for (const name of ['uid_map', 'gid_map']) writeFileSync(`/proc/${child.pid}/${name}`, '0 7000 10');
  const namespace = openSync(`/proc/${child.pid}/ns/user`, 'r');
  child.stdin.end();
  const mounted = await mountOverlay({ ...options, idmap: { lowerdir: namespace } });
  closeSync(namespace);
  t.is(statSync(join(options.target, 'from-lower')).uid, 7000);
  await mounted.unmount();
});

mountTest('detached, promised, and many', { needs: 'idmapped layers' }, async (t) => {
  const dir = scratch(t, 'disk');
  const { target: _, ...options } = layers(dir);
  await (await mountOverlay({ ...options, idmap: { lowerdir: map } })).unmount();
  const state = () => [countDescriptors(), readFileSync(`/proc/self/task/${process.pid}/children`, 'latin1')];
  const before = state();
  for (let i = 0; i < scaled(100); i++) {
    const mounted = await mountOverlay({ ...options, idmap: { lowerdir: map } });
    t.is(statSync(join(mounted.path, 'from-lower')).uid, 100_000);
    await mounted.unmount();
  }
  t.deepEqual(state(), before);
});

mountTest('a process without the capabilities is told that they are lacking', (t) => {
  const dir = scratch(t, 'disk');
  const { lowerdir, upperdir } = layers(dir);
  const code = `return overlayfs.mountOverlay({ lowerdir: args, idmap: [{ container: 0, host: 1, size: 1 }] });`;
  t.like(evaluateAsNobody(code, lowerdir, upperdir), { reason: 'no-privilege' });
});

test('a kernel without mapped mounts says so', (t) => {
  const plan = new Plan();
  const subject = { role: 'lowerdir', index: 0, path: '/l' } as const;
  plan.add(calls.mount_setattr, [0, '', 0, MOUNT_ATTR_IDMAP, 0, 0, 0], { subject });
  const failure = new StepFailure(plan, { step: 0, errno: ENOSYS, undoErrno: 0, cancelled: false, log: [] });
  const options = checkOptions({ lowerdir: ['/l', '/m'], idmap: map });
  const error = explainMount(options, failure, emptyFacts());
  t.like(error, { code: 'ENOSYS', reason: 'idmap-unsupported' });
  t.regex(error.message, /this kernel has no idmapped mounts.*5\.19/);
});

mountTest('file systems that cannot be mapped are named', (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const { lowerdir } = options;
  t.is(native.mount('none', lowerdir, 'proc', 0, ''), 0);
  t.throws(() => mountOverlaySync({ ...options, idmap: { lowerdir: map } }), {
    instanceOf: OverlayError,
    message: /cannot map the file system|does not have|no idmapped mounts/,
  });
});

test('the directory nearest to both upper and work', (t) => {
  const common = (upper: string, work: string) =>
    Object.values(commonDirectory(upper, work)).map((path) => Buffer.from(path).toString());
  t.deepEqual(common('/srv/upper', '/srv/work'), ['/srv', 'upper', 'work']);
  t.deepEqual(common('/srv/a/upper', '/srv/work'), ['/srv', 'a/upper', 'work']);
  t.deepEqual(common('/upper', '/srv/work'), ['/', 'upper', 'srv/work']);
  t.deepEqual(common('/srv/x', '/srv/x/work'), ['/srv', 'x', 'x/work']);
});

test('arguments are checked', (t) => {
  const paths = { lowerdir: '/l', upperdir: '/u', workdir: '/w', target: '/m' };
  const refuse = (idmap: unknown, code: string, message: RegExp) =>
    t.throws(() => mountOverlaySync({ ...paths, idmap } as never), { code, message });
  const range = { container: 0, host: 1, size: 1 };
  refuse('0:1:1', 'ERR_INVALID_ARG_TYPE', /"idmap" must be a list of ranges/);
  refuse([], 'ERR_OUT_OF_RANGE', /1 to 340 ranges/);
  refuse(-1, 'ERR_OUT_OF_RANGE', /must be a file descriptor/);
  refuse([{ ...range, size: 0 }], 'ERR_OUT_OF_RANGE', /"idmap\[0\]\.size"/);
  refuse([{ ...range, container: 2 ** 32 }], 'ERR_OUT_OF_RANGE', /"idmap\[0\]\.container"/);
  refuse([{ ...range, host: '1' }], 'ERR_INVALID_ARG_TYPE', /"idmap\[0\]\.host"/);
  refuse([{ ...range, ids: 'both' }], 'ERR_INVALID_ARG_VALUE', /'uid', 'gid'/);
  refuse([{ ...range, ids: 'uid' }], 'ERR_INVALID_ARG_VALUE', /for users and for groups/);
  refuse([{ ...range, from: 1 }], 'ERR_INVALID_ARG_VALUE', /"from"/);
  refuse({ lower: [range] }, 'ERR_INVALID_ARG_VALUE', /"lower" is not one of lowerdir, upperdir/);
  refuse({ lowerdir: [5] }, 'ERR_INVALID_ARG_TYPE', /"idmap\.lowerdir\[0\]"/);
  t.throws(() => mountOverlaySync({ lowerdir: '/l', upperdir: '/u', workdir: '/w', idmap: [range], rootless: true }), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /`idmap` and `rootless` exclude each other/,
  });
});
