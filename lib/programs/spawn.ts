/** Starts programs that see mounts at places of the caller's choice, in namespaces of their own. */
import type {
  ChildProcess,
  ChildProcessByStdio,
  ChildProcessWithoutNullStreams,
  SpawnOptions as NodeSpawnOptions,
  StdioNull,
  StdioPipe,
  StdioPipeNamed,
} from 'node:child_process';
import type { Readable, Writable } from 'node:stream';
import { checkSignal, checkText, checkWord, toOptions } from '../arguments.js';
import { launcher } from '../binding.js';
import * as e from '../errnos.js';
import {
  abortError,
  conflictingOptions,
  invalidArgumentType,
  invalidArgumentValue,
  missingProc,
  OverlayError,
  outOfRange,
  platformError,
} from '../errors.js';
import { kernelFeaturesSync } from '../features/probe.js';
import { calls } from '../kernel/calls.js';
import { AT_SYMLINK_NOFOLLOW, S_IFDIR, S_IFLNK } from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { onAbort } from '../kernel/on-abort.js';
import { Plan } from '../kernel/plan.js';
import { statPathSync } from '../kernel/stat.js';
import { runSync } from '../kernel/task.js';
import { internalsOf, Mount } from '../mounts/mount.js';
import { outOfNamespaces } from '../namespaces/mount-namespace.js';
import { type Ids, ownIds } from '../namespaces/user-namespace.js';
import { type Path, type PathLike, pathString, quotePath, toAbsolute, toPath, toReal } from '../paths.js';
import type { Reason } from '../reasons.js';
import { explainRefusal, forbiddenBy, readNamespaceSettings } from '../rootless/refusal.js';
import { findSubIds, makeSubIdNamespace } from '../rootless/sub-ids.js';
import { option, text } from '../text.js';
import { explainShortage, replacedMount, type Verdict } from '../verdicts.js';
import {
  type ContainedIds,
  checkIsolation,
  type Isolation,
  type IsolationOptions,
  isolationNames,
  refuseIds,
  rootMaps,
  toIds,
} from './isolation.js';
import { type LaunchFailure, namespaceFlags, orders, type Placed, readReport, toArguments } from './launch.js';

/** A mount and the directory where the program sees it. */
export interface PlacedMount {
  /** The mount, or the path of a directory or file that the program sees there too, with all that is mounted in it. */
  mount: Mount | PathLike;
  /**
   * The directory. At the root directory, however it is spelled, the mount becomes the root of the program. The program
   * keeps what is at /proc, /dev and /sys, if the mount has these directories, and the mounts that come after this one.
   * The old root is unmounted for it (pivot_root(2)). In a chroot, in an initial RAM file system, and where seccomp(2)
   * refuses the call, the old root stays below, out of reach of paths.
   */
  at: PathLike;
}

/** Options that are passed on to child_process.spawn. */
const passedNames = ['env', 'stdio', 'detached', 'timeout', 'killSignal', 'serialization'] as const;

export interface SpawnOptions
  extends Partial<PlacedMount>,
    IsolationOptions,
    Pick<NodeSpawnOptions, (typeof passedNames)[number] | 'signal' | 'argv0' | 'shell'> {
  /** More mounts, each at its place. */
  mounts?: readonly PlacedMount[];
  /**
   * Directories that the program can only read, with all that is mounted in them (Linux 5.12). The mounts that are
   * shown in them are excepted.
   */
  readonly?: readonly PathLike[];
  /**
   * Directories and files that the program finds empty. A path inside a shown mount means the one in that mount. The
   * root directory cannot be hidden.
   */
  hidden?: readonly PathLike[];
  /**
   * Directories and files that the program can write to; all else is read-only (Linux 5.12). The shown mounts are
   * excepted, and the new /proc of `pids`, but for its settings of the kernel, such as /proc/sys.
   */
  writable?: readonly PathLike[];
  /** The directory where the program starts. Default: the working directory of this process, as the program sees it. */
  cwd?: PathLike;
}

/** Options that make each stream a pipe. */
type PipedOptions = SpawnOptions & { stdio?: StdioPipeNamed | StdioPipe[] | undefined };

