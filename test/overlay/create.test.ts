/** The directories that `create` makes. */
import { chmodSync, chownSync, mkdirSync, readdirSync, statSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay, mountOverlaySync, type OverlayError } from 'overlayfs';
import { changes } from 'overlayfs/layers';
import { overlayfs } from '../cli/run.js';
import { fromAsync, getAttribute, makeTree, mountTest, native, scratch, setAttribute } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { evaluateAs } from '../support/plain-user.js';

const seen = (path: string) => {
  const { uid, gid, mode, mtimeMs } = statSync(path);
  return { uid, gid, mode, mtimeMs };
};

/** An access control list: the permissions of the owner, of user 2000, of the group, the mask, and of others. */
function toList(...permissions: readonly [owner: number, user: number, group: number, mask: number, others: number]) {
  const list = Buffer.alloc(4 + 5 * 8, 0xff);
  list.writeUInt32LE(2);
  [1, 2, 4, 0x10, 0x20].forEach((tag, i) => {
    list.writeUInt16LE(tag, 4 + i * 8);
    list.writeUInt16LE(permissions[i] as number, 6 + i * 8);
  });
  list.writeUInt32LE(2000, 4 + 8 + 4);
  return list;
}

const LISTS = ['system.posix_acl_access', 'system.posix_acl_default'] as const;
mountTest('a created upperdir has the attributes of the topmost lower: owner, mode, lists, times', async (t) => {
  for (const hasLists of [true, false]) {
    for (const mode of [0o700, 0o1777, 0o2750, 0o555]) {
      const dir = scratch(t, 'disk');
      makeTree(dir, { 'lower/file': 'text', 'other/': '', 'target/': '', 'made/': '' });
      const [lower, upperdir, target] = ['lower', 'made/upper', 'target'].map((name) => join(dir, name)) as [
        string,
        string,
        string,
      ];
      setAttribute(join(dir, 'made'), 'system.posix_acl_default', toList(7, 7, 7, 7, 7));
      for (const name of hasLists ? LISTS : []) setAttribute(lower, name, toList(7, 5, 0, 5, 0));
      chownSync(lower, 12, 34);
      chmodSync(lower, mode);
      setAttribute(lower, 'user.kept', 'value');
      setAttribute(lower, 'trusted.overlay.opaque', 'y');
      utimesSync(lower, 900_000_000.25, 1_000_000_000.5);
      const [before, lists] = [seen(lower), LISTS.map((name) => getAttribute(lower, name))];
      const mounted = mountOverlaySync({ lowerdir: [lower, join(dir, 'other')], upperdir, target, create: true });
      t.is(statSync(upperdir).atimeMs, 900_000_000_250);
      t.deepEqual(seen(target), before);
      t.deepEqual(
        LISTS.map((name) => getAttribute(upperdir, name)),
        lists,
      );
      t.is(
        lists.every((list) => list !== undefined),
        hasLists,
      );
      t.is(getAttribute(upperdir, 'user.kept'), 'value');
      t.is(getAttribute(upperdir, 'trusted.overlay.opaque'), undefined);
      t.is(statSync(`${upperdir}.work`).mode & 0o777, 0o700);
      t.deepEqual(await fromAsync(changes(mounted)), [], 'no change is shown before there is one');
      mounted.unmountSync();
    }
  }
});

mountTest('an upperdir that exists keeps its attributes', (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/': '', 'upper/': '', 'target/': '' });
  const at = (name: string) => join(dir, name);
  chownSync(at('upper'), 12, 34);
  chmodSync(at('upper'), 0o750);
  utimesSync(at('upper'), 1_000_000_000, 1_000_000_000);
  const before = seen(at('upper'));
  mountOverlaySync({ lowerdir: at('lower'), upperdir: at('upper'), target: at('target'), create: true }).unmountSync();
  t.deepEqual(seen(at('upper')), before);
});

const notCopied = ['user.overlay.opaque', 'security.selinux'];

mountTest(
  'an upperdir of mapped lowers keeps its owner, and lets in nobody whom the lower keeps out',
  { needs: 'idmapped layers' },
  (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/': '', 'target/': '' });
    const [lowerdir, upperdir, target] = ['lower', 'upper', 'target'].map((name) => join(dir, name)) as [
      string,
      string,
      string,
    ];
    chownSync(lowerdir, 12, 34);
    chmodSync(lowerdir, 0o2751);
    for (const name of notCopied) setAttribute(lowerdir, name, 'y');
    setAttribute(lowerdir, LISTS[0], toList(7, 5, 0, 5, 1));
    const idmap = { lowerdir: [{ container: 0, host: 5000, size: 100 }] };
    mountOverlaySync({ lowerdir, upperdir, target, create: true, idmap }).unmountSync();
    t.like(statSync(upperdir), { uid: 0, gid: 0, mode: 0o40700 });
    for (const name of [...notCopied, LISTS[0]]) t.is(getAttribute(upperdir, name), undefined, name);
  },
);

/**
 * A lower's owner and group, where 1 stands for those of the user who mounts, and its mode; then the mode of the upper,
 * by user. A namespace shows the ids that it lacks as 65534, so who has that id may not be the owner.
 */
const ofLowers = [
  [1, 1, 0o2770, 0o2770, 0o2770, 0o700],
  [1, 1, 0o555, 0o555, 0o755, 0o755],
  [0, 1, 0o555, 0o755, 0o755, 0o755],
  [0, 1, 0o1705, 0o1705, 0o1705, 0o1705],
  [1, 0, 0o750, 0o700, 0o700, 0o700],
  [0, 0, 0o755, 0o755, 0o755, 0o755],
  [0, 0, 0o751, 0o711, 0o711, 0o711],
  [0, 0, 0o2770, 0o700, 0o700, 0o700],
  [0, 0, 0o1777, 0o1777, 0o1777, 0o1777],
  // The last one has a list with an id that the namespace lacks.
  [1, 1, 0o755, 0o700, 0o700, 0o700],
] as const;

