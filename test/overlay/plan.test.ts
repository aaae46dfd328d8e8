/**
 * Plans without privilege: options and a record of features in, a list of system calls out. Imports internals: the
 * plan is what it tests.
 */
import test from 'ava';
import type { OverlayOptions } from 'overlayfs';
import type { KernelFeatures } from '#lib/features/record.js';
import { formatPlan } from '#lib/kernel/format.js';
import { checkOptions } from '#lib/options/check.js';
import { plan } from '#lib/overlay/plan.js';
import { newest } from '../support/features.js';

const options: OverlayOptions = { lowerdir: ['/a', '/b:c'], upperdir: '/u,v', workdir: '/w\\x', target: '/m' };

const planned = (change: Partial<OverlayOptions>, features: Partial<KernelFeatures> = {}): string[] =>
  formatPlan(plan(checkOptions({ ...options, ...change }), { ...newest, ...features }).plan)
    .trimEnd()
    .split('\n');
/** True if there are newer mounts, which is asked before an upper is used. */
const news = 'news()  # guard: mounts-are-unknown; ENOSYS, EPERM will do';
/** The names of the calls, and the guards. */
const calls = (lines: string[]): string[] =>
  lines.map((line) => (line.startsWith('guard(') ? line : line.replace(/\(.*/, '')));

test('by descriptors: 6.13 and later', (t) => {
  t.deepEqual(planned({ redirectDir: 'on', volatile: true }, { lowerdirAppend: false }), [
    'openat2(AT_FDCWD, "/m", O_CLOEXEC|O_DIRECTORY|O_NOFOLLOW|O_PATH, 0) = fd0',
    'reserve_target(fd0)  # guard: target-is-mount-point, target-is-reserved',
    'openat2(AT_FDCWD, "/a", O_CLOEXEC|O_DIRECTORY|O_PATH, 0) = fd1',
    'openat2(AT_FDCWD, "/b:c", O_CLOEXEC|O_DIRECTORY|O_PATH, 0) = fd2',
    'openat2(AT_FDCWD, "/u,v", O_CLOEXEC|O_DIRECTORY|O_PATH, 0) = fd3',
    'openat2(AT_FDCWD, "/w\\\\x", O_CLOEXEC|O_DIRECTORY|O_PATH, 0) = fd4',
    news,
    'apart(fd3, fd4, fd1, "")  # guard: layers-overlap',
    'apart(fd3, fd4, fd2, "")  # guard: layers-overlap',
    'reserve(fd3)  # guard: directory-is-in-use',
    'reserve(fd4)  # guard: directory-is-in-use',
    'fsopen("overlay", FSOPEN_CLOEXEC) = fd5',
    'fsconfig(fd5, FSCONFIG_SET_STRING, "source", "overlay", 0)',
    'fsconfig(fd5, FSCONFIG_SET_FD, "lowerdir+", NULL, fd1)',
    'fsconfig(fd5, FSCONFIG_SET_FD, "lowerdir+", NULL, fd2)',
    'fsconfig(fd5, FSCONFIG_SET_FD, "upperdir", NULL, fd3)',
    'fsconfig(fd5, FSCONFIG_SET_FD, "workdir", NULL, fd4)',
    'fsconfig(fd5, FSCONFIG_SET_STRING, "redirect_dir", "on", 0)',
    'fsconfig(fd5, FSCONFIG_SET_FLAG, "volatile", NULL, 0)',
    'remove(AT_FDCWD, "/w\\\\x/work")  # only on failure; any error will do',
    'fsconfig(fd5, FSCONFIG_CMD_CREATE, NULL, NULL, 0)',
    'fsmount(fd5, FSMOUNT_CLOEXEC, 0) = fd6',
    'fstatfs(fd6)',
    'guard(superblock-is-read-only)',
    'statx(fd6, "", AT_EMPTY_PATH, STATX_INO|STATX_MNT_ID_UNIQUE)',
    'guard(upperdir-is-immutable)',
    'record(fd6)',
    'move_mount(fd6, "", fd0, "", MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH)  # undone on failure',
  ]);
});

test('by readable descriptors: early 6.13 and 6.14', (t) => {
  const lines = planned({}, { lowerdirAppend: false, layerDescriptors: 'readable' });
  t.true(lines.includes('openat2(AT_FDCWD, "/a", O_CLOEXEC|O_DIRECTORY, 0) = fd1'));
});

test('lowers of short plain paths as strings, without being opened, and others by descriptor: 6.13 and later', (t) => {
  const lines = planned({ lowerdir: ['/b:c', `/${'x'.repeat(255)}`, '/é'] });
  t.is(lines.filter((line) => line.startsWith('openat2')).length, 4, 'target, a lower, upper, work');
  t.true(lines.includes('fsconfig(fd4, FSCONFIG_SET_STRING, "lowerdir+", "/b:c", 0)'), 'not escaped');
  t.true(lines.includes('fsconfig(fd4, FSCONFIG_SET_FD, "lowerdir+", NULL, fd1)'), 'too long');
  t.true(lines.includes('fsconfig(fd4, FSCONFIG_SET_STRING, "lowerdir+", "/é", 0)'));
  t.true(lines.includes('fsconfig(fd4, FSCONFIG_SET_FD, "upperdir", NULL, fd2)'), 'by descriptor, though plain');
  t.true(lines.includes('fsconfig(fd4, FSCONFIG_SET_FD, "workdir", NULL, fd3)'));
});

test('by strings: 6.7 to 6.12', (t) => {
  const lines = planned({}, { layerDescriptors: false, uniqueMountId: false });
  t.true(lines.includes('fsconfig(fd3, FSCONFIG_SET_STRING, "lowerdir", "/a:/b\\\\:c", 0)'), 'in one value, escaped');
  t.true(lines.includes('fsconfig(fd3, FSCONFIG_SET_STRING, "upperdir", "/u\\\\,v", 0)'), 'escaped');
  t.true(lines.includes('fsconfig(fd3, FSCONFIG_SET_STRING, "workdir", "/w\\\\\\\\x", 0)'), 'escaped once');
  t.true(lines.includes('statx(fd4, "", AT_EMPTY_PATH, STATX_INO|STATX_MNT_ID)'));
});

test('by strings: 255 bytes fit, 256 go by descriptor', (t) => {
  const path = (length: number) => `/${'x'.repeat(length - 1)}`;
  const shown = (change: Partial<OverlayOptions>) => planned(change, { layerDescriptors: false }).join('\n');
  t.true(shown({ lowerdir: [path(253), '/b'] }).includes(`"lowerdir+", "${path(253)}"`), 'not in one value');
  t.true(shown({ lowerdir: [path(252), '/b'] }).includes(`"lowerdir", "${path(252)}:/b"`));
  t.true(shown({ lowerdir: [path(255), '/b'] }).includes(`"lowerdir+", "${path(255)}"`));
  t.true(shown({ lowerdir: [path(256), '/b'] }).includes('"lowerdir+", "/proc/self/fd/{fd1}"'));
  t.true(
    shown({ upperdir: `${path(254)}\\` }).includes('"upperdir", "/proc/self/fd/{fd1}"'),
    'the escaped length counts',
  );
  t.true(shown({ workdir: path(256) }).includes('"workdir", "/proc/self/fd/{fd2}"'));
});

test('by mount(2): older, with everything escaped', (t) => {
  t.deepEqual(planned({ index: false }, { mountApi: false }), [
    'openat2(AT_FDCWD, "/m", O_CLOEXEC|O_DIRECTORY|O_NOFOLLOW|O_PATH, 0) = fd0',
    'reserve_target(fd0)  # guard: target-is-mount-point, target-is-reserved',
    'openat2(AT_FDCWD, "/u,v", O_CLOEXEC|O_DIRECTORY|O_PATH, 0) = fd1',
    'openat2(AT_FDCWD, "/w\\\\x", O_CLOEXEC|O_DIRECTORY|O_PATH, 0) = fd2',
    news,
    'apart(fd1, fd2, AT_FDCWD, "/a")  # guard: layers-overlap',
    'apart(fd1, fd2, AT_FDCWD, "/b:c")  # guard: layers-overlap',
    'reserve(fd1)  # guard: directory-is-in-use',
    'reserve(fd2)  # guard: directory-is-in-use',
    'mount("overlay", "/proc/self/fd/{fd0}", "overlay", 0, "lowerdir=/a:/b\\\\:c,upperdir=/u\\\\,v,workdir=/w\\\\\\\\x,index=off")  # undone on failure',
    'openat2(AT_FDCWD, "/m", O_CLOEXEC|O_DIRECTORY|O_NOFOLLOW|O_PATH, 0) = fd3',
    'fstatfs(fd3)',
    'guard(target-was-replaced)',
    'guard(superblock-is-read-only)',
    'statx(fd3, "", AT_EMPTY_PATH, STATX_INO|STATX_MNT_ID_UNIQUE)',
    'guard(upperdir-is-immutable)',
    'record(fd3)',
  ]);
});

test('by mount(2): a page is measured, to the byte, and what passes it goes by numbers', (t) => {
  const fixed = 'lowerdir=/:,upperdir=/u,workdir=/w'.length;
  const half = (bytes: number) => `/${'y'.repeat(bytes)}`;
  const withBytes = (total: number) => {
    const rest = total - fixed - 1;
    return { lowerdir: [half(1000), half(rest - 1000)], upperdir: '/u', workdir: '/w' };
  };
  const isByNumbers = (total: number, pageSize = 4096) =>
    planned(withBytes(total), { mountApi: false, pageSize }).some((line) => line.includes('"lowerdir={fd1}:{fd2},'));
  t.false(isByNumbers(4095));
  t.true(isByNumbers(4096));
  t.false(isByNumbers(4096, 65536));
});

test('by mount(2) with numbers: on a thread that has a working directory of its own', (t) => {
  const lowerdir = Array.from({ length: 40 }, (_, i) => `/${i}${'x'.repeat(200)}`);
  const lines = planned({ lowerdir, datadir: '/d', index: false }, { mountApi: false });
  t.deepEqual(calls(lines), [
    'openat2',
    'reserve_target',
    ...Array(43).fill('openat2'),
    'unshare',
    'chdir',
    'news',
    ...Array(41).fill('apart'),
    'reserve',
    'reserve',
    'mount',
    'openat2',
    'fstatfs',
    'guard(target-was-replaced)',
    'guard(superblock-is-read-only)',
    'statx',
    'guard(upperdir-is-immutable)',
    'record',
  ]);
  t.true(lines.includes('unshare(CLONE_FS)'));
  t.true(lines.includes('chdir("/proc/self/fd")'));
  const data = /"(lowerdir=[^"]*)"/.exec(lines.join('\n'))?.[1] ?? '';
  t.true(data.startsWith('lowerdir={fd1}:{fd2}:'));
  t.true(data.endsWith('{fd40}::{fd41},upperdir=/u\\\\,v,workdir=/w\\\\\\\\x,index=off'), data.slice(-80));
});