/** The form of a stream, and what the ChildProcess has for it. */
type Way = StdioPipe | StdioNull;
type TupleOptions<I extends Way, O extends Way, E extends Way> = SpawnOptions & { stdio: [I, O, E] };
type Input<I> = I extends StdioNull ? null : Writable;
type Output<O> = O extends StdioNull ? null : Readable;

const names: ReadonlySet<string> = new Set([
  ...passedNames,
  'signal',
  'mount',
  'at',
  'mounts',
  'readonly',
  'hidden',
  'writable',
  'cwd',
  'argv0',
  'shell',
  ...isolationNames,
]);

interface Checked {
  readonly mounts: readonly { readonly mount: Mount | Path; readonly at: Path }[];
  readonly readonly: readonly Path[];
  readonly hidden: readonly Path[];
  readonly writable: readonly Path[] | undefined;
  readonly isolation: Isolation;
  readonly cwd: Path;
}

/** The launcher has room for this many. */
const MOST_MOUNTS = 64;

const placedNames: ReadonlySet<string> = new Set(['mount', 'at']);

function checkPlaced({ mount, at }: Partial<PlacedMount>, prefix = ''): Checked['mounts'][number] {
  if (!(mount instanceof Mount)) {
    const isPath = typeof mount === 'string' || mount instanceof Uint8Array || mount instanceof URL;
    if (!isPath) throw invalidArgumentType(`${prefix}mount`, 'a mount or a path', mount);
    return { mount: toAbsolute(toPath(mount, `${prefix}mount`)), at: toAbsolute(toPath(at, `${prefix}at`)) };
  }
  if (mount.fd === -1)
    throw conflictingOptions(text`${option(`${prefix}mount`)} is unmounted`, 'pass a mount that is still mounted');
  if (internalsOf(mount).mounted.namespace !== undefined) {
    throw conflictingOptions(
      text`${option(`${prefix}mount`)} is in another mount namespace, where the program cannot open it`,
      'start the program from there, or mount in the namespace of this process',
    );
  }
  return { mount, at: toAbsolute(toPath(at, `${prefix}at`)) };
}

function checkList(value: unknown, name: string): readonly unknown[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalidArgumentType(name, 'a list', value);
  // Turns the holes of a sparse list into undefined.
  return Array.from(value);
}

/** Checks what node:child_process would misread, and then report as another error. */
function checkPassed({ argv0, shell, signal, stdio }: SpawnOptions): void {
  checkSignal(signal);
  if (argv0 !== undefined) checkText(argv0, 'argv0');
  if (shell !== undefined && typeof shell !== 'boolean') checkText(shell, 'shell');
  if (typeof stdio === 'string') checkWord(stdio, 'stdio', ['pipe', 'overlapped', 'ignore', 'inherit']);
  else checkList(stdio, 'stdio');
}

function check(command: unknown, args: unknown, options: SpawnOptions): Checked {
  if (typeof command !== 'string' || command === '') throw invalidArgumentType('command', 'a name or a path', command);
  checkText(command, 'command');
  checkList(args, 'args').forEach((arg, i) => {
    checkText(arg, `args[${i}]`);
  });
  checkPassed(options);
  const paths = (name: 'readonly' | 'hidden' | 'writable') =>
    checkList(options[name], name).map((path, i) => toAbsolute(toPath(path, `${name}[${i}]`)));
  const single = options.mount === undefined && options.at === undefined ? [] : [checkPlaced(options)];
  const listed = checkList(options.mounts, 'mounts');
  const writable = options.writable === undefined ? undefined : paths('writable');
  const most = MOST_MOUNTS - single.length - (writable?.length ?? 0);
  if (most < 0) throw outOfRange('writable', 'a list of at most 64 paths, mounts included', String(writable?.length));
  if (listed.length > most) throw outOfRange('mounts', `a list of at most ${most} mounts`, String(listed.length));
  const others = listed.map((placed, i) => {
    const name = `mounts[${i}]`;
    if (placed === undefined) throw invalidArgumentType(name, 'an object', placed);
    return checkPlaced(toOptions(placed as Partial<PlacedMount>, placedNames, name), `${name}.`);
  });
  return {
    mounts: [...single, ...others],
    readonly: paths('readonly'),
    hidden: paths('hidden'),
    writable,
    isolation: checkIsolation(options),
    cwd: toAbsolute(options.cwd === undefined ? '.' : toPath(options.cwd, 'cwd')),
  };
}

