/**
 * The record of directories that overlays use as upperdir or workdir. The addon keeps it for all threads of the process
 * (native/in_use.h). Each mount reads and extends it by steps of its plan. This file adds these steps. It also looks at
 * overlays that other programs have mounted, and answers the questions that follow a refusal.
 */
import { EAGAIN, ENOSYS, EPERM } from '../errnos.js';
import { calls, type IdHalves } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { idHalves } from '../kernel/guards.js';
import { type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step, type Subject } from '../kernel/plan.js';
import { ask, inEitherForm, type Task } from '../kernel/task.js';
import { findOption, shownLayers } from '../mount-strings.js';
import type { RawMount } from '../mount-table/raw-mount.js';
import { MOUNT_BASICS, WHOLE_MOUNT } from '../mount-table/statmount.js';
import { readMounts } from '../mount-table/table.js';
import { isAbsolute, type Path } from '../paths.js';

/** The uses of a directory by an overlay. The position is the addon's number. */
export const useRoles = ['upperdir', 'workdir'] as const;
export type UseRole = (typeof useRoles)[number];

/**
 * Adds the guard `mounts-are-unknown`: the namespace must have no mounts that this process has neither made nor seen.
 * `refresh` then looks at them.
 */
export function addNewerMountsGuard(plan: Plan): void {
  plan.add(calls.news, [], { tolerate: [ENOSYS, EPERM] });
}

/** Returns true when the guard failed, so that newer mounts must be looked at first. */
export const isStale = ({ guard }: StepFailure): boolean => guard === 'mounts-are-unknown';

/** The uses by other overlays that prevent a reservation. The position is the addon's number. */
const against = ['nobody', 'everybody', 'certain'] as const;

export interface Reservation {
  readonly role: UseRole;
  readonly subject: Subject;
  /** `'certain'` ignores a use when nothing shows if it still exists. */
  readonly against: (typeof against)[number];
  /**
   * The step that creates the directory if it is missing. No other overlay uses a directory that has just been created.
   */
  readonly madeBy?: Descriptor;
}

/**
 * Reserves a directory until the plan ends or has mounted an overlay. The guard `directory-is-in-use` fails while others
 * use the directory.
 */
export function addReservation(plan: Plan, directory: Descriptor, reservation: Reservation): void {
  const { role, subject, madeBy = 0 } = reservation;
  const args = [directory, useRoles.indexOf(role), against.indexOf(reservation.against), madeBy] as const;
  plan.add(calls.reserve, args, { subject });
}

/** Adds the overlay that the plan has mounted to the record. A look at its root has to come first. */
export function addRecord(plan: Plan, root: Descriptor): void {
  plan.add(calls.record, [root]);
}

const LISTED_AT_ONCE = 512;

/** Adds the overlays that others have mounted since the last call to the record: listmount(2), statmount(2). */
export function* refresh(): Task<void> {
  for (let last = 0; ; ) {
    const page = yield* listNewer(last);
    if (page.ids.length > 0) {
      yield* see(page.ids);
      const seen = new Plan();
      seen.add(calls.seen, [Buffer.from(BigUint64Array.from(page.ids, BigInt).buffer)]);
      yield* ask(seen);
    }
    if (page.isLast) return;
    last = page.last;
  }
}

interface Page {
  /** For mounts that are not known yet. */
  readonly ids: readonly number[];
  readonly last: number;
  readonly isLast: boolean;
}

/** The mounts with ids above this one. */
function* listNewer(after: number): Task<Page> {
  const plan = new Plan();
  const output = 8 * (1 + LISTED_AT_ONCE);
  const args = [LISTED_AT_ONCE, ...idHalves(after)] as const;
  const step = plan.stepOf(plan.add(calls.listmount, args, { output, tolerate: 'any' }));
  const outputs = yield* ask(plan);
  const count = outputs instanceof StepFailure ? 0 : Math.max(0, outputs.result(step));
  if (outputs instanceof StepFailure || count === 0) return { ids: [], last: after, isLast: true };
  const all = Array.from({ length: count }, (_, i) => outputs.number(step, 1 + i));
  const ids = all.filter((id) => id !== 0);
  return { ids, last: outputs.number(step, 0), isLast: count < LISTED_AT_ONCE };
}

function* see(ids: readonly number[]): Task<void> {
  const basics = yield* readMounts(ids, MOUNT_BASICS);
  const overlays = basics.flatMap(({ type, uniqueId }) => (type === 'overlay' ? [uniqueId as number] : []));
  yield* seeMounts(yield* readMounts(overlays, WHOLE_MOUNT));
}

/**
 * How long the promise form waits for the path of a directory that another program's overlay uses, in ms. The path may
 * lead through a file system that does not answer.
 */
