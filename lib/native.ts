import { load } from './binding.js';
import { platformError } from './errors.js';

/** What a plan that failed reports; see native/plan.h. */
export interface NativeFailure {
  /** The index of the step that failed; -1 when none did. */
  step: number;
  errno: number;
  /** The errno of the first step that could not be taken back, or 0. */
  undoErrno: number;
  cancelled: boolean;
  /** What the file system context had to say, a line each. */
  log: Buffer[];
}

/** The addon's exports; native/addon.cc is the list. */
export interface Addon {
  /** What no output holds, or the failure. */
  perform(block: Uint8Array): ArrayBuffer | undefined | NativeFailure;
  /** The outputs, where there are any: their place among the results, or a buffer of their own. */
  start(block: Uint8Array, size: number, token: number): Promise<number | ArrayBuffer | undefined | NativeFailure>;
  cancel(token: number): void;
  /** A descriptor that a plan kept for the caller is not closed with this environment any more. */
  disown(descriptor: number): void;
  /** The same, and closes it. */
  close(descriptor: number): void;
  /**
   * What operations have put out; valid until the event loop goes on. The first 32 bits are the caller's, who counts
   * there how many places have been taken.
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

/** The addon, loaded at the first call that needs it, so that importing works everywhere. */
export function addon(): Addon {
  if (loaded !== undefined) return loaded;
  if (process.platform !== 'linux') throw platformError();
  loaded = load();
  return loaded;
}