/** Returns the program and its arguments; a shell gets one line, as in node:child_process. */
function toCommand(command: string, args: readonly string[], shell: SpawnOptions['shell']): string[] {
  if (shell === undefined || shell === false || shell === '') return [command, ...args];
  return [shell === true ? '/bin/sh' : shell, '-c', [command, ...args].join(' ')];
}

function toStdio(stdio: NodeSpawnOptions['stdio']): Exclude<NodeSpawnOptions['stdio'], string | undefined> {
  if (typeof stdio === 'string') return [stdio, stdio, stdio];
  const given = [...(stdio ?? [])];
  while (given.length < 3) given.push('pipe');
  return given;
}

// ------------------------------------------------------------------------------------------ what went wrong

const pathReasons: Readonly<Record<number, Reason>> = {
  [e.ENOENT]: 'path-missing',
  [e.ENOTDIR]: 'path-not-directory',
  [e.EACCES]: 'path-inaccessible',
  [e.ELOOP]: 'path-inaccessible',
};

/** Returns the same error as node:child_process. */
function commandError({ spawnfile, spawnargs }: ChildProcess, errno: number): Error {
  const { code } = new OverlayError({ errno, reason: 'unexplained', what: '' });
  return Object.assign(new Error(`spawn ${spawnfile} ${code}`), {
    errno: -errno,
    code,
    syscall: `spawn ${spawnfile}`,
    path: spawnfile,
    spawnargs: spawnargs.slice(1),
  });
}

/** Explains why the namespaces of the program could not be made. */
function explainNamespaces(word: 'unshare' | 'write', errno: number, isRootless: boolean): Verdict | undefined {
  const plan = new Plan();
  plan.isInChild = isRootless;
  plan.add(calls[word], []);
  const refusal = explainRefusal({ plan, step: plan.steps[0], errno }, readNamespaceSettings());
  if (refusal !== undefined) return forbiddenBy(refusal);
  return errno === e.ENOSPC
    ? undefined
    : { reason: 'no-privilege', what: 'this process may not create a mount namespace' };
}

/** Explains why a mount could not be shown at a path of the program. */
function explainAttach(path: Path | undefined, errno: number, type: number | undefined): Verdict {
  const what = `the mount cannot be shown at ${path === undefined ? 'its path' : quotePath(path)}`;
  if (type === S_IFLNK) return { reason: 'target-symlink', what: `${what}, a symbolic link` };
  const reasons: Partial<Record<number, Reason>> = {
    [e.ENOENT]: 'target-missing',
    [e.ENOTDIR]: 'target-not-directory',
    [e.EINVAL]: 'target-not-directory',
  };
  const reason = reasons[errno] ?? pathReasons[errno] ?? 'unexplained';
  return { reason, what, hint: 'name an existing directory' };
}

/** The kinds of namespaces that the program may have for itself: in words, and as a limit of sysctl(8) calls them. */
const kinds: Readonly<Record<string, readonly [words: string, limit: string]>> = {
  [namespaceFlags.pids]: ['process', 'pid'],
  [namespaceFlags.network]: ['network', 'net'],
  [namespaceFlags.ipc]: ['IPC', 'ipc'],
  [namespaceFlags.uts]: ['UTS', 'uts'],
};

/** Explains why a namespace of one of these kinds could not be made. */
function explainKind([words, limit]: readonly [string, string], errno: number): Verdict | undefined {
  const what = `the program cannot have a ${words} namespace of its own`;
  if (errno === e.ENOSPC) {
    const name = `user.max_${limit}_namespaces`;
    const hint = `end programs that have one, or have root raise the limit: sysctl -w ${name}=15000`;
    return { reason: 'out-of-namespaces', what: `${what}: the limit ${name} is reached`, hint };
  }
  if (errno !== e.EINVAL) return undefined;
  return { reason: 'option-unsupported', what: `${what}: this kernel has none`, hint: 'leave the option out' };
}

