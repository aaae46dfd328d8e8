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
import { checkBoolean, checkList, checkSignal, checkText, checkWord, pick, toOptions } from '../arguments.js';
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
import { type Call, calls } from '../kernel/calls.js';
import { AT_SYMLINK_NOFOLLOW, S_IFDIR, S_IFLNK } from '../kernel/constants.js';
import { explainFilteredProgram } from '../kernel/filtered.js';
import { close, type Held } from '../kernel/held.js';
import { onAbort } from '../kernel/on-abort.js';
import { Plan } from '../kernel/plan.js';
import { statPathSync } from '../kernel/stat.js';
import { runSync } from '../kernel/task.js';
import { explainUnreached } from '../mounts/covered.js';
import { internalsOf, Mount } from '../mounts/mount.js';
import { outOfNamespaces } from '../namespaces/mount-namespace.js';
import { type Ids, ownIds } from '../namespaces/user-namespace.js';
import { checkTmpfsLimits, type TmpfsLimits } from '../options/tmpfs-limits.js';
import { type Path, type PathLike, pathString, quotePath, toAbsolute, toPath, toReal } from '../paths.js';
import type { Reason } from '../reasons.js';
import { explainRefusal, forbiddenBy, readNamespaceSettings } from '../rootless/refusal.js';
import { findSubIds, makeSubIdNamespace } from '../rootless/sub-ids.js';
import { either, option, text } from '../text.js';
import { explainErrno, explainShortage, replacedMount, type Verdict } from '../verdicts.js';
import {
  type ContainedIds,
  checkIsolation,
  type Isolation,
  type IsolationOptions,
  isolationNames,
  refuseIds,
  rootMaps,
  sameMaps,
  toIds,
} from './isolation.js';
import { type LaunchFailure, namespaceFlags, orders, type Placed, readReport, toArguments } from './launch.js';

/** Something that the program sees at a place: a mount, a directory or file, or a new file system in memory. */
export interface ProgramMount {
  /** The mount, or the path of a directory or file that the program sees there too, with all that is mounted in it. */
  source?: Mount | PathLike;
  /**
   * In the place of `source`: an empty tmpfs(5) of mode 1777, which ends with the program. `true` has the kernel's
   * limits: half of the memory.
   */
  tmpfs?: true | TmpfsLimits;
  /**
   * The place, which exists. At the root directory, however it is spelled, the mount becomes the root of the program. The program
   * keeps what is at /proc, /dev and /sys, if the mount has these directories, and the mounts that come after this one.
   * The old root is unmounted for it (pivot_root(2)). In a chroot, in an initial RAM file system, and where seccomp(2)
   * refuses the call, the old root stays below, out of reach of paths.
   */
  target: PathLike;
  /** True: the program can only read it, as if `readonly` named the target. Default: false. */
  readonly?: boolean;
}

/** Options that are passed on to child_process.spawn. */
const passedNames = ['env', 'stdio', 'detached', 'timeout', 'killSignal', 'serialization'] as const;

