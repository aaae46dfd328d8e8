/**
 * Which directories overlays use as upper or work. The addon keeps the record for all threads of the process
 * (native/in_use.h); each mount enters it, and asks it, by steps of its plan. Here are these steps, the look at overlays
 * that other programs have mounted, and the questions that a refusal leaves open.
 */
import { EBUSY, ENOSYS, EPERM, ESTALE } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step, type Subject } from '../kernel/plan.js';
import { findOption, shownLayers } from '../mount-strings.js';
import { isAbsolute, type Path } from '../paths.js';
import { idHalves } from './mounted.js';
import type { RawMount } from './raw-mount.js';
import { MOUNT_BASICS, WHOLE_MOUNT } from './statmount.js';
import { lookAtMounts } from './table.js';

/** What an overlay uses a directory as; the position is the addon's number. */
export const useRoles = ['upperdir', 'workdir'] as const;
export type UseRole = (typeof useRoles)[number];

/** Fails with ESTALE when the namespace has mounts that this process has neither made nor seen: `refresh` looks at them. */
export function addNewsGuard(plan: Plan): void {
  plan.add(calls.news, [], { tolerate: [ENOSYS, EPERM] });
}

/** Whether the guard asks to look at newer mounts first. */
export const isStale = ({ step, errno }: StepFailure): boolean => step?.call === calls.news && errno === ESTALE;

/** Which uses by other overlays stand in the way of a reservation; the position is the addon's number. */
const against = ['nobody', 'everybody', 'certain'] as const;

export interface Reservation {
  readonly role: UseRole;
  readonly subject: Subject;
  /** `'certain'` leaves those out of which nothing tells whether they still use the directory. */
  readonly against: (typeof against)[number];
  /** The step that makes the directory where it is missing: what has just been made is nobody's. */
  readonly madeBy?: Descriptor;
}

/** Reserves a directory until the plan ends, or has mounted an overlay. Fails with EBUSY while others use it. */
export function addReservation(plan: Plan, directory: Descriptor, reservation: Reservation): void {
  const { role, subject, madeBy = 0 } = reservation;
  const args = [directory, useRoles.indexOf(role), against.indexOf(reservation.against), madeBy];
  plan.add(calls.reserve, args, { subject });
}

/** Enters the overlay that the plan has mounted into the record. A look at its root has to come first. */
export function addRecord(plan: Plan, root: Descriptor): void {
  plan.add(calls.record, [root]);
}

const LISTED_AT_ONCE = 512;

/** Enters the overlays that others have mounted since the last time into the record: listmount(2), statmount(2). */
export function* refresh(): Dialogue<void> {
  for (let last = 0; ; ) {
    const ids = yield* listNewer(last);
    if (ids.length === 0) return;
    yield* see(ids);
    const seen = new Plan();
    seen.add(calls.seen, [Buffer.from(BigUint64Array.from(ids, BigInt).buffer)]);
    yield* ask(seen);
    last = ids.at(-1) as number;
    if (ids.length < LISTED_AT_ONCE) return;
  }
}

/** Ids above this one; 0 stands for a mount that is known. */
function* listNewer(last: number): Dialogue<readonly number[]> {
  const plan = new Plan();
  const args = [LISTED_AT_ONCE, ...idHalves(last)];
  const step = plan.stepOf(plan.add(calls.listmount, args, { output: 8 * LISTED_AT_ONCE, tolerate: 'any' }));
  const outputs = yield* ask(plan);
  if (outputs instanceof StepFailure) return [];
  return Array.from({ length: Math.max(0, outputs.result(step)) }, (_, i) => outputs.number(step, i));
}

function* see(ids: readonly number[]): Dialogue<void> {
  const others = ids.filter((id) => id !== 0);
  const basics = yield* lookAtMounts(others, MOUNT_BASICS);
  const overlays = basics.flatMap(({ type, uniqueId }) => (type === 'overlay' ? [uniqueId as number] : []));
  yield* seeMounts(yield* lookAtMounts(overlays, WHOLE_MOUNT));
}

/** Enters overlays that the mount table shows into the record. */
export function* seeMounts(mounts: readonly RawMount[]): Dialogue<void> {
  if (mounts.length === 0) return;
  const plan = new Plan();
  for (const mount of mounts) addSight(plan, mount);
  yield* ask(plan);
}

/** The device number of a mount's file system, as looks report it. */
export function deviceOf({ device }: RawMount): number {
  const [major = 0, minor = 0] = device.split(':').map(Number);
  return major * 2 ** 32 + minor;
}

/** Of each directory that the mount shows as its upper or work. */
function addSight(plan: Plan, mount: RawMount): void {
  const { id, uniqueId = id, target, options } = mount;
  const shown = Buffer.from(options, 'latin1');
  useRoles.forEach((name, role) => {
    const text = findOption(shown, name);
    for (const path of text === undefined ? [] : shownLayers(text)) {
      if (!isAbsolute(path)) continue;
      const args = [Buffer.from(target, 'latin1'), path, role, ...idHalves(uniqueId), ...idHalves(deviceOf(mount))];
      plan.add(calls.sees, args, { tolerate: 'any' });
    }
  });
}

/** Who uses a directory. */
export interface DirectoryUser {
  /** Whether that is certain: else an overlay used it, and nothing tells whether it still does. */
  readonly isCertain: boolean;
  /** The id of the mount by which the overlay was seen; 0 while it is being mounted. */
  readonly id: number;
  /** Of its superblock, as looks report it. */
  readonly device: number;
  readonly as: UseRole;
}

const USER_OUTPUT = 24;

/** A question to the record. */
export const addUserLook = (plan: Plan, directory: Path): Step =>
  plan.stepOf(plan.add(calls.use_of, [k.AT_FDCWD, directory], { output: USER_OUTPUT, tolerate: 'any' }));

/** Its answer: undefined where the directory is free, as far as is known. */
export function readUser(step: Step, outputs: Outputs | StepFailure): DirectoryUser | undefined {
  if (outputs instanceof StepFailure) return undefined;
  const result = outputs.result(step);
  if (result !== -EBUSY && result !== -ESTALE) return undefined;
  const as = useRoles[outputs.number(step, 2)] ?? 'upperdir';
  return { isCertain: result === -EBUSY, id: outputs.number(step, 0), device: outputs.number(step, 1), as };
}

export function* findUser(directory: Path): Dialogue<DirectoryUser | undefined> {
  const plan = new Plan();
  const step = addUserLook(plan, directory);
  return readUser(step, yield* ask(plan));
}

/** The kernel says that this one does not use the directory any more. Another may do so by now. */
export function* forgetUser(directory: Path, { id, device }: DirectoryUser): Dialogue<void> {
  const plan = new Plan();
  plan.add(calls.forget, [k.AT_FDCWD, directory, ...idHalves(id), ...idHalves(device)], { tolerate: 'any' });
  yield* ask(plan);
}