/** Explains what the program cannot have besides its mounts. */
function explainIsolation({ word, args }: LaunchFailure['order'], errno: number): Verdict | undefined {
  const isDenied = errno === e.EPERM || errno === e.EACCES;
  if (word === 'unshare') {
    const kind = kinds[args[0] ?? ''];
    return kind && explainKind(kind, errno);
  }
  if (word === 'proc' && isDenied) {
    return {
      reason: 'rootless-forbidden',
      what: text`the kernel refuses the new /proc of ${option('pids')}: another mount covers a part of the /proc here, as in most containers`,
      hint: text`uncover it (docker run --security-opt systempaths=unconfined), or leave ${option('pids')} out`,
    };
  }
  if (word === 'ids' && (errno === e.EINVAL || isDenied)) {
    return {
      reason: 'sub-ids-missing',
      what: `the program cannot have the ids ${args[0]}:${args[1]}, which its user namespace does not contain`,
      hint: text`pass ${option('subIds', true)} to the mount, or use the ids 0:0`,
    };
  }
  return undefined;
}

function findVerdict(order: LaunchFailure['order'], errno: number, isRootless: boolean): Verdict {
  const { word, path } = order;
  const shown = path === undefined ? '' : ` ${quotePath(path)}`;
  const isolation = explainIsolation(order, errno);
  if (isolation !== undefined) return isolation;
  if (word === 'unshare' || word === 'write' || word === 'lock') {
    const verdict = explainNamespaces(word === 'write' ? word : 'unshare', errno, isRootless || word === 'lock');
    if (verdict !== undefined) return verdict;
  }
  if (errno === e.ENOSPC) {
    // A detached mount is in a namespace of its own.
    return word === 'attach' || word === 'hide'
      ? { reason: 'too-many-mounts', what: 'the program would exceed the limit of mounts in a mount namespace' }
      : outOfNamespaces;
  }
  if (errno === e.ENOSYS) {
    const needed = word.startsWith('readonly')
      ? 'mount_setattr(2), which a read-only mount needs'
      : 'open_tree(2) or move_mount(2)';
    return { reason: 'option-unsupported', what: `this kernel has no ${needed}`, hint: 'use a newer kernel' };
  }
  if (word === 'private' || word === 'slave') {
    return { reason: 'no-privilege', what: 'this process may not leave its chroot, whose root is not a mount point' };
  }
  if (errno === e.ESTALE && (word === 'mounted' || word === 'tree')) return replacedMount(path ?? '');
  const type = path === undefined ? undefined : statPathSync(path, { flags: AT_SYMLINK_NOFOLLOW }).type;
  if ((word === 'attach' || word === 'clone') && errno === e.EINVAL && type === S_IFDIR) {
    return { reason: 'shown-before', what: `the detached mount cannot be shown at${shown}` };
  }
  if (word === 'attach') return explainAttach(path, errno, type);
  const whats: Readonly<Record<string, string>> = {
    mounted: `the mount at${shown} cannot be opened`,
    tree: `the mount at${shown} cannot be opened`,
    readonly: `${shown.trim()} cannot be made read-only`,
    take: `${shown.trim()} cannot be shown to the program`,
    network: 'the loopback interface of the program cannot be brought up',
    hide: `${shown.trim()} cannot be hidden`,
    chdir: `the program cannot start in${shown}`,
  };
  return { reason: pathReasons[errno] ?? 'unexplained', what: whats[word] ?? `the launcher failed at "${word}"` };
}

/** Explains why the program did not start. */
export function explainLaunch({ order, errno }: LaunchFailure, isRootless: boolean): Error {
  const { word, path } = order;
  if (word === 'hide' && errno === e.EBUSY) {
    return invalidArgumentValue('hidden', path, 'must not contain the root directory, in which the program itself is');
  }
  const isNamespace = ['unshare', 'write', 'lock', 'init'].includes(word);
  const shortage = isNamespace ? explainShortage(errno, 'make the namespaces of the program') : undefined;
  if (shortage !== undefined) return shortage;
  if ((word === 'private' || word === 'slave') && errno === e.ENOENT) return missingProc('/proc/self/ns/mnt');
  return new OverlayError({
    errno,
    path: path === undefined ? undefined : pathString(path),
    ...findVerdict(order, errno, isRootless),
  });
}

