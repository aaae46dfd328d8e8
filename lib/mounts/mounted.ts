/** A mount as the library's own functions hand it around. */
import { STATX_MNT_ID, STATX_MNT_ID_UNIQUE } from '../kernel/constants.js';
import type { Held } from '../kernel/held.js';
import type { Path } from '../paths.js';
import type { Namespace } from './mount-namespace.js';

/** What is mounted somewhere. */
export interface Mounted {
  /** Absolute. */
  readonly path: Path;
  /** The mount's id, when only this very mount will do. */
  readonly id?: number;
  /** The device number of its file system, as looks report it, when known. */
  readonly device?: number;
  /** Its workdir, when known. */
  readonly workdir?: Path | undefined;
  /** Whether the mount has made its workdir. */
  readonly ownsWork?: boolean;
  /** Of a detached mount, which ends with it. */
  readonly held?: Held | undefined;
  /** Whether it was made in a user namespace of its own. */
  readonly isRootless?: boolean;
  /** Whether the subordinate ids of the user are ids of that namespace. */
  readonly hasSubIds?: boolean;
  /** The mount namespace in which it is, when not the caller's. */
  readonly namespace?: Namespace | undefined;
}

/** Unique ids begin above 2^31, reused ones stay below. */
export const isUniqueId = (id: number): boolean => id > 0x7fffffff;

/** An id as plans hold 64 bits. */
export const idHalves = (id: number): [low: number, high: number] => [id | 0, (id / 2 ** 32) | 0];

/** What a look has to ask for to be told an id of this sort. */
export function mountIdMask(id: number): number {
  return isUniqueId(id) ? STATX_MNT_ID_UNIQUE : STATX_MNT_ID;
}
