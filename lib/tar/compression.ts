/** Streams of archives: compressed or not, in chunks of about 2 MiB, which zlib handles twice as fast as its default. */
import type { Transform } from 'node:stream';
import { EINVAL, EOPNOTSUPP } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { Slices } from '../kernel/slices.js';
import { run } from '../kernel/task.js';
import { missingPackages } from '../peers.js';
import { BLOCK, fields, hasChecksum } from './layout.js';
import { splitFrames } from './zstd-frames.js';

export type Compression = 'none' | 'gzip' | 'zstd';

export const CHUNK = 2 ** 21;

/** As many chunks may wait for their reader, so that a thread inflates the next one meanwhile. */
const WAITING = 2 * CHUNK;

type Chunks = AsyncIterable<Uint8Array>;

const starts: readonly (readonly [Compression | 'bzip2' | 'xz' | 'lz4' | 'zip', readonly number[]])[] = [
  ['gzip', [0x1f, 0x8b]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd]],
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
  ['bzip2', [0x42, 0x5a, 0x68]],
  ['lz4', [0x04, 0x22, 0x4d, 0x18]],
  ['zip', [0x50, 0x4b, 0x03, 0x04]],
];

/** The frame of zstd that decoders skip: 0x184d2a50 to 0x184d2a5f. */
const isSkippable = (start: Buffer): boolean =>
  start.length >= 4 && ((start[0] as number) & 0xf0) === 0x50 && start.readUIntLE(1, 3) === 0x184d2a;

/** Returns the compression by the first bytes of an archive, at least a block if it has as many. */
export function detect(start: Buffer): Compression {
  // The name of a first entry may begin like a compressed file.
  if (start.length >= BLOCK && hasChecksum(start.subarray(0, BLOCK))) return 'none';
  if (isSkippable(start)) return 'zstd';
  const [found = 'none'] = starts.find(([, magic]) => magic.every((byte, i) => start[i] === byte)) ?? [];
  if (found === 'none' || found === 'gzip' || found === 'zstd') return found;
  throw new OverlayError({
    errno: EINVAL,
    reason: 'archive-invalid',
    what:
      found === 'zip'
        ? 'the archive is a zip archive, not a tar archive'
        : `the archive is compressed with ${found}, which this library does not read`,
    hint: 'pass a tar archive, uncompressed or compressed with gzip or zstd',
  });
}

interface Zlib {
  createGunzip(options: object): Transform;
  createGzip(options: object): Transform;
  createZstdDecompress?(options: object): Transform;
  createZstdCompress?(options: object): Transform;
  readonly constants: Readonly<Record<string, number>>;
}

/** The part of the package that this needs: its own streams would put all that a chunk holds into memory at once. */
interface ZstdPackage {
  readonly DecompressStream: new () => {
    readonly dctx: { decompressStream(to: Buffer, from: Buffer): [hint: number, produced: number, consumed: number] };
  };
  readonly CompressStream: new (parameters: {
    compressionLevel: number;
  }) => {
    readonly cctx: {
      compressStream2(to: Buffer, from: Buffer, end: number): [rest: number, produced: number, consumed: number];
    };
  };
}

const zlib = (): Zlib => process.getBuiltinModule('node:zlib') as unknown as Zlib;
const room = { chunkSize: CHUNK, readableHighWaterMark: WAITING, writableHighWaterMark: WAITING };

const ZSTD = 'zstd-napi';

function zstdPackage(): ZstdPackage {
  const require = process.getBuiltinModule('node:module').createRequire(import.meta.url);
  try {
    return require(ZSTD) as ZstdPackage;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw error;
    const missing = missingPackages('zstd', [ZSTD], 'Node 22.15 and later have zstd themselves');
    throw new OverlayError({ errno: EOPNOTSUPP, reason: 'option-unsupported', ...missing }, { cause: error });
  }
}

