/** `overlayfs squash` */
import { type SquashOptions, squash as squashAll } from '../merge/fold.js';
import type { Path } from '../paths.js';
import { type Command, type Outcome, type Parsed, syncFlag, userxattrFlag } from './command.js';
import { ownFlag } from './flags.js';
import { takeLayers } from './layers.js';
import { formatSize, performLong } from './long-work.js';
import { UsageError } from './usage-error.js';

interface Options extends Pick<SquashOptions, 'plain' | 'mechanism' | 'sync'> {
  readonly userxattr?: boolean;
}

async function run(parsed: Parsed<Options>): Promise<Outcome> {
  const { operands } = parsed;
  const [top, into, ...more] = operands;
  if (top === undefined || into === undefined) throw new UsageError('name the layers, and then the directory to make');
  const [first, options] = await takeLayers(top, parsed.options);
  const { userxattr } = parsed.options;
  const layers = more.length === 0 ? first : { upperdir: operands.slice(0, -1), userxattr };
  const { entries, bytes } = await performLong(parsed, (progress) =>
    squashAll(layers, { ...options, ...progress, into: operands.at(-1) as Path }),
  );
  return { text: `${entries} entries, ${formatSize(bytes)}\n`, json: { entries, bytes } };
}

export const squash: Command<Options> = {
  about:
    'Writes several layers, the topmost first, or those of a mounted overlay, as one layer: a mount with DIR shows what a ' +
    'mount with the layers shows.',
  operands: '<LAYER...>',
  forms: ['[OPTION...] LAYER... DIR', '[OPTION...] MOUNTPOINT DIR'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('plain', 'writes the merged view of the layers as a plain directory without marks'),
        ownFlag('mechanism', 'the kind of whiteouts: character devices, or files with an attribute (Linux 6.7)', {
          kind: 'word',
          words: ['device', 'xattr'],
          default: 'device',
        }),
        userxattrFlag,
        syncFlag,
      ],
    },
  ],
  notes: 'DIR does not exist or is empty. It appears when it is complete.',
  examples: [
    'overlayfs squash /srv/layers/3 /srv/layers/2 /srv/squashed',
    'overlayfs squash --plain /srv/merged /srv/flat',
  ],
  run,
};
