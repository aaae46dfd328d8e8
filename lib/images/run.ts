/** Images run as containers: by an OCI runtime, or by `spawn`, which needs neither a runtime nor privilege. */
import { type ChildProcess, type StdioOptions, spawn as spawnPlain } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { constants as numbers } from 'node:os';
import { normalize, resolve as resolvePath } from 'node:path';
import { type ApplyLimits, checkLimits, limitNames } from '../archives/apply-options.js';
import type { OwnerMaps } from '../archives/owner-maps.js';
import {
  checkBoolean,
  checkFunction,
  checkMilliseconds,
  checkSignal,
  checkText,
  checkWord,
  pick,
  toOptions,
} from '../arguments.js';
import { abortError, invalidArgumentType, invalidArgumentValue, type OverlayError, textsOf } from '../errors.js';
import { kernelFeaturesSync, needsUserXattr } from '../features/probe.js';
import { findProgram } from '../find-program.js';
import { calls } from '../kernel/calls.js';
import { LOCK_EX, LOCK_NB } from '../kernel/constants.js';
import { onAbort } from '../kernel/on-abort.js';
import { Plan } from '../kernel/plan.js';
import { ask, runSync } from '../kernel/task.js';
import { type Change, changes } from '../layers/changes.js';
import { unmount } from '../mounts/unmount-path.js';
import { ownIds } from '../namespaces/user-namespace.js';
import { type PathLike, pathString, quotePath, toAbsolute, toPath } from '../paths.js';
import { type Ended, endOf } from '../programs/run.js';
import { explainStart, missingNullDevice, spawn } from '../programs/spawn.js';
import { findSubIds, toRootMap } from '../rootless/sub-ids.js';
import { ending, layersOf, mountAll, mountDetached, unmountAll } from '../snapshots/mount-all.js';
import type { SnapshotMount } from '../snapshots/mounts.js';
import type { HeldSnapshot, Snapshotter } from '../snapshots/snapshotter.js';
import { makeTemporary, PID_FILE, RUNNING_FILE, removeTemporary, type Temporary } from '../snapshots/temporary.js';
import { option, render, text } from '../text.js';
import { type CommitImageOptions, checkCommitImageOptions, commitImage } from './commit.js';
import { withOwnNull } from './devices.js';
import type { ImageConfig } from './documents.js';
import { ImageError } from './errors.js';
import type { Image } from './layout.js';
import { checkPlaceInRoot, findUser, makeInRoot, toRealInRoot } from './rootfs.js';
import { type Bind, HOST_NAME, maskedPaths, toSpec } from './spec.js';
import { type Send, SIGNAL_FORM, type StopWay, stop, toSignalNumber } from './stop.js';
import { type UnpackOptions, unpack } from './unpack.js';

/** A directory or file of the host that a container sees. */
export interface Volume {
  readonly source: PathLike;
  /** An absolute path in the container. */
  readonly target: string;
  readonly readonly?: boolean | undefined;
}

/** A container that runs. */
export interface RunningContainer {
  /** The files of the container, while it runs: `/proc/self/fd/N` without a runtime. */
  readonly path: string;
  readonly process: ChildProcess;
}

export interface RunContainerOptions extends Pick<UnpackOptions, 'devices' | 'onProgress' | keyof ApplyLimits> {
  readonly snapshotter: Snapshotter;
  /** Takes the place of the image's Cmd. */
  readonly command?: readonly string[] | undefined;
  /** Takes the place of the image's Entrypoint and Cmd. */
  readonly entrypoint?: readonly string[] | undefined;
  /** Variables beside those of the image. */
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** Takes the place of the image's WorkingDir. */
  readonly cwd?: string | undefined;
  /** Takes the place of the image's User: `NAME`, `ID`, and either with `:GROUP`. */
  readonly user?: string | undefined;
  /** A volume that the image declares and that is not here is a directory of the container. */
  readonly volumes?: readonly Volume[] | undefined;
  /**
   * False: nothing but loopback. Default: the network of this process, with its /etc/hosts and /etc/resolv.conf, which
   * are read-only in the container. A volume at their place is used instead.
   */
  readonly network?: boolean | undefined;
  /**
   * The OCI runtime, a name or a path; false for none. Default: runc or crun, whichever is found, if this process has
   * privilege, else none.
   */
  readonly runtime?: string | false | undefined;
  /** Maps the user's subordinate ids too, so that the container has more users than root. Default: false. */
  readonly subIds?: boolean | undefined;
  /** As in node:child_process. Default: `'inherit'`. */
  readonly stdio?: StdioOptions | undefined;
  /** Stops the container: the program gets the image's StopSignal, SIGTERM by default. */
  readonly signal?: AbortSignal | undefined;
  /**
   * The milliseconds in which a program that is stopped may end by itself. Then it gets SIGKILL; at once if this is 0.
   * Default: 10,000.
   */
  readonly stopTimeout?: number | undefined;
  /** Called when the container's process has been started. */
  readonly onStart?: ((container: RunningContainer) => void) | undefined;
  /** Commits the container as an image with this tag. Default: the changes are discarded. */
  readonly commit?: string | Omit<CommitImageOptions, 'owners' | 'signal'> | undefined;
}

