/** A program that merges until it is killed. Arguments: the upper, the directory, the mode, and `promise` or `sync`. */
import { mergeLayer, mergeLayerSync } from 'overlayfs/layers';

const [upper = '', dir = '', mode, form] = process.argv.slice(2);
const options = { mode: mode as 'copy' | 'move', root: true };
process.stdout.write('ready\n');
if (form === 'promise') await mergeLayer(upper, dir, options);
else mergeLayerSync(upper, dir, options);
process.stdout.write('done\n');
