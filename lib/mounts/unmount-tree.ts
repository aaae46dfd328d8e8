/** unmountTree: unmounts all mounts below a directory, deepest first. */
import { realpathSync } from 'node:fs';
import { checkMilliseconds, checkSignal, toBooleanOptions } from '../arguments.js';
import { abortError, invalidArgumentValue, type OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { Slices } from '../kernel/slices.js';
import { statPathSync } from '../kernel/stat.js';
import { ask, pause, run, runSync, type Task } from '../kernel/task.js';
import { type MountinfoLine, readTable } from '../mount-table/mountinfo.js';
import { type Path, type PathLike, toAbsolute, toBytes, toPath, withoutTrailingSlashes } from '../paths.js';
import { isBusy, Pauses } from './attempts.js';
import { explainTarget } from './target.js';
import { addUnmount, explain, explainUnmount, identify, searchBusy, withoutEndlessWait } from './unmount.js';

export interface UnmountTreeOptions {
  /**
   * Detaches each tree of mounts with one lazy unmount (MNT_DETACH) instead of unmounting each mount. This takes about
   * a third less time. Busy mounts disappear from view too, but they and their upperdirs stay in use until their last
   * user ends. Default false.
   */
  bulk?: boolean;
  /** How long to wait while one of the mounts is busy, in milliseconds, as for `unmount`. */
  timeout?: number;
  /** Ends the wait, as for `unmount`. */
  signal?: AbortSignal;
}

const booleans: ReadonlySet<string> = new Set(['bulk']);
const names: ReadonlySet<string> = new Set([...booleans, 'timeout', 'signal']);

type Row = Pick<MountinfoLine, 'id' | 'parent' | 'target'>;

/**
 * Sorts the mounts of a tree so that each can be unmounted by its path: a mount that is inside or over another comes
 * first. In bulk, returns only the mounts whose unmount takes all the others along. Pure.
 */
function* inOrder(wanted: readonly Row[], bulk: boolean): Task<Row[]> {
  const slices = new Slices();
  const ids = new Set(wanted.map(({ id }) => id));
  const children = new Map<number, Row[]>();
  const roots: Row[] = [];
  for (const entry of wanted) {
    // At the root of the mount table, a mount may be its own parent.
    const siblings = ids.has(entry.parent) && entry.parent !== entry.id ? children.get(entry.parent) : roots;
    if (siblings === undefined) children.set(entry.parent, [entry]);
    else siblings.push(entry);
    if (slices.isOver()) yield* slices.pause();
  }
  // Built backwards: each mount comes before the mounts inside it. This is a loop, because mounts may be nested deeper
  // than function calls can be.
  const backwards: Row[] = [];
  const left = roots.map((entry) => ({ entry, goesAlone: true }));
  left.reverse();
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const { entry, goesAlone } = next;
    if (goesAlone || !bulk) backwards.push(entry);
    // Later mounts hide earlier ones, and a mount that covers the whole mount hides all.
    const inside = (children.get(entry.id) ?? []).toReversed();
    const isCover = ({ target }: Row) => target === entry.target;
    for (const child of inside) if (isCover(child)) left.push({ entry: child, goesAlone });
    for (const child of inside) if (!isCover(child)) left.push({ entry: child, goesAlone: false });
    if (slices.isOver()) yield* slices.pause();
  }
  return backwards.reverse();
}

/** Returns the mounts at and below a directory. All paths are as in the mount table. */
function listBelow(directory: string): Task<Row[]> {
  return readTable(({ id, parent, target }) =>
    target === directory || target.startsWith(`${directory}/`) ? { id, parent, target } : undefined,
  );
}

/** Returns the path as it is in the mount table. */
function realPath(path: Path): string {
  const found = statPathSync(path, { flags: k.AT_SYMLINK_NOFOLLOW });
  if (found.errno !== 0 || found.type === k.S_IFLNK) throw explainTarget(path, found);
  return realpathSync(Buffer.from(toBytes(path)), { encoding: 'latin1' });
}

/** The most mounts in one native call. The limit exists because the plan is built on the JavaScript thread. */
const BATCH = 200;
/** How often a busy mount is tried again at once, because another process may only be inspecting it. */
const QUICK_TRIES = 3;
/** How long to continue when no holder of a mount can be found, in ms. */
const UNSEEN = 100;

const toMounted = ({ id, target }: Row) => ({ path: Buffer.from(target, 'latin1'), id });

/** A mount that could not be unmounted. */
interface Obstacle {
  readonly row: Row;
  readonly failure: StepFailure;
}

/** The state of one call. */
class Tree {
  readonly #directory: string;
  readonly #bulk: boolean;
  readonly #signal: AbortSignal | undefined;
  readonly #pauses: Pauses;
  readonly #seen = new Set<number>();
  /** The mounts that were not at their paths when their turn came. */
  readonly #missed = new Set<number>();

