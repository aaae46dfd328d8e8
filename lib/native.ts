import { load } from './binding.js';
import { platformError } from './errors.js';

/** The report of a plan that failed; see native/plan.h. */
export interface NativeFailure {
  /** The index of the step that failed; -1 if none did. */
  step: number;
  errno: number;
  /** The errno of the first step that could not be taken back, or 0. */
  undoErrno: number;
  cancelled: boolean;
  /** The messages of the file system context, a line each. */
  log: Buffer[];
}

/** A walk of a directory tree. */
export interface NativeWalk {
  readonly id: number;
}

/** The addon's exports; native/addon.cc is the list. */
export interface Addon {
  /** Performs a plan. Returns the data that no output holds, or the failure. */
  perform(block: Uint8Array): ArrayBuffer | undefined | NativeFailure;
  /** Starts a plan. Resolves to the outputs, if there are any: their place in `results`, or a buffer of their own. */
  start(block: Uint8Array, size: number, token: number): Promise<number | ArrayBuffer | undefined | NativeFailure>;
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
  readonly flags: Readonly<Record<'undo' | 'keep' | 'later', number>>;
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
  loaded = load();
  return loaded;
}
