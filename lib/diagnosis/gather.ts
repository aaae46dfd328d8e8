/**
 * Gathers the facts, with a few plans of bounded size and a few reads. Facts that need no answer from a file system
 * come first, so that they are there even if the library stops early.
 */
import { readFileSync } from 'node:fs';
import { EEXIST, ENOENT } from '../errnos.js';
import { isOtherUserNamespace } from '../features/probe.js';
import { askUse } from '../in-use/probe.js';
import { addUserQuery, type DirectoryUser, deviceOf, readUser, useRoles } from '../in-use/registry.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { filteredCall } from '../kernel/filtered.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step, type Subject } from '../kernel/plan.js';
import { addStat, readStat, STATFS_OUTPUT, type StatResult } from '../kernel/stat.js';
import { ask, list, type Task } from '../kernel/task.js';
import { findOption, shownLayers } from '../mount-strings.js';
import { isUniqueId, mountIdMask } from '../mount-table/identity.js';
import { type MountinfoLine, readTable } from '../mount-table/mountinfo.js';
import { MOUNT_BASICS } from '../mount-table/statmount.js';
import { readMounts } from '../mount-table/table.js';
import type { CheckedOptions } from '../options/check.js';
import { isAbsolute, joinPath, type Path, toBytes, withoutTrailingSlashes } from '../paths.js';
import { readNamespaceSettings } from '../rootless/refusal.js';
import {
  type Draft,
  type FileSystemFacts,
  identityOf,
  type MountFacts,
  type OriginFacts,
  type OtherUse,
  type PathFacts,
  type ProcessFacts,
  type UseFacts,
} from './facts.js';
import { findMissingDirectory, type MissingDirectory } from './missing-directory.js';
import { askStacking, isRefusedBySome } from './stacking.js';

/** The facts to gather besides those that are always gathered. */
export interface Wanted {
  /** The parent directories: of all layers, or only of the upperdir and workdir. */
  readonly parents: 'all' | 'upper' | 'none';
  /** The other overlays that use the layers: those that certainly do or, after a refusal, any that may. */
  readonly otherUses: 'certain' | 'any' | 'none';
  /** The contents of the workdir. */
  readonly work: boolean;
  /** For a read-only result: makes a directory in the workdir as a test, and removes it. */
  readonly attempt: boolean;
  readonly origin: boolean;
  /** Asks the kernel whether the upperdir and workdir are in use. The kernel writes that to its log, too. */
  readonly use: boolean;
  /** The failure, to learn if a filter refuses the call. */
  readonly failure?: Pick<StepFailure, 'step' | 'errno'>;
}

/** How many levels of parent directories are examined. The parent of the root is the root itself. */
const MAX_LEVELS = 64;
/** How many other overlays, and entries of a directory, are examined. */
const MAX_LOOKED_AT = 500;
const HANDLE_OUTPUT = 16 + 128;
const XATTR_ROOM = 256;
const PATH_ROOM = 4096;

/** Returns the paths of a mount, in the order in which they are opened. */
export function subjectsOf({ target, lowerdir, datadir, upperdir, workdir }: CheckedOptions): Subject[] {
  const list: Subject[] = target === undefined ? [] : [{ role: 'target', path: target }];
  lowerdir.forEach((path, index) => {
    list.push({ role: 'lowerdir', index, path });
  });
  datadir.forEach((path, index) => {
    list.push({ role: 'datadir', index, path });
  });
  if (upperdir !== undefined) list.push({ role: 'upperdir', path: upperdir });
  if (workdir !== undefined) list.push({ role: 'workdir', path: workdir });
  return list;
}

const resultOf = (step: Step, outputs: Outputs | StepFailure): number =>
  outputs instanceof StepFailure ? -outputs.errno : outputs.result(step);

function bytesOf(step: Step, outputs: Outputs | StepFailure): Buffer | undefined {
  const size = resultOf(step, outputs);
  return size < 0 || outputs instanceof StepFailure ? undefined : outputs.bytes(step, size);
}

const mask = k.STATX_INO | k.STATX_MNT_ID | k.STATX_NLINK;