test('by mount(2) with numbers: upper and work too where they are too long', (t) => {
  const long = (kind: string) => `/${kind}${'x'.repeat(2100)}`;
  const lines = planned({ upperdir: long('u'), workdir: long('w'), index: false }, { mountApi: false });
  t.true(lines.join('\n').includes('"lowerdir={fd1}:{fd2},upperdir={fd3},workdir={fd4},index=off"'));
});

test('by mount(2): what passes a page even so is refused', (t) => {
  const lowerdir = Array.from({ length: 500 }, (_, i) => `/lower/${i}`);
  const text = 'c'.repeat(255);
  const long = { context: text, fscontext: text, defcontext: text, rootcontext: text };
  const error = t.throws(() => planned({ lowerdir, ...long }, { mountApi: false }), { code: 'E2BIG' });
  t.like(error, { reason: 'options-too-long', path: '/m' });
});

test('by one string of lowerdir: 6.5, where it fits', (t) => {
  const between = { layerDescriptors: false, lowerdirAppend: false } as const;
  t.true(planned({}, between).includes('fsconfig(fd5, FSCONFIG_SET_STRING, "lowerdir", "/a:/b\\\\:c", 0)'));
  t.true(
    planned({ lowerdir: [`/${'x'.repeat(255)}`, '/b'] }, between)
      .join('\n')
      .includes('mount("overlay"'),
  );
});

