/**
 * Random sequences of what images go through: unpacked, several at once, in another process, aborted, killed; committed,
 * removed. After each step every committed snapshot is a layer that it should be, with exactly its files; at the end
 * nothing half-made is left.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { commitImage, createImage, createLayout, type Image, unpack } from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { type Snapshotter, withTempMount } from 'overlayfs/snapshots';
import { changeTree } from '../layers/random-tree.js';
import { checkRoot } from '../snapshots/check-root.js';
import { generator, mountTest, packageRoot, scaled, scratch } from '../support/index.js';
import { describeTree, type Tree } from '../support/trees.js';
import { openSnapshotter } from './helper.js';

const STEPS = scaled(200);
const MOST_IMAGES = 12;
const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

/** Each image as a list of layers. They share some. */
const stacks = [[0], [0, 1], [0, 1, 2], [0, 3], [3], [3, 1, 2], [2, 1, 0, 3]];

/** A process that unpacks an image. It prints a line when it begins. */
const unpacker = ({ layout, digest }: Image, root: string): ReturnType<typeof spawn> => {
  const script = `import { openLayout, unpack } from 'overlayfs/images';
    import { Snapshotter } from 'overlayfs/snapshots';
    const [layout, root, digest] = process.argv.slice(1);
    const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
    const image = await (await openLayout(layout)).image(digest);
    console.log('begun');
    await unpack(image, snapshotter);
    await snapshotter.close();`;
  return spawn(process.execPath, ['--input-type=module', '-e', script, layout.path, root, digest], {
    cwd: packageRoot,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
};

/** Other programs look at the files, too. */
const describe = (path: string): Tree => describeTree(`${path.replace('self', String(process.pid))}/.`);

class Game {
  readonly #t: ExecutionContext;
  readonly #random: (below: number) => number;
  readonly #snapshotter: Snapshotter;
  readonly images: Image[] = [];
  /** By chain id: its files, and the chain id below. */
  readonly #expected = new Map<string, { readonly tree: Tree; readonly parent: string }>();
  #committed = 0;

  constructor(t: ExecutionContext, random: (below: number) => number, snapshotter: Snapshotter) {
    this.#t = t;
    this.#random = random;
    this.#snapshotter = snapshotter;
  }

  get #image(): Image {
    return this.images[this.#random(this.images.length)] as Image;
  }

  async #look(snapshotter: Snapshotter, key: string): Promise<Tree> {
    const mounts = await snapshotter.view('look', key);
    try {
      return await withTempMount(mounts, describe);
    } finally {
      await snapshotter.remove('look');
    }
  }

  /** Learns what the layers of an image look like, from a root in which nothing else happens. */
  async learn(image: Image, quiet: Snapshotter): Promise<void> {
    await unpack(image, quiet);
    for (const [i, { chainId }] of image.layers.entries()) {
      const parent = image.layers[i - 1]?.chainId ?? '';
      if (!this.#expected.has(chainId)) this.#expected.set(chainId, { tree: await this.#look(quiet, chainId), parent });
    }
    this.images.push(image);
  }

  /** Compares the snapshots with what is known. Returns the names that are no layers. */
  async check(isWhole: boolean): Promise<string[]> {
    const others: string[] = [];
    const layers: string[] = [];
    for await (const { name, kind, parent } of this.#snapshotter.list()) {
      const layer = this.#expected.get(name);
      if (layer === undefined) others.push(name);
      else {
        this.#t.deepEqual([kind, parent], ['committed', layer.parent], name);
        layers.push(name);
      }
    }
    const chosen = isWhole || layers.length === 0 ? layers : [layers[this.#random(layers.length)] as string];
    for (const name of chosen) {
      this.#t.deepEqual(await this.#look(this.#snapshotter, name), this.#expected.get(name)?.tree, name);
    }
    return others;
  }

  async #isThere(image: Image): Promise<boolean> {
    return this.#snapshotter.stat(image.layers.at(-1)?.chainId ?? '').then(
      () => true,
      () => false,
    );
  }

  readonly steps: Readonly<Record<string, () => Promise<void>>> = {
    unpack: async () => {
      const image = this.#image;
      const { chainId } = await unpack(image, this.#snapshotter);
      this.#t.is(image.layers.at(-1)?.chainId, chainId);
      this.#t.true(await this.#isThere(image));
    },
    'unpack several at once': async () => {
      const images = [this.#image, this.#image, this.#image];
      await Promise.all(images.map((image) => unpack(image, this.#snapshotter)));
      for (const image of images) this.#t.true(await this.#isThere(image));
    },
    'abort an unpack': async () => {
      const controller = new AbortController();
      setTimeout(() => controller.abort(), this.#random(15));
      await unpack(this.#image, this.#snapshotter, { signal: controller.signal }).catch((error: Error) => {
        if (error.name !== 'AbortError') throw error;
      });
    },
    'unpack in two processes': async () => {
      const image = this.#image;
      const child = unpacker(image, this.#snapshotter.root);
      const ended = once(child, 'close');
      await once(child.stdout as NodeJS.ReadableStream, 'data');
      await unpack(this.#image, this.#snapshotter);
      this.#t.deepEqual(await ended, [0, null]);
      this.#t.true(await this.#isThere(image));
    },
    'kill a process that unpacks': async () => {
      const image = this.#image;
      const child = unpacker(image, this.#snapshotter.root);
      const ended = once(child, 'close');
      await once(child.stdout as NodeJS.ReadableStream, 'data');
      await sleep(this.#random(30));
      child.kill('SIGKILL');
      await ended;
    },
    remove: async () => {
      const { layers } = this.#image;
      for (let i = layers.length - 1; i >= this.#random(layers.length); i--) {
        const refusals = ['ERR_SNAPSHOT_NOT_FOUND', 'ERR_SNAPSHOT_FAILED_PRECONDITION'];
        await this.#snapshotter.remove(layers[i]?.chainId ?? '').catch(({ code }) => {
          this.#t.true(refusals.includes(code), code);
        });
      }
    },
    'commit a container': () => this.#commit(undefined),
    'abort a commit': async () => {
      const controller = new AbortController();
      setTimeout(() => controller.abort(), this.#random(15));
      await this.#commit(controller.signal);
    },
    'clean up': async () => {
      this.#t.deepEqual((await this.#snapshotter.cleanup()).kept, []);
    },
  };

  async #commit(signal: AbortSignal | undefined): Promise<void> {
    if (this.images.length >= MOST_IMAGES) return;
    const image = this.#image;
    const { chainId } = await unpack(image, this.#snapshotter);
    const key = `container ${this.#committed++}`;
    const mounts = await this.#snapshotter.prepare(key, chainId);
    const tree = await withTempMount(mounts, (path) => {
      changeTree(path, this.#random, 10);
      return describe(path);
    });
    let made: Image;
    try {
      made = await commitImage(image, this.#snapshotter, key, {
        tag: key.replace(' ', '-'),
        ...(signal && { signal }),
      });
    } catch (error) {
      if ((error as Error).name !== 'AbortError') throw error;
      await this.#snapshotter.remove(key);
      return;
    }
    const name = made.layers.at(-1)?.chainId ?? '';
    this.#expected.set(name, { tree, parent: chainId });
    this.images.push(made);
    this.#t.true(await this.#isThere(made));
  }
}

async function makeImages(dir: string, random: (below: number) => number): Promise<Image[]> {
  const layout = await createLayout(join(dir, 'layout'));
  const sources = Array.from({ length: 4 }, (_, i) => {
    const source = join(dir, `source-${i}`);
    mkdirSync(source);
    changeTree(source, random, 60);
    return source;
  });
  const images: Image[] = [];
  for (const [i, stack] of stacks.entries()) {
    const layers = stack.map((layer) => pack(sources[layer] as string));
    images.push(await createImage(layout, layers, { tag: `image-${i}` }));
  }
  return images;
}

mountTest('random steps leave each layer whole, and nothing half-made', async (t) => {
  t.timeout(3_600_000);
  t.log(`seed ${seed}, ${STEPS} steps`);
  const random = generator(seed);
  const dir = scratch(t, 'disk');
  const root = join(dir, 'root');
  const snapshotter = await openSnapshotter(t, root);
  const game = new Game(t, random, snapshotter);
  const quiet = await openSnapshotter(t, join(dir, 'quiet'));
  for (const image of await makeImages(dir, random)) await game.learn(image, quiet);
  const names = Object.keys(game.steps);
  for (let i = 0; i < STEPS; i++) {
    const name = names[random(names.length)] as string;
    await game.steps[name]?.();
    const others = await game.check(false);
    t.true(
      others.every((other) => other.startsWith('building ')),
      others.join(),
    );
    if (!t.passed) return t.fail(`step ${i} of seed ${seed}: ${name}`);
  }
  for (const image of game.images) await unpack(image, snapshotter);
  t.deepEqual(await game.check(true), []);
  t.deepEqual((await snapshotter.cleanup()).kept, []);
  t.deepEqual((await checkRoot(root, true)).problems, []);
  return undefined;
});
