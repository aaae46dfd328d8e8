/** A program that merges until it is killed. Arguments: the upper, the directory, the mode, and `promise` or `sync`. */
import type { OverlayError } from 'overlayfs';
import { mergeLayer, mergeLayerSync } from 'overlayfs/layers';

const [upper = '', dir = '', mode, form] = process.argv.slice(2);
const options = { mode: mode as 'copy' | 'move', root: true };
process.stdout.write('ready\n');
try {
  if (form === 'promise') await mergeLayer(upper, dir, options);
  else mergeLayerSync(upper, dir, options);
  process.stdout.write('done\n');
} catch (error) {
  // A copy does not finish a move that has separated hard links.
  if ((error as OverlayError).reason !== 'layers-incomplete') throw error;
}
