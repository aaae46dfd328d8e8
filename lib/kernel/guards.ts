/**
 * Guards against faults that the kernel lets pass, or that it would report too late. The failure of a plan names the
 * guard that failed (`StepFailure.guard`).
 */
import * as e from '../errnos.js';
import { addon } from '../native.js';
import { calls } from './calls.js';
import type { Plan, Step, StepOptions } from './plan.js';

/**
 * The guards that the executor checks, with the errno of an error that reports one. native/guards.cc says what each
 * looks at.
 */
const checked = {
  'target-is-mount-point': e.EBUSY,
  'target-is-symlink': e.ELOOP,
  'target-is-reserved': e.EBUSY,
  'target-was-replaced': e.ESTALE,
  'mount-is-another': e.EINVAL,
  'mounts-are-unknown': e.EAGAIN,
  'directory-is-removed': e.ENOENT,
  'directory-is-in-use': e.EBUSY,
  'upperdir-is-immutable': e.EPERM,
  'superblock-is-read-only': e.EROFS,
  'file-system-is-overlay': e.EPERM,
  'file-system-is-no-overlay': e.EINVAL,
} as const;

export type CheckedGuard = keyof typeof checked;

/** The other guards are system calls that change nothing. Their failure has the errno of the call. */
export type GuardName = CheckedGuard | 'upperdir-is-not-writable' | 'upperdir-has-no-xattrs';

/** The guards that a call checks by itself. */
const ownGuards: Readonly<Record<string, readonly CheckedGuard[]>> = {
  news: ['mounts-are-unknown'],
  reserve: ['directory-is-in-use'],
  reserve_target: ['target-is-mount-point', 'target-is-reserved'],
};

let numbers: Readonly<Record<CheckedGuard, number>> | undefined;

function numberOf(guard: CheckedGuard): number {
  if (numbers === undefined) {
    const native = addon().guards;
    const entries = Object.keys(checked).map((name) => [name, native[name.replaceAll('-', '_')]]);
    numbers = Object.fromEntries(entries) as Record<CheckedGuard, number>;
  }
  return numbers[guard];
}

/** Returns the guard with this number in the addon. */
export function guardOf(number: number): CheckedGuard | undefined {
  return (Object.keys(checked) as CheckedGuard[]).find((name) => numberOf(name) === number);
}

/** Returns the errno of an error that reports the guard; 0 for a guard that is a system call. */
export const errnoOf = (guard: GuardName): number => (guard in checked ? checked[guard as CheckedGuard] : 0);

/** Returns the guards that a step is, to print them. */
export const guardsOf = ({ call, options }: Step): readonly GuardName[] =>
  options.guard === undefined ? (ownGuards[call.name] ?? []) : [options.guard];

/** Adds a guard that judges what the last statx(2) or statfs(2) of the plan has found. */
export function addGuard(plan: Plan, guard: CheckedGuard, options?: StepOptions): Step {
  return plan.stepOf(plan.add(calls.guard, [numberOf(guard)], { ...options, guard }));
}

/** Adds the guard `mount-is-another`: the last statx(2) must have found the mount with this id. */
export function addMountGuard(plan: Plan, id: number, options?: StepOptions): void {
  const { guard } = another;
  plan.add(calls.guard, [numberOf(guard), ...idHalves(id)], options === undefined ? another : { ...options, guard });
}

const another = { guard: 'mount-is-another' } as const;

/** Splits an id into the two halves of a 64-bit number in a plan. */
export const idHalves = (id: number): [low: number, high: number] => [id | 0, (id / 2 ** 32) | 0];
