/** `overlayfs apply` */
import { applyLayer } from '../archives/apply.js';
import type { ApplyOptions } from '../archives/apply-options.js';
import { formatBytes, type Path, toAbsolute, toBytes } from '../paths.js';
import { entryJson, entryLines } from './archive-lines.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { kebab } from './flags.js';
import { untilInterrupted } from './interrupt.js';
import type { Parsed } from './parse.js';
import { formatSize, ProgressBar } from './progress.js';
import { UsageError } from './usage-error.js';

const STDIN = '-';

const limits = ['maxEntries', 'maxBytes', 'maxPathDepth', 'maxRatio'] as const;

/** A path with any bytes, for a call that takes bytes as contents. */
const toUrl = (path: Path): URL => {
  const escaped = Array.from(toBytes(toAbsolute(path)), (byte) => `%${byte.toString(16).padStart(2, '0')}`).join('');
  return new URL(`file://${escaped.replaceAll('%2f', '/')}`);
};

/** Returns the options with the limits as numbers. */
function withLimits(options: Parsed['options']): ApplyOptions {
  const given: Record<string, unknown> = libraryOptions(options, ['dryRun']);
  for (const name of limits) {
    const text = given[name];
    if (text === undefined) continue;
    const number = Number(text);
    if (!(number > 0)) throw new UsageError(`--${kebab(name)} takes a number above 0, not '${text}'`);
    given[name] = number;
  }
  return given;
}

async function run({ options, operands }: Parsed): Promise<Outcome> {
  const [archive, dir, ...more] = operands;
  const isDry = options['dryRun'] === true;
  if (archive === undefined || more.length > 0 || (dir === undefined && !isDry)) {
    throw new UsageError('name one archive, and the directory to unpack it into');
  }
  const source = archive === STDIN ? process.stdin : toUrl(archive);
  if (isDry) return { json: {}, parts: options['json'] ? entryJson(source) : entryLines(source) };
  const chosen = withLimits(options);
  const bar = new ProgressBar(options['json'] === true);
  const onProgress: ApplyOptions['onProgress'] = ({ bytes, read, total, entries }) =>
    bar.show({ entries, bytes, share: total === undefined || total === 0 ? undefined : read / total });
  try {
    const summary = await untilInterrupted((signal) =>
      applyLayer(source, dir as Path, { ...chosen, onProgress, signal }),
    );
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
  } finally {
    bar.end();
  }
}

const number = { kind: 'text' } as const;

export const apply: Command = {
  about:
    'Unpacks a layer archive (tar, plain or compressed with gzip or zstd) into DIR, which is made if it is missing. ' +
    'ARCHIVE - is standard input.',
  usage: ['[OPTION...] ARCHIVE DIR', '--dry-run ARCHIVE'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('layout', 'a layer of an overlay, or a plain directory from which whiteouts remove what they name', {
          kind: 'word',
          words: ['overlay', 'plain'],
          default: 'overlay',
        }),
        ownFlag('userxattr', 'marks that begin with user., for rootless mounts'),
        ownFlag('owners', 'the owners of the archive, or the calling user for all', {
          kind: 'word',
          words: ['keep', 'ignore'],
          default: 'keep for root',
        }),
        ownFlag('devices', 'makes device nodes, leaves them out, or fails', {
          kind: 'word',
          words: ['create', 'skip', 'fail'],
          default: 'create for root',
        }),
        ownFlag('expectedDigest', 'fails unless the archive has this digest: sha256:...', number),
        ownFlag('expectedDiffId', 'fails unless the uncompressed archive has this digest', number),
        ownFlag('sync', 'writes the file system back to its disk at the end, or not', {
          kind: 'word',
          words: ['none', 'end'],
          default: 'none',
        }),
        ownFlag('maxEntries', 'the most entries', { ...number, default: '4000000' }),
        ownFlag('maxBytes', 'the most bytes, uncompressed', { ...number, default: '1 TiB' }),
        ownFlag('maxPathDepth', 'the most components of a path', { ...number, default: '1024' }),
        ownFlag('maxRatio', 'the most bytes for each compressed byte', { ...number, default: '200' }),
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
