/** What the tests share: directories of their own, real mounts, and what to do where there are none. */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { mountOverlaySync, OverlayError, type OverlayOptions } from 'overlayfs';
import { featuresSync, needsMetacopy } from '#lib/features/probe.js';
import { calls } from '#lib/kernel/calls.js';
import { performSync, StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { featuresSync as askFeaturesSync } from '#lib/rootless/lease.js';

/** The directory of package.json, from dist-test/test/support. */
export const packageRoot = resolve(import.meta.dirname, '../../..');

interface TestSupport {
  unshareMounts(): number;
  mount(source: string, target: string, type: string, flags: number, data: string): number;
  umount(target: string, flags: number): number;
  /** From now on the process gets this errno from the system calls with these numbers. */
  denyCalls(calls: readonly number[], errno: number): number;
  landlockVersion(): number;
}

const MNT_DETACH = 2;
/** Not in node:fs. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;

export const native: TestSupport = createRequire(import.meta.url)(join(packageRoot, 'build/Release/test_support.node'));

const unshareErrno = Number(process.env['OVERLAYFS_TEST_UNSHARE_ERRNO']);

/** Why this machine cannot mount, in words; undefined where it can. */
const cannotMount: string | undefined = (() => {
  if (unshareErrno !== 0) return `no mount namespace of its own for this process (errno ${unshareErrno}): run as root`;
  return readFileSync('/proc/filesystems', 'latin1').includes('\toverlay\n')
    ? undefined
    : 'the kernel has no overlay file system';
})();

/** How much is done where much is done: 1 is all of it. */
const scale = Number(process.env['OVERLAYFS_TEST_SCALE'] ?? 1);

/** This many, or fewer where OVERLAYFS_TEST_SCALE is below 1. */
export function scaled(n: number, least = 1): number {
  return Math.max(Math.round(n * scale), Math.min(least, n));
}

const every = Number(process.env['OVERLAYFS_TEST_EVERY'] ?? 1);
let declared = 0;

/** With OVERLAYFS_TEST_EVERY=n, of the kernel tests of a file the first and each n-th after it. */
const isChosen = (): boolean => declared++ % every === 0;

type Body = (t: ExecutionContext) => void | Promise<void>;

/** A test whose outcome is the kernel's, one at a time. */
export function kernelTest(title: string, body: Body): void {
  if (isChosen()) test.serial(title, body);
}

interface Conditions {
  readonly needs?: Feature | readonly Feature[] | undefined;
}

/**
 * A test that mounts: skipped, with the reason, where that cannot be (with REQUIRE_MOUNT=1 a failure), and
 * where the kernel or the machine lacks what the test needs.
 */
export function mountTest(title: string, body: Body): void;
export function mountTest(title: string, conditions: Conditions, body: Body): void;
export function mountTest(title: string, ...rest: [Body] | [Conditions, Body]): void {
  const [{ needs = [] }, body] = rest.length === 1 ? [{} as Conditions, rest[0]] : rest;
  if (!isChosen()) return;
  const lacking = [needs].flat().filter((feature) => !hasFeature(feature));
  if (cannotMount !== undefined) {
    if (process.env['REQUIRE_MOUNT'] === '1') test(title, (t) => t.fail(cannotMount));
    else test.skip(`${title} (${cannotMount})`, body);
  } else if (lacking.length > 0) {
    test.skip(`${title} (needs ${lacking.join(', ')}, which this machine lacks)`, body);
  } else {
    test.serial(title, body);
  }
}

/** What kernels differ in: how to find out. */
const probes = {
  fsContext: () => featuresSync().fsContext === true,
  lowerdirAppend: () => featuresSync().lowerdirAppend === true,
  layerDescriptors: () => ['path', 'readable'].includes(String(featuresSync().layerDescriptors)),
  pathDescriptors: () => featuresSync().layerDescriptors === 'path',
  uniqueMountId: () => featuresSync().uniqueMountId === true,
  mountEvents: () => featuresSync().mountEvents === true,
  mountSetattr: () => featuresSync().mountSetattr === true,
  mountBeneath: () => featuresSync().mountBeneath === true,
  'data-only layers without metacopy': () => featuresSync().lowerdirAppend === true && !needsMetacopy(featuresSync()),
  'verity without metacopy': () => takesOption('verity=on,metacopy=off'),
  fsync: () => takesOption('fsync=auto'),
  override_creds: () => takesOption('override_creds'),
  'uuid=null': () => takesOption('uuid=null'),
  userxattr: () => takesOption('userxattr'),
  crun: () => hasProgram('crun'),
  'loop devices': () => spawnSync('losetup', ['--find'], { stdio: 'ignore' }).status === 0,
  'chattr on tmpfs': () => takesFileFlags(),
  'mkfs.ext4': () => hasImages('mkfs.ext4', '-q', '-F'),
  'mkfs.xfs': () => hasImages('mkfs.xfs', '-q', '-f'),
  'mkfs.btrfs': () => hasImages('mkfs.btrfs', '-q', '-f'),
  'mkfs.vfat': () => hasImages('mkfs.vfat'),
  'mkfs.btrfs with quotas': () => hasImages('mkfs.btrfs', '-q', '-f') && hasProgram('btrfs'),
  'mkfs.ext4 with casefold': () => hasImages('mkfs.ext4', '-q', '-F', '-O', 'casefold'),
  'a FUSE file system': () => existsSync('/dev/fuse') && hasProgram('fuse2fs'),
  Landlock: () => native.landlockVersion() > 0,
  mksquashfs: () => hasProgram('mksquashfs') && hasFileSystem('squashfs'),
  hugetlbfs: () => hasFileSystem('hugetlbfs'),
  'debugfs with tracefs in it': () => hasFileSystem('debugfs') && hasFileSystem('tracefs'),
  'user namespaces': () => succeeds('unshare', '-Urm', 'true'),
  'a kernel of its own': () => / \/ 9p /.test(readFileSync('/proc/mounts', 'latin1')),
  FUSE: () => existsSync('/dev/fuse'),
  'user xattrs on tmpfs': () => takesUserAttributes(),
  // AddressSanitizer finds its options and a program's leaks there.
  'programs without /proc': () => process.env['ASAN_OPTIONS'] === undefined,
  // LeakSanitizer stops all threads at the exit, and waits for those that hang.
  'an exit with threads that hang': () => process.env['ASAN_OPTIONS'] === undefined,
  rootless: () => askFeaturesSync().rootless,
  O_TMPFILE: () => makesNamelessFiles(),
  'subordinate ids': () =>
    askFeaturesSync().rootless && hasProgram('newuidmap') && hasProgram('newgidmap') && existsSync('/etc/subuid'),
  'idmapped layers': () => takesIdMaps(),
  'uuid=off over several file systems': () => keepsUuidOff(),
  'uuid=off over one file system only': () => takesOption('uuid=off') && !keepsUuidOff(),
  'detached mounts that can be cloned': () => featuresSync().openTreeAttr === true,
} as const satisfies Readonly<Record<string, () => boolean>>;

export type Feature = keyof typeof probes;

const answers = new Map<Feature, boolean>();

/** Whether this kernel has it; where nothing can be mounted, false. */
export function hasFeature(feature: Feature): boolean {
  let answer = answers.get(feature);
  if (answer === undefined) {
    answer = cannotMount === undefined && probes[feature]();
    answers.set(feature, answer);
  }
  return answer;
}

function succeeds(command: string, ...args: string[]): boolean {
  try {
    execFileSync(command, args, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

const hasProgram = (name: string): boolean => succeeds('sh', '-c', `command -v ${name}`);

/** Also as a module that comes when it is asked for. */
const hasFileSystem = (name: string): boolean =>
  readFileSync('/proc/filesystems', 'latin1').includes(`\t${name}\n`) || succeeds('modprobe', name);

/** Whether images of a kind can be made and mounted. */
function hasImages(command: string, ...args: string[]): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  const [image, target] = [join(dir, 'image'), join(dir, 'target')];
  mkdirSync(target);
  const can =
    hasProgram(command) &&
    succeeds('truncate', '-s', '320M', image) &&
    succeeds(command, ...args, image) &&
    succeeds('mount', '-o', 'loop', image, target);
  if (can) native.umount(target, MNT_DETACH);
  rmSync(dir, { recursive: true });
  return can;
}

/** Whether the kernel mounts an overlay with the option. */
function takesOption(option: string): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  native.mount('probe', dir, 'tmpfs', 0, '');
  for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(join(dir, name));
  const data = `lowerdir=${dir}/lower,upperdir=${dir}/upper,workdir=${dir}/work,${option}`;
  const errno = native.mount('probe', join(dir, 'merged'), 'overlay', 0, data);
  native.umount(dir, MNT_DETACH);
  rmSync(dir, { recursive: true });
  return errno === 0;
}

/** Whether an overlay makes files without a name (6.10). */
function makesNamelessFiles(): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  native.mount('probe', dir, 'tmpfs', 0, '');
  for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(join(dir, name));
  const data = `lowerdir=${dir}/lower,upperdir=${dir}/upper,workdir=${dir}/work`;
  native.mount('probe', join(dir, 'merged'), 'overlay', 0, data);
  let can = true;
  try {
    closeSync(openSync(join(dir, 'merged'), O_TMPFILE | constants.O_RDWR, 0o600));
  } catch {
    can = false;
  }
  native.umount(dir, MNT_DETACH);
  rmSync(dir, { recursive: true });
  return can;
}

/** Whether files on tmpfs take attributes of users (6.6). */
function takesUserAttributes(): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  native.mount('probe', dir, 'tmpfs', 0, '');
  const plan = new Plan();
  plan.add(calls.setxattr, [dir, 'user.probe', '1', 0]);
  const takes = !(performSync(plan) instanceof StepFailure);
  native.umount(dir, MNT_DETACH);
  rmSync(dir, { recursive: true });
  return takes;
}