// ------------------------------------------------------------------------------------------ the call

/**
 * Starts a program that sees a mount at a place: `mount` at the directory `at`, and each of `mounts` at its own. No
 * other process sees it there. All paths, including the working directory, are as if it were mounted, so that git, node
 * and npm work. The program runs as the same user. If a mount is `rootless`, or the process may not mount, the program
 * has no capability, and files of other users appear to belong to nobody, except those of the subordinate ids of a
 * mount with `subIds`.
 *
 * The result is Node's own ChildProcess, started through a launcher that becomes the program (unshare(2), open_tree(2),
 * move_mount(2), execve(2)). If the launcher fails, the child emits the event `error` and exits with code 127. The
 * mount is in use until the program and its children have ended. Before Linux 6.15 a detached mount can be shown to one
 * program only.
 *
 * For a mount with `subIds` the call blocks the event loop until newuidmap(1) and newgidmap(1) have ended, usually for
 * some milliseconds. `timeout` and `signal` count from then on.
 *
 * `options` are those of `child_process.spawn`, and also `readonly`, `hidden` and `writable`: paths that the program can
 * only read, finds empty, or can write to. `network`, `pids`, `ipc`, `uts` and `root` give it namespaces of its own.
 * With `pids`, the ChildProcess is a process that waits for the program: it has another id than the program, and SIGSTOP
 * stops it alone.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: more than 64 mounts, or an id that is none
 * @throws {OverlayError} `reason` is `'sub-ids-missing'`, `'sub-ids-refused'`, `'out-of-descriptors'` or
 * `'out-of-threads'`, of a mount with `subIds`;
 * as the event's error: `reason` is `'rootless-forbidden'`, `'no-privilege'`, `'out-of-namespaces'`,
 * `'too-many-mounts'`, `'option-unsupported'`, `'not-mounted'`, `'target-missing'`, `'target-not-directory'`,
 * `'target-symlink'`, `'path-missing'`, `'path-not-directory'`, `'path-inaccessible'`, `'shown-before'` or, in a
 * chroot, `'proc-missing'`;
 * if the program is not found, Node's own error
 */
export function spawn(command: string, options?: PipedOptions): ChildProcessWithoutNullStreams;
export function spawn<I extends Way, O extends Way, E extends Way>(
  command: string,
  options: TupleOptions<I, O, E>,
): ChildProcessByStdio<Input<I>, Output<O>, Output<E>>;
export function spawn(command: string, options: SpawnOptions): ChildProcess;
export function spawn(
  command: string,
  args?: readonly string[],
  options?: PipedOptions,
): ChildProcessWithoutNullStreams;
export function spawn<I extends Way, O extends Way, E extends Way>(
  command: string,
  args: readonly string[],
  options: TupleOptions<I, O, E>,
): ChildProcessByStdio<Input<I>, Output<O>, Output<E>>;
export function spawn(command: string, args: readonly string[], options: SpawnOptions): ChildProcess;
export function spawn(
  command: string,
  second: readonly string[] | SpawnOptions = [],
  third: SpawnOptions = {},
): ChildProcess {
  if (process.platform !== 'linux') throw platformError();
  // The arguments may be left out, as in node:child_process.
  const hasOptionsOnly = typeof second === 'object' && second !== null && !Array.isArray(second);
  const [args, given] = (hasOptionsOnly ? [[], second] : [second, third]) as [readonly string[], SpawnOptions];
  const options = toOptions(given, names);
  const checked = check(command, args, options);
  const owned = checked.mounts.flatMap(({ mount }) => (mount instanceof Mount ? [mount] : []));
  const isRootless = owned.some((mount) => mount.isRootless) || kernelFeaturesSync().mayMount !== true;
  const hasSubIds = owned.some((mount) => internalsOf(mount).mounted.hasSubIds);
  refuseIds(checked.isolation, isRootless);
  if (!hasSubIds) {
    const own = isRootless ? ownIds() : undefined;
    return launch([command, args], options, checked, { user: own, contained: own && { own, uids: [], gids: [] } });
  }
  // With the same maps as the mount's own.
  const subIds = findSubIds();
  const namespace = { descriptor: runSync(makeSubIdNamespace(subIds)) };
  try {
    return launch([command, args], options, checked, { user: namespace, contained: { own: ownIds(), ...subIds } });
  } finally {
    close(namespace);
  }
}

