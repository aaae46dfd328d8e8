/** A mount that was made here. */
import type { Path, PathLike } from '../paths.js';
import { Attempts } from './attempts.js';
import type { Mounted } from './mounted.js';
import { checkUnmountOptions, type UnmountOptions, unmountMounted, unmountMountedSync } from './unmount.js';

/** What a mount's other functions need of it. */
export let mountedOf: (mount: Mount) => Mounted;

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
  readonly #attempts = new Attempts();

  static {
    mountedOf = (mount) => mount.#mounted;
  }

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
    await unmountMounted(this.#mounted, checkUnmountOptions(options), this.#attempts);
  }

  /** `unmount`, on the calling thread. */
  unmountSync(options?: UnmountOptions): void {
    unmountMountedSync(this.#mounted, checkUnmountOptions(options), this.#attempts);
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
