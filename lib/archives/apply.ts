/** Layer archives unpacked: a stream of tar becomes a layer directory, or a plain one. */
import * as e from '../errnos.js';
import { abortError, OverlayError } from '../errors.js';
import { close } from '../kernel/held.js';
import { Slices } from '../kernel/slices.js';
import { run } from '../kernel/task.js';
import { type Path, type PathLike, splitPath, toAbsolute, toPath, withoutTrailingSlashes } from '../paths.js';
import { ChunkMemory, type Compression, decode, detect, peek } from '../tar/compression.js';
import { Digester } from '../tar/digest.js';
import type { FoundEntry } from '../tar/entry.js';
import { invalidArchive } from '../tar/invalid.js';
import { TarReader } from '../tar/reader.js';
import { either, option, type Text, text } from '../text.js';
import { refuseMerged } from '../trees/root.js';
import { openLayers } from '../trees/stack.js';
import { syncDirectory } from '../trees/synced.js';
import { TreeWriter, WriteFailure } from '../trees/write.js';
import { explainWrite } from '../trees/written.js';
import { type ApplyOptions, type CheckedOptions, checkApplyOptions } from './apply-options.js';
import { readExisting } from './existing.js';
import { type ArchiveSource, openSource, type Source, untilAborted } from './source.js';
import { dropTarget, finishTarget, openTarget, type Target } from './target.js';
import { ownerOfMissing, type SkippedEntries, Unpacking } from './unpacking.js';

export interface ApplySummary {
  /** The number of entries in the archive. */
  readonly entries: number;
  /** The size of all files, in bytes. */
  readonly bytes: number;
  /** SHA-256 of the uncompressed archive, bytes after its end included: `sha256:` and 64 digits. */
  readonly diffId: string;
  /** SHA-256 of the archive as it is, compressed or not. */
  readonly digest: string;
  /** The size of the archive as it is, in bytes. */
  readonly size: number;
  readonly compression: Compression;
  /** The number of whiteouts in the archive. */
  readonly whiteouts: number;
  readonly skipped: readonly SkippedEntries[];
}

/** The ratio of compression counts after so many bytes. */
const RATIO_BEGINS = 64 * 2 ** 20;
/** Read without a look at the clock: at most 128 entries. */
const PIECE = 64 * 1024;

function mismatch(name: string, expected: string, got: string): OverlayError {
  const what = text`the archive has the digest ${got}, and ${option(name)} is ${expected}`;
  return new OverlayError({ errno: e.EINVAL, reason: 'digest-mismatch', what });
}

/** Throws if the uncompressed archive is too large. `compressed`: the bytes that these were, if they were. */
function checkSize(bytes: number, compressed: number | undefined, { maxBytes, maxRatio }: CheckedOptions): void {
  const limit = (rule: Text): OverlayError => invalidArchive(bytes, undefined, rule, 'archive-limit');
  if (bytes > maxBytes) throw limit(text`it has more bytes than ${option('maxBytes')} allows, ${maxBytes}`);
  if (compressed !== undefined && bytes > RATIO_BEGINS && bytes > maxRatio * compressed) {
    throw limit(text`its ratio of compression is above ${maxRatio}, the limit that ${option('maxRatio')} sets`);
  }
}

/** Returns the digests of an archive, whose bytes are all there. `plain`: of the uncompressed one, if that is another. */
async function checkDigests(intake: Digester, plain: Digester | undefined, checked: CheckedOptions) {
  const digest = await intake.digest();
  const diffId = (await plain?.digest()) ?? digest;
  const { expectedDigest = digest, expectedDiffId = diffId } = checked;
  if (digest !== expectedDigest) throw mismatch('expectedDigest', expectedDigest, digest);
  if (diffId !== expectedDiffId) throw mismatch('expectedDiffId', expectedDiffId, diffId);
  return { digest, diffId };
}

async function unpack(
  source: Source,
  memory: ChunkMemory,
  target: Target,
  checked: CheckedOptions,
): Promise<ApplySummary> {
  const { signal, onProgress } = checked;
  const writer = new TreeWriter(target.root, { signal, lends: true });
  const unpacking = new Unpacking(writer, checked);
  const { root } = unpacking.placement;
  if (target.temporary === undefined && !checked.isNew) await readExisting([root, ''], false, target, checked);
  else unpacking.placement.implied.set(root, '');
  // The umask may have taken bits of its mode.
  if (target.temporary !== undefined) unpacking.add('metadata', '', { mode: 0o755, ...ownerOfMissing(checked.owners) });
  const reader = new TarReader(unpacking);
  const intake = new Digester();
  const [start, all] = await peek(untilAborted(intake.pass(source.chunks, true), signal));
  const compression = detect(start);
  // Both digests of a plain archive are the same.
  const plain = compression === 'none' ? undefined : new Digester();
  const chunks = compression === 'none' ? all : decode(all, compression, memory);
  let bytes = 0;
  let digests: { readonly digest: string; readonly diffId: string };
  const slices = new Slices();
  try {
    for await (const chunk of untilAborted(chunks, signal)) {
      await plain?.update(chunk);
      for (let at = 0; at < chunk.length; at += PIECE) {
        const piece = chunk.subarray(at, at + PIECE);
        bytes += piece.length;
        checkSize(bytes, plain && intake.size, checked);
        reader.write(piece);
        for (; unpacking.unseen !== undefined; unpacking.resume()) {
          const { directories, isWhole } = unpacking.unseen;
          for (const directory of directories) await readExisting(directory, isWhole, target, checked);
        }
        if (writer.isFull) await run(writer.send());
        if (slices.isOver()) await run(slices.pause());
      }
      unpacking.keep();
      const { operations } = unpacking;
      const end = bytes;
      const digester = plain ?? intake;
      memory.give(chunk, () => writer.totals.operations >= operations && digester.isDone(end));
      const total = source.total === undefined ? {} : { totalBytes: source.total };
      onProgress?.({ entries: unpacking.entries, bytes: intake.size, ...total });
    }
    reader.end();
    await run(unpacking.describeImplied(await checked.lowers()));
    for (const [path, metadata] of unpacking.placement.directories()) {
      writer.addLast(path, metadata);
      if (slices.isOver()) await run(slices.pause());
    }
    await run(writer.finish());
    // A layer with another digest than it should have is not worth a sync.
    digests = await checkDigests(intake, plain, checked);
    if (checked.syncs) await run(writer.sync());
  } catch (error) {
    await run(writer.stop());
    if (!(error instanceof WriteFailure)) throw error;
    const offset = unpacking.offsetOf(writer.totals.operations);
    throw await run(explainWrite(error, target.path, { offset }));
  }
  return {
    entries: unpacking.entries,
    bytes: unpacking.bytes,
    ...digests,
    size: intake.size,
    compression,
    whiteouts: unpacking.whiteouts,
    skipped: unpacking.skipped(),
  };
}

