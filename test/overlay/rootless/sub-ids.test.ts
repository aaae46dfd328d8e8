/**
 * Mounts without privilege that know the subordinate ids of their user. Imports internals: the parsers of /etc/subuid
 * take lines that no machine should have.
 */
import { spawn } from 'node:child_process';
import { chmodSync, chownSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { mountOverlaySync } from 'overlayfs';
import { readRanges, toDisjoint, toMapArguments } from '#lib/rootless/sub-ids.js';
import { eventually, MS_BIND, makeTree, mountTest, native, scratch } from '../../support/index.js';
import { NOBODY } from '../../support/nobody.js';
import { asNobody, evaluateAs, evaluateAsNobody, giveTo, readablePackage } from '../../support/plain-user.js';

const needs = 'subordinate ids';
const FIRST = 100_000;

/** Has a file show at the place of another, in the mount namespace of the test. */
function cover(t: ExecutionContext, path: string, file: string): void {
  t.is(native.mount(file, path, '', MS_BIND, ''), 0);
  t.teardown(() => native.umount(path, 0));
}

interface Ranges {
  readonly uids?: string;
  readonly gids?: string;
}

const ofNobody = `${NOBODY}:${FIRST}:1000\n`;

/** The plain user's layers, in the lower a file of a subordinate id and one of root's, all may write to. */
function prepare(t: ExecutionContext, { uids = ofNobody, gids = ofNobody }: Ranges = {}): string {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/sub': 'sub', 'lower/roots': 'roots', 'upper/': '', 'work/': '', subuid: uids, subgid: gids });
  giveTo(dir, join(dir, 'lower'), join(dir, 'upper'), join(dir, 'work'));
  chownSync(join(dir, 'lower/sub'), FIRST + 5, FIRST + 6);
  for (const name of ['sub', 'roots']) chmodSync(join(dir, 'lower', name), 0o666);
  for (const name of ['subuid', 'subgid']) cover(t, `/etc/${name}`, join(dir, name));
  return dir;
}

/** A program of the test's own where one of these is. */
function coverProgram(t: ExecutionContext, dir: string, name: string, script: string): void {
  const file = join(dir, name);
  writeFileSync(file, script, { mode: 0o755 });
  cover(t, `/usr/bin/${name}`, file);
}

const prelude = `const [dir] = args;
  const layers = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
  const append = (mount, name) => {
    try { fs.appendFileSync(join(mount.path, name), '+'); return 'appended'; } catch ({ code }) { return code; }
  };
  const mountOnce = (rootless, subIds) => overlayfs.mountOverlay({ ...layers, rootless, subIds });`;

mountTest(
  "files of subordinate ids are copied up with their owner, by 'keep' too, and by the synchronous form",
  { needs },
  (t) => {
    const dir = prepare(t);
    const outcome = evaluateAsNobody(
      `${prelude}
    const state = () => [
      fs.readdirSync('/proc/self/fd').length,
      fs.readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8'),
    ];
    const outcomes = [];
    const look = (mount) => {
      const of = append(mount, 'sub');
      const { uid, gid } = fs.existsSync(join(dir, 'upper/sub')) ? fs.statSync(join(dir, 'upper/sub')) : {};
      outcomes.push([of, uid ?? 0, gid ?? 0, append(mount, 'roots')]);
      mount.unmountSync();
      fs.rmSync(join(dir, 'upper/sub'), { force: true });
    };
    for (const rootless of ['keep', true]) for (const subIds of [true, false]) look(await mountOnce(rootless, subIds));
    const before = state();
    for (const rootless of ['keep', true]) {
      look(await mountOnce(rootless, true));
      look(overlayfs.mountOverlaySync({ ...layers, rootless, subIds: true }));
    }
    return { outcomes, same: JSON.stringify(state()) === JSON.stringify(before) };`,
      dir,
    );
    const mapped = ['appended', FIRST + 5, FIRST + 6, 'EOVERFLOW'];
    const unmapped = ['EOVERFLOW', 0, 0, 'EOVERFLOW'];
    t.deepEqual(outcome, {
      outcomes: [mapped, unmapped, mapped, unmapped, mapped, mapped, mapped, mapped],
      same: true,
    });
    t.is(readFileSync(join(dir, 'lower/sub'), 'utf8'), 'sub');
  },
);

mountTest('a process that has changed its user maps them too', { needs }, (t) => {
  const dir = prepare(t);
  const drop = `process.setgroups([]); process.setgid(${NOBODY}); process.setuid(${NOBODY});`;
  const outcome = evaluateAs(
    ['env', '-u', 'NODE_V8_COVERAGE'],
    `${prelude}
    if (process.getuid() === 0) { ${drop} }
    const mount = await mountOnce(true, true);
    const outcome = [append(mount, 'sub'), fs.statSync(join(mount.path, 'sub')).uid];
    mount.unmountSync();
    return outcome;`,
    dir,
  );
  t.deepEqual(outcome, ['appended', FIRST + 5]);
});

mountTest('a program sees files of subordinate ids as theirs', { needs }, (t) => {
  const dir = prepare(t);
  const outcome = evaluateAsNobody(
    `${prelude}
    const at = join(dir, 'lower');
    const see = async (mount) => {
      const script = 'stat -c %u:%g sub roots; id -u; grep CapEff /proc/self/status; echo + >> sub && echo appended';
      const child = overlayfs.spawn('sh', ['-c', script], { mounts: [{ source: mount, target: at }], cwd: at, stdio: ['ignore', 'pipe', 'ignore'] });
      const ended = new Promise((resolve) => child.on('exit', resolve));
      const lines = (await child.stdout.toArray()).join('').trim().split(/\\s+/);
      await ended;
      mount.unmountSync();
      fs.rmSync(join(dir, 'upper/sub'), { force: true });
      return lines.filter((line) => line !== 'CapEff:');
    };
    await see(await mountOnce(true, true));
    const before = fs.readdirSync('/proc/self/fd').length;
    const seen = [await see(await mountOnce(true, true)), await see(await mountOnce('keep', false))];
    return { seen, left: fs.readdirSync('/proc/self/fd').length - before };`,
    dir,
  );
  const nobodys = `${NOBODY}:${NOBODY}`;
  const plain = [String(NOBODY), '0000000000000000'];
  t.deepEqual(outcome, {
    seen: [
      [`${FIRST + 5}:${FIRST + 6}`, nobodys, ...plain, 'appended'],
      [nobodys, nobodys, ...plain],
    ],
    left: 1, // the kept namespace
  });
});

mountTest('several at once, by a process that ignores the end of its children', { needs }, (t) => {
  const dir = prepare(t);
  const outcome = evaluateAs(
    [...asNobody, 'sh', '-c', 'trap "" CHLD; exec "$@"', 'sh'],
    `${prelude}
    const lowers = { lowerdir: [join(dir, 'lower'), join(dir, 'upper')], subIds: true };
    const mounts = await Promise.all([true, 'keep', true, 'keep'].map((rootless) => overlayfs.mountOverlay({ ...lowers, rootless })));
    const names = mounts.map(({ path }) => fs.readdirSync(path).length);
    for (const mount of mounts) mount.unmountSync();
    // The kept namespaces, each once.
    return [names, fs.readdirSync('/proc/self/fd').map((fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } }).filter((name) => /^(user|mnt):/.test(name)).length];`,
    dir,
  );
  t.deepEqual(outcome, [[2, 2, 2, 2], 1]);
});

const why = `${prelude}
  const before = fs.readdirSync('/proc/self/fd').length;
  const errors = [];
  for (const mode of [true, 'keep']) errors.push(await mountOnce(mode, true).catch(fields));
  try { overlayfs.mountOverlaySync({ ...layers, rootless: true, subIds: true }); } catch (error) { errors.push(fields(error)); }
  return { errors, left: fs.readdirSync('/proc/self/fd').length - before };`;

interface Outcome {
  readonly errors: readonly { readonly code: string; readonly reason: string; readonly message: string }[];
  readonly left: number;
}

/** All forms fail alike, and leave nothing. */
function failsWith(t: ExecutionContext, outcome: unknown, code: string, reason: string, message: RegExp): void {
  const { errors, left } = outcome as Outcome;
  t.is(errors.length, 3);
  for (const error of errors) {
    t.like(error, { code, reason });
    t.regex(error.message, message);
  }
  t.is(left, 0);
}

mountTest('a user without subordinate ids is told which file has none', { needs }, (t) => {
  const dir = prepare(t, { gids: 'someone:100000:65536\n' });
  const outcome = evaluateAsNobody(why, dir);
  failsWith(t, outcome, 'ENOENT', 'sub-ids-missing', /\/etc\/subgid has no line for it.*--add-subgids/);
});

mountTest('a program that is not there is named', { needs }, (t) => {
  const dir = prepare(t);
  cover(t, '/usr/bin/newgidmap', '/dev/null');
  failsWith(t, evaluateAsNobody(why, dir), 'ENOENT', 'sub-ids-missing', /needs the program newgidmap/);
});

mountTest('what has the name of the program and is none is passed over', { needs }, (t) => {
  const dir = prepare(t);
  makeTree(dir, { 'bin/newuidmap/': '', 'bin/newgidmap/': '' });
  chmodSync(dir, 0o755);
  const outcome = evaluateAsNobody(
    `${prelude}
    process.env.PATH = join(dir, 'bin') + ':' + process.env.PATH;
    const mount = await mountOnce(true, true);
    const outcome = append(mount, 'sub');
    mount.unmountSync();
    return outcome;`,
    dir,
  );
  t.is(outcome, 'appended');
});

mountTest('ranges may overlap, be there twice, and hold the own id', { needs }, (t) => {
  const uids = `nobody:${FIRST}:1000\n${NOBODY}:${FIRST}:1000\nnobody:${FIRST + 500}:1000\nnobody:${NOBODY - 2}:5\n`;
  const dir = prepare(t, { uids, gids: uids });
  chownSync(join(dir, 'lower/roots'), FIRST + 1499, FIRST + 1499);
  const outcome = evaluateAsNobody(
    `${prelude}
    const mount = await mountOnce(true, true);
    const outcome = [append(mount, 'sub'), append(mount, 'roots')];
    mount.unmountSync();
    return outcome;`,
    dir,
  );
  t.deepEqual(outcome, ['appended', 'appended']);
});

mountTest('more ranges than a map takes are counted', { needs }, (t) => {
  const lines = (count: number) => Array.from({ length: count }, (_, i) => `${NOBODY}:${FIRST + 10 * i}:5\n`).join('');
  const dir = prepare(t, { gids: lines(400) });
  const message = (count: number) =>
    new RegExp(`has ${count} ranges of subordinate ids in /etc/subgid, but a map holds 339`);
  failsWith(t, evaluateAsNobody(why, dir), 'EINVAL', 'sub-ids-refused', message(400));
  // So many are fewer, and too long all the same.
  writeFileSync(join(dir, 'subgid'), lines(339));
  failsWith(t, evaluateAsNobody(why, dir), 'EINVAL', 'sub-ids-refused', message(339));
});

mountTest('a file of ranges that may not be read is named', { needs }, (t) => {
  const dir = prepare(t);
  chmodSync(join(dir, 'subuid'), 0o600);
  failsWith(t, evaluateAsNobody(why, dir), 'EACCES', 'sub-ids-missing', /may not read \/etc\/subuid/);
});

mountTest('where descriptors are short, that is the reason, and none is lost', { needs }, (t) => {
  const dir = prepare(t);
  const outcome = evaluateAs(
    [...asNobody, 'prlimit', '--nofile=64'],
    `${prelude}
    const lowerdir = [join(dir, 'lower'), join(dir, 'upper')];
    const mount = () => overlayfs.mountOverlaySync({ lowerdir, rootless: true, subIds: true });
    mount().unmountSync();
    const first = mount();
    const attempts = {
      mount: () => mount().unmountSync(),
      spawn: () => overlayfs.spawn('true', [], { mounts: [{ source: first, target: join(dir, 'lower') }] }).on('error', () => {}),
    };
    const outcomes = {};
    for (const [name, attempt] of Object.entries(attempts)) {
      const reasons = [];
      const before = fs.readdirSync('/proc/self/fd').length;
      for (let free = 0; free < 8; free++) {
        const filled = [];
        try { for (;;) filled.push(fs.openSync('/dev/null')); } catch {}
        for (let i = 0; i < free; i++) fs.closeSync(filled.pop());
        try { attempt(); reasons.push('done'); } catch (error) { reasons.push(error.reason ?? String(error)); }
        for (const fd of filled) fs.closeSync(fd);
        if (reasons.at(-1) === 'done') break;
      }
      outcomes[name] = { reasons: reasons.filter((reason) => reason !== 'done'), left: fs.readdirSync('/proc/self/fd').length - before };
    }
    first.unmountSync();
    return outcomes;`,
    dir,
  ) as Record<'mount' | 'spawn', { readonly reasons: readonly string[]; readonly left: number }>;
  for (const { reasons } of Object.values(outcome)) {
    t.true(reasons.length > 3, JSON.stringify(outcome));
    t.deepEqual([...new Set(reasons)], ['out-of-descriptors']);
  }
  t.is(outcome.mount.left, 0);
});

mountTest('where no process can be started, that is the reason', { needs }, (t) => {
  const dir = prepare(t);
  const outcome = evaluateAsNobody(
    `${prelude}
    const lowerdir = [join(dir, 'lower'), join(dir, 'upper')];
    const mount = () => overlayfs.mountOverlaySync({ lowerdir, rootless: true, subIds: true });
    const first = mount();
    childProcess.execFileSync('prlimit', ['--nproc=1', '--pid', String(process.pid)]);
    const reasons = [];
    const attempts = [mount, () => overlayfs.spawn('true', [], { mounts: [{ source: first, target: join(dir, 'lower') }] })];
    for (const attempt of attempts) try { attempt(); } catch ({ code, reason }) { reasons.push([code, reason]); }
    first.unmountSync();
    return reasons;`,
    dir,
  );
  t.deepEqual(outcome, Array(2).fill(['EAGAIN', 'out-of-threads']));
});

mountTest('what the program says is in the error', { needs }, (t) => {
  const dir = prepare(t);
  const outcome = evaluateAs([...asNobody, '--no-new-privs'], why, dir);
  failsWith(t, outcome, 'EPERM', 'sub-ids-refused', /subordinate ids: '?newuidmap: .+no_new_privs/);
});

mountTest(
  'a program that fails without a word, with many, cannot be executed, or kills the process that it maps',
  { needs },
  (t) => {
    const dir = prepare(t);
    coverProgram(t, dir, 'newuidmap', '#!/bin/sh\nexit 1\n');
    failsWith(t, evaluateAsNobody(why, dir), 'EPERM', 'sub-ids-refused', /did not map the subordinate ids\. /);
    writeFileSync(join(dir, 'newuidmap'), '#!/bin/sh\necho first >&2; seq 100000\n');
    failsWith(t, evaluateAsNobody(why, dir), 'EPERM', 'sub-ids-refused', /subordinate ids: '?first; 1; 2; 3/);
    writeFileSync(join(dir, 'newuidmap'), '#!/no/such/shell\n');
    failsWith(t, evaluateAsNobody(why, dir), 'ENOENT', 'sub-ids-refused', /cannot be executed/);
    writeFileSync(
      join(dir, 'newuidmap'),
      '#!/bin/sh\nkill -KILL "$1"; while grep -q "State:.[^ZX]" /proc/$1/status; do :; done\n',
    );
    failsWith(t, evaluateAsNobody(why, dir), 'ECHILD', 'process-killed', /was killed/);
  },
);

mountTest('a limit of no user namespaces is told', { needs }, (t) => {
  const dir = prepare(t, { uids: `root:${FIRST}:1\n`, gids: `root:${FIRST}:1\n` });
  const limited = ['unshare', '-Ur', 'sh', '-c', 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', 'sh'];
  const outcome = evaluateAs([...asNobody, ...limited], why, dir);
  failsWith(t, outcome, 'ENOSPC', 'rootless-forbidden', /user\.max_user_namespaces is 0/);
});

mountTest('a process that is killed meanwhile leaves no child that holds the namespace', { needs }, async (t) => {
  const dir = prepare(t);
  chmodSync(dir, 0o777);
  coverProgram(t, dir, 'newuidmap', `#!/bin/sh\necho "$1 $$" > ${dir}/pids; exec sleep 60\n`);
  const code = `import { mountOverlay } from 'overlayfs';
    await mountOverlay({ lowerdir: ['/usr', '/etc'], rootless: true, subIds: true });`;
  const [program = '', ...rest] = [...asNobody, process.execPath, '--input-type=module', '-e', code];
  const child = spawn(program, rest, { cwd: readablePackage(), stdio: 'ignore' });
  await eventually(t, () => existsSync(join(dir, 'pids')) && readFileSync(join(dir, 'pids'), 'utf8').endsWith('\n'));
  const [holder = 0, sleeper = 0] = readFileSync(join(dir, 'pids'), 'utf8').split(' ').map(Number);
  t.true(existsSync(`/proc/${holder}`));
  const ended = new Promise((resolve) => child.on('exit', resolve));
  child.kill('SIGKILL');
  await ended;
  await eventually(t, () => !existsSync(`/proc/${holder}`));
  const status = readFileSync(`/proc/${sleeper}/status`, 'utf8');
  t.regex(status, /^SigBlk:\t0+$/m);
  t.regex(status, /^SigIgn:\t0+$/m);
  process.kill(sleeper);
  await eventually(t, () => !existsSync(`/proc/${sleeper}`));
});

test('subIds is a boolean, and goes with rootless', (t) => {
  const refuse = (options: object, code: string, message: RegExp) =>
    t.throws(() => mountOverlaySync({ lowerdir: ['/a', '/b'], ...options }), { code, message });
  refuse({ subIds: true }, 'ERR_INVALID_ARG_VALUE', /`subIds` has no effect without `rootless`/);
  refuse({ subIds: 'yes', rootless: true }, 'ERR_INVALID_ARG_TYPE', /"subIds"/);
});

test('the ranges of a user, by name or by number', (t) => {
  const text = '# comment\nroot:1:2\nme:100000:65536\n\n1000:300000:5\nme:x:5\nme:7\nme:8:0\n';
  t.deepEqual(readRanges(text, new Set(['me', '1000'])), [
    { first: 100_000, count: 65_536 },
    { first: 300_000, count: 5 },
  ]);
  t.deepEqual(
    toDisjoint(7, [
      { first: 20, count: 5 },
      { first: 0, count: 10 },
      { first: 5, count: 10 },
      { first: 2, count: 1 },
    ]),
    [
      { first: 0, count: 7 },
      { first: 8, count: 2 },
      { first: 10, count: 5 },
      { first: 20, count: 5 },
    ],
  );
  t.deepEqual(toMapArguments(1000, [{ first: 5, count: 2 }]), ['1000', '1000', '1', '5', '5', '2']);
});
