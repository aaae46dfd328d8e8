/** An async iterator of changes of the mount table, for callers. */
import { checkSignal, checkWord, toOptions } from '../arguments.js';
import { abortError } from '../errors.js';
import { checkNamespace, type NamespaceLike } from '../namespaces/mount-namespace.js';
import { type Encoding, entryMaker, type MountEntry } from './entry.js';
import { type MountEventType, openWatch, type RawMountEvent, type Watch, type WatchWay } from './events.js';

/** A change of the mount table. */
export interface MountEvent<P extends string | Buffer = string> {
  readonly type: MountEventType;
  /** The `uniqueId` of the mount, or its `id` before Linux 6.8. */
  readonly id: number;
  /** The mount as it is now, or as the library last saw it; undefined if it was gone before it could be read. */
  readonly mount: MountEntry<P> | undefined;
}

export interface WatchMountsOptions {
  /**
   * The mount namespace. The watch holds it until the watch ends. Needs CAP_SYS_ADMIN over it. Without that capability
   * `/proc/PID/ns/mnt` works: the watch reports the view of that process, as long as the process exists. Default: the
   * calling thread's.
   */
  namespace?: NamespaceLike;
  /** Ends the watch. The iterator then throws an AbortError, as the one of node:fs does. */
  signal?: AbortSignal;
  /** `'buffer'` for paths as Buffers, which lose no byte. Default `'utf8'`. */
  encoding?: Encoding;
}

const names: ReadonlySet<string> = new Set(['namespace', 'signal', 'encoding']);

class MountWatch implements AsyncIterableIterator<MountEvent<string | Buffer>> {
  readonly #watch: Watch;
  readonly #encoding: Encoding;
  readonly #signal: AbortSignal | undefined;
  readonly #onAbort = () => void this.#close();
  #events: RawMountEvent[] = [];
  #at = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor(watch: Watch, encoding: Encoding, signal: AbortSignal | undefined) {
    this.#watch = watch;
    this.#encoding = encoding;
    this.#signal = signal;
    if (signal?.aborted) void this.#close();
    else signal?.addEventListener('abort', this.#onAbort);
  }

  async #close(): Promise<void> {
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#events = [];
    this.#at = 0;
    await this.#watch.close();
  }

  next(): Promise<IteratorResult<MountEvent<string | Buffer>, undefined>> {
    // Concurrent calls run one after the other.
    const result = this.#last.then(() => this.#next());
    this.#last = result.catch(() => {});
    return result;
  }

  async #next(): Promise<IteratorResult<MountEvent<string | Buffer>, undefined>> {
    if (this.#at === this.#events.length) {
      try {
        this.#events = (await this.#watch.next()) ?? [];
        this.#at = 0;
      } catch (error) {
        await this.#close();
        throw error;
      }
    }
    const event = this.#events[this.#at++];
    if (event !== undefined) return { done: false, value: this.#show(event) };
    this.#at = 0;
    await this.#close();
    if (this.#signal?.aborted) throw abortError(this.#signal);
    return { done: true, value: undefined };
  }

  #show({ type, id, mount }: RawMountEvent): MountEvent<string | Buffer> {
    return { type, id, mount: mount && entryMaker(this.#encoding)(mount) };
  }

  /** Ends the watch. */
  async return(): Promise<IteratorResult<MountEvent<string | Buffer>, undefined>> {
    await this.#close();
    return { done: true, value: undefined };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/** @internal */
export function watchMountsWith(
  way: WatchWay | undefined,
  options?: WatchMountsOptions,
): AsyncIterableIterator<MountEvent<string | Buffer>> {
  const checked = toOptions(options, names);
  const signal = checkSignal(checked.signal);
  const encoding = checkWord(checked.encoding, 'encoding', ['utf8', 'buffer'] as const) ?? 'utf8';
  const namespace = checkNamespace(checked.namespace);
  return new MountWatch(openWatch(way, namespace), encoding, signal);
}

/**
 * Reports the mounts that any process makes, unmounts or moves in a mount namespace, the calling thread's or another.
 * The watch begins with this call, and ends when the caller leaves the loop or the signal aborts. The library queues
 * the changes until the caller asks for them, and loses none.
 *
 * From Linux 6.15 on, if the process has CAP_SYS_ADMIN, fanotify(7) reports each change. Otherwise the library reads
 * the table again whenever proc_pid_mountinfo(5) signals a change. It then misses mounts that come and go between two
 * reads. Changes of flags and options are not reported. One thread serves all watches of the process, and sleeps in
 * epoll(7).
 *
 * @throws {OverlayError} `'out-of-descriptors'`, `'proc-missing'` if there is no /proc; for `namespace` as `listMounts`
 */
export function watchMounts(
  options: WatchMountsOptions & { encoding: 'buffer' },
): AsyncIterableIterator<MountEvent<Buffer>>;
export function watchMounts(options?: WatchMountsOptions & { encoding?: 'utf8' }): AsyncIterableIterator<MountEvent>;
export function watchMounts(options?: WatchMountsOptions): AsyncIterableIterator<MountEvent<string | Buffer>>;
export function watchMounts(options?: WatchMountsOptions): AsyncIterableIterator<MountEvent<string | Buffer>> {
  return watchMountsWith(undefined, options);
}
