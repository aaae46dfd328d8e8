import { loadAddon } from './binding.js';
import { platformError } from './errors.js';

/** The report of a plan that failed; see native/plan.h. */
export interface NativeFailure {
  /** The index of the step that failed; -1 if none did. */
  step: number;
  /** 0 if a guard failed. */
  errno: number;
  /** The number of the guard that failed; -1 if none did. */
  guard?: number;
  /** The errno of the first step that could not be taken back, or 0. */
  undoErrno: number;
  cancelled: boolean;
  /** The messages of the file system context, a line each. */
  log: Buffer[];
}

/** The kinds of operations that write a tree; native/write.h describes them. */
export type OperationKind =
  | 'metadata'
  | 'directory'
  | 'file'
  | 'data'
  | 'truncate'
  | 'copy'
  | 'link'
  | 'symlink'
  | 'node'
  | 'whiteout'
  | 'remove'
  | 'rmdir'
  | 'rename'
  | 'sync';

export type OperationFlag =
  | 'owner'
  | 'mode'
  | 'times'
  | 'replace'
  | 'atomic'
  | 'other'
  | 'from_other'
  | 'linked'
  | 'existing'
  | 'exact'
  | 'tree'
  | 'synced';

/** The part of an operation that failed. */
export type Stage =
  | 'parent'
  | 'create'
  | 'data'
  | 'owner'
  | 'xattr'
  | 'mode'
  | 'times'
  | 'place'
  | 'remove'
  | 'source'
  | 'sync';

/** A walk of a directory tree. */
export interface NativeWalk {
  readonly id: number;
}

/** The addon's exports; native/addon.cc is the list. */
export interface Addon {
  /** Performs a plan, which may use the lent memory. Returns the data that no output holds, or the failure. */
  perform(block: Uint8Array, lent?: readonly Uint8Array[]): ArrayBuffer | undefined | NativeFailure;
  /**
   * Starts a plan. Resolves to the outputs, if there are any: their place in `results`, or a buffer of their own. The
   * caller keeps the lent memory until then.
   */
  start(
    block: Uint8Array,
    size: number,
    token: number,
    lent?: readonly Uint8Array[],
  ): Promise<number | ArrayBuffer | undefined | NativeFailure>;
  cancel(token: number): void;
  /** Gives a descriptor that a plan kept to the caller: it is no longer closed with this environment. */
  disown(descriptor: number): void;
  /** Does the same, and closes the descriptor. */
  close(descriptor: number): void;
  /** Begins a walk, which ends when it is closed or its object is collected; see native/walk.h. */
  openWalk(flags: number): NativeWalk;
  closeWalk(id: number): void;
  /**
   * The outputs of operations, valid until the event loop goes on. The first 32 bits belong to the caller, who counts
   * there how many places it has read.
   */
  readonly results: ArrayBuffer;
  readonly calls: Readonly<Record<string, number>>;
  /** For each call: the positions of its file descriptors as bits, and `makesDescriptor` when it returns a new one. */
  readonly descriptors: Readonly<Record<string, number>>;
  readonly makesDescriptor: number;
  readonly guards: Readonly<Record<string, number>>;
  /** A step that a guard fails has minus this number, minus the guard's number, as its result. */
  readonly firstGuard: number;
  readonly flags: Readonly<Record<'undo' | 'keep' | 'later', number>>;
  /** The kinds of operations of a batch, what else an operation asks for, and the parts of it that may fail. */
  readonly operations: Readonly<Record<OperationKind, number>>;
  readonly operationFlags: Readonly<Record<OperationFlag, number>>;
  readonly stages: Readonly<Record<Stage, number>>;
  readonly ownThread: number;
  readonly inChild: number;
  readonly anyErrno: number;
  readonly pageSize: number;
}

let loaded: Addon | undefined;

/** Returns the addon. Loads it at the first call that needs it, so that importing works everywhere. */
export function addon(): Addon {
  if (loaded !== undefined) return loaded;
  if (process.platform !== 'linux') throw platformError();
  loaded = loadAddon() as Addon;
  return loaded;
}
