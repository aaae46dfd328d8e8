/** Images run as containers: by an OCI runtime, or by `spawn`, which needs neither a runtime nor privilege. */
import { type ChildProcess, type StdioOptions, spawn as spawnPlain } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmdirSync, statSync, writeFileSync } from 'node:fs';
import { constants as numbers, tmpdir } from 'node:os';
import { normalize } from 'node:path';
import type { OwnerMaps } from '../archives/owner-maps.js';
import { checkBoolean, checkFunction, checkSignal, checkText, toOptions } from '../arguments.js';
import { abortError, invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { kernelFeaturesSync } from '../features/probe.js';
import { findProgram } from '../find-program.js';
import { onAbort } from '../kernel/on-abort.js';
import { pause, run } from '../kernel/task.js';
import { type Change, changes } from '../layers/changes.js';
import { removeDirectory } from '../layers/remove.js';
import { ownIds } from '../namespaces/user-namespace.js';
import { type PathLike, pathString, toAbsolute, toPath } from '../paths.js';
import { kernelPaths } from '../programs/launch.js';
import { spawn } from '../programs/spawn.js';
import { findSubIds, toRootMap } from '../rootless/sub-ids.js';
import { ending, layersOf, mountAll, mountDetached, unmountAll } from '../snapshots/mount-all.js';
import type { SnapshotMount } from '../snapshots/mounts.js';
import type { Snapshotter } from '../snapshots/snapshotter.js';
import { type CommitImageOptions, checkCommitImageOptions, commitImage } from './commit.js';
import { makeDevices, withOwnNull } from './devices.js';
import type { ImageConfig } from './documents.js';
import { ImageError } from './errors.js';
import type { Image } from './layout.js';
import { findUser, isInRoot, makeInRoot } from './rootfs.js';
import { type Bind, maskedPaths, toSpec } from './spec.js';
import { needsUserXattr, type UnpackProgress, unpack } from './unpack.js';

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

export interface RunContainerOptions {
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
  readonly signal?: AbortSignal | undefined;
  /** Called when the container's process has been started. */
  readonly onStart?: ((container: RunningContainer) => void) | undefined;
  readonly onProgress?: ((progress: UnpackProgress) => void) | undefined;
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

const known: ReadonlySet<string> = new Set<keyof RunContainerOptions>([
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
  'onStart',
  'onProgress',
  'commit',
]);

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

function toRuntime(given: unknown): string | undefined {
  if (given === false) return undefined;
  if (given === undefined) {
    const isPrivileged = kernelFeaturesSync().mayMount === true && !kernelFeaturesSync().userNamespace;
    return isPrivileged ? (findProgram('runc') ?? findProgram('crun')) : undefined;
  }
  if (typeof given !== 'string') throw invalidArgumentType('runtime', 'a program, or false', given);
  const found = given.includes('/') ? given : findProgram(given);
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
  return isIn && !['/', '/proc', '/proc/'].includes(normalize(target));
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
        'must be an absolute path without .., and not / or /proc',
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

/** A container, ready to be started. */
interface Prepared {
  readonly options: RunContainerOptions;
  readonly image: Image;
  readonly args: readonly string[];
  readonly binds: readonly Bind[];
  /** The mounts of the container's snapshot. */
  readonly mounts: readonly SnapshotMount[];
  /** A directory of its own, which goes with it. */
  readonly directory: string;
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

/** Makes what the configuration names and the image lacks. */
async function furnish(root: string, cwd: string, { Volumes }: ImageConfig, binds: readonly Bind[]): Promise<void> {
  for (const path of ['/proc', '/dev', '/sys', cwd]) await makeInRoot(root, path);
  // A file, or a link that leads nowhere, stays as it is.
  for (const path of Object.keys(Volumes ?? {})) await makeInRoot(root, path).catch(() => {});
  for (const { target, isDirectory } of binds) await makeInRoot(root, target, isDirectory ? 'directory' : 'file');
}

async function resolve(root: string, { image, options, binds }: Prepared) {
  const { config } = image;
  // An image may leave out the first slash.
  const cwd = options.cwd ?? normalize(`/${config.WorkingDir ?? ''}`);
  const user = await findUser(root, options.user ?? config.User ?? '');
  const { network = true } = options;
  const ofNetwork: Bind[] = [];
  for (const bind of network ? bindsOfNetwork(binds) : []) {
    await makeInRoot(root, bind.target, 'file');
    // A symbolic link that leads nowhere stays as it is.
    if (await isInRoot(root, bind.target)) ofNetwork.push(bind);
  }
  await furnish(root, cwd, config, binds);
  return { cwd, user, binds: [...ofNetwork, ...binds], env: toEnv(config.Env ?? [], options.env ?? {}, user.home) };
}

type Ended = readonly [code: number | null, signal: NodeJS.Signals | null];

/** Waits until a process has ended and its streams are closed. Then throws its error, if it has one. */
const endOf = (child: ChildProcess): Promise<Ended> =>
  new Promise((resolve, reject) => {
    let failed: Error | undefined;
    child.on('error', (error) => {
      failed ??= error;
      if (child.pid === undefined) reject(error);
    });
    child.on('close', (...outcome: Ended) => (failed === undefined ? resolve(outcome) : reject(failed)));
  });

/** Waits until a container has ended. Ends it before if the signal aborts, or if `onStart` throws. */
async function started(
  child: ChildProcess,
  path: string,
  { onStart, signal }: RunContainerOptions,
  kill: () => unknown = () => child.kill('SIGKILL'),
): Promise<Ended> {
  const ended = endOf(child);
  ended.catch(() => {});
  let isAborted = false;
  const abort = (): void => {
    isAborted = true;
    kill();
  };
  const forget = signal && onAbort(signal, abort);
  try {
    if (signal?.aborted === true) abort();
    onStart?.({ path, process: child });
    const outcome = await ended;
    if (isAborted && signal !== undefined) throw abortError(signal);
    return outcome;
  } catch (error) {
    await kill();
    await ended.catch(() => {});
    throw error;
  } finally {
    forget?.();
  }
}

async function runBySpawn(prepared: Prepared): Promise<Ended> {
  const { options, args, mounts, directory } = prepared;
  const { stdio = 'inherit', subIds = false, network = true } = options;
  const mount = await mountDetached(mounts, { rootless: 'auto', subIds, nodev: true });
  const perform = async () => {
    const { cwd, user, env, binds } = await resolve(mount.path, prepared);
    const [command = '', ...rest] = args;
    const present = (paths: readonly string[]) => paths.filter((path) => existsSync(path));
    const child = spawn(command, rest, {
      mount,
      at: '/',
      mounts: [...makeDevices(directory), ...binds.map(({ source, target }) => ({ mount: source, at: target }))],
      readonly: [
        '/sys',
        ...present(kernelPaths),
        ...binds.flatMap(({ target, isReadonly }) => (isReadonly ? [target] : [])),
      ],
      hidden: present(maskedPaths),
      cwd,
      env,
      network,
      pids: 'own',
      ipc: 'own',
      uts: 'own',
      root: true,
      uid: user.uid,
      gid: user.gid,
      // A namespace of one group has no others: no file belongs to them.
      groups: mount.isRootless && !subIds ? [] : user.groups,
      stdio,
    });
    return started(child, mount.path, options);
  };
  return ending(perform, () => mount.unmount());
}

async function runByRuntime(runtime: string, prepared: Prepared): Promise<Ended> {
  const { options, args, directory } = prepared;
  const { stdio = 'inherit', network = true } = options;
  // The image's device nodes are those of the host.
  const mounts = prepared.mounts.map((mount) => ({ ...mount, options: [...(mount.options ?? []), 'nodev'] }));
  // Not in `directory`, which is removed with all that is in it.
  const root = mkdtempSync(`${tmpdir()}/overlayfs-rootfs-`);
  const perform = async () => {
    await mountAll(mounts, root);
    const resolved = await resolve(root, prepared);
    const hasTerminal = stdio === 'inherit' && process.stdin.isTTY === true && process.stdout.isTTY === true;
    const isCrun = runtime.endsWith('/crun');
    const remount = isCrun ? (findProgram('mount') ?? '/bin/mount') : undefined;
    const spec = toSpec({ root, args, hasNetwork: network, hasTerminal, remount, ...resolved });
    writeFileSync(`${directory}/config.json`, JSON.stringify(spec));
    const id = `overlayfs-${randomBytes(8).toString('hex')}`;
    // crun cannot use all settings of control groups; the container has no limits anyway.
    const ways = isCrun ? ['--cgroup-manager=disabled'] : [];
    const start = (streams: StdioOptions) =>
      spawnPlain(runtime, [...ways, 'run', '--bundle', directory, id], { stdio: streams });
    // crun gives its standard streams to the user of the container.
    const child = isCrun ? withOwnNull(directory, stdio, start) : start(stdio);
    // A runtime knows a container only some time after its program has started. It removes one that has ended.
    const kill = async (): Promise<void> => {
      for (let left = 250; child.pid !== undefined && child.exitCode === null && child.signalCode === null; left--) {
        if (left === 0) child.kill('SIGKILL');
        await endOf(spawnPlain(runtime, [...ways, 'kill', id, 'KILL'], { stdio: 'ignore' })).catch(() => {});
        await run(pause(20));
      }
    };
    return started(child, root, options, kill);
  };
  return ending(perform, async () => {
    await unmountAll(mounts, root);
    rmdirSync(root);
  });
}

/** The owners of a plain user's files in the image: those that they have in the container. */
function ownersInside(subIds: boolean): OwnerMaps | undefined {
  // With privilege, the container has the ids of this process.
  if (!subIds || kernelFeaturesSync().mayMount === true) return undefined;
  const [{ uid, gid }, { uids, gids }] = [ownIds(), findSubIds()];
  return { uidMap: toRootMap(uid, uids), gidMap: toRootMap(gid, gids) };
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
 * When the program has ended, the changes are listed, and committed as a new image or discarded. The snapshot goes
 * in any case.
 *
 * @throws {ImageError} as `unpack` and `commitImage`; `ERR_IMAGE_COMMAND`, `ERR_IMAGE_USER_MISSING`
 * @throws {OverlayError} as `mountOverlay` and `spawn`: `reason` is `'sub-ids-missing'` for a user that a plain user's
 * container does not have without `subIds`
 * @throws {Error} `ABORT_ERR`; without a runtime, `ENOENT` or `EACCES`: the program does not exist in the image, or cannot be
 * executed. A runtime prints this, and has an exit code of its own for it.
 */
export async function runContainer(image: Image, given: RunContainerOptions): Promise<ContainerResult> {
  const options = toOptions(given, known);
  const { snapshotter, commit, cwd, user, onStart, onProgress, subIds = false } = options;
  if (typeof snapshotter !== 'object' || snapshotter === null) {
    throw invalidArgumentType('snapshotter', 'a Snapshotter', snapshotter);
  }
  const signal = checkSignal(options.signal);
  for (const name of ['network', 'subIds'] as const) checkBoolean(options[name], name);
  if (cwd !== undefined && !checkText(cwd, 'cwd').startsWith('/')) {
    throw invalidArgumentValue('cwd', cwd, 'must be an absolute path');
  }
  if (user !== undefined) checkText(user, 'user');
  checkVariables(options.env);
  checkFunction(onStart, 'onStart');
  const runtime = toRuntime(options.runtime);
  const binds = checkBinds(options.volumes);
  const args = toCommand(image, options);
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
  // A wrong option would otherwise lose the work of the container.
  if (committing !== undefined) checkCommitImageOptions(committing);
  const { chainId } = await unpack(image, snapshotter, {
    ...(onProgress !== undefined && { onProgress }),
    ...(signal !== undefined && { signal }),
  });
  const key = `container ${randomBytes(12).toString('hex')}`;
  const directory = mkdtempSync(`${tmpdir()}/overlayfs-container-`);
  let isPrepared = false;
  const perform = async (): Promise<ContainerResult> => {
    const mounts = await snapshotter.prepare(key, chainId);
    isPrepared = true;
    const prepared: Prepared = { options, image, args, binds, mounts, directory };
    const [code, name] = runtime === undefined ? await runBySpawn(prepared) : await runByRuntime(runtime, prepared);
    const { upper, lowers } = layersOf(mounts);
    const userxattr = needsUserXattr();
    const found = await collect(changes(upper, { lowerdir: lowers, userxattr }));
    const exitCode = name === null ? (code ?? 0) : 128 + numbers.signals[name];
    if (committing === undefined) return { exitCode, changes: found, image: undefined };
    const committed = await commitImage(image, snapshotter, key, committing);
    isPrepared = false;
    return { exitCode, changes: found, image: committed };
  };
  try {
    return await perform();
  } finally {
    // A directory that stays is no reason to lose the result.
    if (isPrepared) await snapshotter.remove(key).catch(() => {});
    await run(removeDirectory(directory)).catch(() => {});
  }
}
