/** Programs in namespaces of their own: network, processes, IPC, host name, uid 0, and what they can write. */
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync } from 'overlayfs';
import { makeTree, mountTest, scaled, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { asNobody, evaluateAs, giveTo } from '../support/plain-user.js';

const needs = ['rootless', 'detached mounts that can be cloned', 'mountSetattr'] as const;

/** As `prelude` of the tests of `spawn`, without a mount. */
const prelude = `
  const [dir] = args;
  const start = (command, options = {}) => overlayfs.spawn('sh', ['-c', command], { cwd: dir, ...options });
  const end = (child) => new Promise((resolve) => {
    let text = '', error;
    child.stdout?.on('data', (piece) => (text += piece));
    child.stderr?.on('data', (piece) => (text += piece));
    child.on('error', (thrown) => (error = fields(thrown)));
    child.on('close', (code, signal) => resolve({ code, signal, text: text.trim(), ...(error && { error }) }));
  });
  const run = (command, options) => end(start(command, options));
  const said = async (command, options) => (await run(command, options)).text;
  const until = (child, text) => new Promise((resolve) => child.stdout.on('data', (piece) => { if (String(piece).includes(text)) resolve(); }));
  const path = (name) => join(dir, name);
  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
`;

const users: readonly (readonly [name: string, command: readonly string[]])[] = [
  ['root', ['env']],
  ['a plain user', asNobody],
];

/** A test as root and as a plain user. The body finds `dir`, which belongs to the user. */
function asEach(
  title: string,
  check: (
    t: Parameters<Parameters<typeof mountTest>[2]>[0],
    evaluate: (body: string) => unknown,
    isRoot: boolean,
  ) => void,
  prepare: (dir: string) => void = () => {},
): void {
  for (const [name, command] of users) {
    mountTest(`${title}, as ${name}`, { needs }, (t) => {
      const dir = scratch(t, 'disk');
      makeTree(dir, { 'open/file': 'open', 'shut/file': 'shut', 'hidden/secret': 'secret' });
      for (const path of ['', 'open', 'open/file', 'shut', 'shut/file', 'hidden', 'hidden/secret']) {
        if (name !== 'root') giveTo(join(dir, path));
      }
      prepare(dir);
      check(t, (body) => evaluateAs(command, `${prelude}${body}`, dir), name === 'root');
    });
  }
}

asEach('a tmpfs with limits, and a mount that the program can only read', (t, evaluate) => {
  const outcome = evaluate(`
    const limits = { size: 2 ** 20, inodes: 3 };
    const mounts = [{ target: join(dir, 'open'), tmpfs: limits }, { source: join(dir, 'hidden'), target: join(dir, 'shut'), readonly: true }];
    const script = 'ls open; stat -c %a open; head -c 9M /dev/zero > open/full; stat -c %s open/full; touch open/two; touch open/three; cat shut/secret; echo; touch shut/new; mount -o remount,rw shut && echo undone';
    const told = await said('exec 2>&1; ' + script, { mounts, mapRoot: true, cwd: dir });
    return [told.replace(/^.*: /gm, '').split('\\n'), fs.readdirSync(join(dir, 'open')), (await said('stat -c %a open', { mounts: [{ target: join(dir, 'open'), tmpfs: true }], cwd: dir }))];`);
  const full = 'No space left on device';
  const [told, ...rest] = outcome as [string[], ...unknown[]];
  t.deepEqual(told.slice(0, 6), ['1777', full, String(2 ** 20), full, 'secret', 'Read-only file system']);
  t.false(told.includes('undone'));
  t.deepEqual(rest, [['file'], '1777']);
});

asEach('each namespace is one of its own', (t, evaluate) => {
  const outcome = evaluate(`
    const kinds = { net: { unshare: ['net'] }, pid: { unshare: ['pid'] }, ipc: { unshare: ['ipc'] }, uts: { unshare: ['uts'] } };
    const all = { unshare: Object.keys(kinds) };
    const script = 'cd /proc/self/ns; readlink net pid ipc uts user';
    const own = (await said(script)).split('\\n');
    const differs = async (options) => (await said(script, options)).split('\\n').map((line, i) => line === own[i] ? '' : ['net', 'pid', 'ipc', 'uts', 'user'][i]).filter(Boolean).join(' ');
    const rows = [];
    for (const options of [...Object.values(kinds), all, { mapRoot: true }, { ...all, mapRoot: true }]) rows.push(await differs(options));
    return rows.map((row) => row.replace(' user', '').replace('user', ''));`);
  t.deepEqual(outcome, ['net', 'pid', 'ipc', 'uts', 'net pid ipc uts', '', 'net pid ipc uts']);
});

asEach(
  'without the network: loopback is up, nothing else is there, sockets in the file system connect',
  (t, evaluate) => {
    const outcome = evaluate(`
    const net = process.getBuiltinModule('node:net');
    const server = net.createServer((socket) => socket.end('hello')).listen(join(dir, 'socket'));
    const script = \`const net = require('node:net'), os = require('node:os');
      const server = net.createServer((socket) => socket.end('loop')).listen(0, '127.0.0.1', () => {
        net.connect(server.address().port).on('data', (data) => { console.log(String(data)); server.close(); });
      });
      net.connect(process.argv[1]).on('data', (data) => console.log(String(data)));
      console.log(Object.keys(os.networkInterfaces()).join());\`;
    const rows = [];
    for (const root of [false, true]) {
      const child = overlayfs.spawn(process.execPath, ['-e', script, join(dir, 'socket')], { unshare: ['net'], mapRoot: root });
      rows.push((await end(child)).text.split('\\n').sort());
    }
    server.close();
    return rows;`);
    t.deepEqual(outcome, [
      ['hello', 'lo', 'loop'],
      ['hello', 'lo', 'loop'],
    ]);
  },
);

asEach('own processes: how the program ends is how the child ends', (t, evaluate) => {
  const outcome = evaluate(`
    const pids = { unshare: ['pid'] };
    const started = start('trap "echo term; exit 9" TERM; echo ready; while :; do sleep 0.05; done', pids);
    const ended = end(started);
    await until(started, 'ready');
    started.kill();
    const handled = await ended;
    const controller = new AbortController();
    const aborted = run('sleep 60', { ...pids, signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    const killed = start('echo ready; sleep 60 & sleep 60', pids);
    const dead = end(killed);
    await until(killed, 'ready');
    killed.kill('SIGKILL');
    return [
      await run('exit 7', pids), await run('kill -USR1 $$', pids), await run('kill -ABRT $$', pids), handled,
      await run('sleep 60', { ...pids, timeout: 50 }), (({ signal, error }) => ({ signal, code: error.code }))(await aborted),
      (({ signal }) => signal)(await dead),
      await run('echo $$; set -- /proc/[0-9]*; echo $#; sh -c "exit 3" & wait; sleep 60 & echo $PPID', pids),
      await said('cat <&3', { ...pids, stdio: ['ignore', 'pipe', 'pipe', fs.openSync(join(dir, 'open/file'))] }),
      (await run('no-such-program-here', { ...pids })).code,
      (({ code, error }) => [code, error.code])(await end(overlayfs.spawn('/no/such/program', [], pids))),
      await said('grep -E "^(SigBlk|SigIgn)" /proc/self/status', pids) === await said('grep -E "^(SigBlk|SigIgn)" /proc/self/status'),
      await said('ls /proc/self/fd | wc -l', pids) === await said('ls /proc/self/fd | wc -l'),
    ];`) as unknown[];
  t.deepEqual(outcome, [
    { code: 7, signal: null, text: '' },
    { code: null, signal: 'SIGUSR1', text: '' },
    { code: null, signal: 'SIGABRT', text: '' },
    { code: 9, signal: null, text: 'ready\nterm' },
    { code: null, signal: 'SIGTERM', text: '' },
    { signal: 'SIGTERM', code: 'ABORT_ERR' },
    'SIGKILL',
    { code: 0, signal: null, text: '2\n2\n1' },
    'open',
    127,
    [127, 'ENOENT'],
    true,
    true,
  ]);
});

asEach('own processes: none outlives the program, however it ends', (t, evaluate) => {
  const outcome = evaluate(`
    const mark = '7' + process.pid;
    const read = (pid, file) => { try { return fs.readFileSync('/proc/' + pid + '/' + file, 'latin1'); } catch { return ''; } };
    const isOurs = (pid) => read(pid, 'cmdline') === 'sleep\\0' + mark + '\\0';
    const alive = () => fs.readdirSync('/proc').filter(isOurs);
    const describe = (pid) => read(pid, 'status').match(/^(State|PPid|NSpid|SigPnd|ShdPnd):.*/gm)?.join(' ') ?? 'gone meanwhile';
    const left = [];
    for (let round = 0; round < ${scaled(40, 4)}; round++) {
      const child = start('echo ready; (setsid sleep ' + mark + ' &) ; ' + (round % 2 ? 'exec sleep 60' : 'exit 0'), { unshare: ['pid'], mapRoot: round % 4 > 1, stdio: ['ignore', 'pipe', 'inherit'] });
      const ended = new Promise((resolve) => child.on('exit', resolve).on('error', (error) => { left.push([round, fields(error)]); resolve(); }));
      await Promise.race([until(child, 'ready'), ended]);
      if (round % 2) { await sleep(round); child.kill('SIGKILL'); }
      await ended;
      // The ChildProcess waits for all of them, unless it is killed itself: the kernel then kills the others.
      for (let i = 0; round % 2 && i < 3000 && alive().length > 0; i++) await sleep(10);
      for (const pid of alive()) left.push([round, pid, describe(pid), 'init: ' + describe(read(pid, 'status').match(/PPid:\\s*(\\d+)/)?.[1])]);
    }
    return left;`);
  t.deepEqual(outcome, []);
});

asEach('own processes: the init cannot be traced or killed, and an orphan has it as parent', (t, evaluate) => {
  const outcome = evaluate(`
    return [
      await said('kill -9 1 2>/dev/null; kill -STOP 1 2>/dev/null; echo alive', { unshare: ['pid'] }),
      await said('(cat /proc/1/environ || readlink /proc/1/root || readlink /proc/1/fd/0) 2>/dev/null || echo shut', { unshare: ['pid'], mapRoot: true }),
      await said('(sh -c "sleep 0.1; echo \\\\$PPID" & ) ; sleep 0.3; grep PPid /proc/self/status | grep -c 2; sh -c "sh -c \\'sleep 0.05; grep PPid /proc/\\\\$\\\\$/status\\' & exit"; sleep 0.2', { unshare: ['pid'] }),
    ];`) as string[];
  t.is(outcome[0], 'alive');
  t.regex(outcome[1] ?? '', /shut/);
  t.regex(outcome[2] ?? '', /PPid:\s+1$/);
});

asEach('uid 0 inside: of its own namespace, with what is read-only and hidden locked', (t, evaluate, isRoot) => {
  const outcome = evaluate(`
    const options = { mapRoot: true, readonly: [join(dir, 'shut')], hidden: [join(dir, 'hidden')] };
    return [
      await said('id -u; id -g; echo new > open/new && stat -c %u open/new', { mapRoot: true }),
      await said('exec 2>/dev/null; umount hidden; cat hidden/secret; mount -o remount,rw shut; mount --bind shut open && echo no > open/file; echo no > shut/file || echo stays; mount -t tmpfs none open && echo mounted', options),
      await said('hostname inside && hostname; ip link set lo down && echo down; mount -t proc proc /proc 2>/dev/null || echo no proc', { mapRoot: true, unshare: ['uts', 'net'] }),
      fs.statSync(join(dir, 'open/new')).uid,
      fs.readFileSync(join(dir, 'shut/file'), 'utf8'),
    ];`) as unknown[];
  t.deepEqual(outcome, ['0\n0\n0', 'stays\nmounted', 'inside\ndown\nno proc', isRoot ? 0 : NOBODY, 'shut']);
});

asEach('writable: all else is read-only, for uid 0 too', (t, evaluate) => {
  const outcome = evaluate(`
    fs.symlinkSync('open', join(dir, 'link'));
    const script = 'exec 2>/dev/null; for f in open/a open/file link/b shut/file new; do sh -c "echo yes > $f" && echo $f; done; echo x > /dev/null && echo null; mount -o remount,rw / && echo no';
    const rows = [];
    for (const root of [false, true]) for (const writable of [[join(dir, 'link')], [join(dir, 'open/file')], []]) rows.push((await said(script, { writable, mapRoot: root, cwd: dir })).split('\\n').join(' '));
    const { code, error } = await run('true', { writable: [join(dir, 'none')] });
    return [...rows, [code, error.reason]];`) as unknown[];
  const rows = ['open/a open/file link/b null', 'open/file null', 'null'];
  t.deepEqual(outcome.slice(3), [...rows, [127, 'path-missing']]);
  t.deepEqual(
    outcome.slice(1, 3).map((row) => String(row).replace(' no', '')),
    rows.slice(1),
  );
});

asEach('an overlay at the root, with all of it, as a container', (t, evaluate) => {
  const outcome = evaluate(`
    const lower = join(dir, 'lower'); fs.mkdirSync(join(lower, 'bin'), { recursive: true });
    for (const name of ['proc', 'dev', 'tmp']) fs.mkdirSync(join(lower, name));
    const files = String(childProcess.execFileSync('ldd', ['/bin/sh'])).match(/(?<=\\s)\\/\\S+/g);
    for (const file of [...files, '/bin/sh']) { fs.mkdirSync(join(lower, file, '..'), { recursive: true }); fs.copyFileSync(file, join(lower, file)); }
    for (const name of ['upper', 'work']) fs.mkdirSync(join(dir, name));
    const mount = await overlayfs.mountOverlay({ lowerdir: lower, upperdir: join(dir, 'upper'), workdir: join(dir, 'work'), rootless: 'auto' });
    const script = 'echo /proc/[0-9]*; echo new > /new; while read id inside outside count; do echo $id; done < /proc/self/uid_map; echo ~; kill -TERM $$';
    const child = overlayfs.spawn('/bin/sh', ['-c', script], { mounts: [{ source: mount, target: '/' }], cwd: '/', unshare: ['pid', 'net', 'ipc', 'uts'], mapRoot: true, env: { HOME: '/tmp' } });
    const outcome = await end(child);
    await mount.unmount();
    for (const [name, text] of [['file', 'old'], ['secret', 'secret']]) fs.writeFileSync(join(lower, 'tmp', name), text);
    fs.rmdirSync(join(lower, 'dev'));
    const bare = await overlayfs.mountOverlay({ lowerdir: [lower, join(dir, 'open')], rootless: 'auto' });
    const hiding = overlayfs.spawn('/bin/sh', ['-c', 'read x < /tmp/secret; echo "$x" $?; (echo no > /tmp/secret) 2>&- || read x < /tmp/file; echo $x'], { mounts: [{ source: bare, target: '/' }], cwd: '/', hidden: ['/tmp/secret'] });
    const hidden = await end(hiding);
    await bare.unmount();
    return [outcome, fs.readdirSync(join(dir, 'upper')), hidden];`);
  t.deepEqual(outcome, [
    { code: null, signal: 'SIGTERM', text: '/proc/1 /proc/2\n0\n/tmp' },
    ['new'],
    { code: 0, signal: null, text: '1\nold' },
  ]);
});

asEach('a root of its own: uid 0 inside can mount no other /proc and no other /sys', (t, evaluate, isRoot) => {
  const outcome = evaluate(`
    const root = join(dir, 'root');
    const programs = ['sh', 'unshare', 'mount'].map((name) => String(childProcess.execFileSync('which', [name])).trim());
    const files = programs.flatMap((program) => String(childProcess.execFileSync('ldd', [program])).match(/(?<=\\s)\\/\\S+/g));
    for (const file of files) { fs.mkdirSync(join(root, file, '..'), { recursive: true }); fs.copyFileSync(file, join(root, file)); }
    for (const name of ['bin', 'proc', 'dev', 'sys', 'mnt', 'etc']) fs.mkdirSync(join(root, name), { recursive: true });
    for (const program of programs) fs.copyFileSync(program, join(root, 'bin', program.split('/').at(-1)));
    for (const name of ['upper', 'work']) fs.mkdirSync(join(dir, name));
    const mount = await overlayfs.mountOverlay({ lowerdir: root, upperdir: join(dir, 'upper'), workdir: join(dir, 'work'), rootless: 'auto' });
    const tries = ['proc', 'sysfs'].map((type) => 'unshare -pfn sh -c "mount -t ' + type + ' ' + type + ' /mnt" 2>/dev/null && echo ' + type);
    const options = { mounts: [{ source: mount, target: '/' }], cwd: '/', unshare: ['pid'], mapRoot: true, env: { PATH: '/bin' } };
    const script = tries.join('; ') + '; (: 3>>/proc/sys/kernel/core_pattern) 2>/dev/null && echo open; while read -r line; do set -- $line; case $5 in /|/proc*|/dev*|/sys*) ;; *) echo "$5";; esac; done < /proc/self/mountinfo; exit 3';
    const outcomes = [
      await end(overlayfs.spawn('sh', ['-c', script], { ...options, readonly: ['/sys', '/proc/sys'] })),
      await end(overlayfs.spawn('sh', ['-c', '(: 3>>/proc/sys/kernel/core_pattern) 2>/dev/null && echo open; echo x > /new'], { ...options, writable: [] })),
      await run('(: 3>>/proc/sys/kernel/core_pattern) 2>/dev/null && echo open; : >> /proc/self/comm', { unshare: ['pid'], mapRoot: true, writable: [] }),
    ];
    await mount.unmount();
    return outcomes;`);
  const quiet = { signal: null, text: '' };
  t.deepEqual(
    outcome,
    [3, 0, 0].map((code) => ({ ...quiet, code })),
    isRoot ? 'even for uid 0 of the host' : '',
  );
});

asEach('a program finds nothing that its launcher has opened, by no working directory', (t, evaluate) => {
  const outcome = evaluate(`
    const found = [];
    for (const options of [{ mapRoot: true, unshare: ['pid'], dev: 'own' }, { readonly: [path('shut')], hidden: [path('hidden')] }, { writable: [path('open')], unshare: ['pid'] }])
      for (let fd = 3; fd < 24; fd++) {
        const { error, text } = await run('pwd -P; ls -d sys/kernel', { ...options, mounts: [{ source: path('open'), target: path('shut') }], cwd: '/proc/self/fd/' + fd });
        if (error === undefined) found.push([fd, text]);
      }
    return found;`);
  t.deepEqual(outcome, []);
});

asEach('a program with uid 0 that names its launcher, or begins with it, gets a copy in memory', (t, evaluate) => {
  const outcome = evaluate(`
    const script = 'for pid in /proc/[0-9]*; do case $(readlink $pid/exe) in *overlayfs-launch*) readlink $pid/exe; chmod 700 $pid/exe;; esac; done 2>&1';
    const launcher = process.cwd() + '/build/Release/launch/overlayfs-launch';
    const before = fs.statSync(launcher).mode;
    fs.writeFileSync(path('exec'), '#!/proc/self/exe init\\n', { mode: 0o755 });
    const texts = [];
    for (const [command, env] of [['/proc/self/exe', process.env], ['exec', { PATH: '' }]]) {
      const words = command === 'exec' ? ['/bin/sh', '-c', 'PATH=/usr/bin:/bin; ' + script] : ['init', 'exec', 'sh', '-c', script];
      texts.push((await end(overlayfs.spawn(command, words, { mapRoot: true, unshare: ['pid'], cwd: dir, env }))).text);
    }
    return [fs.statSync(launcher).mode === before, texts.map((text) => [text.includes('/memfd:overlayfs-launch'), text.includes(launcher)])];`);
  t.deepEqual(outcome, [true, Array.from({ length: 2 }, () => [true, false])]);
});

/** Joins a session keyring, puts a key into it, and becomes a program; or reads the key: keyctl(2) and add_key(2). */
const keys = `
import ctypes, os, sys
libc = ctypes.CDLL(None)
keyctl, add_key = (250, 248) if os.uname().machine == 'x86_64' else (219, 217)
if sys.argv[1] == 'read':
    text = ctypes.create_string_buffer(6)
    libc.syscall(keyctl, 11, int(sys.argv[2]), text, 6)
    sys.exit(print(text.raw.decode()))
libc.syscall(keyctl, 1, b'of-the-caller')
key = libc.syscall(add_key, b'user', b'of-the-caller', b'secret', 6, -3)
os.execvp(sys.argv[1], [*sys.argv[1:], str(key)])`;

for (const [name, command] of users) {
  mountTest(`a program with uid 0 has no key of its caller, as ${name}`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    if (name !== 'root') giveTo(dir);
    const outcome = evaluateAs(
      [...command, '/usr/bin/python3', '-c', keys],
      `${prelude}
      const read = async (options) => (await end(overlayfs.spawn('/usr/bin/python3', ['-c', args[1], 'read', args[2]], options))).text;
      return [await read({}), await read({ mapRoot: true }), await read({ mapRoot: true, unshare: ['pid'] })];`,
      dir,
      keys,
    );
    t.deepEqual(outcome, ['secret', '\0'.repeat(6), '\0'.repeat(6)]);
  });
}

