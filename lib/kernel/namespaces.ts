/** Namespaces for the child that performs a plan. */
import { statSync } from 'node:fs';
import { calls } from './calls.js';
import * as k from './constants.js';
import type { Descriptor, Plan } from './plan.js';

/** A user and a group: one of each needs no privilege to be mapped. */
export interface Ids {
  readonly uid: number;
  readonly gid: number;
}

/** Where a plan's child goes: into a user namespace of its own, or into one that is kept by descriptor. */
export type Namespaces = Ids | { readonly user: Descriptor };

/** The mount namespace of the calling thread. */
export const OWN_MOUNT_NAMESPACE = '/proc/thread-self/ns/mnt';

/** Those that this process runs as. */
export function ownIds(): Ids {
  return { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 };
}

/**
 * Whether the files of this process in /proc are its user's. Those of one that has changed its user are root's, and
 * so are those of a child that shares its memory: prctl(2), PR_SET_DUMPABLE.
 */
export function ownsProcFiles(): boolean {
  try {
    return statSync('/proc/self/uid_map').uid === process.geteuid?.();
  } catch {
    return true; // there are none
  }
}

/** The files that a process in a new user namespace writes, and with what: the ids are the same inside. */
export function idMaps({ uid, gid }: Ids): [path: string, text: string][] {
  return [
    // Or the group map may not be written: a group can be there to keep its members out.
    ['/proc/self/setgroups', 'deny'],
    ['/proc/self/uid_map', ownMap(uid)],
    ['/proc/self/gid_map', ownMap(gid)],
  ];
}

/** The map of one id that is the same inside. */
export const ownMap = (id: number): string => `${id} ${id} 1`;

/**
 * Has the plan performed in a child that enters a user namespace and a new mount namespace first, in which it has every
 * capability: user_namespaces(7).
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
