/** A mount that this library has made. */
import { type InspectOptions, inspect } from 'node:util';
import { close, closeLater, closeWith } from '../kernel/held.js';
import { SharedLock } from '../kernel/shared-lock.js';
import { inEitherForm, run, runSync, type Task } from '../kernel/task.js';
import type { Mounted } from '../mount-table/identity.js';
import { copyPath, type Path, type PathLike, pathString, toBytes } from '../paths.js';
import { Attempts } from './attempts.js';
import { type AttachOptions, attach, clone, type RemountOptions, remount, toPlace } from './change.js';
import { checkMountUnmountOptions, type MountUnmountOptions, unmountMounted } from './unmount.js';
import { removeWork } from './work-removal.js';

const forgottenText = (descriptor: number): string =>
  `The detached mount of descriptor ${descriptor} is closed by garbage collection: unmount it, or have it disposed of with \`using\``;

type Identified = Mounted & { readonly id: number };

/** The parts of a mount for the library's other functions. */
export interface MountInternals {
  readonly mounted: Identified;
  /** Shared by calls that use the mount. A call that ends the mount, or makes the object stand for another, has it alone. */
  readonly lock: SharedLock;
  /** Makes the object stand for a mount at another path, or for another mount. */
  replaceState(mounted: Identified): void;
}

export let internalsOf: (mount: Mount) => MountInternals;

/** Makes a second mount, while no other call ends the first. */
export const cloned = (mount: Mount) => {
  const { lock } = internalsOf(mount);
  return lock.share(() => clone(internalsOf(mount).mounted));
};

/**
 * A mount in the namespace of the thread that made it, or a detached mount, which is in no namespace. An attached mount
 * remains when this object is garbage collected; a detached one ends with the object. Unmount it, or dispose of it with
 * `using` or `await using` (Node 24, or compiled).
 */
export class Mount {
  /** The mount point, as an absolute path; undefined for a detached mount. */
  get target(): Path | undefined {
    const { held, path } = this.#mounted;
    return held === undefined ? copyPath(path) : undefined;
  }

  /**
   * The kernel's id for this mount. From Linux 6.8 on, it is never reused (statx(2), STATX_MNT_ID_UNIQUE). On earlier
   * kernels, it is the id in /proc/self/mountinfo.
   */
  get id(): number {
    return this.#mounted.id;
  }

  #mounted: Identified;
  readonly #lock = new SharedLock();
  readonly #attempts = new Attempts(this.#lock);

  static {
    internalsOf = (mount) => ({
      mounted: mount.#mounted,
      lock: mount.#lock,
      replaceState: (mounted) => mount.#replaceState(mounted),
    });
  }

  #replaceState(mounted: Identified): void {
    const { held, memory } = this.#mounted;
    this.#mounted = mounted;
    if (held !== undefined) close(held);
    if (memory !== undefined && memory !== mounted.memory) close(memory);
  }

  /** @internal */
  constructor(mounted: Identified) {
    this.#mounted = mounted;
    if (mounted.held !== undefined) closeWith(this, mounted.held, forgottenText);
    if (mounted.memory !== undefined) closeWith(this, mounted.memory, () => undefined);
  }

  /**
   * The path of the mount's files: the absolute path of the target, or `/proc/self/fd/N` for a detached mount. To
   * realpath(3), the latter is `/`, and for a `rootless` mount a name that does not exist: do not check by realpath that
   * a file is in a detached mount. For a target that is not UTF-8, this string has U+FFFD in place of the invalid bytes, and `pathBytes` is the exact path.
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
   * A workdir that `create` has made goes too, with what the kernel leaves in it, whatever the modes. It stays if it
   * holds anything else, if its index has hard links of changed files that the upper lacks, which a merge needs, or if
   * an overlay still uses it: a clone, an open file, or this one after `detach`.
   *
   * @throws {OverlayError} as `unmount`
   */
  async unmount(options?: MountUnmountOptions): Promise<void> {
    return run(this.#unmount(checkMountUnmountOptions(options)));
  }

  /**
   * The synchronous form of `unmount`.
   *
   * @throws {OverlayError} as `unmount`; `reason` is also `'mount-busy'` while a promise of a detached mount, or of a
   * replacement, is pending
   */
  unmountSync(options?: MountUnmountOptions): void {
    runSync(this.#unmount(checkMountUnmountOptions(options)));
  }

  *#unmount(options: MountUnmountOptions): Task<void> {
    const isEnded = yield* unmountMounted(() => this.#mounted, options, this.#attempts);
    if (isEnded && !options.detach && this.#mounted.ownsWork) yield* removeWork(this.#mounted);
    const { memory } = this.#mounted;
    if (memory === undefined) return;
    yield* inEitherForm(
      () => closeLater(memory),
      () => close(memory),
    );
  }

  /**
   * Attaches a detached mount at `target`: move_mount(2), 5.2. Its file descriptor is then closed, and `target` and
   * `path` are the new place. A mount made with `rootless` cannot be attached.
   *
   * @throws {OverlayError} `reason` is `'target-missing'`, `'target-mounted'`, `'target-not-directory'`,
   * `'no-privilege'`, `'not-mounted'`, `'namespace-missing'` or `'namespace-denied'`
   */
  async attach(target: PathLike, options?: AttachOptions): Promise<void> {
    await run(this.#attach(target, options));
  }

  /** The synchronous form of `attach`. */
  attachSync(target: PathLike, options?: AttachOptions): void {
    runSync(this.#attach(target, options));
  }

  #attach(target: PathLike, options: AttachOptions | undefined): Task<void> {
    const self = this;
    const place = toPlace(target, options);
    return this.#lock.exclude(function* () {
      self.#replaceState(yield* attach(self.#mounted, place));
    });
  }

  /**
   * Makes a second, detached mount of the same files: open_tree(2) with OPEN_TREE_CLONE, 5.2. A detached mount can be
   * cloned from Linux 6.15 on, but not one made with `rootless`. Mounts inside it are not cloned.
   *
   * @throws {OverlayError} `reason` is `'source-unbindable'`, `'not-mounted'` or `'no-privilege'`
   */
  async clone(): Promise<Mount> {
    return toMount(await run(cloned(this)));
  }

  /** The synchronous form of `clone`. */
  cloneSync(): Mount {
    return toMount(runSync(cloned(this)));
  }

  /**
   * Makes the mount, or its superblock, read-only or writable: mount_setattr(2), 5.12; fspick(2), 5.2.
   *
   * @throws {OverlayError} `reason` is `'mount-busy'` while a file is open for writing, `'read-only'` when there is no
   * upper that can be written, `'not-mounted'` or `'no-privilege'`
   */
  async remount(options: RemountOptions): Promise<void> {
    await run(this.#share(remount(options)));
  }

  /** The synchronous form of `remount`. */
  remountSync(options: RemountOptions): void {
    runSync(this.#share(remount(options)));
  }

  /** Runs a function that uses the mount; no other call ends the mount meanwhile. */
  #share<T>(body: (mounted: Identified) => Task<T>): Task<T> {
    return this.#lock.share(() => body(this.#mounted));
  }

  /** Unmounts at the end of an `await using` block, as `unmount()`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmount();
  }

  /** Unmounts at the end of a `using` block, as `unmountSync()`. */
  [Symbol.dispose](): void {
    this.unmountSync();
  }
}

// In the class, the bundler would give it another name for this reference.
const toMount = (mounted: Identified): Mount => new Mount(mounted);