export interface ContainerResult {
  /** The exit code; 128 plus the number of the signal that ended the program. */
  readonly exitCode: number;
  /** The changes that the container has made. */
  readonly changes: readonly Change[];
  /** The image that was committed. */
  readonly image: Image | undefined;
}

/** The options that are those of `unpack`. */
const ofUnpack = ['devices', 'onProgress', ...limitNames] as const;

export const runNames: ReadonlySet<string> = new Set<keyof RunContainerOptions>([
  'snapshotter',
  'command',
  'entrypoint',
  'env',
  'cwd',
  'user',
  'volumes',
  'network',
  'runtime',
  'subIds',
  'stdio',
  'signal',
  'stopTimeout',
  'onStart',
  'commit',
  ...ofUnpack,
]);

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

function toRuntime(given: unknown): string | undefined {
  if (given === false) return undefined;
  if (given === undefined) {
    const isPrivileged = kernelFeaturesSync().mayMount === true && !kernelFeaturesSync().userNamespace;
    return isPrivileged ? (findProgram('runc') ?? findProgram('crun')) : undefined;
  }
  if (typeof given !== 'string') throw invalidArgumentType('runtime', 'a program, or false', given);
  const found = given.includes('/') ? pathString(toAbsolute(given)) : findProgram(given);
  if (found === undefined) throw invalidArgumentValue('runtime', given, 'is not in PATH');
  return found;
}

function checkTexts(value: unknown, name: string): readonly string[] | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value)) throw invalidArgumentType(name, 'a list of strings', value);
  return value.map((one, i) => checkText(one, `${name}[${i}]`));
}

function checkVariables(value: unknown): void {
  if (value === undefined) return;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArgumentType('env', 'an object of strings', value);
  }
  for (const [name, text] of Object.entries(value)) {
    checkText(name, 'env');
    if (name === '' || name.includes('=')) throw invalidArgumentValue('env', name, 'must have names without =');
    checkText(text, `env.${name}`);
  }
}

const ofVolumes: ReadonlySet<string> = new Set<keyof Volume>(['source', 'target', 'readonly']);

/** Returns whether a volume can be at this path: the root and /proc are the container's own. */
function isPlace(target: string): boolean {
  const isIn = target.startsWith('/') && !target.split('/').includes('..');
  return isIn && !/^\/(proc(\/.*)?)?$/.test(normalize(target));
}

function checkBinds(value: unknown): Bind[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalidArgumentType('volumes', 'a list', value);
  return value.map((volume: Volume | undefined, i) => {
    if (volume === undefined) throw invalidArgumentType(`volumes[${i}]`, 'an object', volume);
    const { source, target, readonly } = toOptions(volume, ofVolumes, `volumes[${i}]`);
    if (!isPlace(checkText(target, `volumes[${i}].target`))) {
      throw invalidArgumentValue(
        `volumes[${i}].target`,
        target,
        'must be an absolute path without .., and not / or in /proc',
      );
    }
    const path = pathString(toAbsolute(toPath(source, `volumes[${i}].source`)));
    const isReadonly = checkBoolean(readonly, `volumes[${i}].readonly`) ?? false;
    const found = statSync(path, { throwIfNoEntry: false });
    if (found === undefined)
      throw invalidArgumentValue(`volumes[${i}].source`, path, 'must be a file or directory that exists');
    return { source: path, target, isReadonly, isDirectory: found.isDirectory() };
  });
}

