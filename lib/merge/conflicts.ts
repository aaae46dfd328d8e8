/**
 * Finds the paths that others have changed in a directory since a moment, among those that an upper changes. It looks at
 * many entries of the directory at once.
 */
import type { BigIntStats } from 'node:fs';
import * as e from '../errnos.js';
import type { Conflict } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { askTolerant, inEitherForm, type Task } from '../kernel/task.js';
import { isAtOrBelow } from '../paths.js';
import { comparePaths, toBytePath, toText } from '../trees/encodings.js';
import { type MarkSpace, type Marks, shownAttributes } from '../trees/marks.js';
import { type Attributes, type Records, toNanoseconds } from '../trees/records.js';
import { examine, Walker } from '../trees/walk.js';
import type { CheckedBaseline } from './baseline.js';
import type { LinkedNames } from './linked-names.js';

/** In ns. Some times of a new file come from a clock that ticks every 1 to 10 ms, and others from an exact one. */
const TICK = 10_000_000n;

/** Paths that are looked at in one native call. */
const AT_ONCE = 512;

export interface FoundConflict {
  /** One character a byte. */
  readonly bytePath: string;
  readonly conflict: Conflict;
  /** Both sides have the directory and have changed its metadata. Its entries are judged by themselves. */
  readonly isMetadata: boolean;
  /** The mode that the directory has there. */
  readonly mode: number;
}

/** The state of a path in the upper. */
interface Ours {
  readonly path: string;
  readonly isWhiteout: boolean;
  readonly isDirectory: boolean;
  /** A directory in which nothing shows that the base has at this path. */
  readonly isOther: boolean;
  /** Undefined if the base never had it at this path; the value may be empty. */
  readonly origin: Buffer | undefined;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly attributes: Attributes;
  /** A file without `origin` that the kernel may have copied up: it marks none of a file with several links. */
  readonly mayBeLinked: boolean;
}

/** The head of the mark `origin`: struct ovl_fb in fs/overlayfs/overlayfs.h. */
const HANDLE = { type: 4, start: 21 } as const;

export class Conflicts {
  readonly #dir: Descriptor;
  readonly #upper: Descriptor;
  readonly #since: bigint;
  readonly #linked: LinkedNames | undefined;
  /** By depth: the directory of the upper may have entries that were copied up. */
  readonly #impure: boolean[] = [];
  #waiting: Ours[] = [];
  readonly #found: FoundConflict[] = [];

  constructor(dir: Descriptor, upper: Descriptor, since: CheckedBaseline) {
    this.#dir = dir;
    this.#upper = upper;
    this.#since = since.ctime;
    this.#linked = since.links;
  }

  get isFull(): boolean {
    return this.#waiting.length >= AT_ONCE;
  }

  enterRoot(marks: Marks): void {
    this.#impure[0] = marks.impure === true;
  }