mountTest('a program without privilege cannot choose its ids', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  giveTo(dir);
  const outcome = evaluateAs(
    asNobody,
    `${prelude}
    const failed = async (options) => { try { return (({ code, error }) => [code, error?.reason])(await run('true', options)); } catch (error) { return error.code; } };
    return [await failed({ uid: 1 }), await failed({ uid: 1, mapRoot: true }), await failed({ uid: 0, gid: 0, mapRoot: true })];`,
    dir,
  );
  t.deepEqual(outcome, ['ERR_INVALID_ARG_VALUE', [127, 'sub-ids-missing'], [0, null]]);
});

asEach('readonly, writable and hidden hold without `root`, and by way of other processes', (t, evaluate, isRoot) => {
  const outcome = evaluate(`
    fs.chmodSync(dir, 0o755);
    const toTries = (outside) => 'exec 2>/dev/null; umount hidden; umount -l hidden; cat hidden/secret && echo hidden; mount -o remount,bind,rw shut; mount -o remount,rw /; echo no > shut/file && echo shut; cat /proc/' + outside.pid + '/root' + path('hidden/secret') + ' /proc/' + process.pid + '/root' + path('hidden/secret') + ' /proc/$PPID/cwd/' + path('hidden/secret') + ' && echo other; nsenter -t ' + process.pid + ' -m true && echo entered; unshare -m umount hidden && echo unshared; unshare -Urm umount hidden && echo nested; (: 3>>/proc/sys/kernel/core_pattern) && echo kernel; echo yes > open/file && echo open; true';
    const rows = [];
    const users = [{}, { mapRoot: true }, ...(${isRoot} ? [{ uid: ${NOBODY}, gid: ${NOBODY} }] : [])];
    for (const user of users) for (const pids of [{}, { unshare: ['pid'] }]) {
      const outside = childProcess.spawn('sleep', ['60'], user.mapRoot ? {} : user);
      fs.chmodSync(path('open/file'), 0o666);
      for (const limits of [{ readonly: [path('shut')], hidden: [path('hidden')] }, { writable: [path('open')], hidden: [path('hidden')] }]) {
        rows.push((await said(toTries(outside), { ...user, ...pids, ...limits })).split('\\n').join(' '));
      }
      outside.kill();
    }
    const whole = await said('echo no > open/file', { readonly: ['/'], mapRoot: true, unshare: ['pid'] });
    return [[...new Set(rows)], fs.readFileSync(path('shut/file'), 'utf8'), whole.includes('Read-only')];`);
  t.deepEqual(outcome, [['open'], 'shut', true]);
});

