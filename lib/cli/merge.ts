/** `overlayfs merge` and `overlayfs baseline` */
import { readFileSync } from 'node:fs';
import { baseline as takeBaseline } from '../merge/baseline.js';
import { type MergeOptions, mergeLayer } from '../merge/merge.js';
import { formatBytes, type Path, toBytes } from '../paths.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { conflictText, FAILED } from './errors.js';
import { mountedLayers } from './layers.js';
import type { Parsed } from './parse.js';
import { ProgressBar } from './progress.js';
import { UsageError } from './usage-error.js';

async function runBaseline({ operands }: Parsed): Promise<Outcome> {
  const [dir, ...more] = operands;
  if (dir === undefined || more.length > 0) throw new UsageError('name one directory');
  const taken = await takeBaseline(dir);
  return { text: `${JSON.stringify(taken)}\n`, json: { baseline: taken } };
}

export const baseline: Command = {
  about: 'Prints the present moment of DIR, by the clock of its file system, for `merge --since`.',
  usage: ['[OPTION...] DIR'],
  groups: [],
  examples: ['overlayfs baseline /srv/base > /srv/base.json'],
  run: runBaseline,
};

/** Reads a baseline from the file that `overlayfs baseline` was written to, with --json or without. */
function readBaseline(path: Path): MergeOptions['since'] {
  const shown = `'${formatBytes(path)}'`;
  let document: { baseline?: unknown };
  try {
    document = JSON.parse(readFileSync(Buffer.from(toBytes(path)), 'utf8'));
  } catch (error) {
    throw new UsageError(`--since cannot read ${shown}: ${(error as Error).message}`);
  }
  return (document?.baseline ?? document) as MergeOptions['since'];
}

async function run({ options, operands }: Parsed): Promise<Outcome> {
  const [upper, dir, ...more] = operands;
  if (upper === undefined || dir === undefined || more.length > 0) {
    throw new UsageError('name an upper directory or a mounted overlay, and the directory to merge it into');
  }
  const given = libraryOptions<MergeOptions>(options, ['move', 'since']);
  const since = options['since'] === undefined ? undefined : readBaseline(options['since'] as Path);
  const bar = new ProgressBar(options['json'] === true);
  try {
    const summary = await mergeLayer((await mountedLayers(upper)) ?? upper, dir, {
      ...given,
      ...(since !== undefined && { since }),
      mode: options['move'] ? 'move' : 'copy',
      onProgress: bar.show,
    });
    const lines = summary.conflicts.map((conflict) => `${conflictText(conflict)}\n`);
    const verb = options['dryRun'] ? 'would be merged' : 'merged';
    const total = `${summary.entries} entries ${verb}, ${summary.deleted} of them deletes\n`;
    const isRefused = options['dryRun'] && (given.conflict ?? 'error') === 'error' && lines.length > 0;
    return { text: lines.join('') + total, json: { ...summary }, exitCode: isRefused ? FAILED : 0 };
  } finally {
    bar.end();
  }
}

export const merge: Command = {
  about:
    'Folds an upper directory into DIR, which then holds what a mount of both shows: deletes, replacements, renames, ' +
    'links, owners, modes, times and attributes. UPPER may be a mounted overlay, whose upper is meant.',
  usage: ['[OPTION...] UPPER DIR'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('move', 'moves files and leaves the upper empty, instead of copying them'),
        ownFlag('since', 'the output of `overlayfs baseline`: what others changed in DIR later is a conflict', {
          kind: 'path',
          value: 'FILE',
          default: 'none',
        }),
        ownFlag('conflict', 'the version that counts; or an error before anything is written', {
          kind: 'word',
          words: ['error', 'ours', 'theirs'],
          default: 'error',
        }),
        ownFlag('root', 'gives DIR itself the owner, mode, times and attributes of the upper'),
        ownFlag('userxattr', 'the marks begin with user., as those of rootless mounts'),
        ownFlag('dryRun', 'looks for conflicts and other obstacles, and changes nothing'),
      ],
    },
  ],
  notes:
    'A merge that failed or was killed may be repeated: it goes on. The exit code is 1 if something failed, or if there are ' +
    'conflicts that --conflict does not decide, also for --dry-run. The message says what was done.',
  examples: [
    'overlayfs merge /srv/upper /srv/base',
    'overlayfs merge --move --since /srv/base.json --conflict theirs /srv/upper /srv/base',
    'overlayfs merge --dry-run --json /srv/upper /srv/base',
  ],
  run,
};