  /** Notes the current entry of the upper. `isMoved` says that a redirect leads to its contents. */
  add(entry: Walker, marks: Marks, isWhiteout: boolean, isMoved: boolean, space: MarkSpace): void {
    const isDirectory = entry.type === k.S_IFDIR;
    if (isDirectory) this.#impure[entry.depth] = marks.impure === true;
    this.#waiting.push({
      path: entry.path,
      isWhiteout,
      isDirectory,
      isOther: isMoved || marks.opaque === 'y',
      origin: isMoved || marks.origin === undefined ? undefined : Buffer.from(marks.origin),
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      attributes: isDirectory ? copyOf(shownAttributes(entry.attributes, space)) : noAttributes,
      mayBeLinked: !isDirectory && marks.origin === undefined && this.#impure[entry.depth - 1] === true,
    });
  }

  /** Returns the conflicts in the order of their paths. One that is a conflict as a whole covers what is below. */
  *end(): Task<readonly FoundConflict[]> {
    yield* this.look();
    let whole: string | undefined;
    return this.#found
      .sort((a, b) => comparePaths(a.bytePath, b.bytePath))
      .filter(({ bytePath, isMetadata }) => {
        if (whole !== undefined && bytePath.startsWith(`${whole}/`)) return false;
        if (!isMetadata) whole = bytePath;
        return true;
      });
  }

  /** Looks at what the directory has at the paths that were noted. */
  *look(): Task<void> {
    const waiting = this.#waiting;
    this.#waiting = [];
    if (waiting.length === 0) return;
    const records = yield* examine(
      this.#dir,
      waiting.map(({ path }) => path),
      { attributes: 'directories' },
    );
    const missing: Ours[] = [];
    const unsure: Ours[] = [];
    const deep: Ours[] = [];
    for (const ours of waiting) {
      records.advance();
      const theirs = this.#judge(ours, records);
      if (theirs === 'look inside') deep.push(ours);
      else if (theirs === 'look at origin') unsure.push(ours);
      else if (theirs === 'look at parent') missing.push(ours);
      else if (theirs === 'removed') this.#add(ours, 'removed');
      else if (theirs !== undefined) this.#add(ours, 'changed', theirs === 'metadata', records.mode & 0o7777);
    }
    for (const ours of deep) if (yield* this.#hasChangedInside(ours.path)) this.#add(ours, 'changed');
    yield* this.#findRemoved(missing);
    yield* this.#compareOrigins(unsure);
  }

  #add({ path, isWhiteout }: Ours, theirs: Conflict['theirs'], isMetadata = false, mode = 0): void {
    const conflict: Conflict = { path: toText(path), ours: isWhiteout ? 'deleted' : 'changed', theirs };
    this.#found.push({ bytePath: path, conflict, isMetadata, mode });
  }

  #judge(
    ours: Ours,
    theirs: Records,
  ): 'changed' | 'removed' | 'metadata' | 'look inside' | 'look at origin' | 'look at parent' | undefined {
    if (theirs.mode === 0) {
      // Both have deleted it, or the upper has made it.
      if (ours.isWhiteout) return undefined;
      if (ours.mayBeLinked && this.#linked !== undefined) return this.#linked.has(ours.path) ? 'removed' : undefined;
      if (ours.origin === undefined) return ours.mayBeLinked ? 'look at parent' : undefined;
      return ours.origin.length > 0 ? 'look at origin' : 'look at parent';
    }
    const hasChanged = toNanoseconds(theirs.ctime) >= this.#since;
    if (theirs.type !== k.S_IFDIR) return hasChanged ? 'changed' : undefined;
    // The upper removes or replaces the directory with all that it holds.
    if (!ours.isDirectory || ours.isOther) return hasChanged ? 'changed' : 'look inside';
    // The time of a directory tells of its entries too, each of which is looked at by itself.
    if (hasChanged && !hasSameMetadata(ours, theirs)) return 'metadata';
    return ours.origin !== undefined && ours.origin.length > 0 ? 'look at origin' : undefined;
  }

  /**
   * Finds the entries that others have removed, of a file system without file handles, and hard links where the baseline
   * does not know their names. In a directory that nobody has
   * changed since, the upper has made the name: it has renamed or linked a file. So it has a file whose times are not
   * older than the file itself.
   */
  *#findRemoved(missing: readonly Ours[]): Task<void> {
    if (missing.length === 0) return;
    const parents = missing.map(({ path }) => path.slice(0, Math.max(path.lastIndexOf('/'), 0)));
    const records = yield* examine(this.#dir, parents);
    for (const ours of missing) {
      records.advance();
      if (records.mode === 0 || toNanoseconds(records.ctime) < this.#since) continue;
      if (!ours.mayBeLinked || (yield* this.#isOlderThanItself(ours.path))) this.#add(ours, 'removed');
    }
  }

  /**
   * True if a file of the upper has times from before it was made there, or if its directory has: the kernel sets the
   * times of both when it copies a file up, and a program that makes a file changes those of the directory.
   */
  *#isOlderThanItself(path: string): Task<boolean> {
    const { birthtimeNs, atimeNs, mtimeNs } = yield* this.#lookInUpper(path);
    if ([atimeNs, mtimeNs].some((time) => time + TICK < birthtimeNs)) return true;
    const parent = yield* this.#lookInUpper(path.slice(0, Math.max(path.lastIndexOf('/'), 0)));
    return parent.mtimeNs + TICK < birthtimeNs;
  }

  *#lookInUpper(path: string): Task<BigIntStats> {
    const fs = process.getBuiltinModule('node:fs');
    const { lstat } = process.getBuiltinModule('node:fs/promises');
    const whole = Buffer.concat([Buffer.from(`/proc/self/fd/${this.#upper}/`), Buffer.from(toBytePath(path))]);
    return yield* inEitherForm(
      () => lstat(whole, { bigint: true }),
      () => fs.lstatSync(whole, { bigint: true }),
    );
  }

  *#hasChangedInside(path: string): Task<boolean> {
    const walker = new Walker(toBytePath(path), { at: this.#dir, followRoot: false, unsorted: true });
    try {
      while (yield* walker.more()) {
        while (walker.advance()) if (toNanoseconds(walker.ctime) >= this.#since) return true;
      }
    } finally {
      walker.close();
    }
    return false;
  }

  /**
   * Compares the file that the kernel copied up with the one that is there now, by their handles. A file of another
   * layer, or of the directory that this one is a copy of, says nothing.
   */
  *#compareOrigins(all: readonly Ours[]): Task<void> {
    if (all.length === 0) return;
    const plan = new Plan();
    const room = 16 + 128;
    const steps = all.map(({ path }) =>
      plan.stepOf(
        plan.add(calls.name_to_handle_at, [this.#dir, toBytePath(path), 0], { output: room, tolerate: 'any' }),
      ),
    );
    const outputs = yield* askTolerant(plan);
    const others: Ours[] = [];
    for (const [i, ours] of all.entries()) {
      const step = steps[i] as (typeof steps)[number];
      const handle = (ours.origin as Buffer).subarray(HANDLE.start);
      if (outputs.result(step) >= 0) {
        const bytes = outputs.bytes(step, room).subarray(16, 16 + outputs.number(step, 1));
        if (bytes.equals(handle)) continue;
      }
      others.push(ours);
    }
    for (const ours of others) {
      const theirs = yield* this.#findOrigin(ours);
      if (theirs !== undefined) this.#add(ours, theirs);
    }
  }

  /**
   * Returns `'removed'` if the origin is gone, `'changed'` if others moved or changed it inside the directory, and
   * undefined if it is elsewhere. An origin that nobody has changed is a file that the upper has renamed or linked.
   */
  *#findOrigin({ origin, isDirectory }: Ours): Task<Conflict['theirs'] | undefined> {
    const [type, handle] = [(origin as Buffer)[HANDLE.type] as number, (origin as Buffer).subarray(HANDLE.start)];
    const plan = new Plan();
    const room = 4096;
    const args = [this.#dir, type, handle, k.O_PATH | k.O_CLOEXEC] as const;
    const opened = plan.add(calls.open_by_handle_at, args, { output: 0, tolerate: 'any', keep: true });
    const linkOf = (descriptor: Descriptor) =>
      plan.stepOf(
        plan.add(calls.readlinkat, [k.AT_FDCWD, ['/proc/self/fd/', descriptor], room], {
          output: room,
          tolerate: 'any',
        }),
      );
    const [there, root] = [linkOf(opened), linkOf(this.#dir)];
    const outputs = yield* askTolerant(plan);
    const descriptor = outputs.result(plan.stepOf(opened));
    if (descriptor < 0) return descriptor === -e.ESTALE ? 'removed' : undefined;
    try {
      const read = (step: typeof there) => outputs.bytes(step, Math.max(outputs.result(step), 0));
      const path = read(there);
      const found = yield* examine(descriptor, ['']);
      found.advance();
      if (found.links === 0) return 'removed';
      // Until a file is looked up, the kernel does not know its path, and shows the root.
      if (path.length > 1 && !isAtOrBelow(path, read(root))) return undefined;
      return isDirectory || toNanoseconds(found.ctime) >= this.#since ? 'changed' : undefined;
    } finally {
      close({ descriptor });
    }
  }
}

const noAttributes: Attributes = new Map();

const copyOf = (attributes: Attributes): Attributes =>
  new Map([...attributes].map(([name, value]) => [name, value && Buffer.from(value)]));

function hasSameMetadata(ours: Ours, theirs: Records): boolean {
  if (ours.mode !== theirs.mode || ours.uid !== theirs.uid || ours.gid !== theirs.gid) return false;
  const { attributes } = theirs;
  if (ours.attributes.size !== attributes.size) return false;
  return [...ours.attributes].every(([name, value]) => {
    const other = attributes.get(name);
    return value !== undefined && other !== undefined && value.equals(other);
  });
}
