/** The sources of archives: files, pipes, bytes and streams, in chunks of the library's own memory. */
import * as e from '../errnos.js';
import { abortError, invalidArgumentType, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { onAbort } from '../kernel/on-abort.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { type Path, pathString, quotePath, toAbsolute, toBytes, toPath } from '../paths.js';
import { CHUNK, type ChunkMemory } from '../tar/compression.js';

/** An archive: its path, its bytes, or a stream of them. */
export type ArchiveSource = string | URL | Uint8Array | AsyncIterable<Uint8Array>;

export interface Source {
  readonly chunks: AsyncIterable<Uint8Array>;
  readonly total: number | undefined;
  /** Releases what the source holds, whether it was read or not. */
  close(): void | Promise<void>;
}

/** Reads at once: Node drops what a child process has written when it has ended and nobody reads yet. */
function beginReading(
  source: AsyncIterable<unknown>,
): Pick<Source, 'close'> & { readonly all: AsyncIterable<unknown> } {
  const iterator = source[Symbol.asyncIterator]();
  const first = iterator.next();
  // Its error comes out when the first chunk is asked for.
  first.catch(() => {});
  async function* read(): AsyncGenerator<unknown> {
    for (let next = await first; !next.done; next = await iterator.next()) yield next.value;
  }
  const end = (): void => {
    (source as { destroy?: () => void }).destroy?.();
    // A chunk that never comes would keep this waiting.
    iterator.return?.()?.catch?.(() => {});
  };
  return { all: read(), close: end };
}

/**
 * Copies the caller's bytes into chunks of our own: threads use a chunk after the next one has been asked for, and the
 * caller may do with its memory what it likes.
 */
async function* ofCaller(
  source: AsyncIterable<unknown> | readonly Uint8Array[],
  memory: ChunkMemory,
): AsyncGenerator<Uint8Array> {
  let gathered: Buffer = Buffer.alloc(0);
  let end = 0;
  for await (const bytes of source) {
    if (!(bytes instanceof Uint8Array)) throw invalidArgumentType('source', 'a stream of bytes', bytes);
    for (let at = 0; at < bytes.length; ) {
      if (end === gathered.length) [gathered, end] = [memory.take(), 0];
      const part = bytes.subarray(at, at + gathered.length - end);
      gathered.set(part, end);
      at += part.length;
      end += part.length;
      if (end === gathered.length) yield gathered;
    }
  }
  if (end < gathered.length) yield gathered.subarray(0, end);
}

/** A file that is read ahead by one chunk. */
class SourceFile implements Source {
  readonly chunks = this.#read();
  readonly total: number | undefined;
  readonly #path: Path;
  readonly #descriptor: number;
  readonly #memory: ChunkMemory;
  #ahead: Promise<Uint8Array> | undefined;

  constructor(path: Path, descriptor: number, total: number | undefined, memory: ChunkMemory) {
    this.#path = path;
    this.#descriptor = descriptor;
    this.total = total;
    this.#memory = memory;
  }

  static open(path: Path, memory: ChunkMemory): Promise<SourceFile> {
    const { fstat, open: openFile } = process.getBuiltinModule('node:fs');
    return new Promise((resolve, reject) => {
      openFile(Buffer.from(toBytes(path)), 'r', (error, fd) => {
        if (error !== null) {
          reject(explainSource(error, path));
          return;
        }
        fstat(fd, (failed, found) => {
          resolve(new SourceFile(path, fd, failed === null && found.isFile() ? found.size : undefined, memory));
        });
      });
    });
  }

  #next(): Promise<Uint8Array> {
    const { read } = process.getBuiltinModule('node:fs');
    return new Promise((resolve, reject) => {
      read(this.#descriptor, this.#memory.take(), 0, CHUNK, null, (error, size, buffer) => {
        if (error === null) resolve(buffer.subarray(0, size));
        else reject(explainSource(error, this.#path));
      });
    });
  }

  async *#read(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const chunk = await (this.#ahead ?? this.#next());
      this.#ahead = undefined;
      if (chunk.length === 0) return;
      this.#ahead = this.#next();
      // Its error comes out when the chunk is asked for.
      this.#ahead.catch(() => {});
      yield chunk;
    }
  }

  /** A read under way still uses the descriptor. */
  async close(): Promise<void> {
    const { close: closeFile } = process.getBuiltinModule('node:fs');
    const release = (): Promise<void> => new Promise((resolve) => closeFile(this.#descriptor, () => resolve()));
    if (this.#ahead === undefined) await release();
    // It may never end, where the file is a pipe.
    else this.#ahead.then(release, release);
  }
}

function explainSource(error: NodeJS.ErrnoException, path: Path): unknown {
  const { errno = 0, syscall } = error;
  const fields = { errno: -errno, syscall, path: pathString(path) };
  const shown = quotePath(path);
  if (errno === -e.ENOENT)
    return new OverlayError({ ...fields, reason: 'path-missing', what: `the archive ${shown} does not exist` });
  if (errno === -e.EISDIR) {
    return new OverlayError({
      ...fields,
      reason: 'archive-invalid',
      what: `${shown} is a directory, not an archive`,
      hint: 'name a tar file',
    });
  }
  return new OverlayError(
    { ...fields, reason: 'path-inaccessible', what: `the archive ${shown} cannot be read` },
    { cause: error },
  );
}

/** Opens a path. An abort ends the wait for a program that writes to a pipe. */
async function openPath(path: Path, memory: ChunkMemory, signal: AbortSignal | undefined): Promise<SourceFile> {
  const { stat } = process.getBuiltinModule('node:fs');
  const isPipe = (): Promise<boolean> =>
    new Promise((resolve) => stat(Buffer.from(toBytes(path)), (_, found) => resolve(found?.isFIFO() === true)));
  if (signal === undefined || !(await isPipe())) return SourceFile.open(path, memory);
  const opening = SourceFile.open(path, memory);
  const { aborted, forget } = rejectOnAbort(signal);
  try {
    return await Promise.race([opening, aborted]);
  } catch (error) {
    await releaseReader(path, opening);
    throw error;
  } finally {
    forget();
  }
}

/** Opens a pipe for writing, so that Node's thread that waits in open(2), or is about to, goes on. */
async function releaseReader(path: Path, opening: Promise<SourceFile>): Promise<void> {
  let isOver = false;
  const close = async (): Promise<void> => {
    await (await opening).close();
    isOver = true;
  };
  close().catch(() => {
    isOver = true;
  });
  while (!isOver) {
    const plan = new Plan();
    plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_WRONLY | k.O_NONBLOCK | k.O_CLOEXEC, 0]);
    const outcome = await perform(plan);
    // No reader waits yet.
    if (outcome instanceof StepFailure && outcome.errno !== e.ENXIO) return;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Returns a promise that rejects when the signal aborts. */
function rejectOnAbort(signal: AbortSignal): { readonly aborted: Promise<never>; readonly forget: () => void } {
  let forget = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    forget = onAbort(signal, () => reject(abortError(signal)));
    if (signal.aborted) reject(abortError(signal));
  });
  aborted.catch(() => {});
  return { aborted, forget };
}