test("by the wrapper around mount(2)'s options: 5.2 to 6.4, where no path needs a detour", (t) => {
  const wrapper = { fsContext: false, layerDescriptors: false, lowerdirAppend: false } as const;
  const isByMount = (change: Partial<OverlayOptions>, features: Partial<KernelFeatures> = {}) =>
    calls(planned({ upperdir: '/u', ...change }, { ...wrapper, ...features })).includes('mount');
  const lines = planned({ upperdir: '/u' }, wrapper);
  t.is(calls(lines).at(-1), 'move_mount');
  t.true(lines.includes('fsconfig(fd5, FSCONFIG_SET_STRING, "lowerdir", "/a:/b\\\\:c", 0)'));
  t.true(lines.includes('fsconfig(fd5, FSCONFIG_SET_STRING, "workdir", "/w\\\\\\\\x", 0)'));
  t.false(isByMount({}));
  t.true(isByMount({ upperdir: '/u,v' }));
  t.true(isByMount({ lowerdir: ['/a,b', '/c'] }));
  t.true(isByMount({ context: 'u:r:t:s0:c1,c2' }));
  t.true(isByMount({ workdir: `/${'x'.repeat(255)}` }));
  t.false(isByMount({ nosymfollow: true }));
  t.true(isByMount({ nosymfollow: true }, { mountSetattr: false }));
  t.true(isByMount({ propagation: 'shared' }, { mountSetattr: false }));
});

