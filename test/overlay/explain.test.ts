/** `explain`: the reason of each finding is that of the mount's error. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  type Explanation,
  explain,
  type Finding,
  mountOverlay,
  type OverlayError,
  type OverlayOptions,
} from 'overlayfs';
import {
  layers,
  MS_BIND,
  MS_RDONLY,
  MS_REMOUNT,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scratch,
} from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

const MS_READONLY_BIND = MS_REMOUNT | MS_BIND | MS_RDONLY;

type Layers = ReturnType<typeof layers>;

interface Cause {
  /** Spoils the layers, and returns the options that differ. */
  readonly spoil: (set: Layers, dir: string) => Partial<OverlayOptions> | Promise<Partial<OverlayOptions>>;
  readonly reasons: readonly string[];
  readonly role?: string;
}

const causes: Readonly<Record<string, Cause>> = {
  'a lower that is missing': {
    spoil: (_, dir) => ({ lowerdir: join(dir, 'none') }),
    reasons: ['lower-missing'],
    role: 'lowerdir',
  },
  'an upper in use': {
    async spoil(set, dir) {
      makeTree(dir, { 'other/': '' });
      await mountOverlay({ ...set, target: join(dir, 'other') });
      return {};
    },
    reasons: ['upper-in-use'],
    role: 'upperdir',
  },
  'a lower inside another': {
    spoil({ lowerdir }) {
      mkdirSync(join(lowerdir, 'inside'));
      return { lowerdir: [join(lowerdir, 'inside'), lowerdir] };
    },
    reasons: ['layers-overlap'],
    role: 'lowerdir',
  },
  'an upper and a work on a read-only mount': {
    spoil(_, dir) {
      makeTree(dir, { 'own/upper/': '', 'own/work/': '' });
      const own = join(dir, 'own');
      for (const flags of [MS_BIND, MS_READONLY_BIND]) native.mount(own, own, '', flags, '');
      return { upperdir: join(own, 'upper'), workdir: join(own, 'work') };
    },
    reasons: ['upper-read-only'],
    role: 'upperdir',
  },
  'a work that the kernel cannot empty': {
    spoil({ workdir }) {
      makeTree(workdir, { 'work/a/b/leftover': '' });
      return {};
    },
    reasons: ['work-leftovers'],
    role: 'workdir',
  },
  'a target that is a mount point': {
    spoil({ target }) {
      native.mount('own', target, 'tmpfs', 0, '');
      return {};
    },
    reasons: ['target-mounted'],
    role: 'target',
  },
  'a file in the place of an upper': {
    spoil(_, dir) {
      writeFileSync(join(dir, 'file'), '');
      return { upperdir: join(dir, 'file') };
    },
    reasons: ['upper-not-directory'],
    role: 'upperdir',
  },
};

/** Returns the error of the mount. */
async function errorOf(t: ExecutionContext, options: OverlayOptions): Promise<OverlayError> {
  return (await t.throwsAsync(mountOverlay(options))) as OverlayError;
}

const reasonsOf = ({ findings }: Explanation): string[] => findings.map(({ reason }) => reason);

for (const [title, { spoil, reasons, role }] of Object.entries(causes)) {
  mountTest(`${title}: as the mount says`, async (t) => {
    const dir = scratch(t);
    const set = layers(dir);
    const options = { ...set, ...(await spoil(set, dir)) };
    const before = mountsBelow(dir);
    const explanation = await explain(options);
    t.deepEqual(mountsBelow(dir), before, 'nothing is mounted');
    t.like(explanation, { ok: false, complete: true });
    t.deepEqual(reasonsOf(explanation), reasons);
    const error = await errorOf(t, options);
    const [{ hint, message, ...found }] = explanation.findings as [Finding];
    t.is(found.reason, error.reason);
    t.is(found.role, role as typeof found.role);
    t.is(found.path, error.path);
    t.is(hint, error.hint);
    t.regex(message, /\.$/);
    t.deepEqual(JSON.parse(JSON.stringify(explanation)), explanation, 'it is plain data');
  });
}