/** Returns the variables of the container: those of the image, then those of the caller. */
function toEnv(image: readonly string[], own: Readonly<Record<string, string>>, home: string): Record<string, string> {
  const given = new Map(
    image.map((line): [string, string] => {
      const at = line.indexOf('=');
      return at < 0 ? [line, ''] : [line.slice(0, at), line.slice(at + 1)];
    }),
  );
  return Object.fromEntries([['PATH', PATH], ['HOME', home], ...given, ...Object.entries(own)]);
}

function toCommand(image: Image, { command, entrypoint }: RunContainerOptions): readonly string[] {
  const { Entrypoint, Cmd } = image.config;
  const own = checkTexts(entrypoint, 'entrypoint');
  const args = [
    ...(own ?? Entrypoint ?? []),
    ...(checkTexts(command, 'command') ?? (own === undefined ? Cmd : []) ?? []),
  ];
  if (args[0] !== undefined && args[0] !== '') return args;
  throw new ImageError({
    code: 'ERR_IMAGE_COMMAND',
    what: 'the image does not say what to run',
    hint: 'name a command',
    digest: image.digest,
  });
}

/** Returns how the container is stopped. */
function toStopWay({ config, digest }: Image, stopTimeout: unknown): StopWay {
  const timeout = checkMilliseconds(stopTimeout, 'stopTimeout') ?? 10_000;
  const signal = toSignalNumber(config.StopSignal || 'SIGTERM');
  if (signal !== undefined) return { signal, timeout };
  throw new ImageError({
    code: 'ERR_IMAGE_INVALID',
    what: `the image's config.StopSignal is ${quotePath(String(config.StopSignal).slice(0, 200))}, which is no signal`,
    hint: `make the image anew with ${SIGNAL_FORM}`,
    digest,
  });
}

/** A container, ready to be started. */
interface Prepared {
  readonly options: RunContainerOptions;
  readonly image: Image;
  readonly args: readonly string[];
  readonly binds: readonly Bind[];
  readonly stopWay: StopWay;
  /** The mounts of the container's snapshot. */
  readonly mounts: readonly SnapshotMount[];
  /** A directory of its own, which goes with it. */
  readonly temporary: Temporary;
}

/** The files by which programs find other machines: a container on the host's network has the host's. */
const networkFiles = ['/etc/hosts', '/etc/resolv.conf'];

/** Returns the binds of these files, where the caller's own leave room for them. */
function bindsOfNetwork(own: readonly Bind[]): Bind[] {
  const isOwn = (path: string): boolean =>
    own.some(({ target }) => `${path}/`.startsWith(`${normalize(target)}/`.replace(/\/+$/, '/')));
  return networkFiles
    .filter((path) => existsSync(path) && !isOwn(path))
    .map((path) => ({ source: path, target: path, isReadonly: true, isDirectory: false }));
}

/** The directories on which every container has mounts of its own. */
const ownDirectories = ['/proc', '/dev', '/sys'] as const;

const isBelow = (path: string, above: string): boolean => path.startsWith(`${above}/`);
const isOwn = (path: string): boolean => ownDirectories.some((own) => path === own || isBelow(path, own));

/** Makes what the configuration names and the image lacks. */
async function furnish(root: string, cwd: string, { Volumes }: ImageConfig): Promise<void> {
  for (const path of ownDirectories) {
    await makeInRoot(root, path);
    await checkPlaceInRoot(root, path, 'directory');
  }
  await makeInRoot(root, cwd);
  // A file, or a link that leads nowhere, stays as it is.
  for (const path of Object.keys(Volumes ?? {})) await makeInRoot(root, path).catch(() => {});
}

/**
 * Makes the places of volumes, and returns the volumes at their real places, the outer before the inner: no symbolic
 * link of the image, or of an outer volume, is left for those that mount them.
 */
async function placeBinds(root: string, binds: readonly Bind[]): Promise<Bind[]> {
  const depth = (path: string): number => path.split('/').length;
  const given = binds.map((bind) => ({ ...bind, target: normalize(bind.target).replace(/(?<=.)\/$/, '') }));
  given.sort((a, b) => depth(a.target) - depth(b.target));
  const placed: { readonly from: string; readonly bind: Bind }[] = [];
  for (const bind of given) {
    const kind = bind.isDirectory ? 'directory' : 'file';
    const outer = placed.findLast(({ from, bind: { isDirectory } }) => isDirectory && isBelow(bind.target, from));
    let { target } = bind;
    if (outer !== undefined) {
      const inner = target.slice(outer.from.length);
      await makeInRoot(outer.bind.source, inner, kind);
      await checkPlaceInRoot(outer.bind.source, inner, kind);
      target = `${outer.bind.target}${inner}`;
    } else if (!isOwn(target)) {
      await makeInRoot(root, target, kind);
      const real = await toRealInRoot(root, target);
      // A link into a mount that the container gets later would lead elsewhere then.
      target = real === undefined || real === '/' || isOwn(real) ? target : real;
      await checkPlaceInRoot(root, target, kind);
    }
    placed.push({ from: bind.target, bind: { ...bind, target } });
  }
  return placed.map(({ bind }) => bind);
}

