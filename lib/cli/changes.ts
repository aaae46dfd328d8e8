/** `overlayfs changes` */
import { type Change, type ChangesOptions, changes as findChanges, formatChange } from '../layers/changes.js';
import type { Command, Outcome, Parsed, Row } from './command.js';
import { ownFlag } from './flags.js';
import { type LayerFlags, layerFlags, takeLayers } from './layers.js';

type Options = LayerFlags & Pick<ChangesOptions, 'content' | 'unchanged'>;

async function* toRows(found: AsyncIterable<Change<Buffer>>): AsyncGenerator<Row> {
  for await (const change of found) yield { text: `${formatChange(change)}\n`, json: change };
}

async function run({ options, operands: [path = ''] }: Parsed<Options>): Promise<Outcome> {
  const [layers, given] = await takeLayers(path, options);
  return { rows: toRows(findChanges(layers, { ...given, encoding: 'buffer' })) };
}

export const changes: Command<Options> = {
  about:
    'Lists what an upper directory changes, one line for each path. PATH is a mounted overlay, or an upper directory ' +
    'whose lower layers --lowerdir names.',
  operands: '<PATH>',
  forms: ['[OPTION...] PATH', '[OPTION...] --lowerdir DIR... UPPER'],
  groups: [
    {
      title: 'options',
      flags: [
        ...layerFlags,
        ownFlag('content', 'compares the bytes of files, not their sizes and times'),
        ownFlag('unchanged', 'also shows entries that were copied up but not changed'),
      ],
    },
  ],
  notes:
    'A line begins with A for added, M for modified, D for deleted, R for replaced (another type, or a directory whose ' +
    'contents below are hidden). Without the layers below, C stands for added or modified.',
  examples: ['overlayfs changes /srv/merged', 'overlayfs changes --lowerdir /srv/base /srv/upper'],
  run,
};
