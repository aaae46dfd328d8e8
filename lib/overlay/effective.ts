/** Reads the options of a mount back from the kernel. */

import { EBADF, EINVAL, EOPNOTSUPP } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { DATA_OUTPUT, type Outcome, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { entryMaker, type MountFlags } from '../mount-table/entry.js';
import { type Mounted, mountIdMask } from '../mount-table/identity.js';
import type { RawMount } from '../mount-table/raw-mount.js';
import { readMountRecords, WHOLE_MOUNT } from '../mount-table/statmount.js';
import { findIfThere } from '../mount-table/table.js';
import { explainUnreached } from '../mounts/covered.js';
import type { NamedOptions } from '../options/text.js';
import { pathString, quotePath } from '../paths.js';
import { closedMount, replacedMount } from '../verdicts.js';

/** The options in force, named as in `OverlayOptions`: those that the kernel shows, and the flags of the mount. */
export interface EffectiveOptions extends Omit<NamedOptions, 'readonlySuperblock'>, MountFlags {
  readonly readonlySuperblock: boolean;
  readonly source: string;
}

/** Returns the options in force. */
export function* effectiveOptions(mounted: Mounted & { readonly id: number }): Task<EffectiveOptions> {
  const raw = mounted.held === undefined ? yield* readAttached(mounted) : yield* findDetached(mounted);
  const { overlay, flags, superblockOptions, source } = entryMaker('utf8')(raw);
  const readonlySuperblock = superblockOptions[0] === 'ro';
  return { ...(overlay as NamedOptions), ...flags, readonlySuperblock, source: String(source) };
}

function* readAttached(mounted: Mounted & { readonly id: number }): Task<RawMount> {
  const raw = yield* findAttached(mounted);
  if (raw !== undefined) return raw;
  const { path } = mounted;
  const verdict = (yield* explainUnreached(mounted)) ?? replacedMount(path);
  throw new OverlayError({ errno: EINVAL, path: pathString(path), ...verdict });
}

/** Finds a mount with a target; undefined if it is no longer at its path. */
export function* findAttached({ path, id, namespace }: Mounted & { readonly id: number }): Task<RawMount | undefined> {
  const raw = yield* findIfThere({ path, namespace, isExact: true });
  const found = mountIdMask(id) === k.STATX_MNT_ID_UNIQUE ? raw?.uniqueId : raw?.id;
  return found === id ? raw : undefined;
}

/**
 * Plans to read a detached mount. statmount(2) does not know one, so the plan attaches a clone of it in a mount
 * namespace that ends with the call. The clone has the same superblock, and so the same options.
 */
export function lookAtDetached({ held }: Mounted): { plan: Plan; read: (outcome: Outcome) => RawMount | undefined } {
  const plan = new Plan();
  plan.isOnOwnThread = true;
  const flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH;
  const tree = plan.add(calls.open_tree, [held?.descriptor ?? -1, '', flags]);
  plan.add(calls.unshare, [k.CLONE_NEWNS]);
  plan.add(calls.mount, [null, '/', null, k.MS_REC | k.MS_PRIVATE, null]);
  const root = plan.add(calls.openat2, [k.AT_FDCWD, '/', k.O_PATH | k.O_CLOEXEC, 0]);
  const move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH;
  plan.add(calls.move_mount, [tree, '', root, '', move]);
  const args = [tree, '', k.AT_EMPTY_PATH, WHOLE_MOUNT, 0] as const;
  const look = plan.stepOf(plan.add(calls.mount_of, args, { output: DATA_OUTPUT }));
  return {
    plan,
    read: (outcome) => (outcome instanceof StepFailure ? undefined : readMountRecords(outcome.data(look))[0]),
  };
}

function* findDetached(mounted: Mounted): Task<RawMount> {
  if ((mounted.held?.descriptor ?? -1) < 0) {
    throw new OverlayError({ errno: EBADF, path: pathString(mounted.path), ...closedMount(mounted.path) });
  }
  const { plan, read } = lookAtDetached(mounted);
  const raw = read(yield* ask(plan));
  if (raw !== undefined) return raw;
  const shown = quotePath(mounted.path);
  throw new OverlayError({
    errno: EOPNOTSUPP,
    reason: 'feature-unverifiable',
    what: mounted.isRootless
      ? `the options in force of the rootless mount ${shown} cannot be read: it belongs to a user namespace of its own`
      : `the options in force of the detached mount ${shown} cannot be read without CAP_SYS_ADMIN and Linux 6.15`,
    hint: mounted.isRootless
      ? "show it to a program, and read them in its mount table: spawn('cat', ['/proc/self/mountinfo'], { mounts: [{ source: mount, target: at }] })"
      : 'attach it first',
    path: pathString(mounted.path),
  });
}
