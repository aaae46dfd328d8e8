/** Random layers for merges. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, type OverlayOptions } from 'overlayfs';
import { generator } from '../support/index.js';
import { look, type Seen } from './look.js';
import { changeTree } from './random-tree.js';

/** Makes random layers and returns the contents of the merged view. */
export function makeLayers(dir: string, seed: number, options: Partial<OverlayOptions>, steps = 60): Seen[] {
  const random = generator(seed);
  const at = (name: string): string => join(dir, name);
  for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(at(name), { recursive: true });
  changeTree(at('lower'), random, 60);
  const mount = mountOverlaySync({
    lowerdir: at('lower'),
    upperdir: at('upper'),
    workdir: at('work'),
    target: at('merged'),
    ...options,
  });
  try {
    changeTree(at('merged'), random, 10 + random(steps));
    return look(at('merged'));
  } finally {
    mount.unmountSync();
  }
}

export const kinds: readonly Partial<OverlayOptions>[] = [
  {},
  { redirectDir: 'on' },
  { metacopy: true, redirectDir: 'on' },
];
