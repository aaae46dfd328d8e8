/**
 * The input of the launcher, and its answers. Imports internals: only `spawn` talks to the launcher, and it never
 * sends wrong input.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { OverlayError } from 'overlayfs';
import type { Path } from '#lib/paths.js';
import { type Launch, orders, readReport, toArguments } from '#lib/programs/launch.js';
import { explainLaunch } from '#lib/programs/spawn.js';
import { mountTest, packageRoot, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';

const launcher = join(packageRoot, 'build/Release/launch/overlayfs-launch');

const place = (path: Path, real = path) => ({ path, real });

const launch: Launch = {
  keepsCapabilities: false,
  report: 5,
  closed: [[6, 99]],
  mounts: [
    { mount: 3, at: place('/srv/app') },
    { mount: { path: '/mnt/merged', id: 2 ** 31 + 7 }, at: place(Buffer.from('/b\xff c%', 'latin1')) },
  ],
  readonly: [place('/usr'), place('/link', '/srv'), place('/srv/app/etc')],
  hidden: ['/root'],
  writable: undefined,
  isContained: false,
  isRestricted: false,
  hasOwnDev: false,
  parent: undefined,
  unshared: new Set(),
  hostname: undefined,
  lock: undefined,
  ids: undefined,
  user: { uid: 1000, gid: 100 },
  cwd: '/srv/app',
  argv0: 'name',
  command: ['git', 'status'],
};

test('without privilege: a user namespace, and no capability afterwards', (t) => {
  t.deepEqual(
    orders(launch).map(({ word, args }) => [word, ...args].join(' ')),
    [
      'report 5',
      'close 6 99',
      'cloexec 3',
      'mounted /mnt/merged 2147483655',
      'unshare 268566528',
      'write /proc/self/setgroups deny',
      'write /proc/self/uid_map 1000 1000 1',
      'write /proc/self/gid_map 100 100 1',
      'private',
      'clone 3',
      'tree /mnt/merged',
      'readonly /link',
      'attach /srv/app',
      'attach /b%ff%20c%25',
      'readonly /usr',
      'readonly /srv/app/etc',
      'hide /root',
      'drop',
      'close 6 99',
      'close 3 3',
      'chdir /srv/app',
      'argv0 name',
      'exec git status',
    ],
  );
});

test('with privilege: a mount namespace, and the program as it would be', (t) => {
  const words = orders({ ...launch, user: undefined, argv0: undefined }).map(({ word }) => word);
  t.deepEqual(words.slice(4, 6), ['unshare', 'private']);
  const free = orders({ ...launch, user: undefined, readonly: [] }).map(({ word }) => word);
  t.deepEqual(free.slice(4, 6), ['unshare', 'slave'], 'an unmount elsewhere reaches it');
  for (const word of ['write', 'drop', 'argv0']) t.false(words.includes(word));
});

test('a read-only mount in which another one is shown: between both', (t) => {
  const mounts = ['/', '/srv', '/srv/cache', '/srv/cache/deep'].map((at, mount) => ({ mount, at: place(at) }));
  const given = orders({ ...launch, mounts, readonly: [place('/srv/cache'), place('/srv'), place('/etc')] });
  t.deepEqual(
    given.filter(({ word }) => word === 'attach' || word === 'readonly').map(({ word, args }) => `${word} ${args[0]}`),
    [
      ...['attach /', 'attach /srv', 'readonly /srv'],
      ...['attach /srv/cache', 'readonly /srv/cache', 'attach /srv/cache/deep', 'readonly /etc'],
    ],
  );
});

test('in a user namespace that is there: by descriptor, which the program does not inherit', (t) => {
  const given = orders({ ...launch, user: { joined: 7 } }).map(({ word, args }) => [word, ...args].join(' '));
  t.deepEqual(given.slice(4, 8), ['cloexec 7', 'join 7', 'unshare 131072', 'private']);
  t.true(given.includes('drop'));
});

test('namespaces of its own: before the mounts, or behind a lock with uid 0', (t) => {
  const unshared = new Set(['pid', 'net', 'uts'] as const);
  const words = (more: Partial<Launch>) =>
    orders({ ...launch, readonly: [], ...more }).map(({ word, args }) => [word, ...args].join(' '));
  const plain = words({ unshared, ids: { uid: 1, gid: 2, groups: [3, 4] }, user: undefined });
  t.deepEqual(
    plain.slice(4),
    [
      'unshare 131072',
      'unshare 1073741824',
      'unshare 67108864',
      'unshare 536870912',
      'init ',
      'slave ',
      'proc new',
      'clone 3',
      'tree /mnt/merged',
      'attach /srv/app',
      'attach /b%ff%20c%25',
      'show-proc ',
      'hide /root',
      'network ',
      'ids 1 2 3,4',
      'close 6 99',
      'close 3 3',
      'chdir /srv/app',
      'argv0 name',
      'exec git status',
    ].map((line) => (line.endsWith(' ') ? line.trim() : line)),
  );
  const locked = words({
    unshared: new Set(['net']),
    lock: { maps: { uids: '0 1000 1', gids: '0 100 1' }, isNeeded: true },
    writable: ['/tmp', '/srv/app/x'],
  });
  t.deepEqual(locked.slice(8), [
    'private',
    'proc own',
    'take /tmp',
    'clone 3',
    'tree /mnt/merged',
    'readonly /',
    'attach /tmp',
    'attach /srv/app',
    'attach /b%ff%20c%25',
    'hide /root',
    'lock 268566528 0 1000 1 0 100 1',
    'unshare 1073741824',
    'network',
    'close 6 99',
    'close 3 3',
    'chdir /srv/app',
    'argv0 name',
    'exec git status',
  ]);
});

test('uid 0: a copy of the launcher from the start, and no key of the caller', (t) => {
  const words = orders({ ...launch, isContained: true, ids: { uid: 0, gid: 0, groups: [] } }).map(({ word }) => word);
  t.deepEqual(words.slice(0, 3), ['report', 'seal', 'close']);
  t.is(words[words.indexOf('ids') + 1], 'keyring');
});

test('a small /dev: before what is shown in it, and no device node in any other mount', (t) => {
  const mounts = [
    { mount: 3, at: place('/srv') },
    { mount: { tree: '/dev/fuse' }, at: place('/dev/fuse') },
    { mount: { tmpfs: { size: 4096 } }, at: place('/tmp/own') },
  ];
  const writable = ['/dev/kvm', '/tmp'];
  const hidden = ['/dev/shm', '/secret'];
  const given = {
    ...launch,
    isRestricted: true,
    hasOwnDev: true,
    user: undefined,
    readonly: [],
    mounts,
    writable,
    hidden,
  };
  const words = orders(given).map(({ word, args }) => [word, ...args].join(' '));
  t.deepEqual(words.slice(4, words.indexOf('chdir /srv/app')), [
    'terminal',
    'private',
    'proc own',
    'take /dev/kvm',
    'take /tmp',
    'nodev',
    'clone 3',
    'nodev',
    'take /dev/fuse',
    'tmpfs 4096 -',
    'nodev',
    'readonly /',
    'dev',
    'attach /dev/kvm',
    'attach /tmp',
    'attach /srv',
    'attach /dev/fuse',
    'attach /tmp/own',
    ...['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger', '/sys'].map(
      (path) => `readonly-any ${path}`,
    ),
    'readonly-kernel',
    'hide-any /dev/shm',
    'hide /secret',
    'limit max_cgroup_namespaces 0',
    ...['close 6 99', 'close 3 3'],
  ]);
});

test('a report is that of the word at its position', (t) => {
  const given = orders(launch);
  const position = 1 + toArguments(given).indexOf('chdir');
  t.like(readReport(given, `${position} 2`), { order: { word: 'chdir', path: '/srv/app' }, errno: 2 });
  t.is(readReport(given, ''), undefined);
});

test('the launcher reports what failed, and obeys nothing that it does not know', (t) => {
  const told = (...args: string[]) => {
    const { status, output } = spawnSync(launcher, args, {
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      encoding: 'utf8',
    });
    return [status, output[1], output[3]];
  };
  t.deepEqual(told('report', '3', 'chdir', '/no/where'), [127, '', '3 2']);
  t.deepEqual(told('report', '3', 'dance'), [127, '', '3 22']);
  t.deepEqual(told('report', '3'), [127, '', '3 22']);
  t.deepEqual(told('report', '3', 'attach', '/tmp'), [127, '', '3 22']);
  t.deepEqual(told('report', '3', 'mounted', '/', String(2 ** 31 - 1)), [127, '', '3 116']);
  t.deepEqual(told('report', '3', 'tree', '/'), [127, '', '3 22']);
  t.deepEqual(told('report', '3', 'exec', '/no/where'), [127, '', '3 2']);
  t.deepEqual(told('report', '3', 'exec', ''), [127, '', '3 2']);
  t.deepEqual(told('report', '3', 'chdir', '/t%6dp', 'exec', 'pwd'), [0, '/tmp\n', '']);
  t.deepEqual(told('report', '3', 'argv0', 'other', 'exec', 'sh', '-c', 'echo $0'), [0, 'other\n', '']);
});

mountTest('a program gains no capability, or does not start', { needs: [] }, (t) => {
  const copy = join(scratch(t), 'launch');
  copyFileSync(launcher, copy);
  const told = (setpriv: readonly string[]) => {
    const args = [
      ...setpriv,
      copy,
      'report',
      '3',
      'drop',
      'exec',
      'grep',
      '-E',
      'Cap(Inh|Eff|Bnd|Amb)',
      '/proc/self/status',
    ];
    const { output } = spawnSync('setpriv', args, { stdio: ['ignore', 'pipe', 'inherit', 'pipe'], encoding: 'utf8' });
    return [output[1]?.match(/\t0*[1-9a-f].*/g), output[3]];
  };
  const caps = '+setpcap,+sys_admin';
  t.deepEqual(told([`--reuid=${NOBODY}`, '--clear-groups', `--inh-caps=${caps}`, `--ambient-caps=${caps}`]), [
    null,
    '',
  ]);
  t.deepEqual(told(['--bounding-set=-setpcap']), [null, '3 1']);
});