/** Whether files on tmpfs can be immutable (6.0). */
function takesFileFlags(): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  native.mount('probe', dir, 'tmpfs', 0, '');
  writeFileSync(join(dir, 'file'), '');
  const takes = succeeds('chattr', '+i', join(dir, 'file'));
  native.umount(dir, MNT_DETACH);
  rmSync(dir, { recursive: true });
  return takes;
}

/** Whether uuid=off stays where layers are on several file systems (7.3 does, 6.18 does not). */
function keepsUuidOff(): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  for (const name of ['a', 'b', 'm']) mkdirSync(join(dir, name));
  for (const name of ['a', 'b']) native.mount('probe', join(dir, name), 'tmpfs', 0, '');
  native.mount('probe', join(dir, 'm'), 'overlay', 0, `lowerdir=${dir}/a:${dir}/b,uuid=off`);
  const keeps = mountsBelow(dir).some(({ line }) => line.includes('uuid=off'));
  for (const name of ['m', 'a', 'b']) native.umount(join(dir, name), MNT_DETACH);
  rmSync(dir, { recursive: true });
  return keeps;
}

/** Whether an overlay takes a mapped layer (5.19). */
function takesIdMaps(): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  for (const name of ['a', 'b']) mkdirSync(join(dir, name));
  try {
    const idmap = [{ inside: 0, outside: 1, size: 1 }];
    mountOverlaySync({ lowerdir: [join(dir, 'a'), join(dir, 'b')], idmap }).unmountSync();
    return true;
  } catch {
    return false;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** A directory of the test's own, on tmpfs or on the disk, gone with what is in it when the test ends. */
export function scratch(t: ExecutionContext, kind: 'tmpfs' | 'disk' = 'tmpfs'): string {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-test-'));
  if (kind === 'tmpfs' && cannotMount === undefined) t.is(native.mount('scratch', dir, 'tmpfs', 0, ''), 0);
  t.teardown(() => {
    for (const { target } of mountsBelow(dir).reverse()) native.umount(target, MNT_DETACH);
    rmSync(dir, { recursive: true, force: true });
  });
  return dir;
}

/** Where files take attributes of users, which those on tmpfs do from 6.6 on. */
export const withUserAttributes = (): 'tmpfs' | 'disk' => (hasFeature('user xattrs on tmpfs') ? 'tmpfs' : 'disk');

/** The mounts at and below a directory of plain name, the last one last. */
export function mountsBelow(dir: string): { target: string; line: string }[] {
  return readFileSync('/proc/thread-self/mountinfo', 'latin1')
    .split('\n')
    .map((line) => ({
      line,
      target:
        line.split(' ')[4]?.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8))) ??
        '',
    }))
    .filter(({ target }) => target === dir || target.startsWith(`${dir}/`));
}

