/** Snapshots committed, images unpacked. */
import { strict as assert } from 'node:assert';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { unpack } from 'overlayfs/images';
import { Snapshotter } from 'overlayfs/snapshots';
import { makeImage } from '../../images/helper.js';
import { Acknowledged, type Found, fill, ifThere, look, type Random, type Scenario, sameAs } from '../scenario.js';

/** Checks that the directory of each snapshot is there, and that of a committed one whole. Returns their names. */
export async function checkStore(path: string, expected: ReadonlyMap<string, Found>): Promise<Set<string>> {
  const snapshotter = await Snapshotter.open(path);
  const committed = new Set<string>();
  try {
    for await (const { name, kind, id } of snapshotter.list()) {
      const files = join(path, 'snapshots', String(id), 'fs');
      assert.ok(existsSync(files), `the record ${name} names a directory that is missing`);
      if (kind !== 'committed') continue;
      committed.add(name);
      sameAs(files, expected.get(name));
    }
    await snapshotter.cleanup();
  } finally {
    await snapshotter.close();
  }
  return committed;
}

export function snapshots(dir: string, random: Random): Scenario {
  const expected = new Map<string, Found>();
  const acknowledged = new Acknowledged();
  return {
    setUp: async (root) => (await Snapshotter.open(join(root, 'store'))).close(),
    work: async (root, now) => {
      const snapshotter = await Snapshotter.open(join(root, 'store'));
      try {
        for (let i = 0; i < 5; i++) {
          const [bind] = await snapshotter.prepare(`key${i}`);
          const upper = bind?.source as string;
          fill(upper, random, 15);
          expected.set(`name${i}`, look(upper));
          await snapshotter.commit(`key${i}`, { name: `name${i}` });
          acknowledged.add(`name${i}`, now());
          const trees = [0, 1].map(() => ({ [`a${random(99)}`]: `${random(1e9)}`, 'b/c': 'x'.repeat(random(9000)) }));
          const image = await makeImage(join(dir, `image${i}`), trees);
          for (const [n, { chainId }] of image.layers.entries()) {
            expected.set(chainId, look(join(dir, `image${i}`, `layer-one-${n}`)));
          }
          const { chainId } = await unpack(image, snapshotter);
          acknowledged.add(chainId, now());
        }
      } finally {
        await snapshotter.close();
      }
    },
    check: async ({ root, end }) => {
      const committed = await checkStore(join(root, 'store'), expected);
      acknowledged.check(end, (name) => ifThere(committed.has(name)));
    },
  };
}
