/** `overlayfs check` */
import { check as checkLayers } from '../layers/verify.js';
import { formatBytes } from '../paths.js';
import type { Command, Outcome, Parsed } from './command.js';
import { NO } from './errors.js';
import { ownFlag } from './flags.js';
import { type LayerFlags, layerFlags, takeLayers } from './layers.js';
import { UsageError } from './usage-error.js';

interface Options extends LayerFlags {
  readonly lowest?: boolean;
}

async function run({ options, operands: [dir = ''] }: Parsed<Options>): Promise<Outcome> {
  if (options.lowest && options.lowerdir !== undefined) {
    throw new UsageError('--lowest cannot go with --lowerdir', 'Leave one of the two out.');
  }
  const [layers] = await takeLayers(dir, { ...options, ...(options.lowest && { lowerdir: [] }) });
  const findings = await checkLayers(layers, { encoding: 'buffer' });
  const rows = findings.map((finding) => {
    const { path, what, remedy, attribute } = finding;
    const mark = attribute === undefined ? '' : ` (${attribute})`;
    return { text: `${formatBytes(path)}: ${what}${mark}. To mend it: ${remedy}.\n`, json: finding };
  });
  return { rows, exitCode: findings.length === 0 ? 0 : NO };
}

export const check: Command<Options> = {
  about:
    'Checks a layer directory, or the topmost layer of the overlay that is mounted at DIR, for marks without effect, ' +
    'redirects and metacopies that lead nowhere, and leftovers. Changes nothing.',
  operands: '<DIR>',
  groups: [{ title: 'options', flags: [...layerFlags, ownFlag('lowest', 'DIR is the lowest layer')] }],
  notes: 'Without --lowerdir and --lowest, the command leaves out the checks that need the layers below.',
  no: 'something was found',
  examples: ['overlayfs check /srv/layer', 'overlayfs check --lowerdir /srv/base /srv/upper'],
  run,
};