asEach('restrictions: no cgroup file system of its own, which would be writable', (t, evaluate) => {
  const outcome = evaluate(`
    const mount = 'for type in cgroup2 cgroup; do mount -t $type none open && test -w open/cgroup.procs && echo writable; done';
    const script = 'exec 2>/dev/null; for kinds in -Cm -UrCm; do unshare $kinds sh -c "$MOUNT"; done; unshare -Urmnpif true && echo others';
    const limit = fs.readFileSync('/proc/sys/user/max_cgroup_namespaces', 'utf8');
    const rows = [];
    for (const user of [{}, { mapRoot: true }, { mapRoot: true, unshare: ['pid'] }]) rows.push(await said(script, { ...user, readonly: ['/sys'], env: { ...process.env, MOUNT: mount } }));
    return [rows, await said('unshare -UrC echo free'), fs.readFileSync('/proc/sys/user/max_cgroup_namespaces', 'utf8') === limit];`);
  t.deepEqual(outcome, [['others', 'others', 'others'], 'free', true]);
});

asEach(
  'restrictions: another /proc and another /sys can only be read, and no new ones made',
  (t, evaluate) => {
    const outcome = evaluate(`
    const others = '[ -e "$d/proc/self" ] && echo proc; [ -e "$d/a b/kernel" ] && echo sys; : 3>>"$d/proc/sys/kernel/core_pattern" && echo kernel; : 3>>"$d/a b/kernel/profiling" && echo profiling; ';
    const made = 'for type in proc sysfs; do unshare -Urmpfn sh -c "mount -t $type $type open && echo $type"; done';
    const rows = [];
    for (const [d, options] of [[dir, {}], [dir, { mapRoot: true, unshare: ['pid'] }], ['.', { mounts: [{ source: dir, target: join(dir, 'open') }], cwd: join(dir, 'open') }]]) {
      rows.push(await said('exec 2>/dev/null; ' + others + made, { ...options, readonly: ['/usr'], env: { ...process.env, d } }));
    }
    return rows;`);
    t.deepEqual(outcome, ['proc\nsys', 'proc\nsys', 'proc\nsys']);
  },
  (dir) => {
    // A line of the mount table before theirs that is longer than the launcher can read at once.
    const long = join(dir, 'x'.repeat(200));
    const layers = Array.from({ length: 400 }, (_, i) => `${i}/`);
    makeTree(long, Object.fromEntries([...layers, 'at/'].map((name) => [name, ''])));
    mountOverlaySync({ lowerdir: layers.map((name) => join(long, name)), target: join(long, 'at') });
    for (const [type, name] of [
      ['proc', 'proc'],
      ['sysfs', 'a b'],
    ] as const) {
      mkdirSync(join(dir, name));
      execFileSync('mount', ['-t', type, type, join(dir, name)]);
    }
  },
);

