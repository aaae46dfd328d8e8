/** The errors of the snapshotter: containerd's codes, and those about the store itself. */
import { type CodedFields, OverlayError, type Role } from '../errors.js';
import { quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';
import type { Text } from '../text.js';

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

const reasonOf: Readonly<Record<SnapshotErrorCode, readonly [Reason, Role?]>> = {
  ERR_SNAPSHOT_NOT_FOUND: ['missing', 'snapshot'],
  ERR_SNAPSHOT_ALREADY_EXISTS: ['exists', 'snapshot'],
  ERR_SNAPSHOT_INVALID_ARGUMENT: ['invalid-argument'],
  ERR_SNAPSHOT_FAILED_PRECONDITION: ['failed-precondition', 'snapshot'],
  ERR_SNAPSHOT_STORE_DAMAGED: ['store-damaged', 'store'],
  ERR_SNAPSHOT_STORE_VERSION: ['store-version', 'store'],
  ERR_SNAPSHOT_STORE_FAILED: ['store-failed', 'store'],
  ERR_SNAPSHOT_READ_ONLY: ['read-only', 'store'],
  ERR_SNAPSHOT_CLOSED: ['closed', 'store'],
  ERR_SNAPSHOT_SERVED: ['in-use', 'store'],
  ERR_SNAPSHOT_DEPENDENCY_MISSING: ['dependency-missing'],
};

export interface SnapshotErrorFields extends Omit<CodedFields<SnapshotErrorCode>, 'reason' | 'role'> {
  readonly key?: string | undefined;
  /** In the place of the code's own: a shortage, or a change that a power cut may undo. */
  readonly reason?: 'out-of-space' | 'not-synced' | undefined;
}

/** A verb of a snapshotter that failed because of a rule, or because of the store. */
export class SnapshotError extends OverlayError {
  declare readonly code: SnapshotErrorCode;
  /** The key or name that the error is about. */
  declare readonly key?: string;

  /** @internal */
  constructor({ key, reason, ...fields }: SnapshotErrorFields, options?: ErrorOptions) {
    const [usual, role] = reasonOf[fields.code];
    super({ ...fields, reason: reason ?? usual, role }, options);
    if (key !== undefined) this.key = key;
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

const REMAINS =
  'restore it from a backup; `overlayfs snapshot ls`, or a Snapshotter with `readonly`, lists what is left';

/** The hint for a store that not even `readonly` can read. */
export const UNREADABLE = 'restore it from a backup, or read what is left with the command .recover of sqlite3(1)';

export function damaged(path: string, what: string, key?: string, hint = REMAINS): SnapshotError {
  return new SnapshotError({
    code: 'ERR_SNAPSHOT_STORE_DAMAGED',
    what: `the store ${quotePath(path)} is damaged: ${what}`,
    hint,
    path,
    key,
  });
}
