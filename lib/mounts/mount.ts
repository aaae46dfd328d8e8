/** A mount that was made here. */
import { OverlayError } from '../errors.js';
import type { Path, PathLike } from '../paths.js';
import {
  checkUnmountOptions,
  isUnmountedAllTheSame,
  type Mounted,
  type UnmountOptions,
  unmountMounted,
  unmountMountedSync,
} from './unmount.js';

/** Of a millisecond each. */
const OTHER_FORM_TRIES = 100;
const sleepWord = new Int32Array(new SharedArrayBuffer(4));

/**
 * A mount in the namespace of the thread that made it. It stays when this object goes: unmount it, or have it
 * disposed of with `using` or `await using` (Node 24, or compiled).
 */
export class Mount {
  /** Where it is mounted, as it was passed. */
  readonly target: PathLike;
  /**
   * The kernel's id for this mount: from Linux 6.8 on one that is never used again (statx(2),
   * STATX_MNT_ID_UNIQUE), before that the one in /proc/self/mountinfo.
   */
  readonly id: number;

  readonly #mounted: Mounted;
  #unmounted = false;
  #unmounting: Promise<void> | undefined;

  /** @internal */
  constructor(target: PathLike, mounted: Mounted & { readonly id: number }) {
    this.target = target;
    this.id = mounted.id;
    this.#mounted = mounted;
  }

  /** Where the mount's files are. */
  get path(): Path {
    return this.#mounted.path;
  }

  /**
   * Unmounts it. Done twice, it does nothing the second time. Fails, and the mount stays usable, while it is
   * busy; and when what is mounted at the target is not this mount any more.
   *
   * @throws {OverlayError} as `unmount`
   */
  async unmount(options?: UnmountOptions): Promise<void> {
    const checked = checkUnmountOptions(options);
    // One after the other, each with its own outcome.
    while (this.#unmounting !== undefined) await this.#unmounting.catch(() => {});
    if (this.#unmounted) return;
    this.#unmounting = unmountMounted(this.#mounted, checked);
    try {
      await this.#unmounting;
      this.#unmounting = undefined;
      this.#unmounted = true;
    } catch (error) {
      this.#unmounting = undefined;
      this.#failed(error);
    }
  }

  /** `unmount`, on the calling thread. */
  unmountSync(options?: UnmountOptions): void {
    const checked = checkUnmountOptions(options);
    if (this.#unmounted) return;
    for (let tries = 0; ; tries++) {
      try {
        unmountMountedSync(this.#mounted, checked);
        this.#unmounted = true;
        return;
      } catch (error) {
        // A promise under way holds the mount for a moment itself.
        const isOther =
          this.#unmounting !== undefined && error instanceof OverlayError && error.reason === 'mount-busy';
        if (!isOther || tries >= OTHER_FORM_TRIES) {
          this.#failed(error);
          return;
        }
        Atomics.wait(sleepWord, 0, 0, 1);
      }
    }
  }

  #failed(error: unknown): void {
    if (isUnmountedAllTheSame(error)) this.#unmounted = true;
    // The other form of this call was quicker.
    if (this.#unmounted && !isUnmountedAllTheSame(error)) return;
    const isOvertaken = this.#unmounting !== undefined;
    if (!isOvertaken || !(error instanceof OverlayError) || error.reason !== 'not-mounted') throw error;
  }

  /** `unmount()`, at the end of an `await using` block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmount();
  }

  /** `unmountSync()`, at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.unmountSync();
  }
}