/** Memory for chunks, which is used again: new memory for each would cost page faults, and the garbage collector's time. */
export class ChunkMemory {
  /** The oldest first. */
  readonly #given: { readonly memory: ArrayBufferLike; readonly isFree: () => boolean }[] = [];
  readonly #own = new WeakSet<ArrayBufferLike>();

  take(): Buffer {
    const old = this.#given[0]?.isFree() ? this.#given.shift() : undefined;
    const taken = old === undefined ? Buffer.allocUnsafeSlow(CHUNK) : Buffer.from(old.memory);
    this.#own.add(taken.buffer);
    return taken;
  }

  /** Gives a chunk back, to be used again when it is free. Chunks from elsewhere are left alone. */
  give({ buffer: memory }: Uint8Array, isFree: () => boolean): void {
    if (this.#own.has(memory)) this.#given.push({ memory, isFree });
  }
}

/** A buffer that is filled bit by bit, and then replaced. */
class Filling {
  readonly #memory: ChunkMemory;
  #buffer: Buffer;
  #end = 0;

  constructor(memory = new ChunkMemory()) {
    this.#memory = memory;
    this.#buffer = memory.take();
  }

  get rest(): Buffer {
    return this.#buffer.subarray(this.#end);
  }

  /** Returns whether the buffer is full. */
  add(size: number): boolean {
    this.#end += size;
    return this.#end === this.#buffer.length;
  }