asEach(
  'restrictions: signals, limits and priorities of other processes of the user, but not with `pids`',
  (t, evaluate) => {
    const outcome = evaluate(`
    const script = 'exec 2>/dev/null; kill -0 $PID && echo signal; prlimit --pid $PID --core=0:0 && echo limit; renice 7 -p $PID >&2 && echo priority; taskset -p 1 $PID >&2 && echo cpus; ls /proc/$PID/fd >&2 && echo names; readlink /proc/$PID/fd/0 && echo links; (: < /proc/$PID/fd/0) && echo streams; cat /proc/$PID/environ && echo environment; (: 3>> /proc/$PID/oom_score_adj) && echo settings; true';
    const rows = [];
    for (const options of [{}, { mapRoot: true }, { unshare: ['pid'] }, { mapRoot: true, unshare: ['pid'] }]) {
      const outside = childProcess.spawn('sleep', ['60']);
      const env = { ...process.env, PID: String(outside.pid) };
      rows.push((await said(script, { ...options, hidden: [path('hidden')], env })).split('\\n').join(' '));
      outside.kill();
    }
    return rows;`);
    t.deepEqual(outcome, [...Array(2).fill('signal limit priority cpus names settings'), '', '']);
  },
);

asEach('restrictions: a handler of binfmt_misc serves the program alone', (t, evaluate) => {
  const outcome = evaluate(`
    fs.writeFileSync(path('open/called'), 'MAGIC-OF-A-TEST', { mode: 0o755 });
    fs.writeFileSync(path('open/handler'), '#!/bin/sh\\necho handled', { mode: 0o755 });
    fs.mkdirSync(path('open/handlers'));
    const register = 'mount -t binfmt_misc none handlers && echo :overlayfs-test:M::MAGIC-OF-A-TEST::$PWD/handler: > handlers/register && ./called; echo ready; read -r line';
    const rows = [];
    for (const mapRoot of [false, true]) {
      const child = start('cd open; unshare -Urm sh -c "$REGISTER" 2>&1', { mapRoot, hidden: [path('hidden')], env: { ...process.env, REGISTER: register } });
      const ended = end(child);
      await until(child, 'ready');
      rows.push(childProcess.spawnSync(path('open/called')).status);
      child.stdin.end();
      // Linux before 6.7 has one list of handlers, which belongs to the initial user namespace.
      rows.push((await ended).text.replace(/.*(?:denied|permitted)\\.?/, 'handled'));
    }
    return rows;`);
  t.deepEqual(outcome, [127, 'handled\nready', 127, 'handled\nready']);
});