/** Fills the draft with facts. */
export function* gather(draft: Draft, options: CheckedOptions, wanted: Wanted): Task<void> {
  draft.mountMax = Number(readText('/proc/sys/fs/mount-max'));
  const subjects = subjectsOf(options);

  const cached = new Plan();
  const looks = subjects.map(({ path }) => [
    addStat(cached, path, { mask }),
    addStat(cached, withoutTrailingSlashes(path), { flags: k.AT_SYMLINK_NOFOLLOW }),
  ]) as [Step, Step][];
  const userNamespace = addStat(cached, '/proc/self/ns/user');
  const outputs = yield* ask(cached);
  if (options.rootless !== false) draft.namespaces = readNamespaceSettings();
  draft.process = readProcess(isOtherUserNamespace(readStat(userNamespace, outputs)), wanted.failure);
  const paths = looks.map(([followed, itself], i) => ({
    subject: subjects[i] as Subject,
    found: readStat(followed, outputs),
    isSymlink: readStat(itself, outputs).type === k.S_IFLNK,
  }));
  const table = yield* readTableIfAny();
  draft.mountCount = table.length;
  const found = paths.map(
    (path): PathFacts => ({
      ...path,
      isMissing: false,
      fileSystem: undefined,
      mount: mountOf(path.subject.path, path.found, table),
      writeErrno: 0,
    }),
  );
  draft.paths = found;

  if (wanted.otherUses !== 'none') draft.otherUses = yield* gatherOtherUses(found, table, wanted.otherUses);

  const parents = new Map<string, string>();
  const made = options.create ? found.filter(isToBeMade).map(({ subject }) => subject.path) : [];
  const unmade = yield* findMissingDirectory(made, parents);
  const whole = found.map((path) => asIfMade(path, unmade.get(path.subject.path), table));
  draft.paths = yield* gatherFileSystems(whole, unmade);
  draft.paths = yield* askAboutStacking(draft.paths);
  if (wanted.parents !== 'none') {
    const isWanted = ({ role }: Subject) => role !== 'target' && (wanted.parents === 'all' || isUpperRole(role));
    draft.parents = yield* gatherParents(
      draft.paths.filter(({ subject }) => isWanted(subject)),
      unmade,
      parents,
      table,
    );
  }
  if (wanted.work && options.workdir !== undefined) {
    const inner = joinPath(options.workdir, 'work');
    const incompatible = yield* list(joinPath(inner, 'incompat'));
    draft.work = { ...draft.work, incompatible: incompatible.map(({ name }) => Buffer.from(name).toString()) };
    draft.work = { ...draft.work, leftover: yield* findLeftover(inner) };
    draft.work = { ...draft.work, strayIndex: yield* findStrayIndex(joinPath(options.workdir, 'index')) };
    if (wanted.attempt) {
      draft.work = { ...draft.work, immutable: yield* findImmutable(inner) };
      draft.work = { ...draft.work, attempt: yield* attemptIn(options.workdir) };
    }
  }
  if (wanted.origin) draft.origin = yield* gatherOrigin(options);
  if (wanted.use) draft.use = yield* gatherUse(options);
}

const isUpperRole = (role: Subject['role']): boolean => role === 'upperdir' || role === 'workdir';

const isToBeMade = ({ subject, found, isSymlink }: PathFacts): boolean =>
  isUpperRole(subject.role) && found.errno === ENOENT && !isSymlink;

const asIfMade = (path: PathFacts, unmade: MissingDirectory | undefined, table: readonly MountinfoLine[]): PathFacts =>
  unmade === undefined || !isToBeMade(path)
    ? path
    : { ...path, found: unmade.found, isMissing: true, mount: mountOf(path.subject.path, unmade.found, table) };

// ------------------------------------------------------------------------------------------------ the process

function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1').trim();
  } catch {
    return '';
  }
}

function readProcess(isInUserNamespace: boolean, failure: Wanted['failure']): ProcessFacts {
  const status = readText('/proc/thread-self/status');
  const field = (name: string): string | undefined => new RegExp(`^${name}:\\s*(\\w+)$`, 'm').exec(status)?.[1];
  const label = readText('/proc/thread-self/attr/current').replace(/\0.*$/s, '');
  const capabilities = field('CapEff');
  return {
    capabilities: capabilities === undefined ? ~0n : BigInt(`0x${capabilities}`),
    isInUserNamespace,
    hasSeccompFilter: field('Seccomp') === '2',
    filteredCall: failure && filteredCall(failure),
    label: label === '' || /^(unconfined|kernel)\b/.test(label) ? undefined : label,
  };
}

