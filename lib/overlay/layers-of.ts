/** The layers of a mounted overlay, as the mount table shows them. */
import { splitLowerdir, unescapeLayer } from '../mount-strings.js';
import { unescapeField } from '../mounts/mountinfo.js';

const layerNames: ReadonlySet<string> = new Set(['lowerdir', 'lowerdir+', 'datadir+', 'upperdir', 'workdir']);

/**
 * Each path that an overlay's superblock options name, those of which two can be meant by both: the table does
 * not tell an escaped path from a plain one. A character a byte, in and out.
 */
export function layersOf(options: string): string[] {
  const layers: string[] = [];
  for (const option of options.split(',')) {
    const equals = option.indexOf('=');
    const name = option.slice(0, equals);
    if (equals < 0 || !layerNames.has(name)) continue;
    const value = Buffer.from(unescapeField(option.slice(equals + 1)), 'latin1');
    const paths = name === 'lowerdir' ? splitLowerdir(value) : [value, unescapeLayer(value)];
    layers.push(...paths.map((path) => path.toString('latin1')));
  }
  return [...new Set(layers)].filter((path) => path !== '');
}
