/** `overlayfs pack` */
import { createWriteStream } from 'node:fs';
import { realpath, rename, rm, stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { type CreateOptions, createLayer } from '../archives/create.js';
import { OverlayError } from '../errors.js';
import { isAtOrBelow, type Path, pathString, quotePath, toBytes, toPath, toReal } from '../paths.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { entryJson, entryLines } from './archive-lines.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { untilInterrupted } from './interrupt.js';
import { hasLayers, layerFlags, mountedLayers } from './layers.js';
import type { Parsed } from './parse.js';
import { formatSize, ProgressBar } from './progress.js';
import { UsageError } from './usage-error.js';

const STDOUT = '-';

/** The compression that the end of a file's name tells. */
function compressionOf(path: Path): CreateOptions['compression'] {
  const text = pathString(path);
  if (/\.(tgz|gz)$/.test(text)) return 'gzip';
  return /\.(tzst|zst)$/.test(text) ? 'zstd' : 'none';
}

function toLevel(text: unknown): number | undefined {
  if (text === undefined) return undefined;
  const level = Number(text);
  if (!Number.isInteger(level)) throw new UsageError(`--level takes a number, not '${text}'`);
  return level;
}

/**
 * Writes a file under another name first, so that a failure leaves no half of it. A device or a pipe is written to.
 * Refuses a file in one of the directories that are packed: it would be in itself.
 */
async function writeFile(stream: NodeJS.ReadableStream, path: Path, packed: readonly Path[]): Promise<void> {
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
    await pipeline(stream, createWriteStream(written, { flags: isFile ? 'wx' : 'w' }));
    if (isFile) await rename(written, place);
  } catch (error) {
    if (isFile) await rm(written, { force: true });
    const { errno, syscall } = error as NodeJS.ErrnoException;
    if (error instanceof OverlayError || errno === undefined || syscall === undefined) throw error;
    const name = `the archive ${quotePath(path)}`;
    const found = explainErrno(-errno, { name, purpose: `write ${name}` });
    const isFull = found.reason === 'out-of-space';
    const verdict: Verdict = isFull ? found : { reason: 'path-inaccessible', what: `${name} could not be written` };
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

async function run(parsed: Parsed): Promise<Outcome> {
  const { options, operands } = parsed;
  const [dir, archive = STDOUT, ...more] = operands;
  if (dir === undefined || more.length > 0) throw new UsageError('name one layer directory, and the archive to write');
  const isDry = options['dryRun'] === true;
  const isStdout = archive === STDOUT;
  const isPlain = options['layout'] === 'plain';
  const mount = hasLayers(parsed) || isPlain ? undefined : await mountedLayers(dir);
  const { upperdir } = mount?.options ?? {};
  const level = toLevel(options['level']);
  const given = libraryOptions<CreateOptions>(options, ['dryRun', 'level']);
  const chosen = { ...given, ...(level !== undefined && { level }) };
  if (isDry) {
    const stream = createLayer(mount ?? dir, { ...chosen, compression: 'none' });
    return { json: {}, parts: options['json'] ? entryJson(stream) : entryLines(stream) };
  }
  if (isStdout && options['json']) throw new UsageError('--json needs a file for the archive');
  if (isStdout && process.stdout.isTTY) {
    throw new UsageError('an archive is nothing for a terminal', 'Name a file, or send it into a pipe.');
  }
  const bar = new ProgressBar(options['json'] === true);
  try {
    const summary = await untilInterrupted(async (signal) => {
      const stream = createLayer(mount ?? dir, {
        compression: isStdout ? 'none' : compressionOf(archive),
        ...chosen,
        onProgress: bar.show,
        signal,
      });
      if (isStdout) await writeToStdout(stream);
      else await writeFile(stream, archive, [dir, ...(upperdir === undefined ? [] : [toPath(upperdir, 'upperdir')])]);
      return stream.summary;
    });
    const { entries, size, whiteouts, digest, sockets } = summary;
    const lines = [
      `${entries} entries, ${formatSize(size)}, ${whiteouts} whiteouts`,
      `digest ${digest}`,
      ...(sockets > 0 ? [`skipped: ${sockets} sockets`] : []),
    ];
    return { text: isStdout ? '' : `${lines.join('\n')}\n`, json: { ...summary } };
  } finally {
    bar.end();
  }
}

export const pack: Command = {
  about:
    'Packs an upper directory, or that of the overlay that is mounted at DIR, as a layer archive. ARCHIVE - is standard ' +
    'output, and the default.',
  usage: ['[OPTION...] DIR [ARCHIVE]', '--dry-run DIR'],
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
        ownFlag('level', 'of the compression: 0 to 9 for gzip, 1 to 22 for zstd', { kind: 'text', default: '6 or 3' }),
        ownFlag('excludeXattrs', 'an extended attribute that is left out', {
          kind: 'names',
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
    'overlayfs pack --lower /srv/base /srv/upper layer.tar',
    'overlayfs pack /srv/upper | ssh host overlayfs apply - /srv/upper',
  ],
  run,
};
