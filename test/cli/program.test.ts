/** `overlayfs run`: as a plain user and as root. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
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
    t.is(run([...base, '--', '/etc/passwd'], { command }).code, 126, 'it may not be executed');
  });
}

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
