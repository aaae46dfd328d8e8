/** Programs in namespaces of their own: network, processes, IPC, host name, uid 0, and what they can write. */
import { join } from 'node:path';
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
): void {
  for (const [name, command] of users) {
    mountTest(`${title}, as ${name}`, { needs }, (t) => {
      const dir = scratch(t, 'disk');
      makeTree(dir, { 'open/file': 'open', 'shut/file': 'shut', 'hidden/secret': 'secret' });
      for (const path of ['', 'open', 'open/file', 'shut', 'shut/file', 'hidden', 'hidden/secret']) {
        if (name !== 'root') giveTo(join(dir, path));
      }
      check(t, (body) => evaluateAs(command, `${prelude}${body}`, dir), name === 'root');
    });
  }
}

asEach('each namespace is one of its own', (t, evaluate) => {
  const outcome = evaluate(`
    const kinds = { net: { network: false }, pid: { pids: 'own' }, ipc: { ipc: 'own' }, uts: { uts: 'own' } };
    const all = Object.assign({}, ...Object.values(kinds));
    const script = 'cd /proc/self/ns; readlink net pid ipc uts user';
    const own = (await said(script)).split('\\n');
    const differs = async (options) => (await said(script, options)).split('\\n').map((line, i) => line === own[i] ? '' : ['net', 'pid', 'ipc', 'uts', 'user'][i]).filter(Boolean).join(' ');
    const rows = [];
    for (const options of [...Object.values(kinds), all, { root: true }, { ...all, root: true }]) rows.push(await differs(options));
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
      const child = overlayfs.spawn(process.execPath, ['-e', script, join(dir, 'socket')], { network: false, root });
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
    const pids = { pids: 'own' };
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
    const mark = 'sleep 7' + process.pid;
    const alive = () => fs.readdirSync('/proc').filter((pid) => { try { return fs.readFileSync('/proc/' + pid + '/cmdline', 'latin1').includes(mark.replace(' ', '\\0')); } catch { return false; } }).length;
    const seen = [];
    for (let round = 0; round < ${scaled(40, 4)}; round++) {
      const child = start('echo ready; (setsid ' + mark + ' &) ; ' + (round % 2 ? 'exec sleep 60' : 'exit 0'), { pids: 'own', root: round % 4 > 1, stdio: ['ignore', 'pipe', 'ignore'] });
      await until(child, 'ready');
      if (round % 2) { await sleep(round); child.kill('SIGKILL'); }
      await new Promise((resolve) => (child.exitCode ?? child.signalCode) === null ? child.on('exit', resolve) : resolve());
      for (let i = 0; i < 100 && alive() > 0; i++) await sleep(10);
      seen.push(alive());
    }
    return seen.filter((count) => count > 0).length;`);
  t.is(outcome, 0);
});

asEach('own processes: the init cannot be traced or killed, and an orphan has it as parent', (t, evaluate) => {
  const outcome = evaluate(`
    return [
      await said('kill -9 1 2>/dev/null; kill -STOP 1 2>/dev/null; echo alive', { pids: 'own' }),
      await said('(cat /proc/1/environ || readlink /proc/1/root || readlink /proc/1/fd/0) 2>/dev/null || echo shut', { pids: 'own', root: true }),
      await said('(sh -c "sleep 0.1; echo \\\\$PPID" & ) ; sleep 0.3; grep PPid /proc/self/status | grep -c 2; sh -c "sh -c \\'sleep 0.05; grep PPid /proc/\\\\$\\\\$/status\\' & exit"; sleep 0.2', { pids: 'own' }),
    ];`) as string[];
  t.is(outcome[0], 'alive');
  t.regex(outcome[1] ?? '', /shut/);
  t.regex(outcome[2] ?? '', /PPid:\s+1$/);
});

asEach('uid 0 inside: of its own namespace, with what is read-only and hidden locked', (t, evaluate, isRoot) => {
  const outcome = evaluate(`
    const options = { root: true, readonly: [join(dir, 'shut')], hidden: [join(dir, 'hidden')] };
    return [
      await said('id -u; id -g; echo new > open/new && stat -c %u open/new', { root: true }),
      await said('exec 2>/dev/null; umount hidden; cat hidden/secret; mount -o remount,rw shut; mount --bind shut open && echo no > open/file; echo no > shut/file || echo stays; mount -t tmpfs none open && echo mounted', options),
      await said('hostname inside && hostname; ip link set lo down && echo down; mount -t proc proc /proc 2>/dev/null || echo no proc', { root: true, uts: 'own', network: false }),
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
    for (const root of [false, true]) for (const writable of [[join(dir, 'link')], [join(dir, 'open/file')], []]) rows.push((await said(script, { writable, root, cwd: dir })).split('\\n').join(' '));
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
    const child = overlayfs.spawn('/bin/sh', ['-c', script], { mount, at: '/', cwd: '/', pids: 'own', network: false, ipc: 'own', uts: 'own', root: true, env: { HOME: '/tmp' } });
    const outcome = await end(child);
    await mount.unmount();
    return [outcome, fs.readdirSync(join(dir, 'upper'))];`);
  t.deepEqual(outcome, [{ code: null, signal: 'SIGTERM', text: '/proc/1 /proc/2\n0\n/tmp' }, ['new']]);
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
    const options = { mount, at: '/', cwd: '/', pids: 'own', root: true, env: { PATH: '/bin' } };
    const script = tries.join('; ') + '; (: 3>>/proc/sys/kernel/core_pattern) 2>/dev/null && echo open; while read -r line; do set -- $line; case $5 in /|/proc*|/dev*|/sys*) ;; *) echo "$5";; esac; done < /proc/self/mountinfo; exit 3';
    const outcomes = [
      await end(overlayfs.spawn('sh', ['-c', script], { ...options, readonly: ['/sys', '/proc/sys'] })),
      await end(overlayfs.spawn('sh', ['-c', '(: 3>>/proc/sys/kernel/core_pattern) 2>/dev/null && echo open; echo x > /new'], { ...options, writable: [] })),
      await run('(: 3>>/proc/sys/kernel/core_pattern) 2>/dev/null && echo open; : >> /proc/self/comm', { pids: 'own', root: true, writable: [] }),
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

mountTest('a program without privilege cannot choose its ids', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  giveTo(dir);
  const outcome = evaluateAs(
    asNobody,
    `${prelude}
    const failed = async (options) => { try { return (({ code, error }) => [code, error?.reason])(await run('true', options)); } catch (error) { return error.code; } };
    return [await failed({ uid: 1 }), await failed({ uid: 1, root: true }), await failed({ uid: 0, gid: 0, root: true })];`,
    dir,
  );
  t.deepEqual(outcome, ['ERR_INVALID_ARG_VALUE', [127, 'sub-ids-missing'], [0, null]]);
});