  take(): Buffer {
    const taken = this.#buffer.subarray(0, this.#end);
    this.#buffer = this.#memory.take();
    this.#end = 0;
    return taken;
  }
}

const asBuffer = ({ buffer, byteOffset, length }: Uint8Array): Buffer => Buffer.from(buffer, byteOffset, length);

/** Decompresses with the package, at most a chunk at once, on this thread. */
export async function* decompressByPackage(source: Chunks, memory?: ChunkMemory): AsyncGenerator<Uint8Array> {
  const { dctx } = new (zstdPackage().DecompressStream)();
  const filling = new Filling(memory);
  /** 0 between two frames. */
  let expected = 0;
  for await (const chunk of source) {
    let from = asBuffer(chunk);
    let isFull = false;
    // A full buffer may leave some behind in the decoder.
    while (from.length > 0 || isFull) {
      let found: [hint: number, produced: number, consumed: number];
      try {
        found = dctx.decompressStream(filling.rest, from);
      } catch (error) {
        throw explainDecoding(error, 'zstd');
      }
      const [hint, produced, consumed] = found;
      // With nothing to do, the decoder asks for a further frame.
      if (produced > 0 || consumed > 0) expected = hint;
      from = from.subarray(consumed);
      isFull = filling.add(produced);
      if (isFull) yield filling.take();
    }
  }
  const last = filling.take();
  if (last.length > 0) yield last;
  if (expected !== 0) throw explainDecoding(new Error('unexpected end of file'), 'zstd');
}

/** The directives of ZSTD_compressStream2: more input follows, or none. */
const CONTINUE = 0;
const END = 2;
/** A block of zstd, which is compressed at once. */
const PART = 128 * 1024;

/** Compresses with the package, on this thread. */
export async function* compressByPackage(source: Chunks, level: number): AsyncGenerator<Uint8Array> {
  const { cctx } = new (zstdPackage().CompressStream)({ compressionLevel: level });
  const filling = new Filling();
  const slices = new Slices();
  for await (const chunk of source) {
    for (let from = asBuffer(chunk); from.length > 0; ) {
      const [, produced, consumed] = cctx.compressStream2(filling.rest, from.subarray(0, PART), CONTINUE);
      from = from.subarray(consumed);
      if (filling.add(produced)) yield filling.take();
      await run(slices.pause());
    }
  }
  for (let rest = 1; rest > 0; ) {
    const [left, produced] = cctx.compressStream2(filling.rest, Buffer.alloc(0), END);
    rest = left;
    if (filling.add(produced)) yield filling.take();
  }
  yield filling.take();
}

/** The levels that each compression has, and its own default. */
export const levels = {
  gzip: { least: 0, most: 9, usual: 6 },
  zstd: { least: 1, most: 22, usual: 3 },
} as const;

/**
 * Yields the uncompressed bytes, as far as possible in this memory. Reads the source to its end, whatever follows the
 * compressed data.
 */
export function decode(source: Chunks, compression: 'gzip' | 'zstd', memory?: ChunkMemory): AsyncGenerator<Uint8Array> {
  const { createGunzip, createZstdDecompress } = zlib();
  const explain = (error: unknown): unknown => explainDecoding(error, compression);
  if (compression === 'gzip') return pass(source, createGunzip(room), explain);
  if (createZstdDecompress === undefined) return decompressByPackage(source, memory);
  return pass(splitFrames(source), createZstdDecompress(room), explain);
}

/** Yields the compressed bytes. */
export function encode(source: Chunks, compression: 'gzip' | 'zstd', level: number): AsyncGenerator<Uint8Array> {
  const { createGzip, createZstdCompress, constants } = zlib();
  if (compression === 'gzip') return pass(source, createGzip({ ...room, level }), (error) => error);
  if (createZstdCompress === undefined) return compressByPackage(source, level);
  const params = { [constants['ZSTD_c_compressionLevel'] as number]: level };
  return pass(source, createZstdCompress({ ...room, params }), (error) => error);
}

async function* pass(
  source: Chunks,
  stream: Transform,
  explain: (error: unknown) => unknown,
): AsyncGenerator<Uint8Array> {
  let failure: unknown;
  const use = { isOver: false };
  // A caller who gives up does not wait for it: the source may send no more.
  const fed = feed(source, stream, use).catch((error) => {
    failure = error;
    stream.destroy();
  });
  try {
    for await (const chunk of stream) yield chunk as Uint8Array;
    await fed;
  } catch (error) {
    throw failure ?? explain(error);
  } finally {
    use.isOver = true;
    stream.destroy();
  }
  if (failure !== undefined) throw failure;
}

/** Writes the source to the stream. Reads it to its end even if the stream has ended, until the use is over. */
async function feed(source: Chunks, stream: Transform, use: { readonly isOver: boolean }): Promise<void> {
  let isOpen = true;
  let goOn: (() => void) | undefined;
  const close = (): void => {
    isOpen = false;
    goOn?.();
  };
  // The decoder may have enough before the source ends, and then takes no more.
  stream.on('end', close).on('close', close).on('error', close);
  stream.on('drain', () => goOn?.());
  for await (const chunk of source) {
    if (use.isOver) return;
    if (!isOpen || stream.write(chunk) || !isOpen) continue;
    await new Promise<void>((resolve) => {
      goOn = resolve;
    });
  }
  if (isOpen) stream.end();
}

function explainDecoding(error: unknown, compression: Compression): unknown {
  const { code = '', message } = error as NodeJS.ErrnoException;
  const isOfData = /^(Z_|ZSTD_)/.test(code) || compression === 'zstd';
  if (!isOfData) return error;
  const what = `the ${compression} data of the archive is damaged or cut: ${message}`;
  return new OverlayError({ errno: EINVAL, reason: 'archive-invalid', what }, { cause: error });
}

/** Returns the first bytes, and an iterable of all. */
export async function peek(source: Chunks): Promise<readonly [start: Buffer, all: Chunks]> {
  const iterator = source[Symbol.asyncIterator]();
  const first: Uint8Array[] = [];
  for (let size = 0; size < fields.starMagic[0] + fields.starMagic[1]; ) {
    const next = await iterator.next();
    if (next.done) break;
    first.push(next.value);
    size += next.value.length;
  }
  async function* all(): AsyncGenerator<Uint8Array> {
    try {
      yield* first;
      for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value;
    } finally {
      await iterator.return?.();
    }
  }
  return [Buffer.concat(first.slice(0, 512)), all()];
}