asEach(
  'a program that may write no byte starts, and one that needs a copy of the launcher hears why not',
  (t, evaluate) => {
    const outcome = evaluate(`
    childProcess.execFileSync('prlimit', ['--pid', String(process.pid), '--fsize=0:']);
    return [await said('echo started'), (({ code, text, error }) => [code, text, error.code, error.reason, error.hint])(await run('true', { mapRoot: true }))];`);
    const hint = 'Raise the limit of the process (ulimit -f), or use another file system.';
    t.deepEqual(outcome, ['started', [127, '', 'EFBIG', 'out-of-space', hint]]);
  },
);

// A preloaded sanitizer would write its report on script(1) into the terminal.
asEach(
  'restrictions: a small /dev, and no other device node works',
  (t, evaluate) => {
    const outcome = evaluate(`
    const node = join(dir, 'open/zero');
    const own = 'ls /dev | xargs; stat -c %a /dev/shm /dev/null | xargs; echo x > /dev/null && head -c 2 /dev/zero /dev/full /dev/random /dev/urandom -q | wc -c; env -u LD_PRELOAD script -qc tty /dev/null; echo x > /dev/shm/x && echo shm; ls /dev/shm /dev/pts | xargs; ';
    const tries = 'exec 2>/dev/null; head -c 1 ' + node + ' && echo node; mknod open/made c 1 5 && head -c 1 open/made && echo made; mount --bind ' + node + ' /dev/null && head -c 1 /dev/null && echo bound; umount -l /dev; chmod 700 /dev/zero; ls /dev | wc -l';
    const rows = [];
    for (const root of [false, true]) for (const limits of [{ hidden: [join(dir, 'hidden'), '/dev/none'] }, { readonly: [join(dir, 'shut'), '/dev/none'] }, { writable: [] }, { dev: 'own' }]) {
      rows.push((await said(own + tries, { ...limits, mapRoot: root })).replaceAll('\\r', '').split('\\n').join(' | '));
    }
    const kept = { mounts: [{ source: '/dev/full', target: '/dev/deep/full' }], writable: ['/dev/zero', '/dev/shm'], hidden: ['/dev/random'] };
    const shown = await said('ls /dev /dev/deep | xargs; head -c 1 /dev/deep/full | wc -c; cat /dev/random', kept);
    const count = fs.readdirSync('/dev').length;
    const whole = async (options) => (await said('exec 2>/dev/null; head -c 2 /dev/zero | wc -c; head -c 1 ' + node + ' | wc -c; ls /dev | wc -l', options)).split('\\n').map(Number);
    const host = await whole({ hidden: [join(dir, 'hidden')], dev: 'host' });
    const above = await whole({ writable: ['/dev'] });
    return [[...new Set(rows)], shown.split('\\n'), host.concat(above).map((number) => number === count ? 'all' : number), fs.statSync('/dev/zero').mode & 0o777, fs.existsSync('/dev/shm/x')];`);
    const names = 'fd full null ptmx pts random shm stderr stdin stdout tty urandom zero';
    t.deepEqual(outcome, [
      [`${names} | 1777 666 | 8 | /dev/pts/0 | shm | /dev/pts: ptmx /dev/shm: x | 13`],
      [`/dev: deep ${names} /dev/deep: full`, '1'],
      [2, 1, 'all', 2, 0, 'all'],
      0o666,
      false,
    ]);
  },
  (dir) => void execFileSync('mknod', ['-m', '666', join(dir, 'open/zero'), 'c', '1', '5']),
);

