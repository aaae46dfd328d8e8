/** `overlayfs pack` */
import { createWriteStream } from 'node:fs';
import { realpath, rename, rm, stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { type PackOptions, pack as packLayers } from '../archives/create.js';
import { OverlayError } from '../errors.js';
import { run as perform } from '../kernel/task.js';
import {
  isAtOrBelow,
  type Path,
  pathString,
  quotePath,
  splitPath,
  toAbsolute,
  toBytes,
  toPath,
  toReal,
} from '../paths.js';
import { toLayers } from '../trees/given.js';
import { syncNames } from '../trees/synced.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { archiveRows } from './archive-rows.js';
import { type Command, type Outcome, type Parsed, syncFlag } from './command.js';
import { ownFlag } from './flags.js';
import { type LayerFlags, layerFlags, takeLayers } from './layers.js';
import { formatSize, performLong } from './long-work.js';
import { UsageError } from './usage-error.js';

const STDOUT = '-';

/** The endings of the names of other archives: tar(1), --auto-compress, and those that are no tar archives. */
const OTHERS = /\.(xz|txz|bz2|tbz2?|tz2|lz4?|tlz4?|lzma|lzop?|tzo|br|z|taz|zip|7z|rar|cpio)$/i;

/** The compression that the end of a file's name tells. */
function compressionOf(path: Path): PackOptions['compression'] {
  const text = pathString(path);
  if (/\.(tgz|gz)$/i.test(text)) return 'gzip';
  if (/\.(tzst|zst)$/i.test(text)) return 'zstd';
  const [ending] = OTHERS.exec(text) ?? [];
  if (ending === undefined) return 'none';
  throw new UsageError(
    `the archive ${quotePath(path)} would not be what its name says: this command writes no ${ending}`,
    'Name a file that ends in .tar, .tar.gz or .tar.zst, or say the compression with --compression.',
  );
}

/**
 * Writes a file under another name first, so that a failure leaves no half of it. A device or a pipe is written to.
 * Refuses a file in one of the directories that are packed: it would be in itself.
 */
async function writeFile(
  stream: NodeJS.ReadableStream,
  path: Path,
  packed: readonly Path[],
  syncs: boolean,
): Promise<void> {
  const given = Buffer.from(toBytes(path));
  const found = await stat(given).catch(() => undefined);
  const isFile = found?.isFile() ?? true;
  const place = found?.isFile() ? await realpath(given, 'buffer') : given;
  if (isFile && packed.some((dir) => isAtOrBelow(toReal(path), toReal(dir)))) {
    throw new UsageError(
      `the archive ${quotePath(path)} would be inside the directory that is packed`,
      'Write it elsewhere.',
    );
  }
  const written = isFile ? Buffer.concat([place, Buffer.from(`.${process.pid}.partial`)]) : place;
  try {
    await pipeline(
      stream,
      createWriteStream(written, { flags: isFile ? 'wx' : 'w', flush: isFile && syncs } as object),
    );
    if (isFile) await rename(written, place);
    if (isFile && syncs) await perform(syncNames(splitPath(toAbsolute(toPath(place, 'archive')))[0]));
  } catch (error) {
    if (isFile) await rm(written, { force: true }).catch(() => {});
    const { errno, syscall } = error as NodeJS.ErrnoException;
    if (error instanceof OverlayError || errno === undefined || syscall === undefined) throw error;
    const name = `the archive ${quotePath(path)}`;
    const found = explainErrno(-errno, { name, purpose: `write ${name}` });
    const unknown: Verdict = { reason: 'path-inaccessible', what: `${name} could not be written` };
    const verdict = found.reason === 'unexplained' ? unknown : found;
    throw new OverlayError({ errno: -errno, syscall, path: pathString(path), ...verdict }, { cause: error });
  }
}

async function writeToStdout(stream: NodeJS.ReadableStream): Promise<void> {
  try {
    await pipeline(stream, process.stdout, { end: false });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
    throw new Error('the program that reads the archive ended before it had all', { cause: error });
  }
}

interface Options extends LayerFlags, Pick<PackOptions, 'layout' | 'compression' | 'level' | 'excludeXattrs'> {
  readonly sync?: 'none' | 'end';
  readonly dryRun?: boolean;
}

async function run(parsed: Parsed<Options>): Promise<Outcome> {
  const { dryRun: isDry, sync, ...given } = parsed.options;
  const [dir = '', archive = STDOUT] = parsed.operands;
  const isStdout = archive === STDOUT;
  const [found, options] = await takeLayers(dir, given);
  const layers = options.layout === 'plain' ? dir : found;
  if (isDry) return { rows: archiveRows(packLayers(layers, { ...options, compression: 'none' })) };
  if (isStdout && parsed.isJson) throw new UsageError('--json needs a file for the archive');
  if (isStdout && process.stdout.isTTY) {
    throw new UsageError('an archive is nothing for a terminal', 'Name a file, or send it into a pipe.');
  }
  const compression = options.compression ?? (isStdout ? 'none' : compressionOf(archive));
  const packed = [dir, ...toLayers(layers).uppers];
  const summary = await performLong(parsed, async (progress) => {
    const stream = packLayers(layers, { ...options, ...progress, compression });
    await (isStdout ? writeToStdout(stream) : writeFile(stream, archive, packed, sync !== 'none'));
    return stream.summary;
  });
  if (isStdout) return {};
  const { entries, size, whiteouts, digest, sockets } = summary;
  const lines = [
    `${entries} entries, ${formatSize(size)}, ${whiteouts} whiteouts`,
    `digest ${digest}`,
    ...(sockets > 0 ? [`skipped: ${sockets} sockets`] : []),
  ];
  return { text: `${lines.join('\n')}\n`, json: { ...summary } };
}

export const pack: Command<Options> = {
  about:
    'Packs an upper directory, or that of the overlay that is mounted at DIR, as a layer archive. ARCHIVE - is standard ' +
    'output, and the default.',
  operands: '<DIR> [ARCHIVE]',
  forms: ['[OPTION...] DIR [ARCHIVE]', '--dry-run DIR'],
  groups: [
    {
      title: 'options',
      flags: [
        ...layerFlags,
        ownFlag('layout', 'a layer of an overlay, or a plain directory, packed as it is', {
          kind: 'word',
          words: ['overlay', 'plain'],
          default: 'overlay',
        }),
        ownFlag('compression', 'of the archive', {
          kind: 'word',
          words: ['none', 'gzip', 'zstd'],
          default: 'as the name of the file ends',
        }),
        ownFlag('level', 'of the compression: 0 to 9 for gzip, 1 to 22 for zstd', {
          kind: 'number',
          default: '6 or 3',
        }),
        syncFlag,
        ownFlag('excludeXattrs', 'an extended attribute that is left out', {
          kind: 'text',
          isList: true,
          default: 'security.selinux',
        }),
        ownFlag('dryRun', 'lists the entries and writes nothing'),
      ],
    },
  ],
  notes: 'Times later than SOURCE_DATE_EPOCH, if the environment has it, are set back to it.',
  examples: [
    'overlayfs pack /srv/merged layer.tar.gz',
    'overlayfs pack --lowerdir /srv/base /srv/upper layer.tar',
    'overlayfs pack /srv/upper | ssh host overlayfs apply - /srv/upper',
  ],
  run,
};