test('each failure has a reason', (t) => {
  const why = (word: string, errno: number, path?: string, isRootless = false) =>
    (
      explainLaunch(
        { order: { word, args: [], ...(path === undefined ? {} : { path }) }, errno },
        isRootless,
      ) as OverlayError
    ).reason;
  t.is(why('unshare', 1), 'no-privilege');
  t.is(why('unshare', 28, undefined, true), 'rootless-forbidden');
  t.is(why('write', 1, undefined, true), 'rootless-forbidden');
  t.is(why('clone', 28, '/no/where', true), 'out-of-namespaces');
  t.is(why('attach', 28, '/no/where'), 'too-many-mounts');
  t.is(why('readonly', 38, '/no/where'), 'option-unsupported');
  t.is(why('private', 1), 'no-privilege');
  t.is(why('private', 2), 'proc-missing');
  t.is(why('mounted', 116, '/no/where'), 'not-mounted');
  t.is(why('attach', 2, '/no/where'), 'target-missing');
  t.is(why('attach', 20, '/no/where'), 'target-not-directory');
  t.is(why('attach', 22, '/proc/self/status'), 'target-not-directory');
  t.is(why('attach', 22, '/'), 'shown-before');
  t.is(why('proc', 1), 'rootless-forbidden');
  t.is(why('ids', 22), 'sub-ids-missing');
  t.is(why('take', 2, '/no/where'), 'path-missing');
  t.is(why('chdir', 2, '/no/where'), 'path-missing');
  t.is(why('chdir', 20, '/no/where'), 'path-not-directory');
  t.is(why('readonly', 13, '/no/where'), 'path-inaccessible');
  t.is(why('hide', 5, '/no/where'), 'io-error');
  t.is(why('clone', 12, '/no/where'), 'out-of-memory');
  t.is(why('report', 9), 'unexplained');
});
