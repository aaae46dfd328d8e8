/**
 * Watches the mount table for changes. The changes come from fanotify(7), where it reports mounts (6.15) and the
 * process may use it. Otherwise, tables are compared whenever poll(2) on /proc/self/mountinfo reports a change.
 */
import * as e from '../errnos.js';
import type { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { closeLater, closeWith, type Held } from '../kernel/held.js';
import { perform, performSync, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { run, runSync, type Task } from '../kernel/task.js';
import { addJoin, addOpen, type Namespace } from '../namespaces/mount-namespace.js';
import { OWN_MOUNT_NAMESPACE } from '../namespaces/user-namespace.js';
import { explainShortage } from '../verdicts.js';
import type { RawMount } from './raw-mount.js';
import { addThreadSelf, explainTable, listIds, listRaw, processOf, statRaw } from './table.js';

/**
 * `'lost'`: changes came faster than they were asked for, and the kernel's queue overflowed. Mounts that came and went
 * meanwhile are not reported. The events that follow make up for all else.
 */
export type MountEventType = 'mounted' | 'unmounted' | 'moved' | 'lost';

export interface RawMountEvent {
  readonly type: MountEventType;
  /** The unique id, where the kernel has unique ids; 0 for `'lost'`. */
  readonly id: number;
  /** The mount as it was last seen; undefined when it was gone before it could be looked at. */
  readonly mount: RawMount | undefined;
}

export type WatchWay = 'events' | 'table';

export const keyOf = ({ id, uniqueId }: RawMount): number => uniqueId ?? id;

type Known = ReadonlyMap<number, RawMount | undefined>;

/** Returns the position of a mount in its parent. A mount does not count as moved when only its parent moves. */
function placeOf(mount: RawMount, byTableId: ReadonlyMap<number, RawMount>): string {
  const parent = byTableId.get(mount.parent);
  return `${mount.parent} ${parent === undefined ? mount.target : mount.target.slice(parent.target.length)}`;
}

function* byTableId(mounts: Iterable<RawMount | undefined>): Task<Map<number, RawMount>> {
  return new Map(yield* collect(mounts, (mount): [number, RawMount] | undefined => mount && [mount.id, mount]));
}

/** Returns true for the same mount. On kernels that reuse ids, an id may belong to another mount by now. */
const isSame = (one: RawMount, other: RawMount): boolean =>
  one.uniqueId !== undefined ||
  (one.device === other.device && one.root === other.root && one.source === other.source && one.type === other.type);

/** Returns the differences between two tables. */
export function* compareTables(before: Known, after: readonly RawMount[]): Task<RawMountEvent[]> {
  const [placesBefore, placesAfter] = [yield* byTableId(before.values()), yield* byTableId(after)];
  const left = new Map(before);
  const arrived = yield* collect(after, (mount): RawMountEvent | undefined => {
    const id = keyOf(mount);
    const old = before.get(id);
    if (!before.has(id) || (old !== undefined && !isSame(old, mount))) return { type: 'mounted', id, mount };
    left.delete(id);
    if (old === undefined || placeOf(old, placesBefore) === placeOf(mount, placesAfter)) return undefined;
    return { type: 'moved', id, mount };
  });
  // The newest mounts come first, because a mount inside another ends before it.
  const gone = Array.from(left, ([id, mount]): RawMountEvent => ({ type: 'unmounted', id, mount })).reverse();
  return [...gone, ...arrived];
}

/** A mount event as fanotify(7) reports it. */
interface Told {
  readonly mask: number;
  readonly id: number;
}

const METADATA_SIZE = 24;
const INFO_HEADER_SIZE = 4;
const FAN_EVENT_INFO_TYPE_MNT = 7;

/** Parses the events that were read from a fanotify file descriptor. Pure. */
export function readMountEvents(data: Buffer): Told[] {
  const told: Told[] = [];
  for (let at = 0; at + METADATA_SIZE <= data.length; ) {
    const length = data.readUInt32LE(at);
    const mask = data.readUInt32LE(at + 8);
    let id = 0;
    for (let info = at + METADATA_SIZE; info + INFO_HEADER_SIZE <= at + length; info += data.readUInt16LE(info + 2)) {
      if (data[info] === FAN_EVENT_INFO_TYPE_MNT) {
        id = data.readUInt32LE(info + 8) + data.readUInt32LE(info + 12) * 2 ** 32;
      }
    }
    told.push({ mask, id });
    at += length;
  }
  return told;
}

/** The size of one read, in bytes; it returns as many events as fit. */
const READ_SIZE = 16384;

const forgottenText = (descriptor: number): string =>
  `The watch of descriptor ${descriptor} is closed by garbage collection: leave its loop, or abort its signal`;

/** The resources that a watch opens. */
interface Opened {
  /** The file descriptor that reports changes. */
  readonly descriptor: number;
  /** A file descriptor of the watched namespace, when this is not the calling thread's. */
  readonly namespace?: number;
  /**
   * The name of the watched namespace when this process may not join it, so that a file descriptor of it is of no use.
   */
  readonly named?: Namespace;
}

/** A watch of the mount table. Each call of next() returns the next changes. */
export abstract class Watch {
  readonly #held: Held;
  readonly #namespace: Held | undefined;
  readonly #ending = new AbortController();
  #closed: Promise<unknown> | undefined;
  /** The namespace to list. */
  protected readonly namespace: Namespace | undefined;
  /** The mounts when the watch began, if the table is short. A long table is read on another thread. */
  readonly #first: Promise<readonly RawMount[]>;
  #isFilled = false;
  /** The known mounts, by id; undefined for one that is known by its id only, or was gone before it could be looked at. */
  protected known: Map<number, RawMount | undefined>;

  constructor({ descriptor, namespace, named }: Opened) {
    this.#held = { descriptor };
    closeWith(this, this.#held, forgottenText);
    if (namespace !== undefined) {
      this.#namespace = { descriptor: namespace };
      closeWith(this, this.#namespace, () => undefined);
    }
    this.namespace = namespace ?? named;
    this.#first = listFirst(this.namespace);
    // The error is reported by next().
    this.#first.catch(() => {});
    // The list is read at once. A mount that ends before the table is read could not be reported if a queue of events
    // then overflowed.
    try {
      this.known = runSync(listKnown(this.namespace));
    } catch (error) {
      void this.close();
      throw error;
    }
  }

  get descriptor(): number {
    return this.#held.descriptor;
  }

  /**
   * Returns the changes since the last call, and waits for one if there is none; undefined when the watch is closed.
   */
  abstract next(): Promise<RawMountEvent[] | undefined>;

  get isClosed(): boolean {
    return this.#ending.signal.aborted;
  }

  /**
   * Ends the watch. The file descriptors are closed on another thread, because the kernel waits there until no event is
   * being delivered to them.
   */
  close(): Promise<unknown> {
    this.#ending.abort();
    this.#closed ??= Promise.all([closeLater(this.#held), this.#namespace && closeLater(this.#namespace)]);
    return this.#closed;
  }

  /** Adds the details of the mounts that existed when the watch began. Only the first call does anything. */
  protected async fill(): Promise<void> {
    if (this.#isFilled) return;
    this.#isFilled = true;
    for (const mount of await this.#first) {
      const id = keyOf(mount);
      if (this.known.has(id) && this.known.get(id) === undefined) this.known.set(id, mount);
    }
  }

  /** Returns the mounts that were there when the watch began. Call next() afterwards: it goes on from there. */
  async existing(): Promise<RawMount[]> {
    await this.fill();
    const mounts: RawMount[] = [];
    for (const [id, mount] of this.known) {
      if (mount !== undefined) mounts.push(mount);
      // It has ended, or has come just now, and then an event of its own tells of it.
      else this.known.delete(id);
    }
    return mounts;
  }

  /** Resolves when the file descriptor is ready or the watch is closed. */
  protected async wait(events: number): Promise<void> {
    const plan = new Plan();
    plan.add(calls.wait_for, [this.descriptor, events]);
    const outcome = await perform(plan, this.#ending.signal);
    if (outcome instanceof StepFailure && !outcome.cancelled) throw explainWatch(outcome);
  }
}

function explainWatch(failure: StepFailure): OverlayError {
  const isWait = failure.step?.call === calls.wait_for;
  const shortage = isWait && explainShortage(failure.errno, 'wait for changes of the mount table');
  return shortage || explainTable(failure);
}

/** Watches by fanotify(7). It reports each change, even one that is reversed at once. */
class EventWatch extends Watch {
  static open(watched: Namespace | undefined): EventWatch | undefined {
    const plan = new Plan();
    const namespace = addOpen(plan, watched ?? OWN_MOUNT_NAMESPACE, watched !== undefined);
    const flags = k.FAN_REPORT_MNT | k.FAN_CLOEXEC | k.FAN_NONBLOCK;
    const events = plan.add(calls.fanotify_init, [flags, 0], { keep: true, output: 0 });
    const args = [events, k.FAN_MARK_ADD | k.FAN_MARK_MNTNS, k.FAN_MNT_ATTACH | k.FAN_MNT_DETACH, namespace] as const;
    plan.add(calls.fanotify_mark, args);
    const outcome = performSync(plan);
    if (outcome instanceof StepFailure) {
      if (outcome.errno === e.EMFILE || outcome.errno === e.ENOSPC) warnOfLimit();
      return undefined;
    }
    return new EventWatch({
      descriptor: outcome.result(plan.stepOf(events)),
      ...(watched !== undefined && { namespace: outcome.result(plan.stepOf(namespace)) }),
    });
  }

  async next(): Promise<RawMountEvent[] | undefined> {
    await this.fill();
    while (!this.isClosed) {
      const told = this.#read();
      if (told.length === 0) {
        await this.wait(k.POLLIN);
        continue;
      }
      const events = told.some(isOverflow) ? await this.#catchUp(told) : await this.#explain(told);
      if (events.length > 0 && !this.isClosed) return events;
    }
    return undefined;
  }

  /** Reads the pending events without waiting. */
  #read(): Told[] {
    const plan = new Plan();
    const options = { output: READ_SIZE, tolerate: [e.EAGAIN] };
    const read = plan.stepOf(plan.add(calls.read, [this.descriptor, READ_SIZE], options));
    const outcome = performSync(plan);
    if (outcome instanceof StepFailure) throw explainWatch(outcome);
    return readMountEvents(outcome.bytes(read, Math.max(outcome.result(read), 0)));
  }

  /**
   * Adds what the queue tells to what is known. After a comparison, it tells again what the table has shown: a mount that
   * is known already, and the end of one that is not.
   */
  async #explain(told: readonly Told[]): Promise<RawMountEvent[]> {
    const attached = told.filter(({ mask }) => mask & k.FAN_MNT_ATTACH).map(({ id }) => id);
    const mounts = attached.length === 0 ? [] : await run(statRaw(attached, this.namespace));
    const found = new Map(mounts.map((mount) => [keyOf(mount), mount]));
    const events: RawMountEvent[] = [];
    for (const { mask, id } of told) {
      const isKnown = this.known.has(id);
      const isAttached = (mask & k.FAN_MNT_ATTACH) !== 0;
      const isDetached = (mask & k.FAN_MNT_DETACH) !== 0;
      if (isAttached ? isKnown && !isDetached : !isKnown) continue;
      const type = !isAttached ? 'unmounted' : isKnown ? 'moved' : 'mounted';
      const mount = found.get(id) ?? this.known.get(id);
      if (isAttached) this.known.set(id, mount);
      else this.known.delete(id);
      events.push({ type, id, mount });
    }
    return events;
  }

  /**
   * Finds what the queue has lost. The kernel loses events behind the mark of an overflow too, until that mark has been
   * read. So the queue is emptied before the table is read, and the table decides.
   */
  async #catchUp(first: readonly Told[]): Promise<RawMountEvent[]> {
    const events: RawMountEvent[] = [];
    for (let told = first; told.length > 0; told = this.#read()) {
      const left = told.filter((one) => !isOverflow(one));
      for (const event of await this.#explain(left)) events.push(event);
    }
    const after = await run(listRaw({ namespace: this.namespace }));
    const missed = await run(compareTables(this.known, after));
    this.known = toKnown(after);
    return [...events, { type: 'lost', id: 0, mount: undefined }, ...missed];
  }
}

const isOverflow = ({ mask }: Told): boolean => (mask & k.FAN_Q_OVERFLOW) !== 0;

/** Says once that a watch goes by the table, because the user has as many queues as the kernel allows. */
function warnOfLimit(): void {
  if (hasWarned) return;
  hasWarned = true;
  process.emitWarning(
    'No queue of mount events is left for this user (fs.fanotify.max_user_groups, or max_user_marks). The watch compares ' +
      'mount tables instead, and misses mounts that come and go between two looks: end other watches, or raise the limit',
    { code: 'OVERLAYFS_WATCH_BY_TABLE' },
  );
}

let hasWarned = false;

/** Watches by comparing tables. It misses mounts that come and go between two looks. */
class TableWatch extends Watch {
  #waiting: Promise<void> | undefined;

  static open(watched: Namespace | undefined): TableWatch {
    const plan = new Plan();
    const self = addThreadSelf(plan);
    // The file shows the table of the namespace in which it was opened, wherever it is read.
    const namespace = watched === undefined ? undefined : addJoin(plan, watched, true);
    const file = addTable(plan, self, 'mountinfo');
    const outcome = performSync(plan);
    if (outcome instanceof StepFailure) return TableWatch.#openDenied(outcome, watched);
    return new TableWatch({
      descriptor: outcome.result(plan.stepOf(file)),
      ...(namespace !== undefined && { namespace: outcome.result(plan.stepOf(namespace)) }),
    });
  }

  /**
   * Opens the table of a process in the namespace. A process that may not join a namespace may still read these tables.
   */
  static #openDenied(failure: StepFailure, named: Namespace | undefined): TableWatch {
    const error = explainTable(failure);
    const process = typeof named === 'string' || named instanceof Uint8Array ? processOf(named) : undefined;
    if (error.reason !== 'namespace-denied' || named === undefined || process === undefined) throw error;
    const plan = new Plan();
    const file = addTable(plan, k.AT_FDCWD, `${process}/mountinfo`);
    const outcome = performSync(plan);
    if (outcome instanceof StepFailure) throw error;
    return new TableWatch({ descriptor: outcome.result(plan.stepOf(file)), named });
  }

  async next(): Promise<RawMountEvent[] | undefined> {
    while (!this.isClosed) {
      if (this.#waiting === undefined) {
        // The table is read after the wait has begun, because beginning the wait marks all earlier changes as seen.
        this.#waiting = this.wait(k.POLLPRI);
        this.#waiting.catch(() => {});
        await this.fill();
        const after = await run(listRaw({ namespace: this.namespace }));
        const events = await run(compareTables(this.known, after));
        this.known = toKnown(after);
        if (events.length > 0 && !this.isClosed) return events;
      }
      await this.#waiting;
      this.#waiting = undefined;
    }
    return undefined;
  }
}

const toKnown = (mounts: readonly RawMount[]): Map<number, RawMount> =>
  new Map(mounts.map((mount) => [keyOf(mount), mount]));

/** The most mounts that are read at once on the calling thread. */
const SHORT_TABLE = 500;

async function listFirst(namespace: Namespace | undefined): Promise<readonly RawMount[]> {
  const ids = runSync(listIds(namespace));
  const listing = listRaw({ namespace });
  return ids !== undefined && ids.length <= SHORT_TABLE ? runSync(listing) : run(listing);
}

/** Returns the present mounts. If listmount(2) is available (6.8), it returns only their ids, which is faster. */
function* listKnown(namespace: Namespace | undefined): Task<Map<number, RawMount | undefined>> {
  const ids = yield* listIds(namespace);
  return ids === undefined ? toKnown(yield* listRaw({ namespace })) : new Map(ids.map((id) => [id, undefined]));
}

/** Adds a step that opens a mount table whose changes can be waited for. */
const addTable = (plan: Plan, directory: Descriptor, path: string): Descriptor =>
  plan.add(calls.openat2, [directory, path, k.O_CLOEXEC, 0], { keep: true, output: 0 });

/** Returns true if statmount(2) works. Events have only the ids of mounts, and a filter may refuse that call. */
function canInspect(namespace: Namespace | undefined): boolean {
  try {
    const ids = runSync(listIds(namespace));
    if (ids !== undefined) runSync(statRaw(ids.slice(0, 1), namespace));
    return ids !== undefined;
  } catch {
    return false;
  }
}

/** Starts a watch. */
export function openWatch(way?: WatchWay, namespace?: Namespace): Watch {
  const events = way === 'table' || !canInspect(namespace) ? undefined : EventWatch.open(namespace);
  return events ?? TableWatch.open(namespace);
}
