/** `overlayfs whiteout` */
import { whiteout as makeWhiteouts, type WhiteoutOptions } from '../layers/whiteout.js';
import type { Path } from '../paths.js';
import type { Command, Outcome, Parsed } from './command.js';
import { ownFlag } from './flags.js';
import { readPaths } from './stdin.js';
import { UsageError } from './usage-error.js';

const STDIN = '-';

interface Options extends WhiteoutOptions {
  readonly null?: boolean;
}

async function run({ options, operands }: Parsed<Options>): Promise<Outcome> {
  const { null: endsWithNul = false, ...given } = options;
  const reads = operands.filter((path) => path === STDIN).length;
  if (reads > 1) throw new UsageError('standard input (-) can be read only once');
  if (endsWithNul && reads === 0) {
    throw new UsageError('--null needs standard input', 'Add - in the place of its paths.');
  }
  const paths: Path[] = [];
  for (const path of operands) {
    if (path === STDIN) paths.push(...(await readPaths(endsWithNul ? '\0' : '\n')));
    else paths.push(path);
  }
  await makeWhiteouts(paths, given);
  return { json: { whiteouts: paths } };
}

export const whiteout: Command<Options> = {
  about:
    'Makes a whiteout at each PATH of a layer directory, which hides the files of lower layers there. ' +
    'Without --replace it makes all of them or none.',
  operands: '<PATH...>',
  forms: ['[OPTION...] PATH...', '[--null] [OPTION...] -'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('replace', 'replaces an existing file with the whiteout'),
        ownFlag('recursive', 'with --replace: replaces directories too, with all their contents'),
        ownFlag('null', 'paths on standard input end with a NUL byte instead of a newline', { short: '0' }),
      ],
    },
  ],
  notes: 'The PATH - stands for the paths on standard input, one on each line. A file of that name is ./-',
  examples: [
    'overlayfs whiteout /srv/layer/etc/motd',
    'overlayfs whiteout --replace --recursive /srv/layer/var/cache',
    "find /srv/base -name '*.pyc' -printf '/srv/layer/%P\\0' | overlayfs whiteout -0 -",
  ],
  run,
};