export interface SpawnOptions
  extends IsolationOptions,
    Pick<NodeSpawnOptions, (typeof passedNames)[number] | 'signal' | 'argv0' | 'shell'> {
  /** The places at which the program sees something else than this process does. */
  mounts?: readonly ProgramMount[];
  /**
   * Directories that the program can only read, with all that is mounted in them (Linux 5.12). The mounts that are
   * shown in them are excepted. A file works too, until a process outside replaces it, as for `hidden`.
   */
  readonly?: readonly PathLike[];
  /**
   * Directories and files that the program finds empty. A path inside a shown mount means the one in that mount. The
   * root directory cannot be hidden. A file comes back when a process outside replaces it by rename(2), as most editors
   * do: the kernel then removes the mount that covers it. So hide the directory of a file that may change.
   */
  hidden?: readonly PathLike[];
  /**
   * Directories and files that the program can write to; all else is read-only (Linux 5.12). The shown mounts are
   * excepted, and the new /proc of a process namespace, but for its settings of the kernel, such as /proc/sys.
   */
  writable?: readonly PathLike[];
  /**
   * `'own'`: a small /dev with null, zero, full, random, urandom, tty, a new instance of pts, and an empty shm; a path that
   * `mounts` or `writable` names in /dev is there too. No other device node works (mount_setattr(2), Linux 5.12).
   * `'host'`: all of /dev, with which root can write to the disks. Default: `'own'` with `readonly`, `hidden` or
   * `writable`, else `'host'`.
   */
  dev?: 'own' | 'host';
  /**
   * True: the kernel kills the program when the thread that has started it ends, also by SIGKILL (PR_SET_PDEATHSIG,
   * prctl(2)). With a process namespace, it kills all that the program has started too. Without, a program that executes a
   * set-user-ID program is not killed. Default: false.
   */
  dieWithParent?: boolean;
  /**
   * True: the program can mount at any directory, for itself and the programs that it starts (Linux 5.11). It keeps its
   * user id and has all capabilities of its user namespace, which are ambient: capabilities(7). A privileged program
   * keeps those that it has. Not with `readonly`, `hidden`, `writable` and `dev: 'own'`, which it could
   * undo. Default: false.
   */
  capabilities?: boolean;
  /** True: the program has the user's subordinate ids, as it has with a mount that has them. Default: false. */
  subIds?: boolean;
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

/** The names of the options. */
export const spawnNames: ReadonlySet<string> = new Set([
  ...passedNames,
  'signal',
  'mounts',
  'readonly',
  'hidden',
  'writable',
  'dev',
  'dieWithParent',
  'capabilities',
  'subIds',
  'cwd',
  'argv0',
  'shell',
  ...isolationNames,
]);

/** Something that the program sees at a place. */
interface Shown {
  readonly source: Mount | Path | { readonly tmpfs: TmpfsLimits };
  readonly target: Path;
  readonly isReadonly: boolean;
}

interface Checked {
  readonly mounts: readonly Shown[];
  readonly readonly: readonly Path[];
  readonly hidden: readonly Path[];
  readonly writable: readonly Path[] | undefined;
  /** There is something that the program must not undo. */
  readonly isRestricted: boolean;
  readonly hasOwnDev: boolean;
  readonly diesWithParent: boolean;
  readonly isolation: Isolation;
  readonly keepsCapabilities: boolean;
  readonly hasSubIds: boolean;
  readonly cwd: Path;
}

/** The launcher has room for this many. */
const MOST_MOUNTS = 64;

const mountNames: ReadonlySet<string> = new Set<keyof ProgramMount>(['source', 'tmpfs', 'target', 'readonly']);

function checkSource({ source, tmpfs }: Partial<ProgramMount>, name: string): Shown['source'] {
  if (tmpfs !== undefined && source !== undefined) {
    throw conflictingOptions(
      text`${option(`${name}.source`)} and ${option(`${name}.tmpfs`)} are both given`,
      'pass one',
    );
  }
  if (tmpfs !== undefined) return { tmpfs: tmpfs === true ? {} : checkTmpfsLimits(tmpfs, `${name}.tmpfs`) };
  if (!(source instanceof Mount)) {
    const isPath = typeof source === 'string' || source instanceof Uint8Array || source instanceof URL;
    if (!isPath) throw invalidArgumentType(`${name}.source`, 'a mount or a path', source);
    return toAbsolute(toPath(source, `${name}.source`));
  }
  if (source.fd === -1)
    throw conflictingOptions(text`${option(`${name}.source`)} is unmounted`, 'pass a mount that is still mounted');
  if (internalsOf(source).mounted.namespace !== undefined) {
    throw conflictingOptions(
      text`${option(`${name}.source`)} is in another mount namespace, where the program cannot open it`,
      'start the program from there, or mount in the namespace of this process',
    );
  }
  return source;
}

function checkMount(value: unknown, i: number): Shown {
  const name = `mounts[${i}]`;
  if (value === undefined) throw invalidArgumentType(name, 'an object', value);
  const mount = toOptions(value as Partial<ProgramMount>, mountNames, name);
  const source = checkSource(mount, name);
  const target = toAbsolute(toPath(mount.target, `${name}.target`));
  return { source, target, isReadonly: checkBoolean(mount.readonly, `${name}.readonly`) ?? false };
}

/** Checks what node:child_process would misread, and then report as another error. */
function checkPassed({ argv0, shell, signal, stdio }: SpawnOptions): void {
  checkSignal(signal);
  if (argv0 !== undefined) checkText(argv0, 'argv0');
  if (shell !== undefined && typeof shell !== 'boolean') checkText(shell, 'shell');
  if (typeof stdio === 'string') checkWord(stdio, 'stdio', ['pipe', 'overlapped', 'ignore', 'inherit']);
  else checkList(stdio, 'stdio');
}

function checkCapabilities(options: SpawnOptions): boolean {
  if (checkBoolean(options.capabilities, 'capabilities') !== true) return false;
  const undone = (['readonly', 'hidden', 'writable', 'dev'] as const).find(
    (name) => options[name] !== undefined && options[name] !== 'host',
  );
  if (undone === undefined) return true;
  throw conflictingOptions(
    text`a program with ${option('capabilities', true)} can unmount what ${option(undone)} covers`,
    text`pass ${option('mapRoot', true)} in its place: such a program can mount, and not undo ${option(undone)}`,
  );
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
  const listed = checkList(options.mounts, 'mounts');
  const writable = options.writable === undefined ? undefined : paths('writable');
  const most = MOST_MOUNTS - (writable?.length ?? 0);
  if (most < 0) throw outOfRange('writable', 'a list of at most 64 paths, mounts included', String(writable?.length));
  if (listed.length > most) throw outOfRange('mounts', `a list of at most ${most} mounts`, String(listed.length));
  const mounts = listed.map(checkMount);
  const hidden = paths('hidden');
  const readonly = [...paths('readonly'), ...mounts.flatMap(({ target, isReadonly }) => (isReadonly ? [target] : []))];
  const dev = checkWord(options.dev, 'dev', ['own', 'host']);
  const isRestricted = readonly.length > 0 || hidden.length > 0 || writable !== undefined || dev === 'own';
  return {
    mounts,
    readonly,
    hidden,
    writable,
    isRestricted,
    hasOwnDev: isRestricted && dev !== 'host',
    diesWithParent: checkBoolean(options.dieWithParent, 'dieWithParent') ?? false,
    isolation: checkIsolation(options),
    keepsCapabilities: checkCapabilities(options),
    hasSubIds: checkBoolean(options.subIds, 'subIds') ?? false,
    cwd: options.cwd === undefined ? workingDirectory() : toAbsolute(toPath(options.cwd, 'cwd')),
  };
}

function workingDirectory(): Path {
  try {
    return toAbsolute('.');
  } catch (error) {
    if (!(error instanceof OverlayError)) throw error;
    const what =
      'the program cannot start in the working directory of this process, which has been removed, or has no path';
    throw new OverlayError({
      errno: e.ENOENT,
      reason: 'path-missing',
      what,
      hint: text`pass ${option('cwd')}`,
      path: '.',
    });
  }
}

/** Node opens it for the streams that are ignored, and blames the program if it is missing. */
const NULL_DEVICE = '/dev/null';

/** Returns the error for streams that are ignored where the device is missing. */
export function missingNullDevice(stdio: NodeSpawnOptions['stdio']): OverlayError | undefined {
  if (!toStdio(stdio).slice(0, 3).includes('ignore') || statPathSync(NULL_DEVICE).errno === 0) return undefined;
  return new OverlayError({
    errno: e.ENOENT,
    reason: 'path-missing',
    what: `${NULL_DEVICE} does not exist, which an ignored stream of the program needs`,
    hint: text`make it (mknod -m 666 ${NULL_DEVICE} c 1 3), or pass other streams as ${option('stdio')}`,
    path: NULL_DEVICE,
  });
}

/** Returns the program and its arguments; a shell gets one line, as in node:child_process. */
function toCommand(command: string, args: readonly string[], shell: SpawnOptions['shell']): string[] {
  if (shell === undefined || shell === false || shell === '') return [command, ...args];
  return [shell === true ? '/bin/sh' : shell, '-c', [command, ...args].join(' ')];
}

/** Returns the streams as a list of three at least. */
export function toStdio(stdio: NodeSpawnOptions['stdio']): Exclude<NodeSpawnOptions['stdio'], string | undefined> {
  if (typeof stdio === 'string') return [stdio, stdio, stdio];
  const given = [...(stdio ?? [])];
  while (given.length < 3) given.push('pipe');
  return given;
}

/** The highest descriptor that the kernel can give. */
const LAST_DESCRIPTOR = 2 ** 31 - 1;

/** Returns the descriptors that are not of these streams: the launcher may inherit others, which this process left open. */
function toClosed(stdio: ReturnType<typeof toStdio>): [first: number, last: number][] {
  // Node opens /dev/null for the first three only.
  const gaps = stdio.flatMap((stream, i): [number, number][] =>
    i > 2 && (stream === 'ignore' || stream === undefined || stream === null) ? [[i, i]] : [],
  );
  return [...gaps, [stdio.length, LAST_DESCRIPTOR]];
}

// ------------------------------------------------------------------------------------------ what went wrong

const pathReasons: Readonly<Record<number, Reason>> = {
  [e.ENOENT]: 'path-missing',
  [e.ENOTDIR]: 'path-not-directory',
  [e.EACCES]: 'path-inaccessible',
  [e.ELOOP]: 'path-inaccessible',
};

/** Explains an error of node:child_process for a process that could not be made. Returns any other error as it is. */
export function explainStart(error: unknown, purpose = 'run the program'): unknown {
  const { errno = 0 } = error as NodeJS.ErrnoException;
  return explainShortage(-errno, purpose) ?? error;
}

/** Explains an error of node:child_process for the launcher: it is not the program that is missing or unexecutable. */
function explainLauncher(error: unknown, path: string): unknown {
  const explained = explainStart(error);
  const { errno } = error as NodeJS.ErrnoException;
  if (explained !== error || errno === undefined) return explained;
  return new OverlayError(
    {
      errno: -errno,
      reason: 'path-inaccessible',
      what: `the launcher of this package, ${quotePath(path)}, which starts the program, cannot be executed`,
      hint: 'let the user of this process read and execute the files of the package (chmod +x)',
      path,
    },
    { cause: error },
  );
}

/** Starts the launcher as node:child_process does. An error says why, and what to do. */
function start(args: readonly string[], options: NodeSpawnOptions): ChildProcess {
  // Loaded only when a program is started.
  const { spawn: spawnPlain } = process.getBuiltinModule('node:child_process');
  const path = launcher();
  let child: ChildProcess;
  try {
    child = spawnPlain(path, args, options);
  } catch (error) {
    throw explainLauncher(error, path);
  }
  if (child.pid !== undefined) return child;
  // A listener would take the place of the caller's, without which the error is thrown.
  const { emit } = child;
  child.emit = (name: string, ...rest: unknown[]) => {
    const explained = name === 'error' ? rest.map((error) => explainLauncher(error, path)) : rest;
    return Reflect.apply(emit, child, [name, ...explained]);
  };
  return child;
}

/** Explains why the program could not be executed, with the fields of the error of node:child_process: execve(2). */
function explainCommand({ spawnfile, spawnargs }: ChildProcess, errno: number): OverlayError {
  const name = quotePath(spawnfile);
  const where = spawnfile.includes('/') ? '' : ' in the directories of PATH';
  const isMissing = errno === e.ENOENT || errno === e.ENOTDIR;
  const verdict: Verdict = isMissing
    ? { reason: 'program-missing', what: `the program ${name} does not exist${where}, or its interpreter does not` }
    : { reason: 'program-unexecutable', what: `the program ${name} cannot be executed` };
  const error =
    explainShortage(errno, `execute the program ${name}`) ??
    new OverlayError({ errno, syscall: `spawn ${spawnfile}`, path: spawnfile, ...verdict });
  return Object.assign(error, { spawnargs: spawnargs.slice(1) });
}

/** Explains why the namespaces of the program could not be made. */
function explainNamespaces(word: 'unshare' | 'write', errno: number, isRootless: boolean): Verdict | undefined {
  const plan = new Plan();
  plan.isInChild = isRootless;
  const call: Call = calls[word];
  plan.add(call, []);
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
  const reason = reasons[errno] ?? pathReasons[errno] ?? explainErrno(errno, { purpose: 'show the mount' }).reason;
  return { reason, what, hint: 'name an existing directory' };
}

/** The kinds of namespaces that the program may have for itself: in words, and as a limit of sysctl(8) calls them. */
const kinds: Readonly<Record<string, readonly [words: string, limit: string]>> = {
  [namespaceFlags.pid]: ['process', 'pid'],
  [namespaceFlags.net]: ['network', 'net'],
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
      what: `the kernel refuses a new /proc for the program's own processes: another mount covers a part of the /proc here, as in most containers`,
      hint: either(
        'uncover it (docker run --security-opt systempaths=unconfined)',
        text`leave 'pid' out of ${option('unshare')}`,
      ),
    };
  }
  if (word === 'ids' && (errno === e.EINVAL || isDenied)) {
    return {
      reason: 'sub-ids-missing',
      what: `the program cannot have the ids ${args[0]}:${args[1]}, which its user namespace does not contain`,
      hint: either(text`pass ${option('subIds', true)} to the mount`, 'use the ids 0:0'),
    };
  }
  if (word === 'seal' && (isDenied || errno === e.ENOSYS)) {
    return {
      reason: 'option-unsupported',
      what: 'the launcher cannot execute a copy of itself in memory: memfd_create(2)',
      hint: text`allow it (sysctl -w vm.memfd_noexec=1), or leave ${option('mapRoot')} out`,
    };
  }
  if (word === 'keyring' && errno === e.EDQUOT) {
    return {
      reason: 'out-of-memory',
      what: 'the program cannot have a session keyring of its own: the limit of keys is reached, keyrings(7)',
      hint: 'end programs that have one, or have root raise the limit: sysctl -w kernel.keys.maxkeys=2000',
    };
  }
  return undefined;
}

