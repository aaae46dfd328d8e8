/** Unmounts all mounts below a directory, deepest first. */
import { realpathSync } from 'node:fs';
import { abortError, invalidArgumentValue, type OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { Slices } from '../kernel/slices.js';
import { statPathSync } from '../kernel/stat.js';
import { ask, pause, type Task } from '../kernel/task.js';
import { type MountinfoLine, readTable } from '../mount-table/mountinfo.js';
import { type Path, type PathLike, toAbsolute, toBytes, toPath, withoutTrailingSlashes } from '../paths.js';
import { isBusy, Pauses } from './attempts.js';
import { explainUnreached } from './covered.js';
import { explainTarget } from './target.js';
import { addUnmount, explain, explainUnmount, identify, searchBusy, type UnmountOptions } from './unmount.js';

type Row = Pick<MountinfoLine, 'id' | 'parent' | 'target'>;

/**
 * Puts each mount behind those beside it that it hides. They come before it in the table already, unless it was made
 * first and attached later.
 */
function* behindHidden(rows: readonly Row[], slices: Slices): Task<readonly Row[]> {
  const places = new Map(rows.map((row) => [`${row.parent} ${row.target}`, row]));
  const hidden = new Map<Row, Row[]>();
  for (const row of rows) {
    const { parent, target } = row;
    for (let end = target.lastIndexOf('/'); end > 0; end = target.lastIndexOf('/', end - 1)) {
      const cover = places.get(`${parent} ${target.slice(0, end)}`);
      if (cover === undefined) continue;
      const rest = hidden.get(cover);
      if (rest === undefined) hidden.set(cover, [row]);
      else rest.push(row);
      break;
    }
    if (slices.isOver()) yield* slices.pause();
  }
  if (hidden.size === 0) return rows;
  const placed = new Set<Row>();
  const place = (row: Row): void => {
    if (placed.has(row)) return;
    hidden.get(row)?.forEach(place);
    placed.add(row);
  };
  rows.forEach(place);
  return [...placed];
}

/**
 * Sorts the mounts of a tree so that each can be unmounted by its path: a mount that is inside or over another comes
 * first. With `detach`, returns only the mounts whose unmount takes all the others along. Pure.
 */
function* inOrder(wanted: readonly Row[], detach: boolean): Task<Row[]> {
  const slices = new Slices();
  const ids = new Set(wanted.map(({ id }) => id));
  const children = new Map<number, Row[]>();
  const roots: Row[] = [];
  for (const entry of yield* behindHidden(wanted, slices)) {
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
    if (goesAlone || !detach) backwards.push(entry);
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
function* realPath(path: Path): Task<string> {
  const found = statPathSync(path, { flags: k.AT_SYMLINK_NOFOLLOW });
  if (found.errno !== 0 || found.type === k.S_IFLNK) {
    throw explainTarget(path, found, yield* explainUnreached({ path }, true));
  }
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
  readonly #path: Path;
  readonly #detach: boolean;
  readonly #signal: AbortSignal | undefined;
  readonly #pauses: Pauses;
  readonly #seen = new Set<number>();
  /** The mounts that were not at their paths when their turn came, since the last one that was. */
  readonly #missed = new Set<number>();

  constructor(target: PathLike, options: UnmountOptions) {
    const { detach = false, signal, timeout = 0 } = options;
    this.#detach = detach;
    this.#signal = signal;
    this.#pauses = new Pauses(timeout);
    this.#path = withoutTrailingSlashes(toAbsolute(toPath(target, 'target')));
  }

  *unmount(): Task<void> {
    const directory = yield* realPath(this.#path);
    if (directory === '/') throw invalidArgumentValue('target', this.#path, 'must not be the root directory');
    let unseen: Pauses | undefined;
    for (;;) {
      const rows = yield* listBelow(directory);
      for (const { id } of rows) this.#seen.add(id);
      const obstacle = yield* this.#unmountEach(yield* inOrder(rows, this.#detach));
      if (obstacle === undefined) return;
      if (obstacle === 'again') continue;
      // The next list contains the mounts that are made meanwhile.
      let length = isBusy(obstacle.failure) ? this.#pauses.next() : undefined;
      if (length === undefined) {
        const error = yield* this.#explain(obstacle, directory);
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
    let [isMissed, isMoving] = [false, false];
    for (let at = 0; at < rows.length; ) {
      if (this.#signal?.aborted) throw abortError(this.#signal);
      const plan = new Plan();
      const batch = rows.slice(at, at + BATCH);
      for (const row of batch) addUnmount(plan, toMounted(row), { detach: this.#detach });
      const outcome = yield* ask(plan, this.#signal);
      if (!(outcome instanceof StepFailure)) {
        at += batch.length;
        isMoving = true;
        continue;
      }
      if (this.#signal && outcome.cancelled) throw abortError(this.#signal);
      const before = plan.steps.slice(0, plan.steps.indexOf(outcome.step as Step));
      const done = before.filter(({ call }) => call === calls.umount2).length;
      if (done > 0) [tries, isMoving] = [0, true];
      at += done;
      const row = rows[at] as Row;
      const isThere = (yield* identify(toMounted(row))) !== undefined;
      if (isThere && isBusy(outcome) && tries++ < QUICK_TRIES) {
        yield* pause(1, this.#signal);
        continue;
      }
      if (isThere || this.#missed.has(row.id)) return { row, failure: outcome };
      this.#missed.add(row.id);
      isMissed = true;
      at++;
    }
    if (isMoving) this.#missed.clear();
    return isMissed ? 'again' : undefined;
  }

  /** Returns the error that explains the failure; undefined when the mount has gone meanwhile. */
  *#explain({ row, failure }: Obstacle, directory: string): Task<OverlayError | undefined> {
    const mounted = toMounted(row);
    const holders = isBusy(failure) ? yield* searchBusy(mounted) : undefined;
    const left = yield* listBelow(directory);
    if (!left.some(({ id }) => id === row.id)) return undefined;
    const gone = this.#seen.size - left.filter(({ id }) => this.#seen.has(id)).length;
    const leftover = `of ${this.#seen.size} ${this.#seen.size === 1 ? 'mount' : 'mounts'}, ${gone} ${gone === 1 ? 'is' : 'are'} unmounted`;
    return holders === undefined
      ? yield* explain(mounted, failure, leftover)
      : explainUnmount(mounted, failure, { holders, leftover });
  }
}

/** Unmounts all mounts at a directory and below it. */
export function* unmountBelow(target: PathLike, options: UnmountOptions): Task<void> {
  yield* new Tree(target, options).unmount();
}
