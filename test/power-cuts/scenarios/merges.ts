/** Uppers merged, by copy and by move. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { makeOpaque, whiteout } from 'overlayfs';
import { merge, squash } from 'overlayfs/layers';
import { Acknowledged, type Found, fill, look, type Random, type Scenario, sameAs } from '../scenario.js';

export function merges(_dir: string, random: Random): Scenario {
  const expected = new Map<string, Found>();
  const acknowledged = new Acknowledged();
  const modes = ['copy', 'move'] as const;
  return {
    setUp: async (root) => {
      for (const [i, mode] of [...modes, ...modes].entries()) {
        const at = (name: string): string => join(root, `${mode}${i}`, name);
        for (const name of ['dir', 'upper']) fill(at(name), random, 25);
        fill(at('dir/old'), random, 5);
        mkdirSync(at('dir/gone'), { recursive: true });
        fill(at('upper/old'), random, 5);
        await makeOpaque(at('upper/old'));
        await whiteout(at('upper/gone'));
        fill(at('upper/new'), random, 8);
        await squash({ lowerdir: [at('upper'), at('dir')] }, { into: at('flat'), plain: true });
        expected.set(`${mode}${i}`, look(at('flat')));
      }
    },
    work: async (root, now) => {
      for (const name of expected.keys()) {
        await merge(join(root, name, 'upper'), {
          into: join(root, name, 'dir'),
          move: name.startsWith('move'),
        });
        acknowledged.add(name, now());
      }
    },
    check: async ({ root, end }) => {
      for (const [name, found] of expected) {
        const [upper, dir] = [join(root, name, 'upper'), join(root, name, 'dir')];
        if (!acknowledged.has(name, end))
          await merge(upper, { into: dir, move: name.startsWith('move'), sync: 'none' });
        sameAs(dir, found);
        sameAs(join(root, name, 'flat'), found);
      }
    },
  };
}
