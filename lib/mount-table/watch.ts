/** An async iterator of changes of the mount table, for callers. */
import { checkBoolean, checkSignal, checkWord, toOptions } from '../arguments.js';
import { abortError } from '../errors.js';
import { run } from '../kernel/task.js';
import { checkNamespace, type Namespace } from '../namespaces/mount-namespace.js';
import { type Encoding, entryMaker, type MountEntry } from './entry.js';
import { keyOf, type MountEventType, openWatch, type RawMountEvent, type Watch, type WatchWay } from './events.js';
import { type Filter, filterNames, type MountFilter, toFilter, withLayer } from './filter.js';
import type { RawMount } from './raw-mount.js';

/** A change of the mount table. */
export interface MountEvent<P extends string | Buffer = string> {
  readonly type: MountEventType;
  /** The `id` of the mount, as in `MountEntry`; 0 for `'lost'`. */
  readonly id: number;
  /** The mount as it is now, or as the library last saw it; undefined if it was gone before it could be read. */
  readonly mount: MountEntry<P> | undefined;
}

/**
 * Selects the mounts of which the watch reports, by the conditions of `listMounts`. A mount that moves is reported when it
 * meets them before or after. The watch holds the `namespace` until it ends.
 */
export interface WatchMountsOptions extends MountFilter {
  /**
   * True to report the mounts that are there first, each as `'mounted'`. No later change is missed, and none comes twice.
   * Default false.
   */
  existing?: boolean;
  /** Ends the watch. The iterator then throws an AbortError, as the one of node:fs does. */
  signal?: AbortSignal;
}

const names: ReadonlySet<string> = new Set([...filterNames, 'existing', 'signal']);

/** Keeps what a filter selects of the changes. */
class Selection {
  readonly #filter: Filter;
  readonly #namespace: Namespace | undefined;
  /** The ids of the mounts that met the conditions when they were last seen. */
  readonly #selected = new Set<number>();

  constructor(filter: Filter, namespace: Namespace | undefined) {
    this.#filter = filter;
    this.#namespace = namespace;
  }

  async #of(mounts: readonly RawMount[]): Promise<readonly RawMount[]> {
    const { select } = this.#filter;
    return run(withLayer(select === undefined ? mounts : mounts.filter(select), this.#filter, this.#namespace));
  }

  /** Returns those that the filter selects. */
  async begin(mounts: readonly RawMount[]): Promise<readonly RawMount[]> {
    const selected = await this.#of(mounts);
    for (const mount of selected) this.#selected.add(keyOf(mount));
    return selected;
  }

  async apply(events: readonly RawMountEvent[]): Promise<RawMountEvent[]> {
    const mounts = events.flatMap(({ type, mount }) => (mount === undefined || type === 'unmounted' ? [] : [mount]));
    const selected = new Set(await this.#of(mounts));
    return events.filter(({ type, id, mount }) => {
      if (type === 'lost') return true;
      const was = this.#selected.delete(id);
      const is = mount !== undefined && selected.has(mount);
      if (is) this.#selected.add(id);
      return was || is;
    });
  }
}

interface CheckedWatchOptions {
  readonly encoding: Encoding;
  readonly existing: boolean;
  readonly signal: AbortSignal | undefined;
  readonly selection: Selection | undefined;
}

class MountWatch implements AsyncIterableIterator<MountEvent<string | Buffer>> {
  readonly #watch: Watch;
  readonly #encoding: Encoding;
  readonly #signal: AbortSignal | undefined;
  readonly #selection: Selection | undefined;
  readonly #existing: boolean;
  #hasBegun = false;
  readonly #onAbort = () => void this.#close();
  #events: RawMountEvent[] = [];
  #at = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor(watch: Watch, { encoding, existing, signal, selection }: CheckedWatchOptions) {
    this.#watch = watch;
    this.#encoding = encoding;
    this.#signal = signal;
    this.#selection = selection;
    this.#existing = existing;
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
        this.#events = await this.#nextEvents();
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

  /** Returns the next changes, of which there is at least one; none when the watch is closed. */
  async #nextEvents(): Promise<RawMountEvent[]> {
    if (!this.#hasBegun && (this.#existing || this.#selection !== undefined)) {
      this.#hasBegun = true;
      const mounts = await this.#watch.existing();
      const selected = this.#selection === undefined ? mounts : await this.#selection.begin(mounts);
      if (this.#existing && selected.length > 0 && !this.#watch.isClosed) {
        return selected.map((mount) => ({ type: 'mounted', id: keyOf(mount), mount }));
      }
    }
    for (;;) {
      const events = await this.#watch.next();
      if (events === undefined) return [];
      const selected = this.#selection === undefined ? events : await this.#selection.apply(events);
      if (selected.length > 0) return selected;
    }
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
  const existing = checkBoolean(checked.existing, 'existing') ?? false;
  const namespace = checkNamespace(checked.namespace);
  const filter = toFilter(checked);
  const selection = filter.select === undefined ? undefined : new Selection(filter, namespace);
  return new MountWatch(openWatch(way, namespace), { encoding, existing, signal, selection });
}

/**
 * Reports the mounts that any process makes, unmounts or moves in a mount namespace, the calling thread's or another.
 * The watch begins with this call, and ends when the caller leaves the loop or the signal aborts.
 *
 * From Linux 6.15 on, if the process has CAP_SYS_ADMIN, fanotify(7) reports each change. The kernel queues 16384 changes
 * until the caller asks for them. If more come, an event of the type `'lost'` says so, and the events after it bring the
 * caller up to date. Otherwise the library reads the table again whenever proc_pid_mountinfo(5) signals a change. It then
 * misses mounts that come and go between two reads. A warning with the code `OVERLAYFS_WATCH_BY_TABLE` says that it does
 * so because the user has no queue left (fs.fanotify.max_user_groups, 128). Changes of flags and options are not
 * reported. One thread serves all watches of the process, and sleeps in epoll(7).
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