// ------------------------------------------------------------------------------------------------ the mount table

/** Reads the mount table. Returns no mounts if there is no /proc. */
function* readTableIfAny(): Task<readonly MountinfoLine[]> {
  try {
    return yield* readTable();
  } catch {
    return [];
  }
}

const toBuffer = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');

/** Returns a path as the table has it, one character for each byte. */
const toRaw = (path: Path): string => Buffer.from(toBytes(withoutTrailingSlashes(path))).toString('latin1');

function mountOf(path: Path, { mountId }: StatResult, table: readonly MountinfoLine[]): MountFacts | undefined {
  const entry = table.find(({ id }) => id === mountId);
  if (entry === undefined) return undefined;
  const directory = toRaw(path);
  const start = directory === '/' ? directory : `${directory}/`;
  const inside = table.find(
    ({ id, target }) => id !== mountId && target.length > start.length && target.startsWith(start),
  );
  return {
    type: entry.type,
    target: toBuffer(entry.target),
    isUnbindable: entry.tags.split(' ').includes('unbindable'),
    isIdmapped: entry.mountOptions.split(',').includes('idmapped'),
    inside: inside && toBuffer(inside.target),
  };
}

/** Finds the other overlays that use directories of this mount, from the table and from the library's own record. */
function* gatherOtherUses(
  paths: readonly PathFacts[],
  table: readonly MountinfoLine[],
  which: 'certain' | 'any',
): Task<OtherUse[]> {
  const shown = yield* gatherShownUses(paths, table);
  const untold = paths.filter(
    ({ subject }) => isUpperRole(subject.role) && !shown.some((use) => use.subject === subject),
  );
  return [...shown, ...(yield* gatherRecordedUses(untold, table, which))];
}

function* gatherRecordedUses(
  paths: readonly PathFacts[],
  table: readonly MountinfoLine[],
  which: 'certain' | 'any',
): Task<OtherUse[]> {
  const plan = new Plan();
  const looks = paths.map(({ subject }) => ({ subject, step: addUserQuery(plan, subject.path) }));
  const outputs = yield* ask(plan);
  const users = looks.flatMap(({ subject, step }) => {
    const user = readUser(step, outputs);
    return user !== undefined && (user.isCertain || which === 'any') ? [{ subject, user }] : [];
  });
  const uses: OtherUse[] = [];
  for (const { subject, user } of users) {
    uses.push({ subject, as: user.as, isPending: user.id === 0, target: yield* findPlace(user, table) });
  }
  return uses;
}

/** Returns the target of the mount that stands for an overlay, or the descriptor path of a detached one. */
function* findPlace(user: DirectoryUser, table: readonly MountinfoLine[]): Task<Path | undefined> {
  const { id, device } = user;
  if (id === 0) return undefined;
  const [mount] = isUniqueId(id)
    ? yield* readMounts([id], MOUNT_BASICS)
    : table.filter((line) => line.id === id && deviceOf(line) === device);
  if (mount !== undefined) return Buffer.from(mount.target, 'latin1');
  const plan = new Plan();
  const own = yield* list('/proc/self/fd');
  const looks = own.map(({ name }) => {
    const path = joinPath('/proc/self/fd', name);
    return { path, step: addStat(plan, path, { mask: mountIdMask(id) }) };
  });
  const outputs = yield* ask(plan);
  return looks.find(({ step }) => {
    const found = readStat(step, outputs);
    return found.mountId === id && found.device === device;
  })?.path;
}

function* gatherShownUses(paths: readonly PathFacts[], table: readonly MountinfoLine[]): Task<OtherUse[]> {
  const plan = new Plan();
  const looks: { step: Step; target: Path; as: OtherUse['as'] }[] = [];
  for (const { type, target, superOptions } of table) {
    if (type !== 'overlay' || looks.length > MAX_LOOKED_AT) continue;
    for (const as of useRoles) {
      const text = findOption(toBuffer(superOptions), as);
      if (text === undefined) continue;
      for (const path of shownLayers(text)) {
        if (isAbsolute(path)) looks.push({ step: addStat(plan, path), target: toBuffer(target), as });
      }
    }
  }
  if (looks.length === 0) return [];
  const outputs = yield* ask(plan);
  return looks.flatMap(({ step, target, as }): OtherUse[] => {
    const identity = identityOf(readStat(step, outputs));
    if (identity === undefined) return [];
    return paths
      .filter(({ subject, found }) => subject.role !== 'target' && identityOf(found) === identity)
      .map(({ subject }) => ({ target, as, subject }));
  });
}

