/** Images made and committed: the blobs and index.json of a layout, and the snapshots beside it. */
import { strict as assert } from 'node:assert';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { commitImage, createImage, createLayout, openLayout, unpack } from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { makeImage } from '../../images/helper.js';
import { Acknowledged, digestOf, type Found, fill, look, type Random, type Scenario } from '../scenario.js';
import { checkStore } from './snapshots.js';

const BLOBS = 'blobs/sha256';

/** Checks that each blob is what its name says, and that the images of all tags have theirs. Returns the tags, with digests. */
async function checkLayout(path: string): Promise<Map<string, string> | undefined> {
  for (const name of existsSync(join(path, BLOBS)) ? readdirSync(join(path, BLOBS)) : []) {
    if (!name.startsWith('.overlayfs-')) assert.equal(digestOf(join(path, BLOBS, name)), name, 'a blob is torn');
  }
  if (!existsSync(join(path, 'oci-layout'))) return undefined;
  const tagged = new Map<string, string>();
  const layout = await openLayout(path);
  for (const tag of await layout.tags()) {
    const { digest, layers } = await layout.image(tag);
    for (const layer of layers) await layout.checkBlob(layer, 'a layer');
    tagged.set(tag, digest);
  }
  return tagged;
}

export function images(dir: string, random: Random): Scenario {
  const expected = new Map<string, Found>();
  const acknowledged = new Acknowledged();
  const base = join(dir, 'layer-one-0');
  return {
    setUp: async (root) => {
      const snapshotter = await Snapshotter.open(join(root, 'store'));
      fill(base, random, 10);
      const image = await makeImage(root, [base]);
      expected.set(image.layers[0]?.chainId as string, look(base));
      await unpack(image, snapshotter);
      await snapshotter.close();
    },
    work: async (root, now) => {
      const snapshotter = await Snapshotter.open(join(root, 'store'));
      try {
        let image = await (await openLayout(join(root, 'layout'))).image('one');
        for (let i = 0; i < 5; i++) {
          const [{ source, options = [] } = { source: '' }] = await snapshotter.prepare(
            `key${i}`,
            image.layers.at(-1)?.chainId,
          );
          const upper = options.find((option) => option.startsWith('upperdir='))?.slice('upperdir='.length) ?? source;
          fill(upper, random, 12);
          const found = look(upper);
          // Its name is known only afterwards.
          image = await commitImage(image, snapshotter, `key${i}`, { tag: i % 2 === 0 ? 'even' : `odd${i}` });
          const name = image.layers.at(-1)?.chainId as string;
          expected.set(name, found);
          acknowledged.add(name, now());
          acknowledged.add(`layout ${image.tag}`, now(), image.digest);
          const other = await createLayout(join(root, `other${i}`));
          acknowledged.add(`other${i}`, now());
          const made = await createImage(other, [pack(upper)], { tag: 'made' });
          acknowledged.add(`other${i} made`, now(), made.digest);
        }
      } finally {
        await snapshotter.close();
      }
    },
    check: async ({ root, end }) => {
      const committed = await checkStore(join(root, 'store'), expected);
      const versions = new Map([...committed].map((name) => [name, '']));
      for (const name of ['layout', 'other0', 'other1', 'other2', 'other3', 'other4']) {
        const tags = await checkLayout(join(root, name));
        if (tags !== undefined) versions.set(name, '');
        for (const [tag, digest] of tags ?? []) versions.set(`${name} ${tag}`, digest);
      }
      acknowledged.check(end, (name) => versions.get(name));
      const snapshotter = await Snapshotter.open(join(root, 'store'));
      try {
        const layout = await openLayout(join(root, 'layout'));
        for (const tag of await layout.tags()) await unpack(await layout.image(tag), snapshotter, { sync: 'none' });
      } finally {
        await snapshotter.close();
      }
      await checkStore(join(root, 'store'), expected);
    },
  };
}
