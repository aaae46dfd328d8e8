/** unmountTree: all mounts below a directory, deepest first. */

import { realpathSync } from 'node:fs';
import { checkMilliseconds, checkSignal, toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { invalidArgumentValue, type OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import { type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { lookSync } from '../kernel/look.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import {
  isAtOrBelow,
  type Path,
  type PathLike,
  toAbsolute,
  toBytes,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { Attempts } from './attempts.js';
import { type MountinfoEntry, readMountinfo } from './mountinfo.js';
import { explainTarget } from './target.js';
import { addUnmount, explain, type UnmountOptions } from './unmount.js';

export interface UnmountTreeOptions {
  /**
   * One lazy detaching (MNT_DETACH) of each tree of mounts instead of an unmount of each mount, which takes about
   * a third less time. Mounts that are busy go out of sight too, and stay in use until their last user ends, their
   * upperdirs with them. Default false.
   */
  bulk?: boolean;
  /** As for `unmount`: how long to wait while one of the mounts is busy, in milliseconds. */
  timeout?: number;
  /** As for `unmount`: ends the wait. */
  signal?: AbortSignal;
}

const booleans: ReadonlySet<string> = new Set(['bulk']);
const names: ReadonlySet<string> = new Set([...booleans, 'timeout', 'signal']);

/**
 * The mounts at and below a directory, in an order in which each can be unmounted by its path: what is inside
 * another, or over it, before that one. In bulk only those with which all the others go. Pure.
 */
export function inOrder(table: readonly MountinfoEntry[], directory: Buffer, bulk: boolean): MountinfoEntry[] {
  const wanted = table.filter(({ target }) => isAtOrBelow(target, directory));
  const ids = new Set(wanted.map(({ id }) => id));
  const children = new Map<number, MountinfoEntry[]>();
  const roots: MountinfoEntry[] = [];
  for (const entry of wanted) {
    // In the root of the mount table, a mount may be its own parent.
    const siblings = ids.has(entry.parent) && entry.parent !== entry.id ? children.get(entry.parent) : roots;
    if (siblings === undefined) children.set(entry.parent, [entry]);
    else siblings.push(entry);
  }
  // Backwards: each mount before what is inside it. Mounts may lie deeper in each other than calls can.
  const backwards: MountinfoEntry[] = [];
  const left = roots.map((entry) => ({ entry, goesAlone: true }));
  left.reverse();
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const { entry, goesAlone } = next;
    if (goesAlone || !bulk) backwards.push(entry);
    // The later ones hide the earlier ones, and what covers the whole mount hides all.
    const inside = (children.get(entry.id) ?? []).toReversed();
    const isCover = ({ target }: MountinfoEntry) => target.equals(entry.target);
    for (const child of inside) if (isCover(child)) left.push({ entry: child, goesAlone });
    for (const child of inside) if (!isCover(child)) left.push({ entry: child, goesAlone: false });
  }
  return backwards.reverse();
}

/** The state of one call. */
class Tree {
  readonly options: UnmountTreeOptions;
  readonly attempts = new Attempts();
  readonly #directory: Buffer;
  readonly #each: UnmountOptions;
  readonly #seen = new Set<number>();
  #ordered: readonly MountinfoEntry[] = [];

  constructor(target: PathLike, options: UnmountTreeOptions | undefined) {
    this.options = toBooleanOptions(options, names, booleans);
    checkMilliseconds(this.options.timeout, 'timeout');
    checkSignal(this.options.signal);
    const path = withoutTrailingSlashes(toAbsolute(toPath(target, 'target')));
    this.#each = { detach: this.options.bulk ?? false };
    this.#directory = realPath(path);
    if (this.#directory.length === 1) {
      throw invalidArgumentValue('target', target, 'must not be the root directory');
    }
  }

  /** How many mounts there were. */
  get count(): number {
    return this.#seen.size;
  }

  plan(): Plan {
    const table = readMountinfo();
    for (const { id, target } of table) if (isAtOrBelow(target, this.#directory)) this.#seen.add(id);
    this.#ordered = inOrder(table, this.#directory, this.options.bulk ?? false);
    const plan = new Plan();
    for (const { id, target } of this.#ordered) addUnmount(plan, { path: target, id }, this.#each);
    return plan;
  }

  /** Why it has failed; undefined when the mount has gone by itself, and it is to be gone on with the others. */
  *explain(failure: StepFailure): Dialogue<OverlayError | undefined> {
    const index = failure.plan.steps.indexOf(failure.step as Step); // two for each mount
    const entry = this.#ordered[index >> 1] as MountinfoEntry;
    const left = readMountinfo().filter(({ target }) => isAtOrBelow(target, this.#directory));
    if (failure.errno !== e.EBUSY && !left.some(({ id }) => id === entry.id)) return undefined;
    const gone = this.count - left.filter(({ id }) => this.#seen.has(id)).length;
    const leftover = `of ${this.count} mounts, ${gone} ${gone === 1 ? 'is' : 'are'} unmounted`;
    return yield* explain({ path: entry.target, id: entry.id }, failure, this.#each, leftover);
  }
}

/** As the mount table has it. */
function realPath(path: Path): Buffer {
  const found = lookSync(path, { flags: k.AT_SYMLINK_NOFOLLOW });
  if (found.errno !== 0 || found.type === k.S_IFLNK) throw explainTarget(path, found);
  return realpathSync(Buffer.from(toBytes(path)), { encoding: 'buffer' });
}

/**
 * Unmounts all that is mounted at a directory and below it, what is inside another first: umount2(2), a mount
 * after the other in one crossing, each only while it is the one that was seen. Follows no symbolic link, removes
 * no directory. The directory need not be a mount point itself; that nothing is mounted there is no error.
 *
 * @returns how many mounts were there
 * @throws {OverlayError} as `unmount`, about the mount that could not be unmounted; those before it are
 * @throws {TypeError} `ERR_INVALID_ARG_VALUE`: the target is the root directory
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function unmountTree(target: PathLike, options?: UnmountTreeOptions): Promise<number> {
  const tree = new Tree(target, options);
  for (;;) {
    const outcome = await tree.attempts.perform(() => tree.plan(), tree.options);
    if (!(outcome instanceof StepFailure)) return tree.count;
    const error = await hold(tree.explain(outcome));
    if (error !== undefined) throw error;
  }
}

/** `unmountTree`, on the calling thread. */
export function unmountTreeSync(target: PathLike, options?: UnmountTreeOptions): number {
  const tree = new Tree(target, options);
  for (;;) {
    const outcome = tree.attempts.performSync(() => tree.plan(), tree.options);
    if (!(outcome instanceof StepFailure)) return tree.count;
    const error = holdSync(tree.explain(outcome));
    if (error !== undefined) throw error;
  }
}