/** The user namespace of a program without privilege, and the ids in it. Undefined: the program has the caller's. */
interface WithoutPrivilege {
  readonly user: Ids | Held | undefined;
  readonly contained: ContainedIds | undefined;
}

function launch(
  [command, args]: readonly [command: string, args: readonly string[]],
  options: SpawnOptions,
  checked: Checked,
  { user, contained }: WithoutPrivilege,
): ChildProcess {
  const isRootless = user !== undefined;
  const { readonly, hidden, writable, isolation } = checked;
  const words = toCommand(command, args, options.shell);
  const stdio = toStdio(options.stdio);
  const own = stdio.length;
  // Only read-only and writable paths are compared with the places of mounts.
  const isCompared = readonly.length > 0 || writable !== undefined;
  const toPlace = (path: Path) => ({ path, real: isCompared ? toReal(path) : path });
  const mounts = checked.mounts.map(({ mount, at: path }): Placed => {
    const at = toPlace(path);
    if (!(mount instanceof Mount)) return { mount: { tree: mount }, at };
    const mounted = internalsOf(mount).mounted;
    return { mount: mounted.held === undefined ? mounted : stdio.push(mounted.held.descriptor) - 1, at };
  });
  const report = stdio.push('pipe') - 1;
  const ordered = orders({
    report,
    mounts,
    readonly: readonly.map(toPlace),
    hidden,
    writable: writable?.map(toReal),
    apart: isolation.apart,
    root: isolation.hasRoot ? rootMaps(contained) : undefined,
    ids: toIds(isolation, contained),
    user: user !== undefined && 'descriptor' in user ? { joined: stdio.push(user.descriptor) - 1 } : user,
    cwd: checked.cwd,
    argv0: options.argv0,
    command: words,
  });
  const passed = Object.fromEntries(passedNames.flatMap((name) => (name in options ? [[name, options[name]]] : [])));
  // Loaded only when a program is started.
  const child = process
    .getBuiltinModule('node:child_process')
    .spawn(launcher(), toArguments(ordered), { ...passed, stdio });
  // The program's name, not its launcher's.
  const [file = '', ...rest] = words;
  Object.assign(child, { spawnfile: file, spawnargs: [options.argv0 ?? file, ...rest] });
  // If no descriptor is left, Node makes no streams and emits the error.
  if (child.stdio === undefined) return child;
  const fail = reporterOf(child, options);
  const reported = child.stdio[report] as Readable | undefined;
  // Hides the launcher's streams from the caller.
  (child.stdio as unknown[]).length = own;
  let text = '';
  reported?.setEncoding('latin1').on('data', (piece: string) => {
    text += piece;
  });
  reported?.on('end', () => {
    const failure = readReport(ordered, text);
    if (failure === undefined) return;
    const isCommand = failure.order.word === 'exec';
    fail(isCommand ? commandError(child, failure.errno) : explainLaunch(failure, isRootless));
  });
  return child;
}

/**
 * Returns a function that emits `error`, once for each child. If the launcher has not found a program and its signal
 * then aborts, Node would emit a second error. So the library handles the signal: it kills the child as
 * node:child_process does.
 */
function reporterOf(child: ChildProcess, { signal, killSignal }: SpawnOptions): (error: Error) => void {
  let hasFailed = false;
  const fail = (error: Error): void => {
    if (hasFailed) return;
    hasFailed = true;
    child.emit('error', error);
  };
  if (signal === undefined || child.pid === undefined) return fail;
  const abort = (): void => {
    if (!hasFailed && child.kill(killSignal)) fail(abortError(signal));
  };
  if (signal.aborted) process.nextTick(abort);
  else child.once('exit', onAbort(signal, abort));
  return fail;
}