/** Files by path and content; a path that ends in a slash is a directory. */
export function makeTree(dir: string, tree: Readonly<Record<string, string>>): void {
  mkdirSync(dir, { recursive: true });
  for (const [path, content] of Object.entries(tree)) {
    const whole = join(dir, path);
    mkdirSync(path.endsWith('/') ? whole : dirname(whole), { recursive: true });
    if (!path.endsWith('/')) writeFileSync(whole, content);
  }
}

/** One lower (with a file `from-lower`), upper, work and target below a directory. */
export function layers(dir: string): Required<Pick<OverlayOptions, 'lowerdir' | 'upperdir' | 'workdir' | 'target'>> & {
  lowerdir: string;
  upperdir: string;
  workdir: string;
  target: string;
} {
  makeTree(dir, { 'lower/from-lower': 'lower', 'upper/': '', 'work/': '', 'merged/': '' });
  return {
    lowerdir: join(dir, 'lower'),
    upperdir: join(dir, 'upper'),
    workdir: join(dir, 'work'),
    target: join(dir, 'merged'),
  };
}

/** The process's open descriptors. */
export function countDescriptors(): number {
  // Not the one through which the kernel tells of overlays that have ended: a process keeps that when it was needed once.
  return readdirSync('/proc/self/fd').filter((name) => linkOf(`/proc/self/fd/${name}`) !== 'anon_inode:inotify').length;
}

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined; // the listing's own, for one
  }
}

