/** Random layers for merges. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, type OverlayOptions } from 'overlayfs';
import type { generator } from '../support/index.js';
import { look, type Seen } from './look.js';
import { changeTree } from './random-tree.js';

type Random = ReturnType<typeof generator>;

/** Makes random layers, with `least` changes and fewer than `more` others, and returns the contents of the merged view. */
export function makeLayers(
  dir: string,
  random: Random,
  options: Partial<OverlayOptions>,
  { least = 10, more = 60 } = {},
): Seen[] {
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
    changeTree(at('merged'), random, least + random(more));
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
