/** A mount that this library has made. */
import { type InspectOptions, inspect } from 'node:util';
import { OverlayError } from '../errors.js';
import { type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { close, closeWith } from '../kernel/held.js';
import { Turns } from '../kernel/shared-lock.js';
import type { Mounted } from '../mount-table/identity.js';
import { type PathLike, pathString, toBytes } from '../paths.js';
import { Attempts } from './attempts.js';
import { type AttachOptions, attach, clone, type RemountOptions, remount } from './change.js';
import { checkMountUnmountOptions, type MountUnmountOptions, unmountMounted, withoutEndlessWait } from './unmount.js';

const forgottenText = (descriptor: number): string =>
  `The detached mount of descriptor ${descriptor} is closed by garbage collection: unmount it, or have it disposed of with \`using\``;

/** Returns true when the error says that a clone or an open file may still need the workdir of a disposed mount. */
const isLeftInUse = (error: unknown): boolean => error instanceof OverlayError && error.reason === 'work-in-use';

/** Returns the internal description of a mount, for the library's other functions. */
export let mountedOf: (mount: Mount) => Identified;

type Identified = Mounted & { readonly id: number };

/** Calls a function that uses the mount; no other call ends the mount meanwhile. `useSync` is the synchronous form. */
export let use: <T>(mount: Mount, perform: (mounted: Identified) => Promise<T>) => Promise<T>;
export let useSync: <T>(mount: Mount, perform: (mounted: Identified) => T) => T;

/**
 * Calls a function that makes the object stand for another mount, while no other call uses it. `changeSync` is the
 * synchronous form.
 */
export let change: (mount: Mount, perform: () => Promise<void>) => Promise<void>;
export let changeSync: (mount: Mount, perform: () => void) => void;

/** Makes the object stand for a mount that has moved to another place, or for another mount. */
export let become: (mount: Mount, target: PathLike | undefined, mounted: Identified) => void;

/**
 * A mount in the namespace of the thread that made it, or a detached mount, which is in no namespace. An attached mount
 * remains when this object is garbage collected; a detached one ends with the object. Unmount it, or dispose of it with
 * `using` or `await using` (Node 24, or compiled).
 */
export class Mount {
  /** The mount point, as the caller passed it; undefined for a detached mount. */
  get target(): PathLike | undefined {
    return this.#target;
  }

  /**
   * The kernel's id for this mount. From Linux 6.8 on, it is never reused (statx(2), STATX_MNT_ID_UNIQUE). On earlier
   * kernels, it is the id in /proc/self/mountinfo.
   */
  get id(): number {
    return this.#mounted.id;
  }

  #target: PathLike | undefined;
  #mounted: Identified;
  readonly #turns = new Turns();
  readonly #attempts = new Attempts(this.#turns);

  static {
    mountedOf = (mount) => mount.#mounted;
    use = (mount, perform) => mount.#turns.use(() => perform(mount.#mounted));
    useSync = (mount, perform) => mount.#turns.useSync(() => perform(mount.#mounted));
    change = (mount, perform) => mount.#turns.end(perform);
    changeSync = (mount, perform) => mount.#turns.endSync(perform);
    become = (mount, target, mounted) => {
      const { held } = mount.#mounted;
      mount.#target = target;
      mount.#mounted = mounted;
      if (held !== undefined) close(held);
    };
  }

  /** @internal */
  constructor(target: PathLike | undefined, mounted: Identified) {
    this.#target = target;
    this.#mounted = mounted;
    if (mounted.held !== undefined) closeWith(this, mounted.held, forgottenText);
  }

  /**
   * The path of the mount's files: the absolute path of the target, or `/proc/self/fd/N` for a detached mount. For a
   * target that is not UTF-8, this string has U+FFFD in place of the invalid bytes, and `pathBytes` is the exact path.
   */
  get path(): string {
    return pathString(this.#mounted.path);
  }

  /** The same path as bytes. */
  get pathBytes(): Buffer {
    return Buffer.from(toBytes(this.#mounted.path));
  }

  /**
   * The file descriptor of a detached mount, which a child process can inherit; -1 once it is unmounted. Undefined for
   * a mount that has a target.
   */
  get fd(): number | undefined {
    return this.#mounted.held?.descriptor;
  }

  /** The state of the mount, as far as this object knows. */
  get #state(): 'mounted' | 'detached' | 'unmounted' {
    const { held } = this.#mounted;
    if (held !== undefined) return held.descriptor < 0 ? 'unmounted' : 'detached';
    return this.#attempts.isDone ? 'unmounted' : 'mounted';
  }

  /** Formats the mount for `console.log`. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    const name = this.constructor.name;
    if (depth < 0) return `[${name}]`;
    return `${name} ${inspect({ target: this.target, path: this.path, id: this.id, state: this.#state }, options)}`;
  }

  /** True when the mount was made with `rootless`, in a user namespace of its own. */
  get isRootless(): boolean {
    return this.#mounted.isRootless === true;
  }

  /**
   * Unmounts the mount. A second call does nothing. The call fails, and the mount stays usable, while the mount is
   * busy. It also fails when this mount is no longer the one at the target. A detached mount is never busy: its file
   * descriptor is closed, and the mount ends when the last open file of it is closed.
   *
   * @throws {OverlayError} as `unmount`
   */
  async unmount(options?: MountUnmountOptions): Promise<void> {
    return hold(this.#unmount(checkMountUnmountOptions(options)));
  }

  /**
   * The synchronous form of `unmount`.
   *
   * @throws {OverlayError} as `unmount`; `reason` is also `'mount-busy'` while a promise of a detached mount, or of a
   * replacement, is pending
   */
  unmountSync(options?: MountUnmountOptions): void {
    holdSync(this.#unmount(withoutEndlessWait(checkMountUnmountOptions(options))));
  }

  *#unmount(options: MountUnmountOptions): Dialogue<void> {
    yield* unmountMounted(() => this.#mounted, options, this.#attempts);
  }

  /**
   * Attaches a detached mount at `target`: move_mount(2), 5.2. Its file descriptor is then closed, and `target` and
   * `path` are the new place. A mount made with `rootless` cannot be attached.
   *
   * @throws {OverlayError} `reason` is `'target-missing'`, `'target-mounted'`, `'target-not-directory'`,
   * `'no-privilege'`, `'not-mounted'`, `'namespace-missing'` or `'namespace-denied'`
   */
  async attach(target: PathLike, options?: AttachOptions): Promise<void> {
    await this.#turns.end(async () => become(this, target, await hold(attach(this.#mounted, target, options))));
  }

  /** The synchronous form of `attach`. */
  attachSync(target: PathLike, options?: AttachOptions): void {
    this.#turns.endSync(() => become(this, target, holdSync(attach(this.#mounted, target, options))));
  }

  /**
   * Makes a second, detached mount of the same files: open_tree(2) with OPEN_TREE_CLONE, 5.2. A detached mount can be
   * cloned from Linux 6.15 on. Mounts inside it are not cloned.
   *
   * @throws {OverlayError} `reason` is `'source-unbindable'`, `'not-mounted'` or `'no-privilege'`
   */
  async clone(): Promise<Mount> {
    return new Mount(undefined, await use(this, (mounted) => hold(clone(mounted))));
  }

  /** The synchronous form of `clone`. */
  cloneSync(): Mount {
    return new Mount(
      undefined,
      useSync(this, (mounted) => holdSync(clone(mounted))),
    );
  }

  /**
   * Makes the mount, or its superblock, read-only or writable: mount_setattr(2), 5.12; fspick(2), 5.2.
   *
   * @throws {OverlayError} `reason` is `'mount-busy'` while a file is open for writing, `'read-only'` when there is no
   * upper that can be written, `'not-mounted'` or `'no-privilege'`
   */
  async remount(options: RemountOptions): Promise<void> {
    await use(this, (mounted) => hold(remount(mounted, options)));
  }

  /** The synchronous form of `remount`. */
  remountSync(options: RemountOptions): void {
    useSync(this, (mounted) => holdSync(remount(mounted, options)));
  }

  /** Unmounts at the end of an `await using` block, as `unmount()`. Also removes a workdir that `create` has made. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.unmount({ removeWork: this.#mounted.ownsWork === true });
    } catch (error) {
      if (!isLeftInUse(error)) throw error;
    }
  }

  /** Unmounts at the end of a `using` block, as `unmountSync()`. Also removes a workdir that `create` has made. */
  [Symbol.dispose](): void {
    try {
      this.unmountSync({ removeWork: this.#mounted.ownsWork === true });
    } catch (error) {
      if (!isLeftInUse(error)) throw error;
    }
  }
}
