/** The mount table, or one mount of it: by /proc, or by statmount(2) where that tells all there is to know (6.13). */

import * as e from '../errnos.js';
import { missingProc, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import { addLook, readLook } from '../kernel/look.js';
import { DATA_OUTPUT, type Outputs, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { type Path, pathString, quotePath } from '../paths.js';
import { addJoin, addOpen, explainJoin, type Namespace } from './mount-namespace.js';
import { MOUNTINFO, splitMountinfo } from './mountinfo.js';
import { mountinfoReader, type RawMount } from './raw-mount.js';
import { MOUNT_BASICS, mountRecords, readMountRecords, tellsSources, WHOLE_MOUNT } from './statmount.js';

/** How the kernel is asked. */
export type TableWay = 'statmount' | 'mountinfo';

export interface TableQuery {
  /** Left out: the calling thread's. */
  readonly namespace?: Namespace | undefined;
  /** What is wanted, by anything but source and options. Left out: all. */
  readonly select?: ((mount: RawMount) => boolean) | undefined;
  readonly way?: TableWay | undefined;
}

/** What this kernel has been found to lack. */
let isStatmountWhole: boolean | undefined;

const addText = (plan: Plan, directory: Descriptor): Step =>
  plan.stepOf(plan.add(calls.read_file, [directory, 'mountinfo'], { output: DATA_OUTPUT }));

const addIds = (plan: Plan): Step =>
  plan.stepOf(plan.add(calls.mount_ids, [-1], { output: DATA_OUTPUT, tolerate: 'any' }));

/** What leads to the table of the thread, in whichever namespace it is by then. */
export function addThreadSelf(plan: Plan): Descriptor {
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  return plan.add(calls.openat2, [k.AT_FDCWD, '/proc/thread-self', flags, 0]);
}

/** Has the rest of the plan done in the namespace. What leads to the thread's own table is found before. */
function addJoining(plan: Plan, namespace: Namespace | undefined): Descriptor {
  const self = addThreadSelf(plan);
  if (namespace !== undefined) addJoin(plan, namespace);
  return self;
}

/** The executor's own calls by the system call that fails in them. */
const syscallOf = (step: Step | undefined): string | undefined => {
  switch (step?.call) {
    case calls.openat2:
    case calls.read_file:
      return 'open';
    case calls.mount_of:
      return 'statx';
    case calls.mount_table:
      return 'statmount';
    default:
      return step?.call.name;
  }
};

/** The reason for a table that could not be read, or a path that could not be looked at. Pure. */
export function explainTable(failure: StepFailure, path?: Path): OverlayError {
  const { errno, step } = failure;
  const outside = explainJoin(failure);
  if (outside !== undefined) return outside;
  const fail = (reason: OverlayError['reason'], what: string, about?: Path): OverlayError =>
    new OverlayError({
      errno,
      reason,
      what,
      syscall: syscallOf(step),
      path: about === undefined ? undefined : pathString(about),
    });
  if (e.isOutOfDescriptors(errno)) {
    return fail('out-of-descriptors', 'no descriptor is left to read the mount table by');
  }
  const isLook = step?.call === calls.mount_of || step?.call === calls.statx;
  if (isLook && path !== undefined) {
    const shown = quotePath(path);
    if (errno === e.ENOENT) return fail('path-missing', `${shown} does not exist`, path);
    return fail('path-inaccessible', `${shown} cannot be reached`, path);
  }
  if (errno === e.ENOENT) return missingProc(MOUNTINFO);
  return fail('unexplained', 'the mount table could not be read', MOUNTINFO);
}

/** The ids as the kernel takes them. */
function packIds(ids: readonly number[]): Buffer {
  return Buffer.from(new BigUint64Array(ids.map(BigInt)).buffer);
}

/** By statmount(2). */
function* askStatmount(
  namespace: Namespace | undefined,
  mask: number,
  wanted?: readonly number[],
): Dialogue<Buffer | StepFailure> {
  const plan = new Plan();
  const descriptor =
    typeof namespace === 'number' ? namespace : namespace === undefined ? -1 : addOpen(plan, namespace, false);
  const args = [descriptor, mask, wanted === undefined ? null : packIds(wanted)];
  const table = plan.stepOf(plan.add(calls.mount_table, args, { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return outcome.data(table);
  if (outcome.errno === e.ENOSYS) isStatmountWhole = false;
  return outcome;
}

/** Whether the kernel tells all that an entry is made of. */
function isWhole(data: Buffer): boolean {
  if (isStatmountWhole !== true) isStatmountWhole = tellsSources(data) ?? isStatmountWhole;
  return isStatmountWhole ?? false;
}

const collectMounts = (data: Buffer): Dialogue<RawMount[]> => collect(mountRecords(data), (mount) => mount);

/** Basics first: options, which cost most, only of what is wanted. Undefined where the kernel does not tell all. */
function* listByStatmount({ namespace, select }: TableQuery): Dialogue<RawMount[] | undefined> {
  let ids: number[] | undefined;
  if (select !== undefined) {
    const basics = yield* askStatmount(namespace, MOUNT_BASICS);
    if (basics instanceof StepFailure) return undefined;
    const all = yield* collectMounts(basics);
    const idsOf = (mounts: readonly RawMount[]) => mounts.map(({ uniqueId }) => uniqueId as number);
    ids = idsOf(all.filter(select));
    if (ids.length === 0) {
      if (isStatmountWhole !== undefined) return isStatmountWhole ? [] : undefined;
      // What the kernel tells of a mount shows by some of those that are not wanted.
      const others = yield* askStatmount(namespace, WHOLE_MOUNT, idsOf(all.slice(0, 8)));
      return others instanceof StepFailure || !isWhole(others) ? undefined : [];
    }
  }
  const whole = yield* askStatmount(namespace, WHOLE_MOUNT, ids);
  return whole instanceof StepFailure || !isWhole(whole) ? undefined : yield* collectMounts(whole);
}

/**
 * What the kernel tells of those of the mounts with these unique ids that are still there: STATMOUNT_*. Nothing where
 * it is not to be asked.
 */
export function* lookAtMounts(ids: readonly number[], mask: number): Dialogue<readonly RawMount[]> {
  if (ids.length === 0) return [];
  const data = yield* askStatmount(undefined, mask, ids);
  return data instanceof StepFailure ? [] : yield* collectMounts(data);
}

/** The unique ids of all mounts of a namespace; undefined where the kernel does not tell them. */
export function* listIds(namespace: Namespace | undefined): Dialogue<number[] | undefined> {
  const plan = new Plan();
  const descriptor =
    typeof namespace === 'number' ? namespace : namespace === undefined ? -1 : addOpen(plan, namespace, false);
  const step = plan.stepOf(plan.add(calls.mount_ids, [descriptor], { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  return outcome instanceof StepFailure ? undefined : readIds(outcome.data(step));
}

/** The mounts of a namespace with these unique ids that are still there. */
export function* statRaw(ids: readonly number[], namespace: Namespace | undefined): Dialogue<readonly RawMount[]> {
  const data = yield* askStatmount(namespace, WHOLE_MOUNT, ids);
  if (data instanceof StepFailure) throw explainTable(data);
  return yield* collectMounts(data);
}

/** By /proc: as the table of a thread that is in the namespace, with the unique ids beside it where there are any. */
function* listByMountinfo({ namespace, select }: TableQuery): Dialogue<RawMount[] | StepFailure> {
  const plan = new Plan();
  const self = addJoining(plan, namespace);
  const before = addIds(plan);
  const text = addText(plan, self);
  const after = addIds(plan);
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) {
    return yield* join(outcome.data(text), select, idsOf(before, outcome), idsOf(after, outcome));
  }
  const isDenied = outcome.errno === e.EPERM || outcome.errno === e.EACCES;
  const process = namespace === undefined || typeof namespace === 'number' ? undefined : processOf(namespace);
  if (!isDenied || process === undefined) return outcome;
  // Who may not join a namespace may still read the tables of its processes.
  const other = new Plan();
  const path = `${process}/mountinfo`;
  const otherText = other.stepOf(other.add(calls.read_file, [k.AT_FDCWD, path], { output: DATA_OUTPUT }));
  const second = yield* ask(other);
  return second instanceof StepFailure ? outcome : yield* join(second.data(otherText), select);
}

function idsOf(step: Step, outputs: Outputs): Buffer | undefined {
  return outputs.result(step) < 0 ? undefined : outputs.data(step);
}

/**
 * The kernel goes through the same list for the text and for the ids. So when the ids are the same before and
 * after, and as many as the lines, each belongs to the line in its place.
 */
function* join(text: Buffer, select: TableQuery['select'], before?: Buffer, after?: Buffer): Dialogue<RawMount[]> {
  const isStill = before !== undefined && after?.equals(before) && before.length === countLines(text) * ID_SIZE;
  const ids = isStill ? readIds(before) : undefined;
  const toMount = mountinfoReader();
  return yield* collect(splitMountinfo(text), (line, i) => {
    const mount = toMount(line, ids?.[i]);
    return select === undefined || select(mount) ? mount : undefined;
  });
}

function countLines(text: Buffer): number {
  let count = 0;
  for (let at = text.indexOf(10); at >= 0; at = text.indexOf(10, at + 1)) count++;
  return count;
}

function readIds(data: Buffer): number[] {
  const halves = new Uint32Array(data.buffer, data.byteOffset, data.byteLength >> 2);
  return Array.from(
    { length: halves.length >> 1 },
    (_, i) => (halves[2 * i] as number) + (halves[2 * i + 1] as number) * 2 ** 32,
  );
}

const ID_SIZE = 8;

/** `/proc/12` of `/proc/12/ns/mnt`. */
export function processOf(namespace: Path): string | undefined {
  const text = typeof namespace === 'string' ? namespace : Buffer.from(namespace).toString('latin1');
  return /^(\/proc\/(?:\d+|self|thread-self)(?:\/task\/\d+)?)\/ns\/mnt$/.exec(text)?.[1];
}

/** What stays with a mount, wherever it is moved. */
const sameness = ({ id, device, root }: RawMount): string => `${id} ${device} ${root}`;

/** With their unique ids, where the kernel has such: by another look, and without those that are gone by then. */
function* addIdsLater(mounts: readonly RawMount[], namespace: Namespace | undefined): Dialogue<readonly RawMount[]> {
  const basics = yield* askStatmount(namespace, MOUNT_BASICS);
  if (basics instanceof StepFailure) return mounts;
  const ids = new Map(
    yield* collect(mountRecords(basics), (mount): [string, number | undefined] => [sameness(mount), mount.uniqueId]),
  );
  return yield* collect(mounts, (mount) => {
    const uniqueId = ids.get(sameness(mount));
    return uniqueId === undefined ? undefined : { ...mount, uniqueId };
  });
}

/**
 * The mounts of a namespace. Of the whole table the text is the quicker way, by half, and tells everything on each
 * kernel; another namespace is asked for by its id, which no thread has to join it for. The kernel takes the first
 * mount on such a namespace's lowest root for what covers it, as one does on a machine that has started from a disk.
 */
export function* listRaw(query: TableQuery): Dialogue<readonly RawMount[]> {
  const { namespace, way = namespace === undefined ? 'mountinfo' : 'statmount' } = query;
  if (way === 'statmount' && isStatmountWhole !== false) {
    const mounts = yield* listByStatmount(query);
    if (mounts !== undefined) return mounts;
  }
  const wanted = yield* listByMountinfo(query);
  if (wanted instanceof StepFailure) {
    // Without /proc at its place.
    const others = namespace === undefined && query.way === undefined ? yield* listByStatmount(query) : undefined;
    if (others !== undefined) return others;
    throw explainTable(wanted);
  }
  if (wanted.every(({ uniqueId }) => uniqueId !== undefined)) return wanted;
  // Mounts have come or gone meanwhile, or there are no such ids.
  const others = query.way === undefined && isStatmountWhole !== false ? yield* listByStatmount(query) : undefined;
  return others ?? (yield* addIdsLater(wanted, namespace));
}

export interface FindQuery {
  readonly path: Path;
  readonly namespace?: Namespace | undefined;
  /** Whether the path has to be the mount point itself. */
  readonly isExact: boolean;
  /** AT_SYMLINK_NOFOLLOW, or 0, which is the default. */
  readonly flags?: number;
  readonly way?: TableWay | undefined;
}

/** The mount that a path is on. */
export function* findRaw(query: FindQuery): Dialogue<RawMount | undefined> {
  const { path, namespace, isExact, flags = 0, way } = query;
  if (way !== 'mountinfo' && isStatmountWhole !== false) {
    const plan = new Plan();
    if (namespace !== undefined) addJoin(plan, namespace);
    const required = isExact ? k.STATX_ATTR_MOUNT_ROOT : 0;
    const args = [k.AT_FDCWD, path, flags | k.AT_STATX_DONT_SYNC, WHOLE_MOUNT, required];
    const table = plan.stepOf(plan.add(calls.mount_of, args, { output: DATA_OUTPUT }));
    const outcome = yield* ask(plan);
    if (!(outcome instanceof StepFailure)) {
      const data = outcome.data(table);
      if (isWhole(data)) return readMountRecords(data)[0];
    } else if (outcome.errno === e.ENOSYS) isStatmountWhole = false;
    else if (outcome.step?.call !== calls.mount_of || outcome.errno !== e.EPERM) throw explainTable(outcome, path);
  }
  return yield* findInMountinfo(query);
}

function* findInMountinfo(query: FindQuery): Dialogue<RawMount | undefined> {
  const { path, namespace, isExact, flags = 0 } = query;
  const plan = new Plan();
  const self = addJoining(plan, namespace);
  const look = addLook(plan, path, { flags, mask: k.STATX_MNT_ID, tolerate: [] });
  const unique = addLook(plan, path, { flags, mask: k.STATX_MNT_ID_UNIQUE });
  const text = addText(plan, self);
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainTable(outcome, path);
  const [found, again] = [readLook(look, outcome), readLook(unique, outcome)];
  if (isExact && !found.isMountRoot) return undefined;
  const uniqueId = again.hasUniqueMountId ? again.mountId : undefined;
  const [line] = yield* collect(splitMountinfo(outcome.data(text)), (line) =>
    line.id === found.mountId ? line : undefined,
  );
  return line && mountinfoReader()(line, uniqueId);
}
