/** Modes that their owner must change before a merge: the owner may always change a mode, chmod(2). */
import type { BigIntStats } from 'node:fs';
import { explainProc } from '../errors.js';
import { inEitherForm, type Task } from '../kernel/task.js';
import type { Time } from '../trees/records.js';
import { NOW } from '../trees/write.js';

/** The rights of an owner: S_IRWXU and S_IWUSR. */
const OWNER = 0o700;
export const OWNER_WRITES = 0o200;

/** True for the mode of a directory whose owner may not list, change or enter it. */
export const isShut = (mode: number): boolean => (mode & OWNER) !== OWNER;

/** Returns the permissions that give the owner all rights. */
export const openedUp = (mode: number): number => (mode & 0o7777) | OWNER;

/**
 * The owner of a read-only directory can make no entry or attribute in it that keeps its mode, but can set its times.
 * The access time keeps the mode from before the first change until after the last one: the kernel moves no access time
 * back from the future (`relatime`, mount(8)). The last second that all file systems can store is such a time.
 */
const KEPT = { seconds: 2 ** 31 - 1, nanoseconds: 704_000_000 } as const;

export const keepingMode = (mode: number): { readonly atime: Time } => ({
  atime: { ...KEPT, nanoseconds: KEPT.nanoseconds + mode },
});
export const keepingNoMode: { readonly atime: Time } = { atime: NOW };

export function* statDescriptor(descriptor: number): Task<BigIntStats> {
  const fs = process.getBuiltinModule('node:fs');
  const { stat } = process.getBuiltinModule('node:fs/promises');
  const path = `/proc/self/fd/${descriptor}`;
  try {
    return yield* inEitherForm(
      () => stat(path, { bigint: true }),
      () => fs.statSync(path, { bigint: true }),
    );
  } catch (error) {
    throw explainProc(error, path);
  }
}

/** Returns the mode of a directory, or the one that a merge has kept before it was killed. */
export function* readMode(descriptor: number): Task<number> {
  const found = yield* statDescriptor(descriptor);
  const mode = Number(found.mode) & 0o7777;
  const kept = Number(found.atimeNs - BigInt(KEPT.seconds) * 1_000_000_000n) - KEPT.nanoseconds;
  return isShut(kept) && openedUp(kept) === mode ? kept : mode;
}
