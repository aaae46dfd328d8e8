/**
 * Reads the mount table, or one mount of it: from /proc, or by statmount(2) on kernels where it reports everything
 * (6.13).
 */
import * as e from '../errnos.js';
import { missingProc, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { DATA_OUTPUT, type Outputs, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { addStat, readStat } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { addJoin, addOpen, explainJoin, type Namespace } from '../namespaces/mount-namespace.js';
import { type Path, pathString, quotePath } from '../paths.js';
import { explainErrno } from '../verdicts.js';
import { MOUNTINFO, splitMountinfo } from './mountinfo.js';
import { mountinfoReader, type RawMount } from './raw-mount.js';
import { MOUNT_BASICS, mountRecords, readMountRecords, tellsSources, WHOLE_MOUNT } from './statmount.js';

/** The kernel interface to use. */
export type TableWay = 'statmount' | 'mountinfo';

export interface TableQuery {
  /** Default: the calling thread's namespace. */
  readonly namespace?: Namespace | undefined;
  /** Selects the wanted mounts by any property except source and options. Default: all. */
  readonly select?: ((mount: RawMount) => boolean) | undefined;
  readonly way?: TableWay | undefined;
}

/** False when this kernel has been found to report less than everything by statmount(2); undefined while unknown. */
let isStatmountWhole: boolean | undefined;

const addText = (plan: Plan, directory: Descriptor): Step =>
  plan.stepOf(plan.add(calls.read_file, [directory, 'mountinfo'], { output: DATA_OUTPUT }));

const addIds = (plan: Plan): Step =>
  plan.stepOf(plan.add(calls.mount_ids, [-1], { output: DATA_OUTPUT, tolerate: 'any' }));

/**
 * Adds a step that opens the thread's directory in /proc. It leads to the table of the namespace that the thread is in
 * by then.
 */
export function addThreadSelf(plan: Plan): Descriptor {
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  return plan.add(calls.openat2, [k.AT_FDCWD, '/proc/thread-self', flags, 0]);
}

/**
 * Makes the following steps run in the namespace. The thread's directory in /proc is opened before the plan joins it.
 */
function addJoining(plan: Plan, namespace: Namespace | undefined): Descriptor {
  const self = addThreadSelf(plan);
  if (namespace !== undefined) addJoin(plan, namespace);
  return self;
}

/** Returns the system call that fails inside one of the executor's own calls. */
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

/** Returns the error for a table that could not be read, or for a path that could not be inspected. Pure. */
export function explainTable(failure: StepFailure, path?: Path): OverlayError {
  const { errno, step } = failure;
  const outside = explainJoin(failure);
  if (outside !== undefined) return outside;
  const isLook = step?.call === calls.mount_of || step?.call === calls.statx;
  const about = isLook ? path : undefined;
  if (about === undefined && errno === e.ENOENT) return missingProc(MOUNTINFO);
  const failed =
    about === undefined
      ? { name: MOUNTINFO, purpose: 'read the mount table' }
      : { name: quotePath(about), purpose: `look at ${quotePath(about)}` };
  return new OverlayError({
    errno,
    syscall: syscallOf(step),
    path: pathString(about ?? MOUNTINFO),
    ...(explainFiltered(failure) ?? explainErrno(errno, failed)),
  });
}

/** Packs the ids in the form that the kernel takes. */
function packIds(ids: readonly number[]): Buffer {
  return Buffer.from(new BigUint64Array(ids.map(BigInt)).buffer);
}

/** Reads the table by statmount(2). */
function* askStatmount(
  namespace: Namespace | undefined,
  mask: number,
  wanted?: readonly number[],
): Task<Buffer | StepFailure> {
  const plan = new Plan();
  const descriptor =
    typeof namespace === 'number' ? namespace : namespace === undefined ? -1 : addOpen(plan, namespace, false);
  const args = [descriptor, mask, wanted === undefined ? null : packIds(wanted)] as const;
  const table = plan.stepOf(plan.add(calls.mount_table, args, { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return outcome.data(table);
  if (outcome.errno === e.ENOSYS) isStatmountWhole = false;
  return outcome;
}

/** Returns true when the kernel reports everything that an entry consists of. */
function isWhole(data: Buffer): boolean {
  if (isStatmountWhole !== true) isStatmountWhole = tellsSources(data) ?? isStatmountWhole;
  return isStatmountWhole ?? false;
}

const collectMounts = (data: Buffer): Task<RawMount[]> => collect(mountRecords(data), (mount) => mount);

/**
 * Reads the basics first, so that the options, which cost most, are read for wanted mounts only. Returns undefined when
 * the kernel does not report everything.
 */
function* listByStatmount({ namespace, select }: TableQuery): Task<RawMount[] | undefined> {
  let ids: number[] | undefined;
  if (select !== undefined) {
    const basics = yield* askStatmount(namespace, MOUNT_BASICS);
    if (basics instanceof StepFailure) return undefined;
    const all = yield* collectMounts(basics);
    const idsOf = (mounts: readonly RawMount[]) => mounts.map(({ uniqueId }) => uniqueId as number);
    ids = idsOf(all.filter(select));
    if (ids.length === 0) {
      if (isStatmountWhole !== undefined) return isStatmountWhole ? [] : undefined;
      // No mount is wanted, so some of the unwanted ones show what the kernel reports.
      const others = yield* askStatmount(namespace, WHOLE_MOUNT, idsOf(all.slice(0, 8)));
      return others instanceof StepFailure || !isWhole(others) ? undefined : [];
    }
  }
  const whole = yield* askStatmount(namespace, WHOLE_MOUNT, ids);
  return whole instanceof StepFailure || !isWhole(whole) ? undefined : yield* collectMounts(whole);
}

/**
 * Returns what the kernel reports (STATMOUNT_*) of those mounts with these unique ids that still exist. Returns an
 * empty list when the kernel cannot be asked.
 */
export function* readMounts(ids: readonly number[], mask: number): Task<readonly RawMount[]> {
  if (ids.length === 0) return [];
  const data = yield* askStatmount(undefined, mask, ids);
  return data instanceof StepFailure ? [] : yield* collectMounts(data);
}

/** Returns the unique ids of all mounts of a namespace; undefined when the kernel does not report them. */
export function* listIds(namespace: Namespace | undefined): Task<number[] | undefined> {
  const plan = new Plan();
  const descriptor =
    typeof namespace === 'number' ? namespace : namespace === undefined ? -1 : addOpen(plan, namespace, false);
  const step = plan.stepOf(plan.add(calls.mount_ids, [descriptor], { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  return outcome instanceof StepFailure ? undefined : readIds(outcome.data(step));
}

/** Returns those mounts of a namespace with these unique ids that still exist. */
export function* statRaw(ids: readonly number[], namespace: Namespace | undefined): Task<readonly RawMount[]> {
  const data = yield* askStatmount(namespace, WHOLE_MOUNT, ids);
  if (data instanceof StepFailure) throw explainTable(data);
  return yield* collectMounts(data);
}

/** Reads the table from /proc, on a thread that is in the namespace. Adds the unique ids when the kernel has them. */
function* listByMountinfo({ namespace, select }: TableQuery): Task<RawMount[] | StepFailure> {
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
  // A process that may not join a namespace may still read the tables of the processes in it.
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
 * Adds unique ids to the lines of a table. The kernel walks the same list for the text and for the ids. So each id
 * belongs to the line at its position, if the ids are the same before and after, and as many as the lines.
 */
function* join(text: Buffer, select: TableQuery['select'], before?: Buffer, after?: Buffer): Task<RawMount[]> {
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

/** Returns `/proc/12` for `/proc/12/ns/mnt`. */
export function processOf(namespace: Path): string | undefined {
  const text = typeof namespace === 'string' ? namespace : Buffer.from(namespace).toString('latin1');
  return /^(\/proc\/(?:\d+|self|thread-self)(?:\/task\/\d+)?)\/ns\/mnt$/.exec(text)?.[1];
}

/** Returns a key of the properties that stay with a mount when it is moved. */
const sameness = ({ id, device, root }: RawMount): string => `${id} ${device} ${root}`;

/** Adds the unique ids by a second query, where the kernel has them. Leaves out the mounts that are gone by then. */
function* addIdsLater(mounts: readonly RawMount[], namespace: Namespace | undefined): Task<readonly RawMount[]> {
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
 * Returns the mounts of a namespace. For the whole table, the text takes half the time, and every kernel reports
 * everything in it. Another namespace is queried by its id, so that no thread has to join it. For such a query, the
 * kernel assumes that the first mount on the namespace's lowest root covers this root. This holds on a machine that has
 * started from a disk.
 */
export function* listRaw(query: TableQuery): Task<readonly RawMount[]> {
  const { namespace, way = namespace === undefined ? 'mountinfo' : 'statmount' } = query;
  if (way === 'statmount' && isStatmountWhole !== false) {
    const mounts = yield* listByStatmount(query);
    if (mounts !== undefined) return mounts;
  }
  const wanted = yield* listByMountinfo(query);
  if (wanted instanceof StepFailure) {
    // /proc is not mounted at its place.
    const others = namespace === undefined && query.way === undefined ? yield* listByStatmount(query) : undefined;
    if (others !== undefined) return others;
    throw explainTable(wanted);
  }
  if (wanted.every(({ uniqueId }) => uniqueId !== undefined)) return wanted;
  // Mounts have come or gone meanwhile, or the kernel has no unique ids.
  const others = query.way === undefined && isStatmountWhole !== false ? yield* listByStatmount(query) : undefined;
  return others ?? (yield* addIdsLater(wanted, namespace));
}

export interface FindQuery {
  readonly path: Path;
  readonly namespace?: Namespace | undefined;
  /** Requires the path to be the mount point itself. */
  readonly isExact: boolean;
  /** AT_SYMLINK_NOFOLLOW or 0. Default: 0. */
  readonly flags?: number;
  readonly way?: TableWay | undefined;
}

/** Returns the mount that a path is on. */
export function* findRaw(query: FindQuery): Task<RawMount | undefined> {
  const { path, namespace, isExact, flags = 0, way } = query;
  if (way !== 'mountinfo' && isStatmountWhole !== false) {
    const plan = new Plan();
    if (namespace !== undefined) addJoin(plan, namespace);
    const required = isExact ? k.STATX_ATTR_MOUNT_ROOT : 0;
    const args = [k.AT_FDCWD, path, flags | k.AT_STATX_DONT_SYNC, WHOLE_MOUNT, required] as const;
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

/** Returns the mount that a path is on; undefined also when the path cannot be reached. */
export function* findIfThere(query: FindQuery): Task<RawMount | undefined> {
  try {
    return yield* findRaw(query);
  } catch (error) {
    const reason = error instanceof OverlayError ? error.reason : undefined;
    if (reason === 'path-missing' || reason === 'path-inaccessible') return undefined;
    throw error;
  }
}

function* findInMountinfo(query: FindQuery): Task<RawMount | undefined> {
  const { path, namespace, isExact, flags = 0 } = query;
  const plan = new Plan();
  const self = addJoining(plan, namespace);
  const look = addStat(plan, path, { flags, mask: k.STATX_MNT_ID, tolerate: [] });
  const unique = addStat(plan, path, { flags, mask: k.STATX_MNT_ID_UNIQUE });
  const text = addText(plan, self);
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainTable(outcome, path);
  const [found, again] = [readStat(look, outcome), readStat(unique, outcome)];
  if (isExact && !found.isMountRoot) return undefined;
  const uniqueId = again.hasUniqueMountId ? again.mountId : undefined;
  const [line] = yield* collect(splitMountinfo(outcome.data(text)), (line) =>
    line.id === found.mountId ? line : undefined,
  );
  return line && mountinfoReader()(line, uniqueId);
}