function findVerdict(order: LaunchFailure['order'], errno: number, isRootless: boolean): Verdict {
  const { word, path } = order;
  const shown = path === undefined ? '' : ` ${quotePath(path)}`;
  const filtered = explainFilteredProgram(errno);
  if (filtered !== undefined) return filtered;
  const isolation = explainIsolation(order, errno);
  if (isolation !== undefined) return isolation;
  const isLock = word === 'lock' || word === 'confine';
  if (word === 'unshare' || word === 'write' || isLock) {
    const verdict = explainNamespaces(word === 'write' ? word : 'unshare', errno, isRootless || isLock);
    if (verdict !== undefined) return verdict;
  }
  if (errno === e.ENOSPC) {
    // A detached mount is in a namespace of its own.
    return word === 'attach' || word === 'hide'
      ? { reason: 'too-many-mounts', what: 'the program would exceed the limit of mounts in a mount namespace' }
      : outOfNamespaces;
  }
  if (errno === e.ENOSYS) {
    const isDev = word === 'dev' || word === 'nodev';
    const needed = word.startsWith('readonly')
      ? 'mount_setattr(2), which a read-only mount needs'
      : isDev
        ? 'mount_setattr(2), by which device nodes stop working'
        : 'open_tree(2) or move_mount(2)';
    const hint = isDev ? text`use a newer kernel, or pass ${option('dev', 'host')}` : 'use a newer kernel';
    return { reason: 'option-unsupported', what: `this kernel has no ${needed}`, hint };
  }
  if (word === 'private' || word === 'slave') {
    return { reason: 'no-privilege', what: 'this process may not leave its chroot, whose root is not a mount point' };
  }
  if (path !== undefined && errno === e.ESTALE && (word === 'mounted' || word === 'tree')) {
    return runSync(explainUnreached({ path, id: Number(order.args[1]) })) ?? replacedMount(path);
  }
  const type = path === undefined ? undefined : statPathSync(path, { flags: AT_SYMLINK_NOFOLLOW }).type;
  if ((word === 'attach' || word === 'clone') && errno === e.EINVAL && type === S_IFDIR) {
    return { reason: 'shown-before', what: `the detached mount cannot be shown at${shown}` };
  }
  if (word === 'attach') return explainAttach(path, errno, type);
  const whats: Readonly<Record<string, string>> = {
    seal: 'the launcher cannot have a copy of itself in memory',
    mounted: `the mount at${shown} cannot be opened`,
    tree: `the mount at${shown} cannot be opened`,
    readonly: `${shown.trim()} cannot be made read-only`,
    terminal: 'the program cannot be kept from putting input into the terminal',
    drop: 'the program cannot be kept from gaining capabilities',
    'readonly-kernel': 'the file systems of the kernel cannot be made read-only',
    take: `${shown.trim()} cannot be shown to the program`,
    tmpfs: `a tmpfs for${shown} cannot be made`,
    hostname: 'the host name of the program cannot be set',
    network: 'the loopback interface of the program cannot be brought up',
    hide: `${shown.trim()} cannot be hidden`,
    dev: 'the program cannot have a small /dev',
    nodev: `device nodes cannot be turned off in the mount at${shown}`,
    chdir: `the program cannot start in${shown}`,
  };
  const what = whats[word] ?? `the launcher failed at "${word}"`;
  const reason = pathReasons[errno];
  return reason === undefined ? { ...explainErrno(errno, { purpose: 'start the program' }), what } : { reason, what };
}

