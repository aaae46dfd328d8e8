/** `overlayfs merge` */
import { readFileSync } from 'node:fs';
import { type MergeOptions, merge as mergeLayers } from '../merge/merge.js';
import { formatBytes, type Path, toBytes } from '../paths.js';
import { type Command, type Outcome, type Parsed, syncFlag, userxattrFlag } from './command.js';
import { conflictText, NO } from './errors.js';
import { ownFlag } from './flags.js';
import { takeLayers } from './layers.js';
import { performLong } from './long-work.js';
import { UsageError } from './usage-error.js';

interface Options extends Pick<MergeOptions, 'move' | 'root' | 'unmarked' | 'dryRun' | 'sync'> {
  readonly userxattr?: boolean;
  readonly since?: Path;
  readonly conflict?: 'error' | 'ours' | 'theirs';
}

/** Reads the moment that --baseline of `mount` and `run` has written. */
function readBaseline(path: Path): MergeOptions['since'] {
  try {
    return JSON.parse(readFileSync(Buffer.from(toBytes(path)), 'utf8'));
  } catch (error) {
    throw new UsageError(`--since cannot read '${formatBytes(path)}': ${(error as Error).message}`);
  }
}

async function run(parsed: Parsed<Options>): Promise<Outcome> {
  const { since, ...options } = parsed.options;
  const [upper = '', into = ''] = parsed.operands;
  const baseline = since === undefined ? {} : { since: readBaseline(since) as NonNullable<MergeOptions['since']> };
  const [layers, given] = await takeLayers(upper, options);
  const summary = await performLong(parsed, (progress) =>
    mergeLayers(layers, { ...given, ...baseline, ...progress, into }),
  );
  const lines = summary.conflicts.map((conflict) => `${conflictText(conflict)}\n`);
  const total = `${summary.entries} entries ${given.dryRun ? 'would be merged' : 'merged'}, ${summary.deleted} of them deletes\n`;
  const isRefused = given.dryRun && (given.conflict ?? 'error') === 'error' && lines.length > 0;
  return { text: lines.join('') + total, json: { ...summary }, exitCode: isRefused ? NO : 0 };
}

export const merge: Command<Options> = {
  about:
    'Folds an upper directory into DIR, which then holds what a mount of both shows: deletes, replacements, renames, ' +
    'links, owners, modes, times and attributes. UPPER may be a mounted overlay, whose upper is meant.',
  operands: '<UPPER> <DIR>',
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('move', 'moves files and leaves the upper empty, instead of copying them'),
        ownFlag(
          'since',
          'the file that --baseline of mount or run has written: what others changed in DIR later is a conflict',
          {
            kind: 'path',
            value: 'FILE',
            default: 'none',
          },
        ),
        ownFlag('conflict', 'the version that counts; or an error before anything is written', {
          kind: 'word',
          words: ['error', 'ours', 'theirs'],
          default: 'error',
        }),
        ownFlag('root', 'gives DIR itself the owner, mode, times and attributes of the upper'),
        syncFlag,
        userxattrFlag,
        ownFlag(
          'unmarked',
          'UPPER is one, though nothing in it has a mark of overlayfs and DIR looks like an upper of it',
        ),
        ownFlag('dryRun', 'looks for conflicts and other obstacles, and changes nothing'),
      ],
    },
  ],
  notes: 'A merge that failed or was killed may be repeated: it goes on. The message says what was done.',
  no: 'there are conflicts that --conflict does not decide; nothing was merged',
  examples: [
    'overlayfs merge /srv/upper /srv/base',
    'overlayfs merge --move --since /srv/base.json --conflict theirs /srv/upper /srv/base',
    'overlayfs merge --dry-run --json /srv/upper /srv/base',
  ],
  run,
};
