/** Archives applied, layers flattened and squashed. */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { makeOpaque, whiteout } from 'overlayfs';
import { apply, pack, squash } from 'overlayfs/layers';
import { Acknowledged, type Found, fill, ifThere, look, type Random, type Scenario, sameAs } from '../scenario.js';

export function directories(dir: string, random: Random, sync: 'end' | 'none' = 'end'): Scenario {
  const expected = new Map<string, Found>();
  const acknowledged = new Acknowledged();
  return {
    setUp: async () => {},
    work: async (root, now) => {
      for (let i = 0; i < 6; i++) {
        const [source, upper] = [join(dir, `source${i}`), join(dir, `upper${i}`)];
        for (const layer of [source, upper]) fill(layer, random, 20);
        for (const name of ['opaque', 'more']) mkdirSync(join(upper, name));
        await makeOpaque(join(upper, 'opaque'));
        await whiteout(join(upper, 'more/gone'));
        const layers = [upper, source];
        // The same without a cut, on another file system.
        await squash({ upperdir: layers }, { into: join(dir, `squashed${i}`), sync: 'none' });
        for (const [name, made, make] of [
          [`layer${i}`, source, async (to: string) => apply(pack(source), to, { sync })],
          [`flat${i}`, source, async (to: string) => squash({ lowerdir: [source] }, { into: to, plain: true, sync })],
          [
            `squashed${i}`,
            join(dir, `squashed${i}`),
            async (to: string) => squash({ upperdir: layers }, { into: to, sync }),
          ],
        ] as const) {
          expected.set(name, look(made));
          await make(join(root, name));
          acknowledged.add(name, now());
        }
      }
    },
    check: async ({ root, end }) => {
      acknowledged.check(end, (name) => ifThere(existsSync(join(root, name))));
      for (const [name, found] of expected) if (existsSync(join(root, name))) sameAs(join(root, name), found);
    },
  };
}