// ------------------------------------------------------------------------------------------------ the layers

function* gatherFileSystems(
  paths: readonly PathFacts[],
  unmade: ReadonlyMap<Path, MissingDirectory>,
): Task<PathFacts[]> {
  const plan = new Plan();
  const asked = paths.map(({ subject: { path, role } }) => ({
    system: plan.stepOf(
      plan.add(calls.statfs, [unmade.get(path)?.nearest ?? path], { output: STATFS_OUTPUT, tolerate: 'any' }),
    ),
    write: isUpperRole(role)
      ? plan.stepOf(
          plan.add(calls.faccessat2, [k.AT_FDCWD, path, k.W_OK | k.X_OK, k.AT_EACCESS], { output: 0, tolerate: 'any' }),
        )
      : undefined,
  }));
  const outputs = yield* ask(plan);
  return paths.map((path, i) => {
    const { system, write } = asked[i] as (typeof asked)[number];
    return {
      ...path,
      fileSystem: readFileSystem(system, outputs),
      writeErrno: write === undefined ? 0 : toWriteErrno(write, -resultOf(write, outputs)),
    };
  });
}

/** Asks about layers on file systems that some kernels refuse. */
function* askAboutStacking(paths: readonly PathFacts[]): Task<PathFacts[]> {
  const asked: PathFacts[] = [];
  for (const path of paths) {
    const { subject, fileSystem } = path;
    const isAsked = subject.role !== 'target' && fileSystem !== undefined && isRefusedBySome(fileSystem.magic);
    const isStackable = isAsked ? yield* askStacking(subject.path) : undefined;
    asked.push(fileSystem && isAsked ? { ...path, fileSystem: { ...fileSystem, isStackable } } : path);
  }
  return asked;
}

/** Returns 0 also if only a filter has refused the question. */
const toWriteErrno = (step: Step, errno: number): number =>
  errno <= 0 || filteredCall({ step, errno }) !== undefined ? 0 : errno;

function readFileSystem(step: Step, outputs: Outputs | StepFailure): FileSystemFacts | undefined {
  if (outputs instanceof StepFailure || outputs.result(step) < 0) return undefined;
  const [magic = 0, flags = 0, blocks = 0, freeBlocks = 0, inodes = 0, freeInodes = 0] = Array.from(
    { length: 6 },
    (_, i) => outputs.number(step, i),
  );
  return { magic, isReadOnly: (flags & k.ST_RDONLY) !== 0, freeBlocks, blocks, freeInodes, inodes };
}

/**
 * Returns true if the parent of a mount point is also the parent of the mount's root on its file system. An example is
 * a directory that is bound onto itself.
 */
function isInPlace(id: number, table: readonly MountinfoLine[]): boolean {
  const entry = table.find((candidate) => candidate.id === id);
  const below = table.find((candidate) => candidate.id === entry?.parent);
  if (entry === undefined || below === undefined || below.id === id || below.device !== entry.device) return false;
  const from = (directory: string): string => (directory === '/' ? '' : directory);
  const way = entry.target.slice(from(below.target).length);
  if (from(entry.root) !== from(below.root) + from(way)) return false;
  // The mount covers the root of another mount, so the path upwards leads out of that one, too.
  return way.length > 1 || isInPlace(below.id, table);
}

/**
 * Finds the parents of each directory up to the root of its file system, one level at a time for all. Stops at
 * directories that it has met before. The kernel walks one file system, so the parent of a mount point counts only if
 * it is also the parent on that file system.
 */
