/** `overlayfs changes` */
import { type Change, type ChangesOptions, changes as findChanges, formatChanges } from '../layers/changes.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { toPlain } from './json.js';
import { hasLayers, layerFlags, mountedLayers } from './layers.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

async function* toLines(found: AsyncIterable<Change<Buffer>>): AsyncGenerator<string> {
  for await (const change of found) yield `${formatChanges(change)}\n`;
}

async function* toJsonLines(found: AsyncIterable<Change<Buffer>>): AsyncGenerator<string> {
  // The first record shows that the layers can be read, so an error comes before any output.
  let start = '{\n  "changes": [';
  for await (const change of found) {
    yield `${start}\n    ${JSON.stringify(toPlain(change))}`;
    start = ',';
  }
  yield start === ',' ? '\n  ]\n}\n' : `${start}]\n}\n`;
}

async function run(parsed: Parsed): Promise<Outcome> {
  const { options, operands } = parsed;
  const [path, ...more] = operands;
  if (path === undefined || more.length > 0)
    throw new UsageError('name one upper directory, or one mounted overlay; --lower names the layers below');
  const mount = hasLayers(parsed) ? undefined : await mountedLayers(path);
  const given = libraryOptions<ChangesOptions>(options);
  const found = findChanges(mount ?? path, { ...given, encoding: 'buffer' });
  return { json: {}, parts: options['json'] ? toJsonLines(found) : toLines(found) };
}

export const changes: Command = {
  about:
    'Lists what an upper directory changes, one line for each path. PATH is a mounted overlay, or an upper directory ' +
    'whose lower layers --lower names.',
  usage: ['[OPTION...] PATH', '[OPTION...] --lower DIR... UPPER'],
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
  examples: ['overlayfs changes /srv/merged', 'overlayfs changes --lower /srv/base /srv/upper'],
  run,
};
