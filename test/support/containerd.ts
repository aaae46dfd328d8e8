/** A containerd of its own for a test. */
import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { ExecutionContext } from 'ava';

const plugins = [
  'grpc.v1.cri',
  'snapshotter.v1.btrfs',
  'snapshotter.v1.zfs',
  'snapshotter.v1.aufs',
  'snapshotter.v1.devmapper',
];

export interface Containerd {
  readonly root: string;
  /** Runs its client, and returns the output. */
  ctr(...args: string[]): string;
  /** The same, while this thread goes on. */
  ctrLater(...args: string[]): Promise<string>;
}

/** Starts containerd, with its files in this directory, until the test ends. `proxies`: snapshotters by their sockets. */
export async function startContainerd(
  t: ExecutionContext,
  dir: string,
  proxies: Readonly<Record<string, string>> = {},
): Promise<Containerd> {
  const socket = join(dir, 'containerd.sock');
  const config = `version = 2
root = "${dir}/root"
state = "${dir}/state"
disabled_plugins = [${plugins.map((name) => `"io.containerd.${name}"`).join(', ')}]
[grpc]
  address = "${socket}"
[ttrpc]
  address = "${dir}/ttrpc.sock"
[proxy_plugins]
${Object.entries(proxies)
  .map(([name, address]) => `  [proxy_plugins.${name}]\n    type = "snapshot"\n    address = "${address}"\n`)
  .join('')}`;
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'config.toml'), config);
  const daemon = spawn('containerd', ['--config', join(dir, 'config.toml'), '--log-level', 'error'], {
    stdio: 'ignore',
  });
  t.teardown(async () => {
    const ended = once(daemon, 'exit');
    daemon.kill();
    await ended;
  });
  for (let i = 0; spawnSync('ctr', ['--address', socket, 'version']).status !== 0; i++) {
    if (i > 1000 || daemon.exitCode !== null) throw new Error('containerd does not start');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const later = promisify(execFile);
  return {
    root: join(dir, 'root'),
    ctr: (...args) => execFileSync('ctr', ['--address', socket, ...args], { encoding: 'utf8' }),
    async ctrLater(...args) {
      const { stdout } = await later('ctr', ['--address', socket, ...args], { timeout: 60_000, maxBuffer: 2 ** 26 });
      return stdout;
    },
  };
}
