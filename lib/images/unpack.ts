/** Images unpacked: each layer becomes a committed snapshot, called by its chain id. */
import { availableParallelism } from 'node:os';
import { applyLayerOver } from '../archives/apply.js';
import type { ApplyOptions } from '../archives/apply-options.js';
import { checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import { abortError, invalidArgumentType, OverlayError } from '../errors.js';
import { kernelFeaturesSync } from '../features/probe.js';
import { close, type Held } from '../kernel/held.js';
import { pause, run } from '../kernel/task.js';
import type { Path } from '../paths.js';
import type { SnapshotErrorCode } from '../snapshots/errors.js';
import { type SnapshotMount, upperPath } from '../snapshots/mounts.js';
import type { Snapshotter } from '../snapshots/snapshotter.js';
import { lockDirectory } from '../trees/lock.js';
import { ImageError } from './errors.js';
import { type Image, type ImageLayer, mismatch } from './layout.js';

export interface UnpackProgress {
  /** Layers that are done, those that were there before included. */
  readonly layers: number;
  readonly totalLayers: number;
  /** Entries of the archives so far. */
  readonly entries: number;
  /** Bytes of the archives so far, and the size of all that have to be read. */
  readonly read: number;
  readonly total: number;
}

export interface UnpackOptions extends Pick<ApplyOptions, 'owners' | 'devices' | 'sync'> {
  readonly onProgress?: ((progress: UnpackProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Unpacked {
  /** The name of the snapshot of all layers: the parent of a container's snapshot. */
  readonly chainId: string;
  /** The layers that this call has unpacked. */
  readonly layers: number;
  /** The layers that were there already, or that another call has unpacked meanwhile. */
  readonly reused: number;
}

const known: ReadonlySet<string> = new Set<keyof UnpackOptions>(['owners', 'devices', 'sync', 'onProgress', 'signal']);

/** The label of each snapshot with the digest of its layer. */
const LABEL = 'overlayfs.image/layer';

/** In milliseconds, between two looks at a layer that another call unpacks. */
const INTERVAL = 50;

const codeOf = (error: unknown): string | undefined => (error as { code?: string }).code;

/** Comes to undefined if the snapshotter refuses the verb with this code. */
export async function unless<T>(code: SnapshotErrorCode, verb: Promise<T>): Promise<T | undefined> {
  try {
    return await verb;
  } catch (error) {
    if (codeOf(error) === code) return undefined;
    throw error;
  }
}

/** Returns whether the layers of this process have marks of `user.`: those of `trusted.` need the initial namespace. */
export const needsUserXattr = (): boolean => process.geteuid?.() !== 0 || kernelFeaturesSync().userNamespace;

/** Returns the directory with the files of a snapshot without parents. */
const directoryOf = ([bind]: readonly SnapshotMount[]): string => bind?.source ?? '';

/** A snapshot in which a layer is being unpacked. The lock says that its process lives. */
interface Claim {
  readonly directory: string;
  readonly lock: Held | undefined;
}

class Unpacking {
  readonly #snapshotter: Snapshotter;
  readonly #layers: readonly ImageLayer[];
  readonly #image: Image;
  readonly #options: UnpackOptions;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  readonly #progress: { entries: number; read: number }[] = [];
  #total = 0;
  /** The lowest layer that has to be unpacked. */
  #first = 0;
  #done = 0;
  made = 0;

  constructor(image: Image, snapshotter: Snapshotter, options: UnpackOptions) {
    this.#image = image;
    this.#layers = image.layers;
    this.#snapshotter = snapshotter;
    this.#options = options;
    const { signal } = options;
    this.#signal = signal === undefined ? this.#stop.signal : AbortSignal.any([signal, this.#stop.signal]);
  }

  async perform(): Promise<void> {
    const layers = this.#layers;
    this.#first = layers.length;
    while (this.#first > 0 && !(await this.#isThere(this.#first - 1))) this.#first--;
    const left = layers.slice(this.#first);
    // Nothing is made if an archive is missing.
    for (const layer of left) await this.#image.layout.checkBlob(layer, 'the layer');
    this.#total = left.reduce((sum, { size }) => sum + size, 0);
    this.#done = this.#first;
    this.#report();
    const results: Promise<void>[] = [];
    let next = this.#first;
    const worker = async (): Promise<void> => {
      // From the lowest on: a layer waits at its end for those below.
      for (let i = next++; i < layers.length; i = next++) {
        const result = this.#unpack(i, results[i - 1]);
        results[i] = result;
        await result;
      }
    };
    const workers = Array.from({ length: Math.min(left.length, 4, availableParallelism()) }, worker);
    let failure: unknown;
    for (const working of workers) {
      working.catch((error: unknown) => {
        failure ??= error;
        this.#stop.abort();
      });
    }
    await Promise.allSettled(workers);
    if (failure !== undefined) throw failure;
  }

  async #isThere(i: number): Promise<boolean> {
    const { chainId } = this.#layers[i] as ImageLayer;
    return (await unless('ERR_SNAPSHOT_NOT_FOUND', this.#snapshotter.stat(chainId))) !== undefined;
  }

  #report(): void {
    const { onProgress } = this.#options;
    if (onProgress === undefined) return;
    let [entries, read] = [0, 0];
    for (const one of this.#progress) {
      entries += one?.entries ?? 0;
      read += one?.read ?? 0;
    }
    onProgress({ layers: this.#done, totalLayers: this.#layers.length, entries, read, total: this.#total });
  }

  async #unpack(i: number, below: Promise<void> | undefined): Promise<void> {
    // Its failure is that of the call; here it would be unhandled.
    below?.catch(() => {});
    const { chainId } = this.#layers[i] as ImageLayer;
    const key = `unpack ${chainId}`;
    for (;;) {
      if (this.#signal.aborted) throw abortError(this.#signal);
      if (await this.#isThere(i)) break;
      const claim = await this.#claim(key);
      if (claim === undefined) {
        await run(pause(INTERVAL, this.#signal));
        continue;
      }
      try {
        await this.#apply(i, claim, below);
        await below;
        const parent = this.#layers[i - 1]?.chainId;
        const labels = { [LABEL]: (this.#layers[i] as ImageLayer).digest };
        await this.#snapshotter.commit(chainId, key, { labels, ...(parent !== undefined && { parent }) });
        this.made++;
        break;
      } catch (error) {
        await this.#snapshotter.remove(key).catch(() => {});
        if (codeOf(error) !== 'ERR_SNAPSHOT_ALREADY_EXISTS') throw error;
      } finally {
        if (claim.lock !== undefined) close(claim.lock);
      }
    }
    this.#done++;
    this.#report();
  }

  /** Makes the snapshot in which to unpack a layer. Comes to undefined while another call does it. */
  async #claim(key: string): Promise<Claim | undefined> {
    const snapshotter = this.#snapshotter;
    const made = await unless('ERR_SNAPSHOT_ALREADY_EXISTS', snapshotter.prepare(key));
    const mounts = made ?? (await unless('ERR_SNAPSHOT_NOT_FOUND', snapshotter.mounts(key)));
    if (mounts === undefined) return undefined;
    const directory = directoryOf(mounts);
    const lock = await run(lockDirectory(directory));
    if (lock === 'taken') return undefined;
    // Another call may have taken it for one that a process has left behind.
    const current = await unless('ERR_SNAPSHOT_NOT_FOUND', snapshotter.mounts(key));
    const isSame = current !== undefined && directoryOf(current) === directory;
    if (isSame && made !== undefined) return { directory, lock };
    try {
      // Locked here, it belongs to a process that has ended.
      if (isSame && lock !== undefined) await snapshotter.remove(key).catch(() => {});
    } finally {
      if (lock !== undefined) close(lock);
    }
    return undefined;
  }

  async #apply(i: number, { directory }: Claim, below: Promise<void> | undefined): Promise<void> {
    const { layout } = this.#image;
    const layer = this.#layers[i] as ImageLayer;
    const { digest, diffId } = layer;
    const { owners, devices, sync } = this.#options;
    const path = await layout.checkBlob(layer, 'the layer');
    const options: ApplyOptions = {
      ...(owners !== undefined && { owners }),
      ...(devices !== undefined && { devices }),
      ...(sync !== undefined && { sync }),
      userxattr: needsUserXattr(),
      expectedDigest: digest,
      expectedDiffId: diffId,
      signal: this.#signal,
      onProgress: ({ entries, read }) => {
        this.#progress[i] = { entries, read };
        this.#report();
      },
    };
    try {
      await applyLayerOver(path, directory, options, async () => {
        await below;
        return this.#lowers(i);
      });
    } catch (error) {
      if (error instanceof OverlayError && error.reason === 'digest-mismatch') {
        throw mismatch(path, digest, 'the layer', 'other bytes', error);
      }
      throw error;
    }
  }

  /** The directories of the layers below, the topmost first. */
  async #lowers(i: number): Promise<readonly Path[]> {
    const directory = `${this.#snapshotter.root}/snapshots`;
    const below: Path[] = [];
    for (const { chainId } of this.#layers.slice(0, i)) {
      below.unshift(upperPath(directory, (await this.#snapshotter.stat(chainId)).id));
    }
    return below;
  }
}

/**
 * Unpacks the layers of an image into snapshots, several at the same time: each becomes a committed snapshot, called by
 * its chain id, with the one below as its parent. Layers that are there stay as they are, so a call that was cut off
 * goes on where it was. Calls at the same time, in several processes too, share the work.
 *
 * A plain user's files all belong to this user, and the marks begin with `user.`: `owners: 'ignore'`.
 *
 * @throws {ImageError} `ERR_IMAGE_BLOB_MISSING`, `ERR_IMAGE_DIGEST_MISMATCH`, `ERR_IMAGE_INVALID`
 * @throws {OverlayError} as `applyLayer`
 * @throws {SnapshotError} as the verbs of `Snapshotter`
 */
export async function unpack(image: Image, snapshotter: Snapshotter, given?: UnpackOptions): Promise<Unpacked> {
  const options = toOptions(given, known);
  if (typeof image !== 'object' || image === null || !Array.isArray(image.layers)) {
    throw invalidArgumentType('image', 'an image, as a layout returns it', image);
  }
  checkSignal(options.signal);
  checkWord(options.sync, 'sync', ['none', 'end']);
  checkFunction(options.onProgress, 'onProgress');
  const top = image.layers.at(-1);
  if (top === undefined) {
    throw new ImageError({
      code: 'ERR_IMAGE_INVALID',
      what: `the image ${image.digest} has no layers`,
      hint: 'name an image with files',
      digest: image.digest,
    });
  }
  const unpacking = new Unpacking(image, snapshotter, options);
  await unpacking.perform();
  return { chainId: top.chainId, layers: unpacking.made, reused: image.layers.length - unpacking.made };
}