  constructor(target: PathLike, options: UnmountTreeOptions) {
    const { bulk = false, signal, timeout = signal === undefined ? 0 : Infinity } = options;
    this.#bulk = bulk;
    this.#signal = signal;
    this.#pauses = new Pauses(timeout);
    const path = withoutTrailingSlashes(toAbsolute(toPath(target, 'target')));
    this.#directory = realPath(path);
    if (this.#directory === '/') throw invalidArgumentValue('target', target, 'must not be the root directory');
  }

  *unmount(): Task<number> {
    let unseen: Pauses | undefined;
    for (;;) {
      const rows = yield* listBelow(this.#directory);
      for (const { id } of rows) this.#seen.add(id);
      const obstacle = yield* this.#unmountEach(yield* inOrder(rows, this.#bulk));
      if (obstacle === undefined) return this.#seen.size;
      if (obstacle === 'again') continue;
      // The next list contains the mounts that are made meanwhile.
      let length = isBusy(obstacle.failure) ? this.#pauses.next() : undefined;
      if (length === undefined) {
        const error = yield* this.#explain(obstacle);
        if (error === undefined) continue;
        if (error.holders?.length !== 0) throw error;
        unseen ??= new Pauses(UNSEEN);
        length = unseen.next();
        if (length === undefined) throw error;
      }
      yield* pause(length, this.#signal);
    }
  }

  /**
   * Unmounts the mounts in order. Returns `'again'` when some were gone, because other processes may unmount the same
   * mounts; the table must then be read again.
   */
  *#unmountEach(rows: readonly Row[]): Task<Obstacle | 'again' | undefined> {
    let tries = 0;
    let isMissed = false;
    for (let at = 0; at < rows.length; ) {
      if (this.#signal?.aborted) throw abortError(this.#signal);
      const plan = new Plan();
      const batch = rows.slice(at, at + BATCH);
      for (const row of batch) addUnmount(plan, toMounted(row), { detach: this.#bulk });
      const outcome = yield* ask(plan, this.#signal);
      if (!(outcome instanceof StepFailure)) {
        at += batch.length;
        continue;
      }
      if (this.#signal && outcome.cancelled) throw abortError(this.#signal);
      const before = plan.steps.slice(0, plan.steps.indexOf(outcome.step as Step));
      const done = before.filter(({ call }) => call === calls.umount2).length;
      if (done > 0) tries = 0;
      at += done;
      const row = rows[at] as Row;
      const isThere = (yield* identify(toMounted(row), {})) !== undefined;
      if (isThere && isBusy(outcome) && tries++ < QUICK_TRIES) {
        yield* pause(1, this.#signal);
        continue;
      }
      if (isThere || this.#missed.has(row.id)) return { row, failure: outcome };
      this.#missed.add(row.id);
      isMissed = true;
      at++;
    }
    return isMissed ? 'again' : undefined;
  }

  /** Returns the error that explains the failure; undefined when the mount has gone meanwhile. */
  *#explain({ row, failure }: Obstacle): Task<OverlayError | undefined> {
    const mounted = toMounted(row);
    const holders = isBusy(failure) ? yield* searchBusy(mounted, {}) : undefined;
    const left = yield* listBelow(this.#directory);
    if (!left.some(({ id }) => id === row.id)) return undefined;
    const gone = this.#seen.size - left.filter(({ id }) => this.#seen.has(id)).length;
    const leftover = `of ${this.#seen.size} mounts, ${gone} ${gone === 1 ? 'is' : 'are'} unmounted`;
    return holders === undefined
      ? yield* explain(mounted, failure, {}, leftover)
      : explainUnmount(mounted, failure, { holders, leftover });
  }
}

function* unmountBelow(target: PathLike, options: UnmountTreeOptions): Task<number> {
  return yield* new Tree(target, options).unmount();
}

function check(options: UnmountTreeOptions | undefined): UnmountTreeOptions {
  const checked = toBooleanOptions(options, names, booleans);
  checkMilliseconds(checked.timeout, 'timeout');
  checkSignal(checked.signal);
  return checked;
}

/**
 * Unmounts all mounts at a directory and below it, inner mounts first: umount2(2). One native call unmounts many
 * mounts, one after the other, and each only while it is the mount that was seen. Follows no symbolic link and removes
 * no directory. The directory need not be a mount point. It is no error if nothing is mounted there.
 *
 * @returns how many mounts were there
 * @throws {OverlayError} as `unmount`, about the mount that could not be unmounted; the mounts before it are unmounted
 * @throws {TypeError} `ERR_INVALID_ARG_VALUE`: the target is the root directory
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function unmountTree(target: PathLike, options?: UnmountTreeOptions): Promise<number> {
  return run(unmountBelow(target, check(options)));
}

/** The synchronous form of `unmountTree`. */
export function unmountTreeSync(target: PathLike, options?: UnmountTreeOptions): number {
  return runSync(unmountBelow(target, withoutEndlessWait(check(options))));
}