test('a read-only mount of a writable overlay is made so after its superblock is known to be writable', (t) => {
  const lines = calls(planned({ readonly: true }));
  t.deepEqual(lines.slice(lines.indexOf('fsmount')), [
    'fsmount',
    'fstatfs',
    'guard(superblock-is-read-only)',
    'mount_setattr',
    'statx',
    'guard(upperdir-is-immutable)',
    'record',
    'move_mount',
  ]);
  t.deepEqual(calls(planned({ readonly: true }, { mountApi: false })), [
    'openat2',
    'reserve_target',
    'openat2',
    'openat2',
    'news',
    'apart',
    'apart',
    'reserve',
    'reserve',
    'mount',
    'openat2',
    'fstatfs',
    'guard(target-was-replaced)',
    'guard(superblock-is-read-only)',
    'mount',
    'statx',
    'guard(upperdir-is-immutable)',
    'record',
  ]);
  const lowerOnly = { upperdir: undefined, workdir: undefined } as unknown as Partial<OverlayOptions>;
  const view = planned({ ...lowerOnly, readonly: true }).join('\n');
  t.true(view.includes('fsmount(fd1, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)'));
  t.false(view.includes('fstatfs'));
});

test('attributes have two names', (t) => {
  const all = {
    nosuid: true,
    nodev: true,
    noexec: true,
    nosymfollow: true,
    nodiratime: true,
    atime: 'strictatime',
  } as const;
  t.true(
    planned(all).some((line) =>
      line.startsWith(
        'fsmount(fd3, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV|MOUNT_ATTR_NODIRATIME|MOUNT_ATTR_NOEXEC|MOUNT_ATTR_NOSUID|MOUNT_ATTR_STRICTATIME)',
      ),
    ),
  );
  t.true(
    planned(all, { mountApi: false }).some((line) =>
      line.startsWith(
        'mount("overlay", "/proc/self/fd/{fd0}", "overlay", MS_NODEV|MS_NODIRATIME|MS_NOEXEC|MS_NOSUID|MS_NOSYMFOLLOW|MS_STRICTATIME, ',
      ),
    ),
  );
});

test('userxattr goes without saying in a user namespace, unless something says otherwise', (t) => {
  const has = (change: Partial<OverlayOptions>, userNamespace: boolean) =>
    planned(change, { userNamespace }).some((line) => line.includes('"userxattr"'));
  t.true(has({}, true));
  t.true(has({ userxattr: true }, false));
  t.false(has({}, false));
  t.false(has({ userxattr: false }, true));
  t.true(has({ redirectDir: 'off', metacopy: false }, true));
  t.true(has({ upperdir: undefined, workdir: undefined } as unknown as Partial<OverlayOptions>, true));
});

test('create makes what is missing from the top, and takes it back from the bottom', (t) => {
  const lines = planned({ create: true, upperdir: '/x//y/', workdir: undefined, target: '/m' } as never);
  t.deepEqual(lines.slice(0, 7), [
    'mkdirat(AT_FDCWD, "/m", 0755)  # undone on failure; EEXIST will do',
    'mkdirat(AT_FDCWD, "/x", 0755)  # undone on failure; EEXIST will do',
    'mkdirat(AT_FDCWD, "/x//y", 0700)  # undone on failure; EEXIST will do',
    'mkdirat(AT_FDCWD, "/x", 0755)  # undone on failure; EEXIST will do',
    'mkdirat(AT_FDCWD, "/x/y.work", 0700)  # undone on failure; EEXIST will do',
    'resemble(AT_FDCWD, "/x//y", "/a")',
    'openat2(AT_FDCWD, "/m", O_CLOEXEC|O_DIRECTORY|O_NOFOLLOW|O_PATH, 0) = fd0',
  ]);
  // Not before the guards: until it makes the mount, what is in the workdir is not its own.
  const make = lines.findIndex((line) => line.includes('FSCONFIG_CMD_CREATE'));
  t.deepEqual(lines.slice(make - 2, make), [
    'unlinkat(AT_FDCWD, "/x/y.work/index", AT_REMOVEDIR)  # only on failure; any error will do',
    'unlinkat(AT_FDCWD, "/x/y.work/work", AT_REMOVEDIR)  # only on failure; any error will do',
  ]);
});