for (const [column, uid, gid] of [
  [3, 1000, 1000],
  [4, NOBODY, 1000],
  [5, 1000, NOBODY],
] as const) {
  mountTest(
    `an upperdir that ${uid}:${gid} creates lets in nobody whom the lower keeps out`,
    { needs: 'rootless' },
    (t) => {
      const dir = scratch(t, 'disk');
      ofLowers.forEach(([isOwn, isOwnGroup, mode], i) => {
        const lower = join(dir, `lower${i}`);
        makeTree(lower, { file: '' });
        if (i === ofLowers.length - 1) setAttribute(lower, LISTS[0], toList(7, 0, 0, 5, 5));
        chownSync(lower, isOwn * uid, isOwnGroup * gid);
        chmodSync(lower, mode);
      });
      chownSync(dir, uid, gid);
      const made = evaluateAs(
        ['setpriv', `--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--inh-caps=-all'],
        `const [dir, count] = args;
        const modes = [];
        for (let i = 0; i < count; i++) {
          const [lowerdir, upperdir] = ['lower' + i, 'upper' + i].map((name) => join(dir, name));
          await (await overlayfs.mountOverlay({ lowerdir, upperdir, create: true, rootless: true })).unmount();
          modes.push((fs.statSync(upperdir).mode & 0o7777).toString(8));
        }
        return modes;`,
        ...[dir, String(ofLowers.length)],
      );
      t.deepEqual(
        made,
        ofLowers.map((row) => row[column].toString(8)),
      );
    },
  );
}

mountTest('a file system without inodes for the mount is named as the cause, and nothing is left', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/': '', 'full/': '', 'target/': '' });
  const at = (name: string) => join(dir, name);
  const options = { lowerdir: at('lower'), upperdir: at('full/u'), target: at('target'), create: true };
  for (const there of [[], ['u'], ['u', 'u.work']]) {
    const failures = new Set<string>();
    for (let inodes = there.length + 1, isMounted = false; !isMounted; inodes++) {
      t.is(native.mount('full', at('full'), 'tmpfs', 0, `nr_inodes=${inodes}`), 0);
      for (const name of there) mkdirSync(at(`full/${name}`));
      try {
        await (await mountOverlay(options)).unmount();
        isMounted = true;
      } catch (error) {
        const { reason, code, syscall, message } = error as OverlayError;
        t.is(reason, 'out-of-inodes', `${inodes} ${message}`);
        failures.add(`${code} ${syscall}`);
      }
      t.deepEqual(readdirSync(at('full')), isMounted && there.length === 0 ? ['u'] : there);
      t.is(native.umount(at('full'), 0), 0);
    }
    // The kernel mounts read-only if it cannot make its directory in the workdir.
    t.true(failures.has('EROFS undefined'), [...failures].join());
    t.is(failures.has('ENOSPC mkdir'), there.length < 2);
  }
});

mountTest('unmount() removes a created workdir, as disposal does; one that was there stays', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/': '', 'target/': '', 'kept/': '' });
  const options = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'u'), target: join(dir, 'target'), create: true };
  await (await mountOverlay(options)).unmount();
  mountOverlaySync(options).unmountSync();
  t.deepEqual(readdirSync(dir).sort(), ['kept', 'lower', 'target', 'u']);
  await (await mountOverlay(options)).unmount({ detach: true });
  mkdirSync(join(dir, 'w'));
  await (await mountOverlay({ ...options, workdir: join(dir, 'w') })).unmount();
  t.deepEqual(readdirSync(dir).sort(), ['kept', 'lower', 'target', 'u', 'u.work', 'w']);
});

mountTest('run --create leaves the upper alone after the program, and nothing after a failure', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/': '', 'full/': '' });
  const at = (name: string) => join(dir, name);
  chmodSync(at('lower'), 0o750);
  const run = async (lower: string, upper: string, ...command: string[]) => {
    const layers = ['--lowerdir', at(lower), '--upperdir', at(upper), '--create', '--at', at('lower')];
    return (await overlayfs('run', ...layers, '--', ...command)).code;
  };
  for (const [code, lower, ...command] of [
    [125, 'missing', 'true'],
    [127, 'lower', '/no/such/program'],
    [126, 'lower', '/etc/passwd'],
  ] as const) {
    t.is(await run(lower, 'above/u', ...command), code, lower);
    t.deepEqual(readdirSync(dir), ['full', 'lower'], `${code}`);
  }
  t.is(await run('lower', 'u', 'true'), 0);
  t.deepEqual(readdirSync(dir).sort(), ['full', 'lower', 'u']);
  t.is(statSync(at('u')).mode & 0o7777, 0o750);
  // The kernel leaves its own directory in the workdir of a mount that fails.
  for (let inodes = 1, code: number | null = 125; code !== 0; inodes++) {
    t.is(native.mount('full', at('full'), 'tmpfs', 0, `nr_inodes=${inodes}`), 0);
    code = await run('lower', 'full/u', 'true');
    t.true(code === 0 || code === 125, `${inodes} inodes: ${code}`);
    t.deepEqual(readdirSync(at('full')), code === 0 ? ['u'] : [], `${inodes} inodes`);
    t.is(native.umount(at('full'), 0), 0);
  }
});
