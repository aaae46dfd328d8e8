/** Images unpacked: each layer becomes a committed snapshot, called by its chain id. */
import { availableParallelism } from 'node:os';
import { applyOver } from '../archives/apply.js';
import { type ApplyLimits, type ApplyOptions, checkLimits, limitNames } from '../archives/apply-options.js';
import { checkFunction, checkSignal, pick, toOptions } from '../arguments.js';
import { invalidArgumentType, OverlayError } from '../errors.js';
import { needsUserXattr } from '../features/probe.js';
import type { Path } from '../paths.js';
import type { Progress } from '../progress.js';
import { type SnapshotMount, upperPath } from '../snapshots/mounts.js';
import { type Snapshotter, unless } from '../snapshots/snapshotter.js';
import { checkSync } from '../trees/synced.js';
import { ImageError } from './errors.js';
import { type Image, type ImageLayer, mismatch } from './layout.js';

export interface UnpackOptions extends Pick<ApplyOptions, 'owners' | 'devices' | 'sync'>, ApplyLimits {
  readonly onProgress?: ((progress: Progress) => void) | undefined;
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

/** The options that are those of each layer. */
const ofLayers = ['owners', 'devices', ...limitNames] as const;

const known: ReadonlySet<string> = new Set<keyof UnpackOptions>([...ofLayers, 'sync', 'onProgress', 'signal']);

/** The label of each snapshot with the digest of its layer. */
const LABEL = 'overlayfs.image/layer';

/** Returns the directory with the files of a snapshot without parents. */
const directoryOf = ([bind]: readonly SnapshotMount[]): string => bind?.source ?? '';

class Unpacking {
  readonly #snapshotter: Snapshotter;
  readonly #layers: readonly ImageLayer[];
  readonly #image: Image;
  readonly #options: UnpackOptions;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  readonly #progress: Progress[] = [];
  #total = 0;
  /** The lowest layer that has to be unpacked. */
  #first = 0;
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
    let [entries, bytes] = [0, 0];
    for (const one of this.#progress) {
      entries += one?.entries ?? 0;
      bytes += one?.bytes ?? 0;
    }
    onProgress({ entries, bytes, totalBytes: this.#total });
  }

  async #unpack(i: number, below: Promise<void> | undefined): Promise<void> {
    // Its failure is that of the call; here it would be unhandled.
    below?.catch(() => {});
    const { chainId } = this.#layers[i] as ImageLayer;
    const isMade = await this.#snapshotter.build(chainId, { signal: this.#signal }, async ({ mounts }) => {
      await this.#apply(i, directoryOf(mounts), below);
      await below;
      const parent = this.#layers[i - 1]?.chainId;
      const labels = { [LABEL]: (this.#layers[i] as ImageLayer).digest };
      const { sync } = this.#options;
      return { labels, ...(sync !== undefined && { sync }), ...(parent !== undefined && { parent }) };
    });
    if (isMade) this.made++;
    this.#report();
  }

  async #apply(i: number, directory: string, below: Promise<void> | undefined): Promise<void> {
    const { layout } = this.#image;
    const layer = this.#layers[i] as ImageLayer;
    const { digest, diffId } = layer;
    const path = await layout.checkBlob(layer, 'the layer');
    const options: ApplyOptions = {
      ...pick(this.#options, ofLayers),
      // The commit does it.
      sync: 'none',
      userxattr: needsUserXattr(),
      expectedDigest: digest,
      expectedDiffId: diffId,
      signal: this.#signal,
      onProgress: (progress) => {
        this.#progress[i] = progress;
        this.#report();
      },
    };
    try {
      await applyOver(path, directory, options, async () => {
        await below;
        return this.#lowers(i);
      });
    } catch (error) {
      // An ImageError is about a layer below.
      const isOwn = error instanceof OverlayError && !(error instanceof ImageError);
      if (isOwn && error.reason === 'digest-mismatch') {
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
 * @throws {OverlayError} as `apply`
 * @throws {SnapshotError} as the verbs of `Snapshotter`
 */
export async function unpack(image: Image, snapshotter: Snapshotter, given?: UnpackOptions): Promise<Unpacked> {
  const options = toOptions(given, known);
  if (typeof image !== 'object' || image === null || !Array.isArray(image.layers)) {
    throw invalidArgumentType('image', 'an image, as a layout returns it', image);
  }
  checkSignal(options.signal);
  checkSync(options.sync);
  checkLimits(options);
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
