/** `overlayfs check` */
import { type VerifyLayerOptions, verifyLayer } from '../layers/verify.js';
import { formatBytes } from '../paths.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { FAILED } from './errors.js';
import { layerFlags } from './layers.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

async function run({ options, operands }: Parsed): Promise<Outcome> {
  const [dir, ...more] = operands;
  if (dir === undefined || more.length > 0) throw new UsageError('name one layer directory');
  if (options['lowest'] && options['lowerdir'] !== undefined) {
    throw new UsageError('--lowest cannot go with --lower', 'Leave one of the two out.');
  }
  const given = libraryOptions<VerifyLayerOptions>(options, ['lowest']);
  const lowest = options['lowest'] ? { lowerdir: [] } : {};
  const findings = await verifyLayer(dir, { ...given, ...lowest, encoding: 'buffer' });
  const lines = findings.map(({ path, what, remedy, attribute }) => {
    const mark = attribute === undefined ? '' : ` (${attribute})`;
    return `${formatBytes(path)}: ${what}${mark}. To mend it: ${remedy}.\n`;
  });
  return { text: lines.join(''), json: { findings }, exitCode: findings.length === 0 ? 0 : FAILED };
}

export const check: Command = {
  about:
    'Checks a layer directory for marks without effect, redirects and metacopies that lead nowhere, and leftovers. ' +
    'Changes nothing.',
  usage: ['[OPTION...] DIR'],
  groups: [
    {
      title: 'options',
      flags: [...layerFlags, ownFlag('lowest', 'DIR is the lowest layer')],
    },
  ],
  notes:
    'Without --lower and --lowest, the command leaves out the checks that need the layers below. The exit code is 1 if ' +
    'it finds something.',
  examples: ['overlayfs check /srv/layer', 'overlayfs check --lower /srv/base /srv/upper'],
  run,
};
