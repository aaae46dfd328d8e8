/** A mount that was made here. */
import { type InspectOptions, inspect } from 'node:util';
import { OverlayError } from '../errors.js';
import { type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { close, closeWith } from '../kernel/held.js';
import { type PathLike, pathString, toBytes } from '../paths.js';
import { Attempts } from './attempts.js';
import { type AttachOptions, attach, clone, type RemountOptions, remount } from './change.js';
import type { Mounted } from './mounted.js';
import { Turns } from './turns.js';
import { checkMountUnmountOptions, type MountUnmountOptions, unmountMounted, withoutEndlessWait } from './unmount.js';

const forgottenText = (descriptor: number): string =>
  `The detached mount of descriptor ${descriptor} is closed by garbage collection: unmount it, or have it disposed of with \`using\``;

/** A clone or an open file may still need the workdir of a mount that is disposed of. */
const isLeftInUse = (error: unknown): boolean => error instanceof OverlayError && error.reason === 'work-in-use';

/** What a mount's other functions need of it. */
export let mountedOf: (mount: Mount) => Identified;

type Identified = Mounted & { readonly id: number };

/** Performs what uses the mount while nobody ends it, in both forms. */
export let use: <T>(mount: Mount, perform: (mounted: Identified) => Promise<T>) => Promise<T>;
export let useSync: <T>(mount: Mount, perform: (mounted: Identified) => T) => T;

/** Performs what has the object stand for another mount, while nobody uses it. */
export let change: (mount: Mount, perform: () => Promise<void>) => Promise<void>;
export let changeSync: (mount: Mount, perform: () => void) => void;

/** Has the object stand for a mount that is at another place now, or for another mount. */
export let become: (mount: Mount, target: PathLike | undefined, mounted: Identified) => void;

/**
 * A mount in the namespace of the thread that made it, or a detached one, which is in none. The former stays
 * when this object goes, and the latter ends with it: unmount it, or have it disposed of with `using` or
 * `await using` (Node 24, or compiled).
 */
export class Mount {
  /** Where it is mounted, as it was passed; undefined for a detached mount. */
  get target(): PathLike | undefined {
    return this.#target;
  }

  /**
   * The kernel's id for this mount: from Linux 6.8 on one that is never used again (statx(2),
   * STATX_MNT_ID_UNIQUE), before that the one in /proc/self/mountinfo.
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
   * Where the mount's files are: the target from the root on, or `/proc/self/fd/N` for a detached mount. Of a target
   * that is no UTF-8, `pathBytes` is the path; this has U+FFFD for such bytes.
   */
  get path(): string {
    return pathString(this.#mounted.path);
  }

  /** The same as bytes. */
  get pathBytes(): Buffer {
    return Buffer.from(toBytes(this.#mounted.path));
  }

  /**
   * The descriptor of a detached mount, which a program that is started can inherit; -1 once it is unmounted.
   * Undefined for a mount that has a target.
   */
  get fd(): number | undefined {
    return this.#mounted.held?.descriptor;
  }

  /** Whether it has a place, as far as this object knows. */
  get #state(): 'mounted' | 'detached' | 'unmounted' {
    const { held } = this.#mounted;
    if (held !== undefined) return held.descriptor < 0 ? 'unmounted' : 'detached';
    return this.#attempts.isDone ? 'unmounted' : 'mounted';
  }

  /** For `console.log`. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    const name = this.constructor.name;
    if (depth < 0) return `[${name}]`;
    return `${name} ${inspect({ target: this.target, path: this.path, id: this.id, state: this.#state }, options)}`;
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
  async unmount(options?: MountUnmountOptions): Promise<void> {
    return hold(this.#unmount(checkMountUnmountOptions(options)));
  }

  /**
   * `unmount`, on the calling thread.
   *
   * @throws {OverlayError} as `unmount`; `reason` is `'mount-busy'` too while a promise of a detached mount, or that
   * of a replacement, is not kept yet
   */
  unmountSync(options?: MountUnmountOptions): void {
    holdSync(this.#unmount(withoutEndlessWait(checkMountUnmountOptions(options))));
  }

  *#unmount(options: MountUnmountOptions): Dialogue<void> {
    yield* unmountMounted(() => this.#mounted, options, this.#attempts);
  }

  /**
   * Attaches a detached mount at `target`: move_mount(2), 5.2. Its descriptor is closed then; `target` and `path`
   * are the place. One made with `rootless` cannot be attached.
   *
   * @throws {OverlayError} `reason` is `'target-missing'`, `'target-mounted'`, `'target-not-directory'`,
   * `'no-privilege'`, `'not-mounted'`, `'namespace-missing'` or `'namespace-denied'`
   */
  async attach(target: PathLike, options?: AttachOptions): Promise<void> {
    await this.#turns.end(async () => become(this, target, await hold(attach(this.#mounted, target, options))));
  }

  /** `attach`, on the calling thread. */
  attachSync(target: PathLike, options?: AttachOptions): void {
    this.#turns.endSync(() => become(this, target, holdSync(attach(this.#mounted, target, options))));
  }

  /**
   * A second mount of the same files, detached: open_tree(2) with OPEN_TREE_CLONE, 5.2; of a detached one from
   * Linux 6.15 on. What is mounted inside does not come with it.
   *
   * @throws {OverlayError} `reason` is `'source-unbindable'`, `'not-mounted'` or `'no-privilege'`
   */
  async clone(): Promise<Mount> {
    return new Mount(undefined, await use(this, (mounted) => hold(clone(mounted))));
  }

  /** `clone`, on the calling thread. */
  cloneSync(): Mount {
    return new Mount(
      undefined,
      useSync(this, (mounted) => holdSync(clone(mounted))),
    );
  }

  /**
   * Makes the mount, or its superblock, read-only or writable: mount_setattr(2), 5.12; fspick(2), 5.2.
   *
   * @throws {OverlayError} `reason` is `'mount-busy'` while a file is open for writing, `'read-only'` where there
   * is no upper that could be written, `'not-mounted'` or `'no-privilege'`
   */
  async remount(options: RemountOptions): Promise<void> {
    await use(this, (mounted) => hold(remount(mounted, options)));
  }

  /** `remount`, on the calling thread. */
  remountSync(options: RemountOptions): void {
    useSync(this, (mounted) => holdSync(remount(mounted, options)));
  }

  /** `unmount()`, at the end of an `await using` block. A workdir that `create` has made is removed as well. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.unmount({ removeWork: this.#mounted.ownsWork === true });
    } catch (error) {
      if (!isLeftInUse(error)) throw error;
    }
  }

  /** `unmountSync()`, at the end of a `using` block. A workdir that `create` has made is removed as well. */
  [Symbol.dispose](): void {
    try {
      this.unmountSync({ removeWork: this.#mounted.ownsWork === true });
    } catch (error) {
      if (!isLeftInUse(error)) throw error;
    }
  }
}
