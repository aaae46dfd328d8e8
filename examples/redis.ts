/**
 * An image of six layers, run as a container: Redis in an overlay of six lowers, an upper and a workdir. It answers over a
 * unix socket, its dump is in the upper, the layers stay as they are; then the upper is the seventh layer.
 *
 *   node dist-test/examples/redis.js [--packages DIR] [--runtime NAME]
 *
 * `--packages` names a directory for Debian's packages, which apt-get(8) fetches; `--runtime none` runs the container
 * without an OCI runtime. Root may have one; a plain user does without.
 */
import { deepStrictEqual, strictEqual } from 'node:assert';
import { lstatSync, mkdtempSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { createImage, createLayout, type Image, type RunningContainer, runContainer, unpack } from 'overlayfs/images';
import { remove } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { ask, connectTo } from './redis/client.js';
import { fetchPackages, layers, makeLayers } from './redis/layers.js';

const { values: flags } = parseArgs({ options: { packages: { type: 'string' }, runtime: { type: 'string' } } });
const isRoot = process.getuid?.() === 0;
const say = (text: string): void => console.log(text);

/** All that the snapshots hold, to see that nothing of the layers changes. */
function picture(root: string): string[] {
  const directory = join(root, 'snapshots');
  return readdirSync(directory).flatMap((id) => {
    const files = join(directory, id, 'fs');
    return readdirSync(files, { recursive: true, encoding: 'utf8' }).map((name) => {
      const { mode, size, mtimeMs, ctimeMs } = lstatSync(join(files, name));
      return [id, name, mode, size, mtimeMs, ctimeMs].join(' ');
    });
  });
}

/** Runs the server, and talks to it meanwhile. */
async function withRedis(
  image: Image,
  snapshotter: Snapshotter,
  commit: string | undefined,
  talk: (say: (...words: string[]) => Promise<string>) => Promise<void>,
) {
  const end = new AbortController();
  let talked: Promise<void> | undefined;
  const onStart = ({ path, process: server }: RunningContainer): void => {
    server.stdout?.on('data', (text) => (log += text));
    server.stderr?.on('data', (text) => (log += text));
    talked = (async () => {
      const socket = await connectTo(
        join(path, 'data/redis.sock'),
        AbortSignal.any([end.signal, AbortSignal.timeout(30_000)]),
      );
      try {
        await talk((...words) => ask(socket, ...words));
        socket.write('SHUTDOWN NOSAVE\r\n');
      } finally {
        socket.destroySoon();
      }
    })();
    // The container ends with the conversation.
    talked.catch(() => server.kill());
  };
  let log = '';
  try {
    const result = await runContainer(image, {
      snapshotter,
      // A plain user's container has no other user than root.
      ...(isRoot ? {} : { user: '0:0' }),
      ...(flags.runtime !== undefined && { runtime: flags.runtime === 'none' ? false : flags.runtime }),
      network: false,
      stdio: ['ignore', 'pipe', 'pipe'],
      onStart,
      ...(commit !== undefined && { commit }),
    });
    end.abort();
    await talked;
    strictEqual(result.exitCode, 0);
    return result;
  } catch (error) {
    end.abort();
    console.error(log);
    throw error;
  }
}

async function main(directory: string): Promise<void> {
  const packages = flags.packages ?? join(directory, 'packages');
  fetchPackages(packages);
  const layout = await createLayout(join(directory, 'layout'));
  const image = await createImage(layout, await makeLayers(packages, join(directory, 'layers')), {
    tag: 'redis',
    config: { User: 'redis', WorkingDir: '/data', Entrypoint: ['redis-server'], Cmd: ['/etc/redis/redis.conf'] },
  });
  say(`An image of ${image.layers.length} layers: ${layers.map(([name]) => name).join(', ')}`);

  const root = join(directory, 'snapshots');
  const snapshotter = await Snapshotter.open(root);
  try {
    await unpack(image, snapshotter);
    const before = picture(root);
    const { changes, image: committed } = await withRedis(image, snapshotter, 'redis-with-data', async (command) => {
      strictEqual(await command('PING'), 'PONG');
      strictEqual(await command('SET', 'greeting', 'hello from the upper'), 'OK');
      strictEqual(await command('SAVE'), 'OK');
      say('PING, SET, SAVE: PONG, OK, OK');
    });
    const changed = changes.map(({ kind, path }) => `${kind} ${path}`);
    say(`Changes: ${changed.join(', ')}`);
    deepStrictEqual(
      changed.filter((line) => line.includes('dump')),
      ['added data/dump.rdb'],
    );
    const after = new Set(picture(root));
    deepStrictEqual(
      before.filter((line) => !after.has(line)),
      [],
    );
    say(`The ${before.length} files of the layers are as they were.`);

    if (committed === undefined) throw new Error('nothing was committed');
    strictEqual(committed.layers.length, 7);
    await withRedis(committed, snapshotter, undefined, async (command) => {
      strictEqual(await command('GET', 'greeting'), 'hello from the upper');
    });
    say('Run again with the seventh layer: the data is there.');
  } finally {
    await snapshotter.close();
  }
}

const directory = mkdtempSync(join(tmpdir(), 'overlayfs-redis-'));
try {
  await main(directory);
} finally {
  await remove(directory);
}
