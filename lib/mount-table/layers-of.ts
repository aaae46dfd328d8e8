/** The layers of a mounted overlay, as the mount table shows them. */
import { parseLowerdir, shownLayers, splitShown } from '../mount-strings.js';

/**
 * Returns each path that an overlay's superblock options name. If a value can stand for two paths, the result has both.
 * Each character of the argument and of the result is one byte.
 */
export function layersOf(options: string): string[] {
  const layers = splitShown(Buffer.from(options, 'latin1')).flatMap(({ name, value }) => {
    if (value === null) return [];
    switch (name) {
      case 'lowerdir': {
        const { lowers, data } = parseLowerdir(value) ?? { lowers: [], data: [] };
        return [...lowers, ...data];
      }
      case 'lowerdir+':
      case 'datadir+':
        return [value];
      case 'upperdir':
      case 'workdir':
        return shownLayers(value);
      default:
        return [];
    }
  });
  return layers.map((path) => path.toString('latin1'));
}