const LONGEST_WALK = 2000;

/**
 * Adds overlays from the mount table to the record. The kernel has the path of a directory in use in its cache, unless
 * there are symbolic links or remote file systems in it. Only such paths are looked up by a walk that may wait.
 */
export function* seeMounts(mounts: readonly RawMount[]): Task<void> {
  const sights = mounts.flatMap(sightsOf);
  if (sights.length === 0) return;
  const quick = planSights(sights, false);
  const outcome = yield* ask(quick);
  if (outcome instanceof StepFailure) return;
  const others = sights.filter((_, i) => outcome.result(quick.steps[i] as Step) === -EAGAIN);
  if (others.length === 0) return;
  const plan = planSights(others, true);
  yield* inEitherForm<unknown>(
    () => within(LONGEST_WALK, perform(plan)),
    () => performSync(plan),
  );
}

function planSights(sights: readonly Sight[], mayWait: boolean): Plan {
  const plan = new Plan();
  for (const sight of sights) plan.add(calls.sees, [...sight, mayWait ? 1 : 0], { output: 0, tolerate: 'any' });
  return plan;
}

/** Waits for a promise, but no longer than this many milliseconds. */
async function within(milliseconds: number, promise: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const bound = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, milliseconds);
  });
  await Promise.race([promise, bound]);
  clearTimeout(timer);
}

/** Returns the device number of a mount's file system, in the form that looks report. */
export function deviceOf({ device }: Pick<RawMount, 'device'>): number {
  const [major = 0, minor = 0] = device.split(':').map(Number);
  return major * 2 ** 32 + minor;
}

/** The arguments of a step that adds a directory of another program's overlay to the record. */
type Sight = readonly [target: Path, directory: Path, role: number, ...mountAndDevice: [...IdHalves, ...IdHalves]];

/** Returns true for a path such as /proc/self/fd/9, which is one of the process that has mounted the overlay. */
const isOfProcess = (path: Path): boolean => /^\/proc\/(thread-)?self\//.test(Buffer.from(path).toString('latin1'));

/** Returns a sight of each directory that the mount table shows as the mount's upperdir or workdir. */
function sightsOf(mount: RawMount): Sight[] {
  const { id, uniqueId = id, target, options } = mount;
  const shown = Buffer.from(options, 'latin1');
  return useRoles.flatMap((name, role) => {
    const text = findOption(shown, name);
    const paths = text === undefined ? [] : shownLayers(text).filter((path) => isAbsolute(path) && !isOfProcess(path));
    const ids = [...idHalves(uniqueId), ...idHalves(deviceOf(mount))] as const;
    return paths.map((path): Sight => [Buffer.from(target, 'latin1'), path, role, ...ids]);
  });
}

/** The user of a directory. */
export interface DirectoryUser {
  /** False when an overlay used the directory and nothing shows if it still does. */
  readonly isCertain: boolean;
  /** The id of the mount by which the overlay was seen; 0 while it is being mounted. */
  readonly id: number;
  /** The device number of its superblock, in the form that looks report. */
  readonly device: number;
  readonly as: UseRole;
}

const USER_OUTPUT = 24;

/** The results of a query for a directory that is not free: Usage in native/in_use.h. */
const PERHAPS_USED = 1;
const USED = 2;

/** Adds a query to the record. */
export const addUserQuery = (plan: Plan, directory: Path): Step =>
  plan.stepOf(plan.add(calls.use_of, [k.AT_FDCWD, directory], { output: USER_OUTPUT, tolerate: 'any' }));

/** Reads the answer; undefined when the directory is free as far as the record knows. */
export function readUser(step: Step, outputs: Outputs | StepFailure): DirectoryUser | undefined {
  if (outputs instanceof StepFailure) return undefined;
  const result = outputs.result(step);
  if (result !== USED && result !== PERHAPS_USED) return undefined;
  const as = useRoles[outputs.number(step, 2)] ?? 'upperdir';
  return { isCertain: result === USED, id: outputs.number(step, 0), device: outputs.number(step, 1), as };
}

export function* findUser(directory: Path): Task<DirectoryUser | undefined> {
  const plan = new Plan();
  const step = addUserQuery(plan, directory);
  return readUser(step, yield* ask(plan));
}

/**
 * Removes a user from the record, after the kernel has shown that it no longer uses the directory. Another user may
 * have taken its place by now, and is kept.
 */
export function* forgetUser(directory: Path, { id, device }: DirectoryUser): Task<void> {
  const plan = new Plan();
  plan.add(calls.forget, [k.AT_FDCWD, directory, ...idHalves(id), ...idHalves(device)], { tolerate: 'any' });
  yield* ask(plan);
}