/**
 * Unpacks a layer archive into a directory: a tar archive, plain or compressed with gzip or zstd, which its first bytes
 * tell. Whiteouts (`.wh.NAME`) and opaque marks (`.wh..wh..opq`) become those of overlayfs, or with `layout: 'plain'`
 * remove what is there. docs/layers.md has all rules.
 *
 * A directory that does not exist is made under a temporary name, and gets its own when it is complete. One that exists
 * is written into; after a failure it keeps what was written, and `remove` removes it. Nothing outside the
 * directory is made, changed or read, whatever the archive says: openat2(2) with RESOLVE_BENEATH (5.6), or a walk by
 * names.
 *
 * @throws {OverlayError} `reason` is `'archive-invalid'`, `'archive-limit'`, `'digest-mismatch'`, `'path-missing'`,
 * `'path-not-directory'`, `'permission-denied'`, `'xattr-denied'`, `'out-of-space'`, `'read-only'`, `'layer-changed'`
 * or `'merged-mount'` (the directory is a mounted overlay, and the layout is not `'plain'`)
 * @throws {Error} `ABORT_ERR` when the signal aborts
 */
export async function apply(source: ArchiveSource, dir: PathLike, options?: ApplyOptions): Promise<ApplySummary> {
  return applied(source, dir, checkApplyOptions(options));
}

/**
 * Unpacks a layer archive into an empty directory, made for it, over layers that may be made meanwhile: `lowers` is
 * called at the end, and only there does the layer need them.
 */
export async function applyOver(
  source: ArchiveSource,
  dir: PathLike,
  options: ApplyOptions,
  lowers: () => Promise<readonly Path[]>,
): Promise<ApplySummary> {
  return applied(source, dir, { ...checkApplyOptions(options), isNew: true, lowers });
}

/** An overlay takes no whiteouts. */
const intoLayer = either(
  text`pass ${option('layout', 'plain')} to make the changes there`,
  'name the upperdir of the mount, which must not be mounted meanwhile',
);

async function applied(source: ArchiveSource, dir: PathLike, checked: CheckedOptions): Promise<ApplySummary> {
  const path = withoutTrailingSlashes(toAbsolute(toPath(dir, 'dir')));
  if (checked.signal?.aborted) throw abortError(checked.signal);
  const memory = new ChunkMemory();
  const opened = await openSource(source, memory, checked.signal);
  let target: Target | undefined;
  try {
    // They are needed at the end, but a wrong path is an error before anything is written.
    if (!checked.isNew) (await run(openLayers(await checked.lowers()))).close();
    target = await openTarget(path);
    if (checked.layout === 'overlay' && target.temporary === undefined) {
      await run(refuseMerged(path, target.root, intoLayer));
    }
    const summary = await unpack(opened, memory, target, checked);
    target = await finishTarget(target);
    if (checked.syncs && target.temporary !== undefined)
      await run(syncDirectory(target.parent, splitPath(target.path)[0]));
    return summary;
  } catch (error) {
    if (target !== undefined) await dropTarget(target);
    throw error;
  } finally {
    await opened.close();
    if (target !== undefined) {
      close({ descriptor: target.root });
      if (target.parent >= 0) close({ descriptor: target.parent });
    }
  }
}

/**
 * Yields the entries of an archive, those of a chunk at a time. The layer is not checked: only what no archive may say is
 * an error.
 */
export async function* readEntries(source: ArchiveSource): AsyncGenerator<FoundEntry[]> {
  const opened = await openSource(source, new ChunkMemory());
  try {
    let found: FoundEntry[] = [];
    const reader = new TarReader({ entry: (entry) => found.push(entry), data: () => {}, finish: () => {} });
    const [start, all] = await peek(opened.chunks);
    const compression = detect(start);
    for await (const chunk of compression === 'none' ? all : decode(all, compression)) {
      reader.write(chunk);
      if (found.length > 0) yield found;
      found = [];
    }
    reader.end();
  } finally {
    await opened.close();
  }
}
