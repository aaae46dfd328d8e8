/** `overlayfs apply` */
import { apply as applyArchive } from '../archives/apply.js';
import type { ApplyLimits, ApplyOptions } from '../archives/apply-options.js';
import { formatBytes, type Path, toAbsolute, toBytes } from '../paths.js';
import { archiveRows } from './archive-rows.js';
import { type Command, type Outcome, type Parsed, syncFlag, userxattrFlag } from './command.js';
import { ownFlag } from './flags.js';
import { formatSize, performLong } from './long-work.js';
import { UsageError } from './usage-error.js';

const STDIN = '-';

/** A path with any bytes, for a call that takes bytes as contents. */
const toUrl = (path: Path): URL => {
  const escaped = Array.from(toBytes(toAbsolute(path)), (byte) => `%${byte.toString(16).padStart(2, '0')}`).join('');
  return new URL(`file://${escaped.replaceAll('%2f', '/')}`);
};

interface Options extends Pick<ApplyOptions, 'layout' | 'userxattr' | 'owners' | 'sync'>, ApplyLimits {
  readonly devices?: 'create' | 'skip' | 'fail';
  readonly expectedDigest?: string;
  readonly expectedDiffId?: string;
  readonly dryRun?: boolean;
}

async function run(parsed: Parsed<Options>): Promise<Outcome> {
  const { dryRun: isDry, ...options } = parsed.options;
  const [archive = '', dir] = parsed.operands;
  const source = archive === STDIN ? process.stdin : toUrl(archive);
  if (isDry) return { rows: archiveRows(source) };
  if (dir === undefined) throw new UsageError('name the directory to unpack the archive into');
  const summary = await performLong(parsed, (progress) => applyArchive(source, dir, { ...options, ...progress }));
  const { entries, bytes, whiteouts, diffId, skipped } = summary;
  const lines = [
    `${entries} entries, ${formatSize(bytes)}, ${whiteouts} whiteouts`,
    `diffID ${diffId}`,
    ...skipped.map(
      ({ reason, count, first }) =>
        `skipped: ${count} (${reason})${first === undefined ? '' : `, the first: ${formatBytes(first)}`}`,
    ),
  ];
  return { text: `${lines.join('\n')}\n`, json: { ...summary } };
}

const number = { kind: 'number' } as const;

export const devicesFlag = ownFlag('devices', 'makes device nodes, leaves them out, or fails', {
  kind: 'word',
  words: ['create', 'skip', 'fail'],
  default: 'create for root, but skip in a user namespace',
});

/** The flags of the limits on an archive. */
export const limitFlags = [
  ownFlag('maxEntries', 'the most entries of an archive', { ...number, default: '4000000' }),
  ownFlag('maxBytes', 'the most bytes of an archive, uncompressed', { kind: 'size', default: '1T' }),
  ownFlag('maxPathDepth', 'the most components of a path', { ...number, default: '1024' }),
  ownFlag('maxRatio', 'the most bytes for each compressed byte', { ...number, default: '200' }),
];

export const apply: Command<Options> = {
  about:
    'Unpacks a layer archive (tar, plain or compressed with gzip or zstd) into DIR, which is made if it is missing. ' +
    'ARCHIVE - is standard input.',
  operands: '<ARCHIVE> [DIR]',
  forms: ['[OPTION...] ARCHIVE DIR', '--dry-run ARCHIVE'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('layout', 'a layer of an overlay, or a plain directory from which whiteouts remove what they name', {
          kind: 'word',
          words: ['overlay', 'plain'],
          default: 'overlay',
        }),
        { ...userxattrFlag, default: 'for a plain user' },
        ownFlag('owners', 'the owners of the archive, or the calling user for all', {
          kind: 'word',
          words: ['keep', 'ignore'],
          default: 'keep for root',
        }),
        devicesFlag,
        ownFlag('expectedDigest', 'fails unless the archive has this digest: sha256:...', { kind: 'text' }),
        ownFlag('expectedDiffId', 'fails unless the uncompressed archive has this digest', { kind: 'text' }),
        syncFlag,
        ...limitFlags,
        ownFlag('dryRun', 'lists the entries and writes nothing'),
      ],
    },
  ],
  examples: [
    'overlayfs apply layer.tar.gz /srv/layers/1',
    'curl -s https://example.org/layer.tar.gz | overlayfs apply - /srv/layers/1',
    'overlayfs apply --dry-run layer.tar.gz',
  ],
  run,
};
