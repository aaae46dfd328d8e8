/** `overlayfs serve`, as a service of systemd too. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { program, run } from '../cli/run.js';
import { scratch } from '../support/index.js';
import { TestClient } from './client.js';

interface Started {
  readonly child: ChildProcess;
  readonly lines: string[];
  /** Waits for a line of the log with this message. */
  seen(message: string): Promise<Record<string, unknown>>;
  /** Stops it, and returns its exit code. */
  stop(): Promise<number | null>;
}

function start(t: ExecutionContext, command: readonly string[], env: NodeJS.ProcessEnv = {}): Started {
  const [name = '', ...args] = command;
  const child = spawn(name, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'exit');
  const lines: string[] = [];
  let rest = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n');
    rest = parts.pop() ?? '';
    lines.push(...parts);
  });
  t.teardown(async () => {
    child.kill('SIGKILL');
    await ended;
  });
  return {
    child,
    lines,
    async seen(message) {
      for (;;) {
        const line = lines.find((text) => text.includes(`"message":"${message}"`));
        if (line !== undefined) return JSON.parse(line);
        if (child.exitCode !== null) throw new Error(`it has ended: ${lines.join('\n')}`);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    async stop() {
      child.kill('SIGTERM');
      const [code] = await ended;
      return code;
    },
  };
}

test.serial('it serves until SIGTERM, and finishes what is under way', async (t) => {
  const dir = scratch(t);
  const [root, address] = [join(dir, 'root'), join(dir, 'socket')];
  const command = [process.execPath, program, 'serve', '--root', root, '--address', address];
  const server = start(t, command);
  t.like(await server.seen('ready'), { level: 'info', address, root });
  const client = new TestClient(address);
  t.teardown(() => client.close());
  await client.call('prepare', { key: 'first' });
  const calls = Array.from({ length: 50 }, (_, i) => client.call('prepare', { key: `key ${i}` }));
  await client.call('stat', { key: 'first' });
  t.is(await server.stop(), 0);
  const made = (await Promise.allSettled(calls)).filter(({ status }) => status === 'fulfilled').length;
  t.false(existsSync(address));
  t.true(server.lines.some((line) => line.includes('"message":"stopped"')));
  const { stdout } = run(['snapshot', 'ls', '--root', root]);
  t.true(stdout.trim().split('\n').length >= made + 1);
});

test.serial('two servers, and servers that cannot begin', async (t) => {
  const dir = scratch(t);
  const [root, address] = [join(dir, 'root'), join(dir, 'socket')];
  const command = [process.execPath, program, 'serve', '--root', root, '--address', address];
  await start(t, command).seen('ready');
  const second = run(['serve', '--root', root, '--address', join(dir, 'other')]);
  t.is(second.code, 2);
  t.regex(second.stderr, /another server has the root/i);
  const third = run(['serve', '--root', join(dir, 'other'), '--address', address]);
  t.is(third.code, 2);
  t.regex(third.stderr, /somebody answers/i);
  t.is(run(['serve', '--root', root]).code, 2);
  t.is(run(['serve', '--root', root, '--address', `/${'x'.repeat(120)}`]).code, 2);
  t.is(run(['serve', '--root', root, '--address', address, 'operand']).code, 2);
  const wrong = run(['serve', '--root', join(dir, 'third'), '--address', '/s', '--concurrency', 'many']);
  t.like(wrong, { code: 2 });
  t.regex(wrong.stderr, /--concurrency takes a number, not 'many'/);
});

/** A program that receives datagrams, and one that passes a listening socket, as systemd does: Node can do neither. */
const receiver = `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('\\0' + sys.argv[1][1:] if sys.argv[1][0] == '@' else sys.argv[1])
print('bound', flush=True)
while True: print(s.recv(1000).decode(), flush=True)`;
const activator = `import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(100)
os.dup2(s.fileno(), 3)
if s.fileno() != 3: s.close()
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='x')
os.execv(sys.argv[2], sys.argv[2:])`;

for (const kind of ['path', 'abstract'] as const) {
  test.serial(`systemd: readiness, and a socket from it (notices at a ${kind} address)`, async (t) => {
    const dir = scratch(t);
    const [root, address] = [join(dir, 'root'), join(dir, 'socket')];
    const notices = kind === 'path' ? join(dir, 'notify') : `@overlayfs-test-${process.pid}`;
    const systemd = spawn('python3', ['-c', receiver, notices], { stdio: ['ignore', 'pipe', 'inherit'] });
    t.teardown(() => systemd.kill());
    let told = '';
    systemd.stdout.setEncoding('utf8').on('data', (text) => (told += text));
    await once(systemd.stdout, 'data');
    const command = ['python3', '-c', activator, address, process.execPath, program, 'serve', '--root', root];
    const server = start(t, command, { NOTIFY_SOCKET: notices });
    await server.seen('ready');
    const client = new TestClient(address);
    t.teardown(() => client.close());
    await client.call('prepare', { key: 'a' });
    t.is(await server.stop(), 0);
    while (!told.includes('STOPPING=1')) await new Promise((resolve) => setTimeout(resolve, 10));
    t.regex(told, /^bound\nREADY=1\nSTOPPING=1\n/);
    t.true(existsSync(address), 'the socket is that of systemd');
  });
}

test.serial('systemd: a descriptor that is no socket to listen on', (t) => {
  const passing = ['sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3</dev/null', 'sh'];
  const { code, stderr } = run(['serve', '--root', join(scratch(t), 'root')], { command: passing });
  t.is(code, 2);
  t.regex(stderr, /descriptor 3, on which nobody can connect[\s\S]*ListenStream=/);
});

test.serial('--check says what is missing', async (t) => {
  const dir = scratch(t);
  const [root, address, config] = [join(dir, 'root'), join(dir, 'run/socket'), join(dir, 'config.toml')];
  const check = () => run(['serve', '--check', '--root', root, '--address', address, '--config', config]);
  const first = check();
  t.is(first.code, 1);
  t.regex(first.stdout, /missing {2}socket: the directory .* does not exist\. Remedy: run mkdir -p/);
  t.regex(first.stdout, /missing {2}configuration: .* does not exist/);
  t.regex(first.stdout, /ok {7}root: .* can hold snapshots; capabilities: (no )?remap-ids/);
  t.regex(first.stdout, /ok {7}packages: /);
  t.false(existsSync(root));
  mkdirSync(join(dir, 'run'));
  writeFileSync(config, `version = 2\n[proxy_plugins.other]\n type = "snapshot"\n address = "/other"\n`);
  t.regex(check().stdout, /missing {2}configuration: .* names no proxy plugin at this address/);
  // containerd writes strings in single quotes itself.
  writeFileSync(config, `[proxy_plugins.literal]\n type = 'snapshot'\n address = '${address}' # here\n`);
  t.regex(check().stdout, /ok {7}configuration: .* has the proxy plugin literal/);
  writeFileSync(config, `[proxy_plugins.mine]\n type = "snapshot"\n address = "unix://${address}"\n`);
  const last = check();
  t.regex(last.stdout, /ok {7}socket: .* is free/);
  t.regex(last.stdout, /ok {7}configuration: .* has the proxy plugin mine/);
  const { findings } = JSON.parse(run(['serve', '--check', '--json', '--root', root, '--address', address]).stdout);
  t.true(findings.length >= 6);
});
