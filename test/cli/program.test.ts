/** `overlayfs run`: as a plain user and as root. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { removeLayerSync } from 'overlayfs';
import { makeTree, mountTest, scratch } from '../support/index.js';
import { asNobody, giveTo } from '../support/plain-user.js';
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
    const base = ['run', '--lower', at, '--upper', join(dir, 'upper'), '--create', '--at', at];
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
    t.regex(missing.stderr, /spawn no-such-program ENOENT/);
    const apart = ['--own-pids', '--own-ipc', '--own-uts', '--no-network', '--root', '--writable', join(dir, 'secret')];
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
      const args = ['run', '--lower', at, '--upper', join(dir, 'upper'), '--create', '--at', at, ...flags, '--', 'pwd'];
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
      const layers = ['--lower', at, '--upper', join(dir, upper), '--work', join(dir, work), '--create'];
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
      t.is(second.code, 1);
      t.like(JSON.parse(second.stdout).errors[0], { code: 'EBUSY', reason, path: join(dir, path) });
      t.deepEqual(readdirSync(dir).sort(), ['app', 'upper', 'work'], 'what it made is removed');
    }
    t.is(run(args('other', 'other-work', 'true'), { command }).code, 0);
    for (const name of ['upper', 'work']) {
      t.throws(() => removeLayerSync(join(dir, name)), { code: 'EBUSY', message: /'overlayfs run'/ });
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

mountTest('run takes back what it made for a mount that fails', (t) => {
  const dir = scratch(t);
  const layers = ['--lower', join(dir, 'missing'), '--upper', join(dir, 'a/b/upper'), '--create'];
  t.is(run(['run', ...layers, '--at', dir, '--', 'true']).code, 1);
  t.deepEqual(readdirSync(dir), []);
});

mountTest('run passes on the signals that no terminal has sent', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'app/': '' });
  const [at, upper] = [join(dir, 'app'), join(dir, 'upper')];
  const script = 'trap "exit 5" INT; trap "exit 6" QUIT; echo ready; while sleep 0.05; do :; done';
  const args = ['run', '--lower', at, '--upper', upper, '--create', '--at', at, '--', 'sh', '-c', script];
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