async function resolve(root: string, { image, options, binds }: Prepared) {
  const { config } = image;
  // An image may leave out the first slash.
  const cwd = options.cwd ?? normalize(`/${config.WorkingDir ?? ''}`);
  const user = await findUser(root, options.user ?? config.User ?? '');
  await furnish(root, cwd, config);
  const { network = true } = options;
  const ofNetwork: Bind[] = [];
  for (const bind of network ? bindsOfNetwork(binds) : []) {
    await makeInRoot(root, bind.target, 'file');
    // A symbolic link that leads nowhere stays as it is.
    if ((await toRealInRoot(root, bind.target)) !== undefined) ofNetwork.push(bind);
  }
  const placed = await placeBinds(root, [...ofNetwork, ...binds]);
  return { cwd, user, binds: placed, env: toEnv(config.Env ?? [], options.env ?? {}, user.home) };
}

/** Waits until a container has ended. Stops it before if the signal aborts, or if `onStart` throws. */
async function started(child: ChildProcess, path: string, prepared: Prepared, send: Send): Promise<Ended> {
  const { onStart, signal } = prepared.options;
  const ended = endOf(child);
  ended.catch(() => {});
  let stopped: Promise<void> | undefined;
  const stopOnce = (): Promise<void> => {
    stopped ??= stop(child, send, prepared.stopWay);
    // Else its error is nobody's after the signal.
    stopped.catch(() => {});
    return stopped;
  };
  const forget = signal && onAbort(signal, () => void stopOnce());
  try {
    if (signal?.aborted === true) void stopOnce();
    onStart?.({ path, process: child });
    const outcome = await ended;
    if (stopped !== undefined && signal !== undefined) throw abortError(signal);
    return outcome;
  } catch (error) {
    await stopOnce();
    await ended.catch(() => {});
    throw error;
  } finally {
    forget?.();
  }
}

async function runBySpawn(prepared: Prepared): Promise<Ended> {
  const { options, args, mounts } = prepared;
  const { stdio = 'inherit', subIds = false, network = true } = options;
  const mount = await mountDetached(mounts, { rootless: 'auto', subIds, nodev: true });
  const perform = async () => {
    const { cwd, user, env, binds } = await resolve(mount.path, prepared);
    const [command = '', ...rest] = args;
    const present = (paths: readonly string[]) => paths.filter((path) => existsSync(path));
    const child = spawn(command, rest, {
      mounts: [
        { source: mount, target: '/' },
        ...binds.map(({ source, target, isReadonly }) => ({ source, target, readonly: isReadonly })),
      ],
      dev: 'own',
      dieWithParent: true,
      hidden: present(maskedPaths),
      cwd,
      env,
      unshare: network ? ['pid', 'ipc'] : ['net', 'pid', 'ipc'],
      hostname: HOST_NAME,
      mapRoot: true,
      uid: user.uid,
      gid: user.gid,
      // A namespace of one group has no others: no file belongs to them.
      groups: mount.isRootless && !subIds ? [] : user.groups,
      stdio,
    });
    return started(child, mount.path, prepared, (signal) => process.kill(child.pid as number, signal));
  };
  return ending(perform, () => mount.unmount());
}

/** Returns the last error in a runtime's log. */
function errorIn(log: string): string | undefined {
  // A runtime that could not begin has no log.
  const lines = existsSync(log) ? readFileSync(log, 'utf8').split('\n') : [];
  const messages = lines.map((line): unknown => {
    try {
      const { level, msg } = JSON.parse(line) as { readonly level?: unknown; readonly msg?: unknown };
      return level === 'error' || level === 'fatal' ? msg : undefined;
    } catch {
      // A line that was cut off.
      return undefined;
    }
  });
  return messages.findLast((message) => typeof message === 'string') as string | undefined;
}