function* gatherParents(
  paths: readonly PathFacts[],
  unmade: ReadonlyMap<Path, MissingDirectory>,
  parents: Map<string, string>,
  table: readonly MountinfoLine[],
): Task<Map<string, string>> {
  interface Place {
    readonly found: StatResult;
    readonly path: Path;
  }
  // Two mounts can lead to one directory, and one of them can go further up.
  const key = ({ found }: Place): string => `${found.mountId}:${identityOf(found)}`;
  let frontier = new Map<string, Place>();
  for (const { found, subject } of paths) {
    const { nearest, nearestFound } = unmade.get(subject.path) ?? { nearest: subject.path, nearestFound: found };
    if (identityOf(nearestFound) === undefined || nearestFound.type !== k.S_IFDIR) continue;
    const place = { found: nearestFound, path: joinPath(nearest, '.') };
    frontier.set(key(place), place);
  }
  for (let level = 0; level < MAX_LEVELS && frontier.size > 0; level++) {
    const plan = new Plan();
    const looks = Array.from(frontier.values(), ({ found, path }) => {
      const above = joinPath(path, '..');
      return { found, above, step: addStat(plan, above, { mask }) };
    });
    const outputs = yield* ask(plan);
    frontier = new Map();
    for (const { found, above, step } of looks) {
      const foundAbove = readStat(step, outputs);
      const [identity, parent] = [identityOf(found), identityOf(foundAbove)];
      if (identity === undefined || parent === undefined || parent === identity) continue;
      if (foundAbove.mountId !== found.mountId && !isInPlace(found.mountId, table)) continue;
      parents.set(identity, parent);
      const place = { found: foundAbove, path: above };
      if (!parents.has(parent)) frontier.set(key(place), place);
    }
  }
  return parents;
}

// ------------------------------------------------------------------------------------------------ upper and work

/** Returns the first directory, two levels below `work/work`, that is not empty. */
function* findLeftover(inner: Path): Task<Path | undefined> {
  for (const { name, isDirectory } of yield* list(inner)) {
    if (!isDirectory || Buffer.from(name).equals(Buffer.from('incompat'))) continue;
    const outer = joinPath(inner, name);
    for (const entry of yield* list(outer)) {
      if (!entry.isDirectory) continue;
      const path = joinPath(outer, entry.name);
      if ((yield* list(path)).length > 0) return path;
    }
  }
  return undefined;
}

/** Returns the kernel's own directory, or an entry of it, if immutable. The kernel clears it two levels deep. */
function* findImmutable(inner: Path): Task<Path | undefined> {
  const paths = [inner];
  for (const { name, isDirectory } of yield* list(inner)) {
    const outer = joinPath(inner, name);
    paths.push(outer);
    if (isDirectory) for (const entry of yield* list(outer)) paths.push(joinPath(outer, entry.name));
    if (paths.length > MAX_LOOKED_AT) break;
  }
  const plan = new Plan();
  const looks = paths.map((path) => addStat(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW }));
  const outputs = yield* ask(plan);
  return paths.find((_, i) => readStat(looks[i], outputs).isImmutable);
}

