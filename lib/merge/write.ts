/**
 * Carries out a merge. The first walk of the upper finds every obstacle (check.ts). The second walk writes.
 *
 * A later call can resume after any step. The upper and the staging directory hold all that this call needs to know.
 * In particular,
 * - a file keeps its name in the upper until it has its new one;
 * - an opaque directory loses its mark after the entries that it hides are removed, and before its own entries move;
 * - an attribute keeps the time of a directory whose entries move;
 * - the state keeps the modes of entries of the upper that the owner may not write, before the merge changes them.
 *
 * The owner needs `w` on a directory to change its entries or to move it to another parent, and on a file to change its
 * user.* attributes. A merge adds it where it lacks, and gives each entry its own mode last.
 */
import * as e from '../errnos.js';
import { abortError, type Conflict, OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import { Slices } from '../kernel/slices.js';
import type { Task } from '../kernel/task.js';
import type { OperationFlag } from '../native.js';
import { type Path, pathString, quotePath, toBytes } from '../paths.js';
import type { Progress } from '../progress.js';
import { below, comparePaths, toBytePath } from '../trees/encodings.js';
import { isWhiteoutEntry, type MarkSpace, type Marks, markName, readMarks, shownName } from '../trees/marks.js';
import type { Attributes, Records, Time } from '../trees/records.js';
import type { Root } from '../trees/root.js';
import { examine, Tape, Walker, type WalkOptions } from '../trees/walk.js';
import {
  addSpecial,
  metadataOf,
  type OperationFields,
  TreeWriter,
  WriteFailure,
  type WrittenXattr,
} from '../trees/write.js';
import { explainWrite } from '../trees/written.js';
import type { CheckedBaseline } from './baseline.js';
import { type CheckOptions, countingRedirect, isBelow, MergeCheck, newestChange, STAGING } from './check.js';
import { CLONES, findClones, makeClones } from './clones.js';
import { isShut, keepingMode, keepingNoMode, OWNER_WRITES, openedUp, readMode } from './modes.js';
import { COMPLETE, isMarkedComplete, readState, STATE, type State } from './state.js';
import { refuseSwapped } from './swapped.js';

export interface MergeSummary {
  /** All entries of the upper, without its root. */
  readonly entries: number;
  /** Whiteouts among them. */
  readonly deleted: number;
  /** Bytes copied, or cloned by the file system; 0 for a dry run. */
  readonly bytes: number;
  /** Conflicts that `conflict` decided; for a dry run, all conflicts. */
  readonly conflicts: readonly Conflict[];
}

/** Entries between two checks of the clock. */
const STEPS = 32;

export interface Settings {
  readonly moves: boolean;
  readonly since: CheckedBaseline | undefined;
  readonly conflict: CheckOptions['conflict'];
  readonly root: boolean;
  /** Refuses an upper and a directory that look swapped. */
  readonly looksForSwap: boolean;
  readonly dryRun: boolean;
  readonly syncs: boolean;
  readonly onProgress: ((progress: Progress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
}

/** A directory of the upper whose entries the walk is visiting. */
interface Frame {
  readonly depth: number;
  /** The path in the upper. */
  readonly path: string;
  /** The path, below the target directory, into which its entries go. */
  readonly target: string;
  /** The final path, if it differs from `target`. */
  readonly place: string | undefined;
  /** Nothing from the lower directory shows in it, so its whiteouts have nothing to remove. */
  readonly isPure: boolean;
  /** The merge makes it with all its entries in the staging directory, and then renames it to its place. */
  readonly isWhole: boolean;
  /** Only the mode if the directory keeps its own metadata. */
  readonly metadata: OperationFields;
}

const noXattrs: readonly WrittenXattr[] = [];
const noFlags: readonly OperationFlag[] = [];
const atomic: readonly OperationFlag[] = ['atomic'];
const exact: readonly OperationFlag[] = ['exact'];
const ofOther: readonly OperationFlag[] = ['other'];
const fromOther: readonly OperationFlag[] = ['from_other'];
const atomicFromOther: readonly OperationFlag[] = ['from_other', 'atomic'];

export class Merge {
  readonly #upper: Root;
  readonly #dir: Root;
  /** The roots, for walks. */
  readonly #inUpper: Pick<WalkOptions, 'at' | 'atPath'>;
  readonly #inDir: Pick<WalkOptions, 'at' | 'atPath'>;
  readonly #space: MarkSpace;
  readonly #settings: Settings;
  readonly #writer: TreeWriter;
  /** The merge renames files out of the upper, because both roots are on one mount. */
  readonly #renames: boolean;
  readonly #frames: Frame[] = [];
  /** Maps the inode of a file with several links to the first path, below the directory, at which it was placed. */
  readonly #links = new Map<bigint, string>();
  /** Maps a path in the staging directory to the place to which that directory was renamed. */
  readonly #placed = new Map<string, string>();
  readonly #tape = new Tape();
  #state: State | undefined;
  /** The mode of the directory's root before the merge. */
  #dirMode = 0;
  /** An earlier call has left its state. */
  #isResumed = false;
  /** An earlier copy has written everything. */
  #isComplete = false;
  /** The directories of the upper, by the first walk. */
  #found: Pick<MergeCheck, 'absent' | 'soiled' | 'holders' | 'modes'> | undefined;
  /** Directories that keep their own metadata, with their modes. */
  #kept: ReadonlyMap<string, number> = new Map();
  /** Maps an inode of the upper to the name of its clone, if no earlier call has put the clone in its place. */
  #clones = new Map<bigint, string>();
  /** This copy has changed times and modes in the upper. */
  #hasGivenBack = false;
  /** Some files stay in the upper until everything else is done. */
  #leavesRest = false;
  /** Counts what both walks have read, for the checks of the clock. */
  #steps = 0;
  #processed = 0;
  /** The operations that must be complete for each entry that is not processed yet. */
  readonly #needed: number[] = [];
  #total = 0;
  #slices = new Slices();

  constructor(upper: Root, dir: Root, space: MarkSpace, settings: Settings, mayRename = true) {
    this.#upper = upper;
    this.#dir = dir;
    this.#inUpper = { at: upper.descriptor, atPath: upper.path };
    this.#inDir = { at: dir.descriptor, atPath: dir.path };
    this.#space = space;
    this.#settings = settings;
    const isOneMount = upper.found.mountId === dir.found.mountId && upper.found.device === dir.found.device;
    this.#renames = settings.moves && isOneMount && mayRename;
    this.#writer = new TreeWriter(dir.descriptor, {
      others: [upper.descriptor],
      staging: STAGING,
      signal: settings.signal,
    });
  }

  *run(): Task<MergeSummary> {
    this.#state = yield* readState(this.#dir, this.#upperId);
    this.#isResumed = this.#state !== undefined;
    this.#dirMode = this.#state?.dirMode ?? (yield* readMode(this.#dir.descriptor));
    const check = this.#makeCheck(yield* readMode(this.#upper.descriptor));
    this.#found = check;
    yield* check.walk();
    const { entries, deleted } = check;
    this.#total = entries;
    this.#isComplete = !this.#settings.moves && (yield* isMarkedComplete(this.#dir, this.#identity(check.latest)));
    if (!this.#isComplete) {
      if (this.#settings.looksForSwap && !this.#isResumed && !check.isMarked) {
        yield* refuseSwapped(this.#upper, this.#dir, this.#space);
      }
      yield* check.check();
    }
    const { conflicts } = check;
    if (this.#settings.dryRun) return { entries, deleted, conflicts, bytes: 0 };
    try {
      if (!this.#isComplete) yield* this.#apply(check);
      yield* this.#end(check.latest);
    } catch (error) {
      yield* this.#writer.stop();
      if (!(error instanceof WriteFailure)) throw error;
      if (this.#renames && isRefusedRename(error)) {
        const again = yield* new Merge(this.#upper, this.#dir, this.#space, this.#settings, false).run();
        return { ...again, entries, deleted, conflicts };
      }
      const leftover = this.#leftover();
      if (error.isInOther) throw yield* explainWrite(error, this.#upper.path, { leftover });
      throw yield* explainWrite(error, this.#dir.path, {
        leftover,
        other: this.#upper.path,
        path: this.#finalPath(error.path.toString('latin1')),
      });
    }
    return { entries, deleted, conflicts, bytes: this.#writer.totals.copied };
  }

  #makeCheck(upperMode: number): MergeCheck {
    const { since, conflict, dryRun, moves, root } = this.#settings;
    return new MergeCheck({
      upper: this.#upper,
      upperMode,
      dir: this.#dir,
      space: this.#space,
      tape: dryRun ? undefined : this.#tape,
      since,
      conflict,
      dryRun,
      earlier: this.#state,
      moves,
      renames: this.#renames,
      root,
      finishesMove: this.#state?.isMove === true && !moves,
      breathe: () => this.#breathe(),
    });
  }

  *#apply(check: MergeCheck): Task<void> {
    yield* this.#begin(check);
    this.#kept = check.kept;
    if (this.#state?.isCopied !== true) yield* this.#write(new Set(check.theirs));
    if (this.#settings.moves && (!this.#renames || this.#leavesRest || this.#state?.isCopied))
      yield* this.#emptyUpper(check.latest);
  }

  #leftover(): string {
    const upper = quotePath(this.#upper.path);
    const done = `${this.#countProcessed()} of ${this.#total} entries of ${upper} had been processed`;
    return this.#writer.totals.operations === 0
      ? `nothing was changed`
      : `${done}; merged entries stay merged, and the others are still in ${upper}`;
  }

  /** Counts the entries whose operations are complete. */
  #countProcessed(): number {
    const { operations } = this.#writer.totals;
    const first = this.#needed.findIndex((needed) => needed > operations);
    this.#processed += this.#needed.splice(0, first < 0 ? this.#needed.length : first).length;
    return this.#processed;
  }

  /** The number of a device may be another one after a restart. */
  get #upperId(): string {
    const { device, inode } = this.#upper.found;
    return device === this.#dir.found.device ? String(inode) : `${device}:${inode}`;
  }

  // -------------------------------------------------------------------------------- the state of an earlier call

  #identity(latest: number): string {
    return `${this.#upperId} ${this.#total} ${latest}`;
  }

  #writeState(state: State): void {
    const data = Buffer.from(JSON.stringify(state), 'latin1');
    this.#writer.add('file', STATE, { mode: 0o600, data, flags: this.#syncedFlags });
    this.#state = state;
  }

  /** Flags of a file whose loss no later call could make good: xfs and ext4 may bring a new name to the disk before its data. */
  get #syncedFlags(): readonly OperationFlag[] {
    return this.#settings.syncs ? ['atomic', 'synced'] : atomic;
  }

  *#sync(): Task<void> {
    if (this.#settings.syncs) yield* this.#writer.sync();
  }

  *#breathe(): Task<void> {
    if (this.#steps++ % STEPS !== 0) return;
    const { signal } = this.#settings;
    if (signal?.aborted) throw abortError(signal);
    if (this.#slices.isOver()) yield* this.#slices.pause();
  }

  // -------------------------------------------------------------------------------- before and after the second walk

  *#begin({ theirs, kept, redirects, modes }: MergeCheck): Task<void> {
    const writer = this.#writer;
    if (this.#state === undefined) {
      if (isShut(this.#dirMode)) writer.add('metadata', '', keepingMode(this.#dirMode));
      this.#openUp('', this.#dirMode);
      writer.add('remove', STAGING);
    }
    writer.add('directory', STAGING, { mode: 0o700, flags: ['existing'] });
    if (this.#state === undefined && redirects.size > 0) {
      yield* makeClones(redirects, this.#dir, writer, { breathe: () => this.#breathe(), send: () => this.#send() });
      // The state says that they are there.
      yield* this.#sync();
    }
    if (this.#state === undefined) {
      const path = Buffer.from(toBytes(this.#upper.path)).toString('latin1');
      const seen = [...redirects.keys()].map(String);
      const found = { theirs, kept: [...kept], redirects: seen, modes: [...modes], dirMode: this.#dirMode };
      this.#writeState({ upper: this.#upperId, path, ...found, isMove: this.#settings.moves });
    } else if (this.#settings.moves && this.#state.isMove !== true) {
      this.#writeState({ ...this.#state, modes: [...modes], isMove: true });
    }
    yield* writer.finish();
    // The upper may hold data that no program has synced. It is on the disk before it loses its name.
    if (this.#settings.moves) yield* this.#sync();
    if (this.#state?.redirects.length) this.#clones = yield* findClones(this.#dir);
  }

  *#emptyUpper(latest: number): Task<void> {
    const state = this.#state as State;
    if (state.isCopied !== true) {
      yield* this.#sync();
      this.#writeState({ ...state, isCopied: true, latest });
      yield* this.#writer.finish();
      // The names of the upper go only after it.
      yield* this.#sync();
    }
    const walker = new Walker('', this.#inUpper);
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          if (walker.depth !== 1) continue;
          this.#writer.add('remove', walker.path, { flags: ['other'] });
          if (walker.type === k.S_IFDIR) walker.skip();
        }
      }
    } finally {
      walker.close();
    }
    yield* this.#writer.finish();
  }

  *#end(latest: number): Task<void> {
    const writer = this.#writer;
    const identity = this.#identity(this.#hasGivenBack ? yield* newestChange(this.#upper) : latest);
    const marks: WrittenXattr[] = this.#settings.moves
      ? []
      : COMPLETE.map((name) => ({ name, toleratesUnsupported: true, toleratesDenied: true }));
    const value = Buffer.from(identity);
    const set = marks.map((mark) => ({ ...mark, value }));
    if (marks.length > 0) yield* this.#sync();
    // Without the state, a later call would look for renamed directories at their old paths.
    if (marks.length > 0) writer.add('metadata', '', { xattrs: set });
    writer.add('remove', STAGING);
    let mode = this.#dirMode;
    const { xattrs = [], ...metadata } = yield* this.#rootMetadata();
    if (this.#settings.root) {
      // The root's metadata comes last. If the merge ends before this step, a later call reads the time from the mark.
      mode = metadata.mode ?? mode;
      const all = { ...metadata, mode: openedUp(mode), xattrs: [...xattrs, ...set] };
      writer.add('metadata', '', { ...all, flags: ['exact'] });
    }
    // These change no time but the ctime.
    if (marks.length > 0) writer.add('metadata', '', { xattrs: marks });
    if (isShut(mode)) writer.add('metadata', '', { mode });
    if (isShut(this.#dirMode)) writer.add('metadata', '', keepingNoMode);
    if (this.#settings.moves) this.#giveBackRoot(metadata);
    yield* writer.finish();
    yield* this.#sync();
    this.#report(this.#total);
  }

  /** Gives the root of the upper, which is empty now, the time and the mode that it had. */
  #giveBackRoot(metadata: OperationFields): void {
    const mode = metadata.mode as number;
    const isOpen = isShut(mode);
    if (isOpen) this.#writer.add('metadata', '', { ...keepingMode(mode), flags: ofOther });
    if (this.#settings.root) this.#removeTimeMark('', metadata.mtime, mode);
    else if (isOpen) this.#writer.add('metadata', '', { mode, flags: ofOther });
    if (isOpen) this.#writer.add('metadata', '', { ...keepingNoMode, flags: ofOther });
  }

  *#rootMetadata(): Task<OperationFields> {
    const [root] = this.#frames;
    if (root !== undefined) return root.metadata;
    const records = yield* examine(this.#upper.descriptor, [''], { attributes: 'all' });
    records.advance();
    return this.#metadata(records);
  }

  *#send(): Task<void> {
    yield* this.#writer.send();
    this.#report(this.#countProcessed());
  }

  #report(entries: number): void {
    this.#settings.onProgress?.({ entries, totalEntries: this.#total, bytes: this.#writer.totals.copied });
  }

  // -------------------------------------------------------------------------------- the second walk

  *#write(theirs: ReadonlySet<string>): Task<void> {
    const walker = new Walker('', { ...this.#inUpper, attributes: 'all', targets: true, tape: this.#tape });
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          yield* this.#breathe();
          if (walker.error !== 0) throw walker.failure();
          while (this.#frames.length > 0 && walker.depth <= (this.#frames.at(-1) as Frame).depth) this.#leave();
          if (walker.depth > 0 && theirs.has(walker.path)) this.#drop(walker);
          else yield* this.#enter(walker);
          if (walker.depth > 0) this.#needed.push(this.#writer.added);
          if (this.#writer.isFull) yield* this.#send();
        }
      }
    } finally {
      walker.close();
    }
    while (this.#frames.length > 1) this.#leave();
    yield* this.#writer.finish();
  }

  #drop(walker: Walker): void {
    if (walker.type === k.S_IFDIR) walker.skip();
    if (this.#renames) this.#writer.add('remove', walker.path, { flags: ['other'] });
  }

  *#enter(walker: Walker): Task<void> {
    const marks = readMarks(walker.attributes, this.#space);
    const parent = this.#frames.at(-1);
    if (!this.#settings.moves) this.#giveBack(walker);
    if (parent === undefined) {
      if (this.#settings.moves) this.#openUp('', walker.mode, ofOther);
      if (this.#settings.moves && this.#settings.root) this.#keepTime(walker, []);
      this.#frames.push({
        depth: 0,
        path: '',
        target: '',
        place: undefined,
        isPure: false,
        isWhole: false,
        metadata: this.#metadata(walker),
      });
      return;
    }
    const target = below(parent.target, walker.name);
    if (isWhiteoutEntry(walker, marks)) {
      if (!parent.isPure) this.#writer.add('remove', target);
      if (this.#renames) this.#writer.add('remove', walker.path, { flags: ['other'] });
    } else if (walker.type === k.S_IFDIR) yield* this.#enterDirectory(walker, marks, parent, target);
    else if (marks.metacopy === true) yield* this.#placeMetacopy(walker, target);
    else if (this.#renames) this.#move(walker, target);
    else this.#copy(walker, target);
  }

  *#enterDirectory(walker: Walker, marks: Marks, parent: Frame, target: string): Task<void> {
    const writer = this.#writer;
    const isOpaque = marks.opaque === 'y';
    const clone = isOpaque ? undefined : this.#clones.get(walker.inode);
    const isAbsent = clone === undefined && !parent.isWhole && this.#found?.absent.has(walker.inode) === true;
    if (isAbsent && this.#renames && !this.#found?.soiled.has(walker.inode)) {
      // The rename fails if another process has put a file or a non-empty directory there meanwhile.
      writer.add('rename', target, { from: walker.path, flags: ['from_other', 'tree'] });
      walker.skip();
      return;
    }
    // A later call makes such a directory again. It would lose a clone that was renamed into it.
    const isMadeAside = isAbsent && !this.#renames && !this.#found?.holders.has(walker.inode);
    const keptMode = this.#kept.get(walker.path);
    const aside = isMadeAside ? `${STAGING}/${walker.inode}` : clone === undefined ? undefined : `${CLONES}/${clone}`;
    const frame: Frame = {
      depth: walker.depth,
      path: walker.path,
      target: aside ?? target,
      place: aside === undefined ? undefined : target,
      isPure: clone === undefined && (parent.isPure || isOpaque || isMadeAside),
      isWhole: clone === undefined && (parent.isWhole || isMadeAside),
      metadata: keptMode === undefined ? this.#metadata(walker) : { mode: keptMode },
    };
    this.#frames.push(frame);
    const mode = openedUp(frame.metadata.mode as number);
    if (frame.isWhole) {
      // An earlier call may have left the directory.
      if (isMadeAside) writer.add('remove', frame.target);
      writer.add('directory', frame.target, { mode });
      return;
    }
    if (isOpaque && !parent.isPure) yield* this.#clear(walker.path, target);
    if (this.#renames) {
      this.#openUp(walker.path, walker.mode, ofOther);
      // Without its opaque mark, the directory would be at the end of its redirect for a later call.
      const marksOf = (kind: string): string[] =>
        [...walker.attributes.keys()].filter((name) => markName(name, this.#space) === kind);
      this.#keepTime(walker, isOpaque ? [...marksOf('redirect'), ...marksOf('opaque')] : []);
    }
    writer.add('directory', frame.target, { mode, flags: ['atomic', 'existing'] });
  }

  /** Removes the entries that an opaque directory hides, except those that an entry of the same path replaces. */
  *#clear(path: string, target: string): Task<void> {
    yield* this.#writer.finish();
    const there = yield* examine(this.#dir.descriptor, [target]);
    if (!there.advance() || there.type !== k.S_IFDIR) return;
    const over = new Walker(toBytePath(path), { ...this.#inUpper, attributes: 'all', followRoot: false });
    const under = new Walker(toBytePath(target), { ...this.#inDir, followRoot: false });
    function* next(walker: Walker): Task<boolean> {
      while (!walker.advance()) if (!(yield* walker.more())) return false;
      if (walker.error !== 0) throw walker.failure();
      return true;
    }
    try {
      let [hasOver, hasUnder] = [yield* next(over), yield* next(under)];
      while (hasUnder) {
        yield* this.#breathe();
        const order = hasOver ? comparePaths(over.path, under.path) : 1;
        if (order < 0) {
          if (over.type === k.S_IFDIR) over.skip();
          hasOver = yield* next(over);
          continue;
        }
        const marks = order > 0 ? undefined : readMarks(over.attributes, this.#space);
        const isHidden = marks === undefined || isWhiteoutEntry(over, marks);
        if (isHidden) this.#writer.add('remove', below(target, under.path));
        if (this.#writer.isFull) yield* this.#send();
        const isOver = !isHidden && over.type === k.S_IFDIR;
        // The clone of a renamed directory replaces what is there, or an earlier call has put it there.
        const areDirectories = isOver && under.type === k.S_IFDIR && countingRedirect(over, marks) === undefined;
        if (isOver && !areDirectories) over.skip();
        if (areDirectories) this.#openUp(under.path === '' ? target : below(target, under.path), under.mode);
        else if (under.type === k.S_IFDIR) under.skip();
        hasUnder = yield* next(under);
        if (order === 0) hasOver = yield* next(over);
      }
    } finally {
      over.close();
      under.close();
    }
  }

  #leave(): void {
    const { path, target, place, isWhole, metadata } = this.#frames.pop() as Frame;
    const mode = metadata.mode as number;
    const isOpen = place !== undefined && isShut(mode);
    const flags: readonly OperationFlag[] = isWhole || metadata.xattrs === undefined ? noFlags : exact;
    this.#writer.add('metadata', target, { ...metadata, mode: isOpen ? openedUp(mode) : mode, flags });
    if (place !== undefined) {
      this.#writer.add('rename', place, { from: target, flags: isWhole ? ['tree'] : ['atomic', 'tree'] });
      this.#placed.set(target, place);
    }
    // A directory that moves to another parent gets another `..`, which its own mode must allow.
    if (isOpen) this.#writer.add('metadata', place, { mode });
    if (this.#renames) this.#writer.add('rmdir', path, { flags: ['other'] });
  }

  #metadata(entry: Records): OperationFields {
    const { attributes } = entry;
    const { mtime = entry.mtime, mode = this.#modeOf(entry) } = this.#keptIn(attributes);
    return { ...metadataOf(entry), mode, mtime, xattrs: this.#shown(attributes) };
  }

  #modeOf({ inode, mode }: Records): number {
    return this.#found?.modes.get(String(inode)) ?? mode & 0o7777;
  }

  /** A copy that finishes a move gives the upper the times and modes that the move has changed. Later calls have no state. */
  #giveBack({ inode, path, attributes }: Walker): void {
    const { mtime, mode = this.#found?.modes.get(String(inode)) } = this.#keptIn(attributes);
    if (mode === undefined) return;
    this.#hasGivenBack = true;
    if (mtime === undefined) this.#writer.add('metadata', path, { mode, flags: ofOther });
    else this.#removeTimeMark(path, mtime, mode);
    if (path === '') this.#writer.add('metadata', '', { ...keepingNoMode, flags: ofOther });
  }

  /** Adds the owner's rights on a directory, if it lacks one. */
  #openUp(path: string, mode: number, flags = noFlags): void {
    if (isShut(mode)) this.#writer.add('metadata', path, { mode: openedUp(mode), flags });
  }

  #shown(attributes: Attributes): readonly WrittenXattr[] {
    if (attributes.size === 0) return noXattrs;
    const shown: WrittenXattr[] = [];
    for (const [attribute, value] of attributes) {
      const name = shownName(attribute, this.#space);
      if (name !== undefined && value !== undefined) shown.push({ name, value: Buffer.from(value) });
    }
    return shown;
  }

  // A rename out of a directory changes the directory's time. A mark keeps the original, and the mode for the root, for
  // which a later call may find no state.

  get #timeMark(): string {
    return this.#space === 'user' ? 'user.overlay.merge' : 'trusted.overlay.merge';
  }

  #keptIn(attributes: Attributes): { readonly mtime?: Time; readonly mode?: number } {
    // A copy reads the marks of the move that it finishes. Near their ends, a move leaves an empty upper and no state, and
    // such a copy leaves no state.
    const readsMarks = this.#settings.moves || this.#isResumed || this.#isComplete || this.#total === 0;
    const kept = readsMarks ? attributes.get(this.#timeMark) : undefined;
    if (kept === undefined) return {};
    const [seconds = 0, nanoseconds = 0, mode] = kept.toString('latin1').split('.').map(Number);
    return { mtime: { seconds, nanoseconds }, ...(mode !== undefined && { mode }) };
  }

  #keepTime(walker: Walker, removed: readonly string[]): void {
    const { seconds, nanoseconds } = walker.mtime;
    const xattrs: WrittenXattr[] = removed.map((name) => ({ name }));
    if (!walker.attributes.has(this.#timeMark)) {
      const value = Buffer.from(`${seconds}.${nanoseconds}.${this.#modeOf(walker)}`);
      xattrs.unshift({ name: this.#timeMark, value, toleratesUnsupported: true, toleratesDenied: true });
    }
    if (xattrs.length > 0) this.#writer.add('metadata', walker.path, { xattrs, flags: ['other'] });
  }

  /** The time is back before the mark goes, and the mode after it: the mode may forbid the owner to remove the mark. */
  #removeTimeMark(path: string, mtime: Time | undefined, mode: number): void {
    this.#writer.add('metadata', path, { mtime, flags: ofOther });
    this.#writer.add('metadata', path, { xattrs: [{ name: this.#timeMark }], mode, flags: ofOther });
  }

  #move(walker: Walker, target: string): void {
    const xattrs: WrittenXattr[] = [];
    for (const [attribute, value] of walker.attributes) {
      const name = shownName(attribute, this.#space);
      if (name === attribute) continue;
      if (name !== undefined && value !== undefined) xattrs.push({ name, value });
      xattrs.push({ name: attribute });
    }
    const flags: OperationFlag[] = ['from_other', 'atomic'];
    if (walker.links > 1) flags.push('linked');
    const mode = this.#found?.modes.get(String(walker.inode));
    if (mode === undefined) this.#writer.add('rename', target, { from: walker.path, xattrs, flags });
    else {
      this.#writer.add('metadata', walker.path, { mode: mode | OWNER_WRITES, flags: ofOther });
      this.#writer.add('rename', target, { from: walker.path, xattrs, mode, flags });
    }
  }

  /** An entry replaces another one atomically, except in a directory that is itself still in the staging directory. */
  #asideFlags(): readonly OperationFlag[] {
    return this.#frames.at(-1)?.isWhole ? noFlags : atomic;
  }

  /** Returns the present path of an entry that was made in the staging directory. */
  #placeOf(path: string): string {
    let [place, before] = [path, ''];
    while (place !== before && place.startsWith(`${STAGING}/`)) {
      before = place;
      for (let end = place.indexOf('/', STAGING.length + 1); end >= 0; end = place.indexOf('/', end + 1)) {
        const found = this.#placed.get(place.slice(0, end));
        if (found === undefined) continue;
        place = found + place.slice(end);
        break;
      }
    }
    return place;
  }

  /** Returns the path that an entry in the staging directory gets at the end. */
  #finalPath(path: string): string {
    let final = path;
    for (const { target, place } of [...this.#frames].reverse()) {
      if (place !== undefined && isBelow(final, target)) final = place + final.slice(target.length);
    }
    return this.#placeOf(final);
  }

  #copy(walker: Walker, target: string): void {
    if (this.#isLinked(walker, target)) return;
    const { type, uid, gid, mtime, attributes } = walker;
    const [writer, xattrs, asideFlags] = [this.#writer, this.#shown(attributes), this.#asideFlags()];
    if (type !== k.S_IFREG) {
      addSpecial(writer, walker, target, { ...metadataOf(walker), xattrs, flags: asideFlags });
      return;
    }
    // One object for each file: a merge of small files spends much of its own time here.
    const { inode: number, size, path: from } = walker;
    const mode = this.#modeOf(walker);
    const flags = asideFlags === atomic ? atomicFromOther : fromOther;
    writer.add('copy', target, { uid, gid, mode, mtime, xattrs, from, number, size, flags });
  }

  /** Places a file whose metadata is in the upper and whose data is in the directory. */
  *#placeMetacopy(walker: Walker, target: string): Task<void> {
    const writer = this.#writer;
    if (this.#isLinked(walker, target)) return;
    const clone = this.#clones.get(walker.inode);
    const source = clone === undefined ? target : `${CLONES}/${clone}`;
    const metadata = this.#metadata(walker);
    const { path } = walker;
    // An outstanding operation may still have to bring the data to its place.
    yield* writer.finish();
    const data = yield* examine(this.#dir.descriptor, [source]);
    if (!data.advance() || data.type !== k.S_IFREG || data.size !== walker.size) {
      throw noData(this.#upper.path, path);
    }
    const { inode, size, mtime, links } = data;
    if (clone === undefined && links === 1) writer.add('metadata', target, { ...metadata, flags: ['exact'] });
    else {
      writer.add('copy', target, { ...metadata, mtime, from: source, number: inode, size, flags: this.#syncedFlags });
      writer.add('metadata', target, { mtime: metadata.mtime });
    }
    if (!this.#renames) return;
    // The merge recognizes the links of a file by its inode, so all of them stay in the upper until the end.
    if (walker.links > 1) this.#leavesRest = true;
    else writer.add('remove', path, { flags: ['other'] });
  }

  /** Makes a hard link and returns true if another link of the file is already placed. */
  #isLinked({ links, inode }: Walker, target: string): boolean {
    if (links === 1) return false;
    const first = this.#links.get(inode);
    if (first !== undefined)
      this.#writer.add('link', target, { from: this.#placeOf(first), flags: this.#asideFlags() });
    else this.#links.set(inode, target);
    return first !== undefined;
  }
}

/** True if the file system allows no renames between the two directories, as ext4 and xfs do between projects. */
const isRefusedRename = ({ kind, stage, errno }: WriteFailure): boolean =>
  kind === 'rename' && stage === 'place' && errno === e.EXDEV;

const noData = (root: Path, path: string): OverlayError =>
  new OverlayError({
    errno: e.ENOENT,
    reason: 'path-missing',
    what: `${quotePath(root)} has only the metadata of ${quotePath(toBytePath(path))}, and the directory does not have its data`,
    hint: 'merge into the lower layer of the overlay or into a copy of it',
    path: pathString(root),
  });