/** The error for a runtime that could not be started. */
function cannotStart(runtime: string, cause: Error): unknown {
  const explained = explainStart(cause, `start the runtime ${quotePath(runtime)}`);
  if (explained !== cause) return explained;
  const { code } = cause as NodeJS.ErrnoException;
  const what = `the runtime ${quotePath(runtime)} cannot be started (${code})`;
  return new ImageError({ code: 'ERR_IMAGE_RUNTIME', what, hint: OTHER_RUNTIME }, { cause });
}

const OTHER_RUNTIME = text`name another one, or none, as ${option('runtime')}`;

/** The error for a runtime that has failed, mostly before the program began. */
function runtimeFailed(
  runtime: string,
  [code, signal]: Ended,
  hasBegun: boolean,
  said: string | undefined,
): ImageError {
  const reason = said === undefined ? '' : `: ${said}`;
  const when = hasBegun ? '' : ' before the program of the container began';
  return new ImageError({
    code: 'ERR_IMAGE_RUNTIME',
    what: `the runtime ${quotePath(runtime)} ended with ${signal ?? code}${when}${reason}`,
    hint: text`correct what it says, or ${OTHER_RUNTIME}`,
  });
}

const isCrun = (runtime: string): boolean => runtime.endsWith('/crun');

/** crun cannot use all settings of control groups; the container has no limits anyway. */
const waysOf = (runtime: string): string[] => (isCrun(runtime) ? ['--cgroup-manager=disabled'] : []);

/** Starts a process that holds a file locked until it ends: flock(2). */
function holding(path: string, stdio: StdioOptions, start: (stdio: StdioOptions) => ChildProcess): ChildProcess {
  const descriptor = openSync(path, 'w', 0o600);
  try {
    const plan = new Plan();
    plan.add(calls.flock, [descriptor, LOCK_EX | LOCK_NB]);
    runSync(ask(plan));
    const given = Array.isArray(stdio) ? stdio : [stdio, stdio, stdio];
    return start([...given, ...Array(Math.max(0, 3 - given.length)).fill('pipe'), descriptor] as StdioOptions);
  } finally {
    closeSync(descriptor);
  }
}

async function runByRuntime(runtime: string, prepared: Prepared): Promise<Ended> {
  const { options, args, temporary } = prepared;
  const { path: directory, name: id } = temporary;
  const { stdio = 'inherit', network = true } = options;
  // The image's device nodes are those of the host.
  const mounts = prepared.mounts.map((mount) => ({ ...mount, options: [...(mount.options ?? []), 'nodev'] }));
  const root = `${directory}/rootfs`;
  mkdirSync(root, 0o700);
  const perform = async () => {
    await mountAll(mounts, root);
    const resolved = await resolve(root, prepared);
    const hasTerminal = stdio === 'inherit' && process.stdin.isTTY === true && process.stdout.isTTY === true;
    const remount = isCrun(runtime) ? (findProgram('mount') ?? '/bin/mount') : undefined;
    const spec = toSpec({ root, args, hasNetwork: network, hasTerminal, remount, ...resolved });
    writeFileSync(`${directory}/config.json`, JSON.stringify(spec));
    const pidFile = `${directory}/${PID_FILE}`;
    const log = `${directory}/log`;
    const logged = ['--log', log, '--log-format', 'json'];
    const ways = waysOf(runtime);
    const start = (streams: StdioOptions) =>
      holding(`${directory}/${RUNNING_FILE}`, streams, (all) =>
        spawnPlain(runtime, [...ways, ...logged, 'run', '--bundle', directory, '--pid-file', pidFile, id], {
          stdio: all,
        }),
      );
    const missing = missingNullDevice(stdio);
    if (missing !== undefined) throw missing;
    // crun gives its standard streams to the user of the container.
    const child = isCrun(runtime) ? withOwnNull(directory, stdio, start) : start(stdio);
    const send: Send = async (signal) => {
      const sent = endOf(spawnPlain(runtime, [...ways, 'kill', id, String(signal)], { stdio: 'ignore' }));
      return (await sent.catch(() => [undefined]))[0] === 0;
    };
    const outcome = await started(child, root, prepared, send).catch((error) => {
      throw child.pid === undefined ? cannotStart(runtime, error) : error;
    });
    const [hasBegun, said] = [existsSync(pidFile), errorIn(log)];
    if (!hasBegun || (outcome[0] !== 0 && said !== undefined)) throw runtimeFailed(runtime, outcome, hasBegun, said);
    return outcome;
  };
  return ending(perform, async () => {
    await unmountAll(mounts, root).catch((error: OverlayError) => {
      if (error.reason !== 'mount-busy') throw error;
      // A process outside is in it, to which `onStart` has given the path. The work of the container is not lost for it.
      return unmount(root, { detach: true });
    });
  });
}