asEach(
  'a hidden or read-only file comes back when it is replaced outside, and what is in a directory does not',
  (t, evaluate) => {
    const outcome = evaluate(`
    const script = 'while read -r line; do cat open/file hidden/secret; (: >> shut/file) 2>&- && echo open; echo .; done';
    const rows = [];
    for (const options of [{ hidden: [path('open/file'), path('hidden')], readonly: [path('shut/file')] }, { hidden: [path('open'), path('hidden/secret')], readonly: [path('shut')] }]) {
      const child = start(script + ' 2>&-', options);
      const ask = async () => { let text = ''; child.stdout.on('data', (piece) => (text += piece)); const told = until(child, '.'); child.stdin.write('\\n'); await told; child.stdout.removeAllListeners('data'); return text.split('\\n').join(' '); };
      const before = await ask();
      for (const name of ['open/file', 'hidden/secret', 'shut/file']) { fs.writeFileSync(path(name + '.new'), 'new\\n'); fs.renameSync(path(name + '.new'), path(name)); }
      rows.push([before, await ask()]);
      child.stdin.end();
    }
    return rows;`);
    t.deepEqual(outcome, [
      ['. ', 'new open . '],
      ['. ', 'new . '],
    ]);
  },
);

/** Types into a program's terminal, and waits for what it then shows; ends as the program does. */
const typing = `
import json, os, pty, sys, time
pid, fd = pty.fork()
if pid == 0: os.execvp(sys.argv[2], sys.argv[2:])
text = ''
for typed, shown in json.loads(sys.argv[1]):
    time.sleep(0.2)
    os.write(fd, typed.encode())
    while shown not in text:
        try: piece = os.read(fd, 4096)
        except OSError: piece = b''
        if not piece: sys.exit('no %r after %r in %r' % (shown, typed, text))
        text += piece.decode()
    text = text[text.index(shown) + len(shown):]
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`;