/** The name of an index entry: a file handle in hexadecimal digits, or a file that the kernel was about to remove. */
const INDEX_ENTRY = /^(?:#.*|(?:[0-9a-f]{2}){21,})$/;

function* findStrayIndex(index: Path): Task<Path | undefined> {
  const plan = new Plan();
  const step = addStat(plan, index, { flags: k.AT_SYMLINK_NOFOLLOW });
  const { errno, type } = readStat(step, yield* ask(plan));
  if (errno !== 0) return undefined;
  if (type !== k.S_IFDIR) return index;
  const stray = (yield* list(index)).find(({ name }) => !INDEX_ENTRY.test(Buffer.from(name).toString('latin1')));
  return stray && joinPath(index, stray.name);
}

/** Makes a directory as the kernel has tried to, and returns the errno, which the kernel does not report. */
function* attemptIn(workdir: Path): Task<number | undefined> {
  const plan = new Plan();
  const path = joinPath(workdir, '.overlayfs-attempt');
  const made = plan.stepOf(plan.add(calls.mkdirat, [k.AT_FDCWD, path, 0o700], { tolerate: 'any', output: 0 }));
  plan.add(calls.unlinkat, [k.AT_FDCWD, path, k.AT_REMOVEDIR], { tolerate: 'any' });
  const result = resultOf(made, yield* ask(plan));
  return result < 0 && result !== -EEXIST ? -result : undefined;
}

/** The magic number of overlayfs in a stored file handle, and the length of the header before the handle's bytes. */
const HANDLE_MAGIC = 0xfb;
const HANDLE_HEADER = 21;
const handleType = (stored: Buffer): number => stored[4] as number;

const isHandle = (stored: Buffer | undefined): stored is Buffer =>
  stored !== undefined && stored.length > HANDLE_HEADER && stored[1] === HANDLE_MAGIC;

function* gatherOrigin({ upperdir, workdir, lowerdir, userxattr }: CheckedOptions): Task<OriginFacts> {
  const nothing = { isOfLower: undefined, lower: undefined, isIndexOfUpper: undefined, indexUpper: undefined };
  const [lower] = lowerdir;
  if (upperdir === undefined || workdir === undefined || lower === undefined) return nothing;
  const prefix = userxattr === true ? 'user' : 'trusted';
  const plan = new Plan();
  const attribute = (path: Path, name: string) =>
    plan.stepOf(plan.add(calls.getxattr, [path, name, XATTR_ROOM], { output: XATTR_ROOM, tolerate: 'any' }));
  const handle = (path: Path) =>
    plan.stepOf(
      plan.add(calls.name_to_handle_at, [k.AT_FDCWD, path, k.AT_SYMLINK_FOLLOW], {
        output: HANDLE_OUTPUT,
        tolerate: 'any',
      }),
    );
  const origin = attribute(upperdir, `${prefix}.overlay.origin`);
  const indexUpper = attribute(joinPath(workdir, 'index'), `${prefix}.overlay.upper`);
  const handles = { lower: handle(lower), upper: handle(upperdir) };
  const outputs = yield* ask(plan);
  const stored = { origin: bytesOf(origin, outputs), upper: bytesOf(indexUpper, outputs) };
  const isSame = (bytes: Buffer | undefined, step: Step): boolean | undefined => {
    if (!isHandle(bytes) || outputs instanceof StepFailure || outputs.result(step) < 0) return undefined;
    const own = outputs.bytes(step, 16 + outputs.number(step, 1)).subarray(16);
    return outputs.number(step, 0) === handleType(bytes) && bytes.subarray(HANDLE_HEADER).equals(own);
  };
  const isOfLower = isSame(stored.origin, handles.lower);
  const isIndexOfUpper = isSame(stored.upper, handles.upper);
  return {
    isOfLower,
    isIndexOfUpper,
    lower: isOfLower === false && isHandle(stored.origin) ? yield* pathOfHandle(lower, stored.origin) : undefined,
    indexUpper:
      isIndexOfUpper === false && isHandle(stored.upper) ? yield* pathOfHandle(upperdir, stored.upper) : undefined,
  };
}

/** Returns the path of a file handle on the file system of `path`. Needs CAP_DAC_READ_SEARCH. */
function* pathOfHandle(path: Path, stored: Buffer): Task<Path | undefined> {
  const plan = new Plan();
  const tolerate = 'any';
  const at = plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_DIRECTORY | k.O_CLOEXEC, 0], { tolerate });
  const bytes = stored.subarray(HANDLE_HEADER);
  const flags = k.O_PATH | k.O_CLOEXEC;
  const opened = plan.add(calls.open_by_handle_at, [at, handleType(stored), bytes, flags], { tolerate, output: 0 });
  const link = plan.stepOf(
    plan.add(calls.readlinkat, [k.AT_FDCWD, ['/proc/self/fd/', opened as Descriptor], PATH_ROOM], {
      output: PATH_ROOM,
      tolerate,
    }),
  );
  const outputs = yield* ask(plan);
  if (resultOf(plan.stepOf(opened), outputs) < 0) return undefined;
  const target = bytesOf(link, outputs);
  return target === undefined || target.toString('latin1').endsWith(' (deleted)') ? undefined : target;
}

/** Asks the kernel whether the upperdir and workdir are in use, in any namespace. */
function* gatherUse({ upperdir, workdir, lowerdir }: CheckedOptions): Task<UseFacts> {
  const lower = lowerdir[0] as Path;
  const isUsed = function* (directory: Path | undefined): Task<boolean | undefined> {
    return directory === undefined ? undefined : yield* askUse(directory, lower);
  };
  return { upper: yield* isUsed(upperdir), work: yield* isUsed(workdir) };
}
