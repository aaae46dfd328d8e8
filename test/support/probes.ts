/** Probes for what kernels and machines differ in. */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { mountOverlaySync } from 'overlayfs';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import { needsMetacopy } from '#lib/features/record.js';
import { featuresSync as askFeaturesSync } from '#lib/rootless/lease.js';
import { setAttribute } from './attributes.js';
import { mountsBelow } from './mount-table.js';
import { MNT_DETACH, native } from './native.js';

/** Not in node:fs. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;

const unshareErrno = Number(process.env['OVERLAYFS_TEST_UNSHARE_ERRNO']);

/** Why this machine cannot mount, in words; undefined where it can. */
export const cannotMount: string | undefined = (() => {
  if (unshareErrno !== 0) return `no mount namespace of its own for this process (errno ${unshareErrno}): run as root`;
  return readFileSync('/proc/filesystems', 'latin1').includes('\toverlay\n')
    ? undefined
    : 'the kernel has no overlay file system';
})();

/** Features that not every kernel or machine has, each with its probe. */
const probes = {
  fsContext: () => kernelFeaturesSync().fsContext === true,
  lowerdirAppend: () => kernelFeaturesSync().lowerdirAppend === true,
  layerDescriptors: () => ['path', 'readable'].includes(String(kernelFeaturesSync().layerDescriptors)),
  pathDescriptors: () => kernelFeaturesSync().layerDescriptors === 'path',
  uniqueMountId: () => kernelFeaturesSync().uniqueMountId === true,
  mountEvents: () => kernelFeaturesSync().mountEvents === true,
  mountSetattr: () => kernelFeaturesSync().mountSetattr === true,
  mountBeneath: () => kernelFeaturesSync().mountBeneath === true,
  'data-only layers without metacopy': () =>
    kernelFeaturesSync().lowerdirAppend === true && !needsMetacopy(kernelFeaturesSync()),
  'verity without metacopy': () => takesOption('verity=on,metacopy=off'),
  fsync: () => takesOption('fsync=auto'),
  override_creds: () => takesOption('override_creds'),
  'uuid=null': () => takesOption('uuid=null'),
  userxattr: () => takesOption('userxattr'),
  bsdtar: () => hasProgram('bsdtar'),
  crun: () => hasProgram('crun'),
  umoci: () => hasProgram('umoci'),
  strace: () => hasProgram('strace'),
  rsync: () => hasProgram('rsync'),
  sqlite3: () => hasProgram('sqlite3'),
  'loop devices': () => spawnSync('losetup', ['--find'], { stdio: 'ignore' }).status === 0,
  'chattr on tmpfs': () => takesFileFlags(),
  'mkfs.ext4': () => hasImages('mkfs.ext4', '-q', '-F'),
  'mkfs.ext4 and debugfs(8)': () => hasImages('mkfs.ext4', '-q', '-F') && hasProgram('debugfs'),
  'mkfs.xfs': () => hasImages('mkfs.xfs', '-q', '-f'),
  'mkfs.btrfs': () => hasImages('mkfs.btrfs', '-q', '-f'),
  'btrfs without copies on write (Linux 6.17)': () => isKernel(6, 17) && hasImages('mkfs.btrfs', '-q', '-f'),
  'mkfs.vfat': () => hasImages('mkfs.vfat'),
  'project quotas of xfs': () => mountsWithProjectQuotas(),
  'mkfs.btrfs with quotas': () => hasImages('mkfs.btrfs', '-q', '-f') && hasProgram('btrfs'),
  'mkfs.ext4 with casefold': () => hasImages('mkfs.ext4', '-q', '-F', '-O', 'casefold'),
  'a FUSE file system': () => existsSync('/dev/fuse') && hasProgram('fuse2fs'),
  Landlock: () => native.landlockVersion() > 0,
  mksquashfs: () => hasProgram('mksquashfs') && hasFileSystem('squashfs'),
  hugetlbfs: () => hasFileSystem('hugetlbfs'),
  binfmt_misc: () => hasFileSystem('binfmt_misc'),
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
  'detached mounts that can be cloned': () => kernelFeaturesSync().openTreeAttr === true,
} as const satisfies Readonly<Record<string, () => boolean>>;

function isKernel(major: number, minor: number): boolean {
  const [ours = 0, ourMinor = 0] = release().split('.').map(Number);
  return ours > major || (ours === major && ourMinor >= minor);
}

export type Feature = keyof typeof probes;

/** The options that some supported kernels lack, or take only with others. */
export const optionNeeds: Readonly<Record<string, Feature>> = {
  datadir: 'data-only layers without metacopy',
  verity: 'verity without metacopy',
  fsync: 'fsync',
  overrideCreds: 'override_creds',
  userxattr: 'userxattr',
  // Before those of 6.6, `on` was all there was and not shown, nor what became of `off`.
  uuid: 'uuid=null',
};

