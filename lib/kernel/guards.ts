/**
 * Guards against faults that the kernel lets pass, or that it would report too late. The failure of a plan names the
 * guard that failed (`StepFailure.guard`).
 */
import { calls, type IdHalves } from './calls.js';
import { type CheckedGuard, type GuardName, numberOf } from './guard-names.js';
import type { Plan, Step, StepOptions } from './plan.js';

/** The guards that a call checks by itself. */
const ownGuards: Readonly<Record<string, readonly CheckedGuard[]>> = {
  news: ['mounts-are-unknown'],
  apart: ['layers-overlap'],
  reserve: ['directory-is-in-use'],
  reserve_target: ['target-is-mount-point', 'target-is-reserved'],
};

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
export const idHalves = (id: number): IdHalves => [id | 0, (id / 2 ** 32) | 0];