/** Explains why the program did not start. */
export function explainLaunch({ order, errno }: LaunchFailure, isRootless: boolean): Error {
  const { word, path } = order;
  if (word === 'hide' && errno === e.EBUSY) {
    return invalidArgumentValue('hidden', path, 'must not contain the root directory, in which the program itself is');
  }
  const isNamespace = ['unshare', 'write', 'lock', 'confine', 'init'].includes(word);
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
 * Starts a program that sees each of `mounts` at its place. No other process sees it there. All paths, including the
 * working directory, are as if it were mounted, so that git, node and npm work. The program runs as the same user. If a
 * mount is `rootless`, or the process may not mount, the program has no capability, and files of other users appear to
 * belong to nobody, except those of the subordinate ids of a mount with `subIds`.
 *
 * The result is Node's own ChildProcess, started through a launcher that becomes the program (unshare(2), open_tree(2),
 * move_mount(2), execve(2)). If the launcher fails, the child emits the event `error` and exits with code 127. The
 * mount is in use until the program and its children have ended. Before Linux 6.15 a detached mount can be shown to one
 * program only. The launcher closes all descriptors that `stdio` does not name: close_range(2).
 *
 * For a mount with `subIds` the call blocks the event loop until newuidmap(1) and newgidmap(1) have ended, usually for
 * some milliseconds. `timeout` and `signal` count from then on.
 *
 * `options` are those of `child_process.spawn`, and also `readonly`, `hidden` and `writable`: paths that the program can
 * only read, finds empty, or can write to. `unshare` and `mapRoot` give it namespaces of its own.
 * The program cannot undo `readonly`, `hidden` and `writable`: root has no capability over its mounts then, nor over
 * anything else outside.
 * With `unshare: ['pid']`, the ChildProcess is a process that waits for the program: it has another id than the program,
 * and SIGSTOP stops it alone.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: more than 64 mounts, or an id that is none
 * @throws {OverlayError} `reason` is `'sub-ids-missing'`, `'sub-ids-refused'`, `'out-of-descriptors'` or
 * `'out-of-threads'`, of a mount with `subIds`;
 * as the event's error: `reason` is `'rootless-forbidden'`, `'no-privilege'`, `'out-of-namespaces'`,
 * `'too-many-mounts'`, `'option-unsupported'`, `'not-mounted'`, `'target-missing'`, `'target-not-directory'`,
 * `'target-symlink'`, `'path-missing'`, `'path-not-directory'`, `'path-inaccessible'`, `'shown-before'` or, in a
 * chroot, `'proc-missing'`. It is `'program-missing'` or `'program-unexecutable'` if the program itself cannot start; the
 * error then also has the fields of that of node:child_process
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
  const options = toOptions(given, spawnNames);
  const checked = check(command, args, options);
  const owned = checked.mounts.flatMap(({ source }) => (source instanceof Mount ? [source] : []));
  const isRootless = owned.some((mount) => mount.isRootless) || kernelFeaturesSync().mayMount !== true;
  const hasSubIds = owned.some((mount) => internalsOf(mount).mounted.hasSubIds) || (checked.hasSubIds && isRootless);
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

