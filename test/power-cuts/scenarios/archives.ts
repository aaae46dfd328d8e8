/** Layers packed into files: new ones, and one that is replaced each time. */
import { strict as assert } from 'node:assert';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { json } from '../../cli/run.js';
import { Acknowledged, digestOf, fill, type Random, type Scenario } from '../scenario.js';

/** The names of the archives, and the files into which they are packed. */
const places = [
  (i: number) => `new${i}.tar`,
  (i: number) => `packed/new${i}.tar.gz`,
  () => 'replaced.tar.zst',
  () => 'packed/again.tar',
];

export function archives(dir: string, random: Random): Scenario {
  const acknowledged = new Acknowledged();
  const names = new Set<string>();
  return {
    setUp: async (root) => {
      mkdirSync(join(root, 'packed'));
    },
    work: async (root, now) => {
      for (let i = 0; i < 8; i++) {
        const source = join(dir, `source${i}`);
        fill(source, random, 20);
        for (const place of places) {
          const name = place(i);
          const { document } = await json('pack', '--layout', 'plain', source, join(root, name));
          acknowledged.add(name, now(), String(document['digest']).replace('sha256:', ''));
          names.add(name);
        }
      }
    },
    check: async ({ root, end }) => {
      acknowledged.check(end, (name) => (existsSync(join(root, name)) ? digestOf(join(root, name)) : undefined));
      for (const name of readdirSync(join(root, 'packed'))) {
        assert.ok(names.has(`packed/${name}`) || name.endsWith('.partial'), `${name} was never packed`);
      }
    },
  };
}
