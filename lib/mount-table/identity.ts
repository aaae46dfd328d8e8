/** The description of a mount that the library's own functions pass to each other. */
import { STATX_MNT_ID, STATX_MNT_ID_UNIQUE } from '../kernel/constants.js';
import type { Held } from '../kernel/held.js';
import type { Namespace } from '../namespaces/mount-namespace.js';
import type { Path } from '../paths.js';

/** A mount at some place. */
export interface Mounted {
  /** The absolute path. */
  readonly path: Path;
  /** The mount's id, set when only this very mount is meant. */
  readonly id?: number;
  /** The device number of its file system, in the form that looks report; undefined when unknown. */
  readonly device?: number;
  /** Its workdir; undefined when unknown. */
  readonly workdir?: Path | undefined;
  /** True when the mount call has created the workdir. */
  readonly ownsWork?: boolean;
  /** The file descriptor of a detached mount, which ends with it. */
  readonly held?: Held | undefined;
  /** The tmpfs that holds its upperdir and its workdir. */
  readonly memory?: Held | undefined;
  /** True when the mount was made in a user namespace of its own. */
  readonly isRootless?: boolean;
  /** True when the user's subordinate ids are mapped in that namespace. */
  readonly hasSubIds?: boolean;
  /** The mount namespace that it is in; undefined for the caller's. */
  readonly namespace?: Namespace | undefined;
}

/** Returns true for a unique id. Unique ids begin above 2^31; reused ones stay below. */
export const isUniqueId = (id: number): boolean => id > 0x7fffffff;

/** Returns the statx(2) mask that requests an id of this kind. */
export function mountIdMask(id: number): number {
  return isUniqueId(id) ? STATX_MNT_ID_UNIQUE : STATX_MNT_ID;
}
