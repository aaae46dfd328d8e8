/** A program that merges until it is killed. Arguments: the upper, the directory, and `copy` or `move`. */
import type { OverlayError } from 'overlayfs';
import { merge } from 'overlayfs/layers';

const [upper = '', dir = '', mode] = process.argv.slice(2);
process.stdout.write('ready\n');
try {
  await merge(upper, { into: dir, move: mode === 'move', root: true });
  process.stdout.write('done\n');
} catch (error) {
  // A copy does not finish a move that has separated hard links.
  if ((error as OverlayError).reason !== 'layers-incomplete') throw error;
}