mountTest('all that is in the way, and the file systems of the paths', async (t) => {
  const dir = scratch(t);
  const set = layers(dir);
  makeTree(set.workdir, { 'work/a/b/leftover': '' });
  const none = join(dir, 'none');
  const explanation = await explain({ ...set, lowerdir: [none, set.lowerdir] });
  t.deepEqual(reasonsOf(explanation), ['lower-missing', 'work-leftovers']);
  const there = { found: true, fileSystem: 'tmpfs', mount: dir };
  t.deepEqual(explanation.paths, [
    { role: 'target', path: set.target, ...there },
    { role: 'lowerdir', index: 0, path: none, found: false },
    { role: 'lowerdir', index: 1, path: set.lowerdir, ...there },
    { role: 'upperdir', path: set.upperdir, ...there },
    { role: 'workdir', path: set.workdir, ...there },
  ]);
});

mountTest('nothing in the way: the mount succeeds', async (t) => {
  const dir = scratch(t);
  const { target, lowerdir, upperdir } = layers(dir);
  const rows: OverlayOptions[] = [
    { lowerdir: [lowerdir, upperdir], target },
    { lowerdir: [lowerdir, upperdir] },
    { lowerdir, upperdir: join(dir, 'new'), create: true, target },
    { lowerdir, upperdir, create: true },
    { lowerdir, temporary: true, rootless: true },
  ];
  for (const options of rows) {
    const before = mountsBelow(dir).length;
    t.like(await explain(options), { ok: true, findings: [], complete: true });
    t.is(mountsBelow(dir).length, before);
    await (await mountOverlay(options)).unmount();
  }
});

test('wrong arguments: the errors of mountOverlay', async (t) => {
  const rows = [
    undefined,
    {},
    { lowerdir: 1 },
    { lowerdir: '/', lowerDir: '/' },
    { lowerdir: '/', upperdir: '/u' },
    { lowerdir: '/', index: 'maybe' },
    { lowerdir: '/', target: '/m', rootless: true },
    { lowerdir: '/', upperdir: '/u', workdir: '/w', metacopy: true, redirectDir: 'nofollow' },
    { lowerdir: Array(1000).fill('/') },
  ] as unknown as OverlayOptions[];
  for (const options of rows) {
    const { name, message, code, reason } = (await t.throwsAsync(explain(options))) as OverlayError;
    t.like(await t.throwsAsync(mountOverlay(options)), { name, message, code, reason });
    t.regex(name, /^(?:Type|Range)Error$/);
  }
});

test('a signal that has aborted, and one that aborts', async (t) => {
  await t.throwsAsync(explain({ lowerdir: ['/usr', '/etc'], signal: AbortSignal.abort() }), { code: 'ABORT_ERR' });
  const controller = new AbortController();
  const pending = explain({ lowerdir: ['/usr', '/etc'], signal: controller.signal });
  controller.abort();
  await t.throwsAsync(pending, { code: 'ABORT_ERR' });
});

mountTest('a target in another mount namespace is not looked for in this one', async (t) => {
  const { target: _, ...set } = layers(scratch(t));
  const explanation = await explain({ ...set, target: '/no/where', namespace: '/proc/self/ns/mnt' });
  t.deepEqual(explanation.findings, []);
  t.deepEqual(
    explanation.paths.map(({ role }) => role),
    ['lowerdir', 'upperdir', 'workdir'],
  );
});

mountTest('a plain user: a rootless mount needs no privilege, one at a target does', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  const set = layers(dir);
  giveTo(dir, ...Object.values(set));
  const body = `const set = JSON.parse(args[0]);
    const { target, ...layers } = set;
    const reasons = [];
    for (const options of [set, { ...layers, rootless: 'auto' }]) {
      const { findings } = await overlayfs.explain(options);
      const error = await overlayfs.mountOverlay(options).then((mount) => mount.unmount(), (error) => error);
      reasons.push([findings.map(({ reason }) => reason), error?.reason ?? '']);
    }
    return reasons;`;
  t.deepEqual(evaluateAsNobody(body, JSON.stringify(set)), [
    [['no-privilege'], 'no-privilege'],
    [[], ''],
  ]);
});
