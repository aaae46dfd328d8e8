/** A containerd of its own for a test. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';

const plugins = [
  'grpc.v1.cri',
  'snapshotter.v1.btrfs',
  'snapshotter.v1.zfs',
  'snapshotter.v1.aufs',
  'snapshotter.v1.devmapper',
];

/** containerd with a root of its own, until the test ends. Returns its root, and its client. */
export async function startContainerd(
  t: ExecutionContext,
  dir: string,
): Promise<{ root: string; ctr: (...args: string[]) => string }> {
  const socket = join(dir, 'containerd.sock');
  const config = `version = 2
root = "${dir}/root"
state = "${dir}/state"
disabled_plugins = [${plugins.map((name) => `"io.containerd.${name}"`).join(', ')}]
[grpc]
  address = "${socket}"
[ttrpc]
  address = "${dir}/ttrpc.sock"
`;
  mkdirSync(dir);
  writeFileSync(join(dir, 'config.toml'), config);
  const daemon = spawn('containerd', ['--config', join(dir, 'config.toml')], { stdio: 'ignore' });
  t.teardown(async () => {
    const ended = once(daemon, 'exit');
    daemon.kill();
    await ended;
  });
  for (let i = 0; spawnSync('ctr', ['--address', socket, 'version']).status !== 0; i++) {
    if (i > 300 || daemon.exitCode !== null) throw new Error('containerd does not start');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    root: join(dir, 'root'),
    ctr: (...args) => execFileSync('ctr', ['--address', socket, ...args], { encoding: 'utf8' }),
  };
}
