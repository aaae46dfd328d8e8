/** Namespaces for the child process that performs a plan. */
import { statSync } from 'node:fs';
import type { IdRange } from '../id-range.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { Descriptor, Plan } from '../kernel/plan.js';

/** A user id and a group id. A process may map one of each without privilege. */
export interface Ids {
  readonly uid: number;
  readonly gid: number;
}

/** The user namespace that a plan's child enters: a new one, or an existing one that a file descriptor refers to. */
export type Namespaces = Ids | { readonly user: Descriptor };

/** The mount namespace of the calling thread. */
export const OWN_MOUNT_NAMESPACE = '/proc/thread-self/ns/mnt';

/** Returns the effective user id and group id of this process. */
export function ownIds(): Ids {
  return { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 };
}

/**
 * Returns true when the files of this process in /proc belong to its user. After a process has changed its user, these
 * files belong to root. The files of a child that shares its memory then belong to root too: prctl(2), PR_SET_DUMPABLE.
 */
export function ownsProcFiles(): boolean {
  try {
    return statSync('/proc/self/uid_map').uid === process.geteuid?.();
  } catch {
    return true; // /proc is not mounted
  }
}

/**
 * Returns the files that a process in a new user namespace writes, with their contents. The ids are the same inside.
 */
export function idMaps({ uid, gid }: Ids): [path: string, text: string][] {
  return [
    // The kernel refuses the group map otherwise, because a process could drop a group that denies access.
    ['/proc/self/setgroups', 'deny'],
    ['/proc/self/uid_map', ownMap(uid)],
    ['/proc/self/gid_map', ownMap(gid)],
  ];
}

/** Parses a file uid_map or gid_map of a process. */
export const parseIdMap = (text: string): IdRange[] =>
  text
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number))
    .map(([container = 0, host = 0, size = 0]) => ({ container, host, size }));

/** Returns the map of one id that is the same inside. */
export const ownMap = (id: number): string => `${id} ${id} 1`;

/**
 * Makes the plan run in a child process that first enters a user namespace and a new mount namespace. The child has all
 * capabilities there: user_namespaces(7).
 */
export function addNamespaces(plan: Plan, namespaces: Namespaces): void {
  plan.isInChild = true;
  if ('user' in namespaces) {
    plan.add(calls.setns, [namespaces.user, k.CLONE_NEWUSER]);
    plan.add(calls.unshare, [k.CLONE_NEWNS]);
    return;
  }
  plan.add(calls.unshare, [k.CLONE_NEWUSER | k.CLONE_NEWNS]);
  for (const map of idMaps(namespaces)) plan.add(calls.write, map);
}