/** The library's own threads in this process. */
export function countThreads(): number {
  return readdirSync('/proc/self/task').filter((id) => {
    try {
      return readFileSync(`/proc/self/task/${id}/comm`, 'latin1') === 'overlayfs\n';
    } catch {
      return false; // ended meanwhile
    }
  }).length;
}

/** Of an error. */
export interface Expected {
  readonly code: string;
  readonly reason: string;
  readonly path?: string;
  readonly syscall?: string | undefined;
}

/** The call fails as expected, and what the look returns is what it was, as are the open descriptors. */
export async function failsAndLeaves(
  t: ExecutionContext,
  look: () => unknown,
  run: () => Promise<unknown>,
  expected: Expected,
): Promise<OverlayError> {
  const before = look();
  const descriptors = countDescriptors();
  const error = await t.throwsAsync(run, { instanceOf: OverlayError });
  t.like(error, { ...expected });
  t.true((error?.errno ?? 0) < 0);
  t.deepEqual(look(), before, 'nothing was made, removed or left behind');
  t.is(countDescriptors(), descriptors);
  return error as OverlayError;
}

/** Waits until the condition holds, or fails the test. */
export async function eventually(t: ExecutionContext, condition: () => boolean, seconds = 10): Promise<void> {
  for (const end = Date.now() + seconds * 1000; !condition(); ) {
    if (Date.now() > end) return t.fail('the condition has not come true in time');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** setxattr(2) */
export function setAttribute(path: string, name: string, value: string): void {
  const plan = new Plan();
  plan.add(calls.setxattr, [path, name, value, 0]);
  const outcome = performSync(plan);
  if (outcome instanceof StepFailure) throw new Error(`${name} on ${path}: errno ${outcome.errno}`);
}

/** lgetxattr(2): the value, or undefined when there is none. */
export function getAttribute(path: string, name: string): string | undefined {
  const plan = new Plan();
  const step = plan.stepOf(plan.add(calls.lgetxattr, [path, name, 256], { output: 256, tolerate: 'any' }));
  const outputs = performSync(plan);
  if (outputs instanceof StepFailure || outputs.result(step) < 0) return undefined;
  return outputs.bytes(step, outputs.result(step)).toString('latin1');
}

/**
 * What an expression of `overlayfs` and `args` comes to, or the fields of the error that it throws, in a child
 * that a command starts, which may take things away from it.
 */
export function evaluateIn(command: readonly string[], expression: string, ...args: readonly string[]): unknown {
  const script = `import * as overlayfs from 'overlayfs';
    const args = process.argv.slice(1);
    const fields = ({ code, reason, syscall, path, message }) => ({ code, reason, syscall, path, message });
    const outcome = await (async () => ${expression})().catch(fields);
    console.log(JSON.stringify(outcome ?? null));`;
  const [program = '', ...rest] = [...command, process.execPath, '--input-type=module', '-e', script, ...args];
  return JSON.parse(execFileSync(program, rest, { cwd: packageRoot, encoding: 'utf8' }));
}

/** A command that runs another as root without a capability: what modes forbid is forbidden. */
export const withoutCapabilities = ['setpriv', '--bounding-set=-all', '--inh-caps=-all'];

/** Numbers that look random and are the same each time: mulberry32. */
export function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) % below;
  };
}

/** As the kernel writes into the mount table: these characters as a backslash and three octal digits. */
export function escapeOctal(bytes: Uint8Array, escaped: string): Buffer {
  const written = Array.from(bytes, (byte) => {
    const char = String.fromCharCode(byte);
    return escaped.includes(char) ? `\\${byte.toString(8).padStart(3, '0')}` : char;
  });
  return Buffer.from(written.join(''), 'latin1');
}
