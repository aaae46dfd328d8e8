/** A mount that was made here. */

import { closeWith } from '../kernel/held.js';
import type { Path, PathLike } from '../paths.js';
import { Attempts } from './attempts.js';
import type { Mounted } from './mounted.js';
import { checkUnmountOptions, type UnmountOptions, unmountMounted, unmountMountedSync } from './unmount.js';

const forgottenText = (descriptor: number): string =>
  `The detached mount of descriptor ${descriptor} is closed by garbage collection: unmount it, or have it disposed of with \`using\``;

/** What a mount's other functions need of it. */
export let mountedOf: (mount: Mount) => Mounted;

/**
 * A mount in the namespace of the thread that made it, or a detached one, which is in none. The former stays
 * when this object goes, and the latter ends with it: unmount it, or have it disposed of with `using` or
 * `await using` (Node 24, or compiled).
 */
export class Mount {
  /** Where it is mounted, as it was passed; undefined for a detached mount. */
  readonly target: PathLike | undefined;
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
  constructor(target: PathLike | undefined, mounted: Mounted & { readonly id: number }) {
    this.target = target;
    this.id = mounted.id;
    this.#mounted = mounted;
    if (mounted.held !== undefined) closeWith(this, mounted.held, forgottenText);
  }

  /** Where the mount's files are: the target from the root on, or `/proc/self/fd/N` for a detached mount. */
  get path(): Path {
    return this.#mounted.path;
  }

  /**
   * The descriptor of a detached mount, which a program that is started can inherit; -1 once it is unmounted.
   * Undefined for a mount that has a target.
   */
  get fd(): number | undefined {
    return this.#mounted.held?.descriptor;
  }

  /** Whether it was made in a user namespace of its own: with `rootless`. */
  get isRootless(): boolean {
    return this.#mounted.isRootless === true;
  }

  /**
   * Unmounts it. Done twice, it does nothing the second time. Fails, and the mount stays usable, while it is
   * busy; and when what is mounted at the target is not this mount any more. A detached mount is never busy: its
   * descriptor is closed, and it ends with the last file of it that is still open.
   *
   * @throws {OverlayError} as `unmount`
   */
  async unmount(options?: UnmountOptions): Promise<void> {
    const checked = checkUnmountOptions(options);
    await unmountMounted(this.#mounted, checked, this.#attempts);
    this.#mounted.onGone?.(checked.detach === true);
  }

  /** `unmount`, on the calling thread. */
  unmountSync(options?: UnmountOptions): void {
    const checked = checkUnmountOptions(options);
    unmountMountedSync(this.#mounted, checked, this.#attempts);
    this.#mounted.onGone?.(checked.detach === true);
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
