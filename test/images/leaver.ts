/**
 * A process that makes and removes containers and mounts until it is killed. Arguments: the root, an image's layout, a
 * directory of its own, the seconds of `sleep` in the containers, `alive` to keep one of each, or a seed.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay } from 'overlayfs';
import { createImage, openLayout, type RunningContainer, runContainer } from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { Snapshotter, withTempMount } from 'overlayfs/snapshots';
import { generator } from '../support/random.js';

const [root = '', layoutPath = '', dir = '', mark = '', way = ''] = process.argv.slice(2);
const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
const layout = await openLayout(layoutPath);
const image = await layout.image('one');
for (const name of ['one', 'two', 'upper', 'work', 'layer']) mkdirSync(join(dir, name), { recursive: true });
writeFileSync(join(dir, 'one/file'), mark);
const mounts = [
  { type: 'bind', source: join(dir, 'one'), options: ['rbind', 'rw'] },
  { type: 'bind', source: join(dir, 'two'), target: 'inside', options: ['rbind', 'rw'] },
];
mkdirSync(join(dir, 'one/inside'), { recursive: true });
const container = (command: string[], onStart?: (container: RunningContainer) => void) =>
  runContainer(image, { snapshotter, runtime: false, command, stdio: 'ignore', onStart });
const rootless = () => mountOverlay({ lowerdir: [join(dir, 'one'), join(dir, 'two')], rootless: true });

if (way === 'alive') {
  const started = new Promise<RunningContainer>((resolve, reject) => {
    container(['sleep', mark], resolve).catch(reject);
  });
  const mounted = new Promise<string>((resolve, reject) => {
    withTempMount(mounts, (path) => {
      resolve(path);
      return new Promise(() => {});
    }).catch(reject);
  });
  const [held, running, path, view] = [await snapshotter.hold('alive'), await started, await mounted, await rootless()];
  const upper = String(held.mounts[0]?.source);
  process.on('message', () => {
    const read = readFileSync(`${path}/file`, 'utf8') + readFileSync(`${view.path}/file`, 'utf8');
    const isRunning = running.process.exitCode === null && running.process.signalCode === null;
    process.kill(running.process.pid as number, 0);
    writeFileSync(join(upper, 'file'), read);
    readFileSync(`${running.path}/srv/hello`);
    process.send?.({ read, isRunning, path });
  });
  process.send?.('ready');
} else {
  const random = generator(Number(way));
  let count = 0;
  const actions = [
    () =>
      container(random(2) === 0 ? ['sleep', '0.0'] : ['sleep', mark], ({ process: child }) => {
        setTimeout(() => child.kill('SIGKILL'), random(50));
      }),
    () => withTempMount(mounts, (path) => readFileSync(`${path}/file`)),
    async () => (await rootless()).unmount(),
    async () => (await snapshotter.hold(`held ${process.pid} ${count++}`)).remove(),
    async () => {
      writeFileSync(join(dir, 'layer/file'), `${process.pid} ${count++}`);
      const made = await createImage(layout, [pack(join(dir, 'layer'))], { tag: `made${process.pid}` });
      await runContainer(made, { snapshotter, runtime: false, command: ['/none'], stdio: 'ignore' }).catch(() => {});
    },
  ];
  process.send?.('ready');
  for (;;) await actions[random(actions.length)]?.();
}
