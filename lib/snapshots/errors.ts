/** The errors of the snapshotter: containerd's codes, and those about the store itself. */
import { RemediableError, type RemediableFields } from '../errors.js';
import { quotePath } from '../paths.js';
import { option, type Text, text } from '../text.js';

/** The first four are containerd's NotFound, AlreadyExists, InvalidArgument and FailedPrecondition. */
export type SnapshotErrorCode =
  | 'ERR_SNAPSHOT_NOT_FOUND'
  | 'ERR_SNAPSHOT_ALREADY_EXISTS'
  | 'ERR_SNAPSHOT_INVALID_ARGUMENT'
  | 'ERR_SNAPSHOT_FAILED_PRECONDITION'
  /** The store is damaged. It can be opened with `readonly`. */
  | 'ERR_SNAPSHOT_STORE_DAMAGED'
  /** Another version of this library has made or changed the store. */
  | 'ERR_SNAPSHOT_STORE_VERSION'
  /** The store could not be read or written, for want of space or because of an I/O error. */
  | 'ERR_SNAPSHOT_STORE_FAILED'
  /** The snapshotter is open with `readonly`. */
  | 'ERR_SNAPSHOT_READ_ONLY'
  | 'ERR_SNAPSHOT_CLOSED'
  /** Another server has the root or the address. */
  | 'ERR_SNAPSHOT_SERVED'
  /** A package that is an optional peer dependency is not installed. */
  | 'ERR_SNAPSHOT_DEPENDENCY_MISSING';

export interface SnapshotErrorFields extends RemediableFields<SnapshotErrorCode> {
  readonly key?: string | undefined;
  readonly reason?: 'out-of-space' | undefined;
}

/** A verb of a snapshotter that failed because of a rule, or because of the store. */
export class SnapshotError extends RemediableError<SnapshotErrorCode> {
  /** The key or name that the error is about. */
  declare readonly key?: string;
  /** A shortage of the machine, in the word of `OverlayError`. */
  declare readonly reason?: 'out-of-space';

  constructor({ key, reason, ...fields }: SnapshotErrorFields, options?: ErrorOptions) {
    super(fields, options);
    if (key !== undefined) this.key = key;
    if (reason !== undefined) this.reason = reason;
  }

  override get name(): string {
    return 'SnapshotError';
  }
}

/** The most characters of a key in a message. */
const MOST = 200;

/** Quotes a key for a message. A long one is cut: the error's `key` has all of it. */
export const quoteKey = (key: string): string =>
  key.length <= MOST ? quotePath(key) : `${quotePath(key.slice(0, MOST))}... (${key.length} characters)`;

export function notFound(key: string, what = `the snapshot ${quoteKey(key)} does not exist`): SnapshotError {
  return new SnapshotError({ code: 'ERR_SNAPSHOT_NOT_FOUND', what, hint: 'check the key', key });
}

export function alreadyExists(key: string): SnapshotError {
  return new SnapshotError({
    code: 'ERR_SNAPSHOT_ALREADY_EXISTS',
    what: `a snapshot ${quoteKey(key)} exists already`,
    hint: 'use that one, remove it, or choose another key',
    key,
  });
}

export function invalidArgument(key: string | undefined, what: string, hint: Text): SnapshotError {
  return new SnapshotError({ code: 'ERR_SNAPSHOT_INVALID_ARGUMENT', what, hint, key });
}

export function failedPrecondition(key: string, what: string, hint: string): SnapshotError {
  return new SnapshotError({ code: 'ERR_SNAPSHOT_FAILED_PRECONDITION', what, hint, key });
}

export function damaged(path: string, what: string, key?: string): SnapshotError {
  return new SnapshotError({
    code: 'ERR_SNAPSHOT_STORE_DAMAGED',
    what: `the store ${quotePath(path)} is damaged: ${what}`,
    hint: text`restore it from a backup; ${option('readonly', true)} opens it to read what is left`,
    path,
    key,
  });
}