/**
 * Returns the user namespace that locks the mounts, undefined if none is needed: a program without privilege
 * gets no capability by which it could undo them, and without restrictions there is nothing to undo.
 */
function toLock({ isRestricted, isolation }: Checked, contained: ContainedIds | undefined) {
  if (isolation.hasRoot) return { maps: rootMaps(contained), isNeeded: true };
  return isRestricted && contained === undefined ? { maps: sameMaps(), isNeeded: false } : undefined;
}

function launch(
  [command, args]: readonly [command: string, args: readonly string[]],
  options: SpawnOptions,
  checked: Checked,
  { user, contained }: WithoutPrivilege,
): ChildProcess {
  const isRootless = user !== undefined;
  const { readonly, hidden, writable, isolation, isRestricted, hasOwnDev, keepsCapabilities } = checked;
  const words = toCommand(command, args, options.shell);
  const stdio = toStdio(options.stdio);
  const own = stdio.length;
  // Only restrictions are compared with the places of mounts.
  const toPlace = (path: Path) => ({ path, real: isRestricted ? toReal(path) : path });
  const mounts = checked.mounts.map(({ source, target }): Placed => {
    const at = toPlace(target);
    if (!(source instanceof Mount)) {
      return { mount: typeof source === 'object' && 'tmpfs' in source ? source : { tree: source }, at };
    }
    const mounted = internalsOf(source).mounted;
    const { held } = mounted;
    return { mount: held === undefined ? mounted : stdio.push((held.spare ?? held).descriptor) - 1, at };
  });
  const report = stdio.push('pipe') - 1;
  const joined = user !== undefined && 'descriptor' in user ? { joined: stdio.push(user.descriptor) - 1 } : user;
  const ordered = orders({
    report,
    mounts,
    readonly: readonly.map(toPlace),
    hidden,
    writable: writable?.map(toReal),
    isContained: isolation.hasRoot,
    isRestricted,
    hasOwnDev,
    parent: checked.diesWithParent ? process.pid : undefined,
    unshared: isolation.unshared,
    hostname: isolation.hostname,
    lock: toLock(checked, contained),
    ids: toIds(isolation, contained),
    user: joined,
    keepsCapabilities,
    closed: toClosed(stdio),
    cwd: checked.cwd,
    argv0: options.argv0,
    command: words,
  });
  const child = start(toArguments(ordered), { ...pick(options, passedNames), stdio });
  const missing = child.pid === undefined ? missingNullDevice(stdio) : undefined;
  if (missing !== undefined) {
    child.once('error', () => {});
    throw missing;
  }
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
    fail(isCommand ? explainCommand(child, failure.errno) : explainLaunch(failure, isRootless));
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
