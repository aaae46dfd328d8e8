/** `overlayfs run`: as a plain user and as root. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { spawn as spawnProgram } from 'overlayfs';
import { remove } from 'overlayfs/layers';
import { makeTree, mountTest, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { asNobody, evaluateAs, giveTo } from '../support/plain-user.js';
import { program, run } from './run.js';

for (const [who, command] of [
  ['a plain user', asNobody],
  ['root', []],
] as const) {
  mountTest(`run, as ${who}: output, exit code, arguments, the upper`, { needs: 'rootless' }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'app/file': 'file', 'app/gone': '', 'secret/key': 'key' });
    giveTo(dir, ...['app', 'app/file', 'app/gone', 'secret', 'secret/key'].map((name) => join(dir, name)));
    const at = join(dir, 'app');
    const base = ['run', '--lowerdir', at, '--upperdir', join(dir, 'upper'), '--create', '--at', at];
    const script = 'pwd; rm gone; echo new > new; ls; ls "$1"; printf "[%s]" "$2"; exit 9';
    const rest = [
      '--hidden',
      join(dir, 'secret'),
      '--cwd',
      at,
      '--',
      'sh',
      '-c',
      script,
      'sh',
      join(dir, 'secret'),
      '',
    ];
    t.deepEqual(run([...base, ...rest], { command }), { code: 9, stdout: `${at}\nfile\nnew\n[]`, stderr: '' });
    t.deepEqual(readdirSync(at), ['file', 'gone']);
    t.deepEqual(readdirSync(join(dir, 'upper')).sort(), ['gone', 'new']);
    t.is(run([...base, '--', 'sh', '-c', 'kill -TERM $$'], { command }).code, 143);
    const json = run([...base, '--json', '--', 'sh', '-c', 'echo text; exit 3'], { command });
    t.deepEqual(
      { ...json, stdout: JSON.parse(json.stdout) },
      { code: 3, stdout: { code: 3, signal: null }, stderr: 'text\n' },
    );
    const missing = run([...base, '--', 'no-such-program'], { command, env: { PATH: '/usr/bin:/bin' } });
    t.is(missing.code, 127);
    t.regex(missing.stderr, /reason: program-missing/);
    const apart = [
      '--unshare',
      'pid',
      '--unshare',
      'ipc',
      '--unshare',
      'uts',
      '--network',
      'none',
      '--map-root',
      '--writable',
      join(dir, 'secret'),
    ];
    const inside = `id -u; echo $$; (: > ${dir}/none) 2>/dev/null || echo shut; : > ${dir}/secret/new && : > in && ls`;
    t.like(run([...base, ...apart, '--cwd', at, '--', 'sh', '-c', inside], { command }), {
      code: 0,
      stdout: '0\n2\nshut\nfile\nin\nnew\n',
    });
    t.is(run([...base, '--', '/etc/passwd'], { command }).code, 126, 'it may not be executed');
  });
}

for (const [who, command] of [
  ['a plain user', asNobody],
  ['root', []],
] as const) {
  mountTest(`run, as ${who}: starts where the caller is in --at, else at --at`, { needs: 'rootless' }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'app/inside/': '', 'apple/': '', 'elsewhere/': '' });
    giveTo(dir, ...['app', 'app/inside', 'apple', 'elsewhere'].map((name) => join(dir, name)));
    const at = join(dir, 'app');
    const pwd = (from: string, ...flags: string[]) => {
      const args = [
        'run',
        '--lowerdir',
        at,
        '--upperdir',
        join(dir, 'upper'),
        '--create',
        '--at',
        at,
        ...flags,
        '--',
        'pwd',
      ];
      return run(args, { command, cwd: join(dir, from) });
    };
    const prints = (path: string) => ({ code: 0, stdout: `${join(dir, path)}\n`, stderr: '' });
    for (const [from, starts] of Object.entries({
      '': 'app',
      app: 'app',
      'app/inside': 'app/inside',
      apple: 'app',
      elsewhere: 'app',
    })) {
      t.deepEqual(pwd(from), prints(starts), from);
    }
    t.deepEqual(pwd('', '--cwd', join(dir, 'elsewhere')), prints('elsewhere'));
  });

  mountTest(`run, as ${who}: one at a time for an upper or a workdir`, { needs: 'rootless' }, async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'app/': '' });
    giveTo(dir, join(dir, 'app'));
    const at = join(dir, 'app');
    const args = (upper: string, work: string, ...command: string[]) => {
      const layers = ['--lowerdir', at, '--upperdir', join(dir, upper), '--workdir', join(dir, work), '--create'];
      return ['run', ...layers, '--at', at, '--', ...command];
    };
    const start = async (...line: string[]) => {
      const [file = '', ...rest] = [...command, process.execPath, program, ...line];
      const child = spawn(file, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
      await once(child.stdout, 'data');
      return child;
    };
    const first = await start(...args('upper', 'work', 'sh', '-c', 'echo started; read line; exit 7'));
    for (const [upper, work, reason, path] of [
      ['upper', 'work', 'upper-in-use', 'upper'],
      ['upper', 'new-work', 'upper-in-use', 'upper'],
      ['new-upper', 'work', 'work-in-use', 'work'],
    ] as const) {
      const second = run(args(upper, work, 'true').toSpliced(1, 0, '--json'), { command });
      t.is(second.code, 125);
      t.like(JSON.parse(second.stdout).errors[0], { code: 'EBUSY', reason, path: join(dir, path) });
      t.deepEqual(readdirSync(dir).sort(), ['app', 'upper', 'work'], 'what it made is removed');
    }
    t.is(run(args('other', 'other-work', 'true'), { command }).code, 0);
    for (const name of ['upper', 'work']) {
      await t.throwsAsync(remove(join(dir, name)), { code: 'EBUSY', message: /'overlayfs run'/ });
    }
    first.stdin.end();
    t.deepEqual(await once(first, 'close'), [7, null]);

    const killed = await start(...args('upper', 'work', 'sh', '-c', 'echo started; exec cat'));
    killed.kill('SIGKILL');
    killed.stdin.end();
    await once(killed, 'close');
    t.is(run(args('upper', 'work', 'true'), { command }).code, 0, 'a lock ends with its process');
  });
}

mountTest('run passes on the signals that no terminal has sent', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'app/': '' });
  const [at, upper] = [join(dir, 'app'), join(dir, 'upper')];
  const script = 'trap "exit 5" INT; trap "exit 6" QUIT; echo ready; while sleep 0.05; do :; done';
  const args = ['run', '--lowerdir', at, '--upperdir', upper, '--create', '--at', at, '--', 'sh', '-c', script];
  for (const [signal, code] of [
    ['SIGINT', 5],
    ['SIGQUIT', 6],
  ] as const) {
    // In a session of its own, as a supervisor has it.
    const child = spawn(process.execPath, [program, ...args], { detached: true, stdio: ['ignore', 'pipe', 'inherit'] });
    const timer = setTimeout(() => process.kill(-(child.pid as number), 'SIGKILL'), 10_000);
    await once(child.stdout, 'data');
    child.kill(signal);
    t.deepEqual(await once(child, 'close'), [code, null]);
    clearTimeout(timer);
  }
});

for (const [who, command] of [
  ['a plain user', asNobody],
  ['root', []],
] as const) {
  mountTest(`unshare, as ${who}: exit codes, and flags of the program`, { needs: 'rootless' }, (t) => {
    const env = { PATH: '/usr/bin:/bin' };
    const inside = (...args: string[]) => run(['unshare', ...args], { command, env });
    const id = inside('id', '-u');
    t.deepEqual(id, { code: 0, stdout: who === 'root' ? '0\n' : `${NOBODY}\n`, stderr: '' });
    t.is(inside('sh', '-c', 'printf "[%s]" "$@"', 'sh', '--json', '', '--', '-h').stdout, '[--json][][--][-h]');
    t.is(inside('-r', 'id', '-u').stdout, '0\n');
    t.is(inside('sh', '-c', 'exit 7').code, 7);
    t.is(inside('sh', '-c', 'kill -TERM $$').code, 143);
    t.is(inside('no-such-program').code, 127);
    t.is(inside('/etc/passwd').code, 126);
    t.is(inside('--no-such-flag', 'true').code, 125);
    t.is(run(['unshare'], { command, env: { SHELL: '/bin/true' } }).code, 0);
    t.deepEqual(JSON.parse(inside('--json', 'sh', '-c', 'exit 3').stdout), { code: 3, signal: null });
  });
}

mountTest(
  'unshare, as a plain user: real paths for the library, git, node and realpath',
  { needs: 'rootless' },
  (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'app/gone': '', 'app/main.js': 'console.log(__filename)', 'app/old/file': '', 'view/': '' });
    giveTo(
      dir,
      ...['app', 'app/gone', 'app/main.js', 'app/old', 'app/old/file', 'view'].map((name) => join(dir, name)),
    );
    const at = join(dir, 'view');
    const body = `
    const [dir, at] = args;
    const mount = await overlayfs.mountOverlay({ lowerdir: dir + '/app', upperdir: dir + '/upper', create: true, target: at });
    const print = (...line) => childProcess.execFileSync(line[0], line.slice(1), { cwd: at, encoding: 'utf8' }).trim();
    fs.rmSync(at + '/gone');
    fs.rmSync(at + '/old', { recursive: true });
    fs.mkdirSync(at + '/old');
    print('git', 'init', '-q');
    print('git', 'add', '-A');
    print('git', '-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'all');
    const seen = [print('git', 'ls-files'), print('node', 'main.js'), print('realpath', 'main.js'), fs.realpathSync(mount.path), print('pwd')];
    const { rdev, uid } = fs.lstatSync(dir + '/upper/gone');
    await mount.unmount();
    return [seen, rdev, uid, fs.readdirSync(at), fs.readdirSync(dir + '/app')];`;
    const outcome = evaluateAs([...asNobody, process.execPath, program, 'unshare'], body, dir, at);
    t.deepEqual(outcome, [
      ['main.js', join(at, 'main.js'), join(at, 'main.js'), at, at],
      0,
      NOBODY,
      [],
      ['gone', 'main.js', 'old'],
    ]);
    t.deepEqual(readdirSync(at), [], 'nobody else sees it');
  },
);

mountTest('spawn with capabilities refuses what the program could undo', (t) => {
  for (const name of ['readonly', 'hidden', 'writable'] as const) {
    t.throws(() => spawnProgram('true', [], { capabilities: true, [name]: ['/tmp'] }), {
      code: 'ERR_INVALID_ARG_VALUE',
    });
  }
});
