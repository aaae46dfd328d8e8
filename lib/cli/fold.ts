/** `overlayfs squash` and `overlayfs flatten` */
import { type FlattenOptions, flattenLayers, type SquashOptions, squashLayers } from '../merge/fold.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { untilInterrupted } from './interrupt.js';
import { mountedLayers } from './layers.js';
import type { Parsed } from './parse.js';
import { formatSize, ProgressBar } from './progress.js';
import { UsageError } from './usage-error.js';

const userxattr = ownFlag('userxattr', 'the marks begin with user., as those of rootless mounts');

const toOutcome = ({ entries, bytes }: { readonly entries: number; readonly bytes: number }): Outcome => ({
  text: `${entries} entries, ${formatSize(bytes)}\n`,
  json: { entries, bytes },
});

async function runSquash({ options, operands }: Parsed): Promise<Outcome> {
  if (operands.length < 2) throw new UsageError('name the layers, the topmost first, and then the directory to make');
  const bar = new ProgressBar(options['json'] === true);
  try {
    const given = libraryOptions<SquashOptions>(options);
    const dir = operands.at(-1) as (typeof operands)[number];
    return toOutcome(
      await untilInterrupted((signal) =>
        squashLayers(operands.slice(0, -1), dir, { ...given, onProgress: bar.show, signal }),
      ),
    );
  } finally {
    bar.end();
  }
}

export const squash: Command = {
  about:
    'Writes several layers, the topmost first, as one layer: a mount with DIR shows what a mount with the layers shows.',
  usage: ['[OPTION...] LAYER... DIR'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('mechanism', 'the kind of whiteouts: character devices, or files with an attribute (Linux 6.7)', {
          kind: 'word',
          words: ['device', 'xattr'],
          default: 'device',
        }),
        userxattr,
      ],
    },
  ],
  notes: 'DIR does not exist or is empty. It appears when it is complete.',
  examples: ['overlayfs squash /srv/layers/3 /srv/layers/2 /srv/squashed'],
  run: runSquash,
};

async function runFlatten({ options, operands }: Parsed): Promise<Outcome> {
  if (operands.length < 2) throw new UsageError('name the layers, the topmost first, and then the directory to make');
  const bar = new ProgressBar(options['json'] === true);
  try {
    const given = libraryOptions<FlattenOptions>(options);
    const [first, ...rest] = operands.slice(0, -1) as [(typeof operands)[number], ...typeof operands];
    const mount = rest.length === 0 ? await mountedLayers(first) : undefined;
    const dir = operands.at(-1) as (typeof operands)[number];
    return toOutcome(
      await untilInterrupted((signal) =>
        flattenLayers(mount ?? [first, ...rest], dir, { ...given, onProgress: bar.show, signal }),
      ),
    );
  } finally {
    bar.end();
  }
}

export const flatten: Command = {
  about: 'Writes the merged view of layers, the topmost first, or of a mounted overlay, as a plain directory.',
  usage: ['[OPTION...] LAYER... DIR', '[OPTION...] MOUNTPOINT DIR'],
  groups: [{ title: 'options', flags: [userxattr] }],
  notes: 'DIR does not exist or is empty. It appears when it is complete.',
  examples: ['overlayfs flatten /srv/upper /srv/base /srv/flat', 'overlayfs flatten /srv/merged /srv/flat'],
  run: runFlatten,
};