/** @internal The owners of a plain user's files in the image: those that they have in the container. */
export function ownersInside(subIds: boolean): OwnerMaps | undefined {
  // With privilege, the container has the ids of this process.
  if (!subIds || kernelFeaturesSync().mayMount === true) return undefined;
  const [{ uid, gid }, { uids, gids }] = [ownIds(), findSubIds()];
  return { uidMap: toRootMap(uid, uids), gidMap: toRootMap(gid, gids) };
}

/** Returns true if a runtime has failed after the program had begun: what this has done is not lost for it. */
const hasRun = (error: unknown, { path }: Temporary): boolean =>
  error instanceof ImageError && error.code === 'ERR_IMAGE_RUNTIME' && existsSync(`${path}/${PID_FILE}`);

/** The part of the label by which a clean-up ends a container of a runtime. */
const ofRuntime = (runtime: string) => ({
  // A clean-up may have another working directory.
  runtime: [resolvePath(runtime), ...waysOf(runtime)],
  cgroups: existsSync(CGROUPS) ? readFileSync(CGROUPS, 'utf8') : '',
});
const CGROUPS = '/proc/self/cgroup';

interface Kept {
  readonly image: Image;
  readonly key: string;
  readonly tag: string;
  readonly root: string;
  readonly subIds: boolean;
}