asEach('restrictions: a terminal with job control, into which the program puts no input', (t, evaluate) => {
  const put = `python3 -c 'import fcntl; fcntl.ioctl(0, 0x5412, b"y")' 2>&1 | grep -o 'rrno.*'\n`;
  const dialog = [
    ['', '% '],
    ['echo a$((1+1))b\n', 'a2b'],
    ['sleep 77; echo =$?=\n', 'sleep 77'],
    ['\x1a', 'topped'],
    ['fg\n', 'sleep 77'],
    ['\x03', '% '],
    ['echo =$?=\n', '=130='],
    ['echo tty > /dev/tty\n', '\ntty'],
    [put, '\nrrno 5]'],
    // The caller's process group has the number 0 in a process namespace, and `exit` of dash cannot return to it.
    ['kill -KILL $$\n', 'KILL'],
  ];
  const outcome = evaluate(`
    const codes = [];
    for (const options of [{}, { unshare: ['pid'] }, { mapRoot: true, unshare: ['pid'] }]) {
      const shell = 'import { spawn } from "overlayfs"; spawn("sh", ["-i"], ' + JSON.stringify({ ...options, cwd: '/', readonly: ['/usr'], stdio: 'inherit', env: { ...process.env, PS1: '% ', PATH: '/usr/bin:/bin' } }) + ').on("exit", (code, signal) => process.exit(signal === "SIGKILL" ? 5 : 1))';
      const typed = childProcess.spawnSync('/usr/bin/python3', ['-c', ${JSON.stringify(typing)}, ${JSON.stringify(JSON.stringify(dialog))}, process.execPath, '--input-type=module', '-e', shell], { encoding: 'utf8' });
      codes.push(typed.status === 5 ? 5 : [typed.status, typed.signal, typed.stderr]);
    }
    return codes;`);
  t.deepEqual(outcome, [5, 5, 5]);
});

