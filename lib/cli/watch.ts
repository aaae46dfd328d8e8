/** `overlayfs watch` */
import { type MountEvent, watchMounts } from '../mount-table/watch.js';
import type { Command, Outcome, Parsed, Row } from './command.js';
import { ownFlag } from './flags.js';
import { type FilterFlags, filterFlags, toFilter, toRow } from './ls.js';

interface Options extends FilterFlags {
  readonly existing?: boolean;
}

async function* toRows(events: AsyncIterable<MountEvent<Buffer>>): AsyncGenerator<Row> {
  for await (const event of events) {
    const { type, id, mount } = event;
    yield { text: `${type} ${id} ${mount === undefined ? '-\n' : toRow(mount).text}`, json: event };
  }
}

async function run({ options, operands: [target] }: Parsed<Options>): Promise<Outcome> {
  const { existing = false, ...filter } = options;
  return { rows: toRows(watchMounts({ ...toFilter(filter, target), existing })) };
}

export const watch: Command<Options> = {
  about: 'Reports mounts that come, go, move or change, by default overlays, a line each, until a signal ends it.',
  operands: '[PATH]',
  groups: [
    {
      title: 'options',
      flags: [ownFlag('existing', 'reports the mounts that are there first, each as mounted'), ...filterFlags],
    },
  ],
  notes:
    'A line has the event, the id of the mount, and the columns of ls. With PATH, reports the mounts at it and below it.',
  examples: ['overlayfs watch --existing', 'overlayfs watch --json --all /srv'],
  run,
};