const answers = new Map<Feature, boolean>();

/** Tells whether this machine has the feature; false where nothing can be mounted. */
export function hasFeature(feature: Feature): boolean {
  let answer = answers.get(feature);
  if (answer === undefined) {
    answer = cannotMount === undefined && probes[feature]();
    answers.set(feature, answer);
  }
  return answer;
}

const succeeds = (command: string, ...args: string[]): boolean =>
  works(() => execFileSync(command, args, { stdio: 'ignore' }));

const hasProgram = (name: string): boolean => succeeds('sh', '-c', `command -v ${name}`);

/** Also as a module that comes when it is asked for. */
const hasFileSystem = (name: string): boolean =>
  readFileSync('/proc/filesystems', 'latin1').includes(`\t${name}\n`) || succeeds('modprobe', name);

/** Runs a probe in a temporary directory. */
function inDirectory<T>(probe: (dir: string) => T): T {
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-probe-'));
  try {
    return probe(dir);
  } finally {
    for (const { target } of mountsBelow(dir).reverse()) native.umount(target, MNT_DETACH);
    rmSync(dir, { recursive: true });
  }
}

const onTmpfs = <T>(probe: (dir: string) => T): T =>
  inDirectory((dir) => {
    native.mount('probe', dir, 'tmpfs', 0, '');
    return probe(dir);
  });

/** Mounts an overlay at `merged` with an upper, and returns the errno. */
function mountWritable(dir: string, ...options: readonly string[]): number {
  for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(join(dir, name));
  const data = [`lowerdir=${dir}/lower`, `upperdir=${dir}/upper`, `workdir=${dir}/work`, ...options].join();
  return native.mount('probe', join(dir, 'merged'), 'overlay', 0, data);
}

/** Returns true when the kernel mounts an image of xfs with project quotas. */
const mountsWithProjectQuotas = (): boolean =>
  inDirectory((dir) => {
    const script = 'truncate -s 320M image && mkfs.xfs -q image && mkdir at && mount -o loop,prjquota image at';
    return spawnSync('sh', ['-c', script], { cwd: dir, stdio: 'ignore' }).status === 0;
  });

/** Tells whether the call returns without an error. */
function works(call: () => unknown): boolean {
  try {
    call();
    return true;
  } catch {
    return false;
  }
}

/** Tells whether images of a kind can be made and mounted. */
const hasImages = (command: string, ...args: string[]): boolean =>
  hasProgram(command) &&
  inDirectory((dir) => {
    const [image, target] = [join(dir, 'image'), join(dir, 'target')];
    mkdirSync(target);
    return (
      succeeds('truncate', '-s', '320M', image) &&
      succeeds(command, ...args, image) &&
      succeeds('mount', '-o', 'loop', image, target)
    );
  });

/** Tells whether the kernel mounts an overlay with the option. */
const takesOption = (option: string): boolean => onTmpfs((dir) => mountWritable(dir, option) === 0);

/** Tells whether an overlay makes files without a name (6.10). */
const makesNamelessFiles = (): boolean =>
  onTmpfs((dir) => {
    mountWritable(dir);
    return works(() => closeSync(openSync(join(dir, 'merged'), O_TMPFILE | constants.O_RDWR, 0o600)));
  });

/** Tells whether files on tmpfs take attributes of users (6.6). */
const takesUserAttributes = (): boolean => onTmpfs((dir) => works(() => setAttribute(dir, 'user.probe', '1')));

/** Tells whether files on tmpfs can be immutable (6.0). */
const takesFileFlags = (): boolean =>
  onTmpfs((dir) => {
    writeFileSync(join(dir, 'file'), '');
    return succeeds('chattr', '+i', join(dir, 'file'));
  });

/** Tells whether the kernel keeps uuid=off where layers are on several file systems (7.3 does, 6.18 does not). */
const keepsUuidOff = (): boolean =>
  onTmpfs((dir) => {
    for (const name of ['a', 'b', 'm']) mkdirSync(join(dir, name));
    for (const name of ['a', 'b']) native.mount('probe', join(dir, name), 'tmpfs', 0, '');
    native.mount('probe', join(dir, 'm'), 'overlay', 0, `lowerdir=${dir}/a:${dir}/b,uuid=off`);
    return mountsBelow(dir).some(({ line }) => line.includes('uuid=off'));
  });

/** Tells whether an overlay takes a mapped layer (5.19). Not on tmpfs, which cannot be mapped before 6.3. */
const takesIdMaps = (): boolean =>
  inDirectory((dir) => {
    const lowerdir = ['a', 'b'].map((name) => join(dir, name));
    for (const path of lowerdir) mkdirSync(path);
    const idmap = [{ container: 0, host: 1, size: 1 }];
    return works(() => mountOverlaySync({ lowerdir, idmap }).unmountSync());
  });