asEach('dieWithParent: the program ends with its caller, whatever changes its ids', (t, evaluate, isRoot) => {
  const outcome = evaluate(`
    const users = [{}, { mapRoot: true }, ...(${isRoot} ? [{ uid: ${NOBODY}, gid: ${NOBODY} }] : [])];
    const options = users.flatMap((user) => [{}, { unshare: ['pid'] }, { hidden: [join(dir, 'hidden')] }].map((more) => ({ ...user, ...more })));
    const find = (mark) => fs.readdirSync('/proc').find((pid) => { try { return fs.readFileSync('/proc/' + pid + '/cmdline', 'latin1') === 'sleep\\0' + mark + '\\0' } catch { return false; } });
    const outlived = [], died = [];
    for (const [i, option] of options.entries()) for (const dieWithParent of [true, false]) {
      for (let round = 0; round < (dieWithParent ? ${scaled(20, 2)} : 1); round++) {
        const mark = process.pid + '.' + i + '0' + round;
        const script = 'import { spawn } from "overlayfs"; const child = spawn("sh", ["-c", "echo ready; exec sleep ' + mark + '"], { ...' + JSON.stringify({ ...option, dieWithParent, cwd: '/' }) + ', stdio: ["ignore", 1, "ignore"] }); if (' + (round % 2) + ') process.kill(process.pid, "SIGKILL");';
        const caller = childProcess.spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
        const closed = new Promise((resolve) => caller.stdout.on('close', resolve).resume());
        if (round % 2 === 0) { await until(caller, 'ready'); caller.kill('SIGKILL'); }
        if (dieWithParent) await closed;
        for (let wait = 0; wait < 200 && (find(mark) !== undefined) === dieWithParent; wait++) await sleep(10);
        if (dieWithParent && find(mark)) outlived.push([i, round]);
        if (!dieWithParent) { const left = find(mark); if (left) process.kill(left); else died.push(i); await closed; }
      }
    }
    return [outlived, died];`);
  t.deepEqual(outcome, [[], []]);
});

asEach('own processes: a program that is stopped and continued from inside goes on', (t, evaluate) => {
  const outcome = evaluate(`
    const script = '(while sleep 0.1; do kill -CONT $$; done) & for signal in STOP TSTP STOP; do kill -$signal $$; done; kill $!; echo on; read line; kill -STOP $$; echo again';
    const child = start(script, { unshare: ['pid'] });
    const ended = end(child);
    await until(child, 'on');
    const isStopped = () => /State:\\s+T/.test(fs.readFileSync('/proc/' + child.pid + '/status', 'latin1'));
    // The process outside goes on after the program: its stop must not be taken for the next one.
    while (isStopped()) await sleep(5);
    child.stdin.end('\\n');
    while (!isStopped()) await sleep(5);
    child.kill('SIGCONT');
    return ended;`);
  t.deepEqual(outcome, { code: 0, signal: null, text: 'on\nagain' });
});

asEach('own processes: signals to the group stay inside, and those from outside reach all of it', (t, evaluate) => {
  const outcome = evaluate(`
    const script = \`import { spawn } from 'overlayfs';
      const ended = (child) => new Promise((resolve) => child.on('exit', (...how) => resolve(how.join(' '))));
      const options = { unshare: ['pid'], cwd: '/', stdio: ['ignore', 'pipe', 'ignore'] };
      const inside = await ended(spawn('sh', ['-c', 'trap "" USR1; kill -USR1 0; kill -TERM 0; sleep 60'], options));
      const leading = await ended(spawn('setsid', ['sh', '-c', 'exit 4'], options));
      const child = spawn('sh', ['-c', 'trap "wait; exit 3" TERM; sh -c "$CHILD" & wait'], { ...options, detached: true });
      let text = '';
      child.stdout.on('data', (piece) => { text += piece; if (String(piece).includes('ready')) process.kill(-child.pid, 'SIGTERM'); });
      const outside = await ended(child);
      console.log(JSON.stringify([inside, leading, outside, text]));\`;
    const env = { ...process.env, CHILD: 'trap "echo child; exit" TERM; echo ready; while :; do sleep 0.05; done' };
    // In a session of its own: the group must not be that of the tests.
    return JSON.parse(childProcess.execFileSync('setsid', ['-w', process.execPath, '--input-type=module', '-e', script], { env }));`);
  t.deepEqual(outcome, [' SIGTERM', '4 ', '3 ', 'ready\nchild\n']);
});

asEach('own processes: the init has a name of its own, and shows no path and no order', (t, evaluate) => {
  const outcome = evaluate(
    `return said("tr '\\\\0' '|' < /proc/1/cmdline; echo; cat /proc/1/comm", { unshare: ['pid'], mapRoot: true, hidden: [join(dir, 'hidden')] });`,
  ) as string;
  t.regex(outcome, /^overlayfs-init\|*\noverlayfs-init$/);
});