/** Quotes a word for a shell. */
const quoteWord = (word: string): string =>
  /^[\w./:@%+=,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;

/** The error of a container whose work is kept: its snapshot stays, and the message has the command that commits it. */
function notCommitted(cause: unknown, { image, key, tag, root, subIds }: Kept): ImageError {
  const command = [
    ...['overlayfs', 'image', 'commit', '--root', root, ...(subIds ? ['--sub-ids'] : [])],
    ...[`${image.layout.path}:${image.digest}`, key, tag],
  ];
  const { message, hint = 'remove the cause' } = textsOf(cause as object) ?? {
    message: (cause as Error).message,
    hint: undefined,
  };
  const why = render(message);
  return new ImageError(
    {
      code: 'ERR_IMAGE_COMMIT',
      what: `the container has ended, and its changes could not be committed: ${why.replace(/\.$/, '')}. They are in the snapshot '${key}'`,
      hint: text`${hint}, then commit them: ${command.map(quoteWord).join(' ')}`,
      path: (cause as { readonly path?: string }).path,
      key,
    },
    { cause },
  );
}

async function collect(iterable: AsyncIterable<Change>): Promise<Change[]> {
  const all: Change[] = [];
  for await (const one of iterable) all.push(one);
  return all;
}

/**
 * Runs an image as a container: unpacks it, prepares a snapshot on it, mounts this, and runs the program that the image's
 * configuration names, with its user, variables, working directory and the volumes. An OCI runtime, runc(8) or crun(1),
 * makes the container if this process has privilege and there is one. Else `spawn` does: with a user namespace in which
 * the program is root, its own processes, IPC and host name, a small /dev, and the snapshot as its root.
 *
 * When the program has ended, the changes are listed, and committed as a new image or discarded. The snapshot goes,
 * unless the commit fails: it then keeps the changes, for `commitImage`.
 *
 * @throws {ImageError} as `unpack` and `commitImage`; `ERR_IMAGE_COMMAND`, `ERR_IMAGE_USER_MISSING`; `ERR_IMAGE_INVALID`: the
 * place of a mount, such as /dev, is a symbolic link or of another kind in the image, or its StopSignal is no signal;
 * `ERR_IMAGE_COMMIT`: the changes could
 * not be committed, and the snapshot `key` has them
 * @throws {OverlayError} as `mountOverlay` and `spawn`: `reason` is `'sub-ids-missing'` for a user that a plain user's
 * container does not have without `subIds`; without a runtime, `'program-missing'` or `'program-unexecutable'`
 * @throws {Error} `ABORT_ERR`
 */
export async function runContainer(image: Image, given: RunContainerOptions): Promise<ContainerResult> {
  return runContainerWith(image, given);
}

/** A container that has a snapshot, for the one who looks after it. */
export interface PreparedContainer {
  readonly image: Image;
  readonly snapshotter: Snapshotter;
  readonly key: string;
  readonly mounts: readonly SnapshotMount[];
  readonly createdBy: string;
  readonly subIds: boolean;
}

interface Attendant {
  onPrepared(container: PreparedContainer): void;
  /** Called when the program has ended: the snapshot stays until the promise is fulfilled. */
  onEnded(exitCode: number): Promise<void>;
}

/** Checks the options that are passed on as they are. */
function checkSimple(options: RunContainerOptions): void {
  const { cwd, user, onStart, devices } = options;
  for (const name of ['network', 'subIds'] as const) checkBoolean(options[name], name);
  if (cwd !== undefined && !checkText(cwd, 'cwd').startsWith('/')) {
    throw invalidArgumentValue('cwd', cwd, 'must be an absolute path');
  }
  if (user !== undefined) checkText(user, 'user');
  checkVariables(options.env);
  checkFunction(onStart, 'onStart');
  checkWord(devices, 'devices', ['create', 'skip', 'fail']);
  checkLimits(options);
}

/** @internal */
export async function runContainerWith(
  image: Image,
  given: RunContainerOptions,
  attendant?: Attendant,
): Promise<ContainerResult> {
  const options = toOptions(given, runNames);
  const { snapshotter, commit, subIds = false } = options;
  if (typeof snapshotter !== 'object' || snapshotter === null) {
    throw invalidArgumentType('snapshotter', 'a Snapshotter', snapshotter);
  }
  const signal = checkSignal(options.signal);
  checkSimple(options);
  const runtime = toRuntime(options.runtime);
  const binds = checkBinds(options.volumes);
  const args = toCommand(image, options);
  const stopWay = toStopWay(image, options.stopTimeout);
  const owners = ownersInside(subIds);
  const committing: CommitImageOptions | undefined =
    commit === undefined
      ? undefined
      : {
          createdBy: args.join(' '),
          ...(typeof commit === 'string' ? { tag: commit } : commit),
          ...(owners !== undefined && { owners }),
          ...(signal !== undefined && { signal }),
        };
  // These errors are found before the container does its work.
  if (committing !== undefined) {
    checkCommitImageOptions(committing);
    await image.layout.checkWritable();
  }
  const { chainId } = await unpack(image, snapshotter, {
    ...pick(options, ofUnpack),
    ...(signal !== undefined && { signal }),
  });
  const key = `container ${randomBytes(12).toString('hex')}`;
  const temporary = makeTemporary('container', runtime === undefined ? {} : ofRuntime(runtime));
  let held: HeldSnapshot | undefined;
  const keep = async (cause: unknown): Promise<never> => {
    if (committing === undefined) throw cause;
    await held?.keep();
    held = undefined;
    throw notCommitted(cause, { image, key, tag: committing.tag, root: snapshotter.root, subIds });
  };
  const perform = async (): Promise<ContainerResult> => {
    held = await snapshotter.hold(key, chainId);
    const { mounts } = held;
    attendant?.onPrepared({ image, snapshotter, key, mounts, createdBy: args.join(' '), subIds });
    const prepared: Prepared = { options, image, args, binds, stopWay, mounts, temporary };
    const ran = runtime === undefined ? runBySpawn(prepared) : runByRuntime(runtime, prepared);
    const [code, name] = await ran.catch((error) => {
      if (hasRun(error, temporary)) return keep(error);
      throw error;
    });
    const exitCode = name === null ? (code ?? 0) : 128 + numbers.signals[name];
    if (attendant !== undefined) {
      await attendant.onEnded(exitCode);
      return { exitCode, changes: [], image: undefined };
    }
    const finish = async (): Promise<ContainerResult> => {
      const { upper, lowers } = layersOf(mounts);
      const found = await collect(changes({ upperdir: upper, lowerdir: lowers, userxattr: needsUserXattr() }));
      if (committing === undefined) return { exitCode, changes: found, image: undefined };
      const committed = await commitImage(image, snapshotter, key, committing);
      return { exitCode, changes: found, image: committed };
    };
    return finish().catch(keep);
  };
  try {
    return await perform();
  } finally {
    // A directory that stays is no reason to lose the result.
    await held?.remove().catch(() => {});
    await removeTemporary(temporary);
  }
}
