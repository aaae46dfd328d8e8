/** Changes of the mount table, for callers: an async iterator. */
import { checkSignal, checkWord, toOptions } from '../arguments.js';
import { abortError } from '../errors.js';
import { checkNamespace, type NamespaceLike } from '../mounts/mount-namespace.js';
import { type MountEventType, openWatch, type RawMountEvent, type Watch, type WatchWay } from '../mounts/watch.js';
import { type Encoding, entryMaker, type MountEntry } from './mount-entry.js';

/** A change of the mount table. */
export interface MountEvent<P extends string | Buffer = string> {
  readonly type: MountEventType;
  /** The mount's `uniqueId`; before Linux 6.8 its `id`. */
  readonly id: number;
  /** The mount as it is now, or as it was last seen; undefined where it was gone before it could be looked at. */
  readonly mount: MountEntry<P> | undefined;
}

export interface WatchMountsOptions {
  /**
   * The mount namespace, instead of the calling thread's. The watch keeps it until it ends. Needs CAP_SYS_ADMIN over
   * it; without, `/proc/PID/ns/mnt` is watched by what that process sees, for as long as it is there.
   */
  namespace?: NamespaceLike;
  /** Ends the watch: the iterator then throws an AbortError, as that of node:fs. */
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
    // One after the other, however many are asked for at once.
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
 * What is mounted, unmounted and moved in a mount namespace, the calling thread's or another, from this call on, by
 * whomever, until the loop is left or the signal aborts. No change gets lost, however late it is asked for. Where fanotify(7) tells
 * of mounts (6.15) and the process may ask (CAP_SYS_ADMIN), each is told one by one; elsewhere the table is read
 * again whenever proc_pid_mountinfo(5) shows that it has changed, and what comes and goes between two looks is not
 * seen. Changes of flags and options are not told. Meanwhile one thread for all watches of the process sleeps in
 * epoll(7).
 *
 * @throws {OverlayError} `'out-of-descriptors'`, `'proc-missing'` where there is no /proc; about `namespace` as
 * `listMounts`
 */
export function watchMounts(
  options: WatchMountsOptions & { encoding: 'buffer' },
): AsyncIterableIterator<MountEvent<Buffer>>;
export function watchMounts(options?: WatchMountsOptions & { encoding?: 'utf8' }): AsyncIterableIterator<MountEvent>;
export function watchMounts(options?: WatchMountsOptions): AsyncIterableIterator<MountEvent<string | Buffer>>;
export function watchMounts(options?: WatchMountsOptions): AsyncIterableIterator<MountEvent<string | Buffer>> {
  return watchMountsWith(undefined, options);
}
