/**
 * `overlayfs mount --dry-run`: without privilege, by each fallback. Imports internals: the list of fallbacks has to be
 * complete.
 */
import test from 'ava';
import { type WayName, wayNames } from '#lib/overlay/ways.js';
import { withoutCapabilities } from '../support/index.js';
import { json, overlayfs, run } from './run.js';

const layers = [
  '--lowerdir',
  '/layers/one:two',
  '--lowerdir',
  '/layers/three',
  '--upperdir',
  '/upper',
  '--workdir',
  '/wd',
  '/m',
];

const says: Readonly<Record<WayName, RegExp>> = {
  descriptors:
    /"\/layers\/one:two", O_CLOEXEC\|O_DIRECTORY\|O_PATH, 0\) = fd1\n[\s\S]*SET_FD, "lowerdir\+", NULL, fd1\)/,
  readable: /"\/layers\/one:two", O_CLOEXEC\|O_DIRECTORY, 0\) = fd1\n[\s\S]*SET_FD, "lowerdir\+", NULL, fd1\)/,
  strings: /SET_STRING, "lowerdir", "\/layers\/one\\\\:two:\/layers\/three", 0\)/,
  string: /SET_STRING, "lowerdir", "\/layers\/one\\\\:two:\/layers\/three", 0\)/,
  wrapper: /SET_STRING, "lowerdir", "\/layers\/one\\\\:two:\/layers\/three", 0\)[\s\S]*^move_mount/m,
  mount: /^mount\(.*"lowerdir=\/layers\/one\\\\:two:\/layers\/three,upperdir=\/upper,workdir=\/wd/m,
  numbers: /^chdir\("\/proc\/self\/fd"\)\n[\s\S]*^mount\(.*"lowerdir=\{fd1\}:\{fd2\},upperdir=\/upper/m,
};

for (const way of wayNames) {
  test.serial(`--way ${way}`, async (t) => {
    const { code, stdout, stderr } = await overlayfs('mount', '--dry-run', '--way', way, ...layers);
    t.deepEqual([code, stderr], [0, '']);
    t.regex(stdout, says[way]);
  });
}

test.serial('without a way, it is that of this kernel; in JSON as a list', async (t) => {
  const { code, stdout, stderr } = await overlayfs('mount', '--dry-run', ...layers);
  t.deepEqual([code, stderr], [0, '']);
  t.regex(stdout, /^openat2\(.*"\/m"|^statx\(.*"\/m"/);
  t.like(await json('mount', '--dry-run', ...layers), {
    code: 0,
    document: { calls: stdout.trimEnd().split('\n') },
  });
});

test.serial('each flag arrives', async (t) => {
  const words = '--redirect-dir on --no-index --xino off --uuid null --volatile --default-permissions --source it';
  const flags = `${words} --readonly-superblock --nosuid --nodev --noexec --nodiratime --atime strictatime`;
  const { stdout, stderr } = await overlayfs('mount', '--dry-run', '--way', 'mount', ...flags.split(' '), ...layers);
  t.is(stderr, '');
  t.regex(
    stdout,
    /^mount\("it", "\/proc\/self\/fd\/\{fd0\}", "overlay", MS_NODEV\|MS_NODIRATIME\|MS_NOEXEC\|MS_NOSUID\|MS_RDONLY\|MS_STRICTATIME, /m,
  );
  t.regex(stdout, /,redirect_dir=on,index=off,xino=off,uuid=null,volatile,default_permissions"\)/);
  const long = ['--lowerdir=/a', '--datadir=/d', '--upperdir=/u', '--workdir=/w'];
  t.regex(
    (await overlayfs('mount', '--dry-run', '--way', 'mount', ...long, '--', '/m')).stdout,
    /"lowerdir=\/a::\/d,upperdir=\/u,workdir=\/w/,
  );
});

test('without any privilege, and relative paths from the root on', (t) => {
  const command = process.getuid?.() === 0 ? withoutCapabilities : [];
  const { code, stdout } = run(['mount', '--dry-run', '--lowerdir', 'a', '--upperdir', 'u', '--create', 'm'], {
    command,
    cwd: '/usr',
  });
  t.is(code, 0);
  t.true(stdout.includes('mkdirat(AT_FDCWD, "/usr/u.work", 0700)'));
  t.true(stdout.includes('openat2(AT_FDCWD, "/usr/a"'));
});