const isStream = (source: unknown): source is AsyncIterable<unknown> =>
  typeof source === 'object' && source !== null && Symbol.asyncIterator in source;

/** Opens a source, whose chunks are in this memory. */
export async function openSource(source: unknown, memory: ChunkMemory, signal?: AbortSignal): Promise<Source> {
  if (source instanceof Uint8Array)
    return { chunks: ofCaller([source], memory), total: source.length, close: () => {} };
  if (isStream(source)) {
    const { all, close: end } = beginReading(source);
    return { chunks: ofCaller(all, memory), total: undefined, close: end };
  }
  if (typeof source !== 'string' && !(source instanceof URL)) {
    throw invalidArgumentType('source', 'a path, bytes, or a stream of bytes', source);
  }
  return openPath(toAbsolute(toPath(source, 'source')), memory, signal);
}

/** Ends with an error as soon as the signal aborts, even if the next chunk never comes. */
export async function* untilAborted(
  chunks: AsyncIterable<Uint8Array>,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]();
  if (signal === undefined) {
    yield* { [Symbol.asyncIterator]: () => iterator };
    return;
  }
  const { aborted, forget } = rejectOnAbort(signal);
  let isDone = false;
  try {
    while (!isDone) {
      const next = await Promise.race([iterator.next(), aborted]);
      if (next.done) isDone = true;
      else yield next.value;
    }
  } finally {
    forget();
    // A chunk that never comes would keep this waiting.
    if (!isDone) iterator.return?.()?.catch?.(() => {});
  }
}
