/** Rules about the file systems and mounts that hold the layers. */
import * as e from '../errnos.js';
import * as k from '../kernel/constants.js';
import type { StepFailure } from '../kernel/perform.js';
import { pathString, quotePath } from '../paths.js';
import { option, type Text, text } from '../text.js';
import type { PathFacts } from './facts.js';
import { layerForeign } from './paths.js';
import {
  type Cause,
  fileSystemName,
  findRole,
  isCreation,
  isLayer,
  isReadOnly,
  isUpper,
  nameOf,
  type Rule,
  refusesLayers,
  type Scene,
} from './rule.js';
import { isRefusedBySome } from './stacking.js';

/** Makes a rule that reports the first path for which a condition holds. */
function where(
  is: (path: PathFacts, scene: Scene) => boolean,
  verdict: (name: string, path: PathFacts) => Omit<Cause, 'path'>,
  when: (failure: StepFailure) => boolean = refusesLayers,
): Rule {
  return {
    when,
    find(scene) {
      const culprit = scene.facts.paths.find((path) => is(path, scene));
      if (culprit === undefined) return undefined;
      const { subject } = culprit;
      return { ...verdict(nameOf(subject, scene.options), culprit), path: pathString(subject.path) };
    },
    foresees: true,
  };
}

const isOn = ({ fileSystem }: PathFacts, ...magics: number[]): boolean =>
  fileSystem !== undefined && magics.includes(fileSystem.magic);

const readOnly = where(
  (path, { options }) => isUpper(path) && path.fileSystem?.isReadOnly === true && !options.readonlySuperblock,
  isReadOnly,
);

const upperOnOverlay = where(
  (path) => isUpper(path) && isOn(path, k.OVERLAYFS_SUPER_MAGIC),
  (name) => ({
    reason: 'upper-unsupported',
    what: `the file system of ${name} cannot hold this layer: it is an overlay`,
  }),
);

const unbindable = where(
  (path) => isLayer(path) && path.mount?.isUnbindable === true,
  (name, { mount }) => ({
    reason: 'layer-unbindable',
    what: `${name} is on an unbindable mount${mount === undefined ? '' : ` at ${quotePath(mount.target)}`}, which an overlay cannot clone`,
  }),
);

const locked = where(
  (path, { facts }) => isLayer(path) && facts.process.isInUserNamespace && path.mount?.inside !== undefined,
  (name, { mount }) => ({
    reason: 'layer-locked',
    what: `something is mounted inside ${name}${mount?.inside === undefined ? '' : `, at ${quotePath(mount.inside)}`}: in a user namespace, an overlay may not uncover the directory below it`,
  }),
);

const unsupported = (name: string, path: PathFacts): Omit<Cause, 'path'> => ({
  reason: 'layer-unsupported',
  what: `${name} is on ${fileSystemName(path)}, which overlayfs does not support`,
});

const pseudo = where(
  (path) =>
    isLayer(path) &&
    (isOn(path, k.PROC_SUPER_MAGIC, k.HUGETLBFS_MAGIC, k.AUTOFS_SUPER_MAGIC) || path.fileSystem?.isStackable === false),
  unsupported,
);

/** This process may not ask the kernel, as a plain user. */
const likelyPseudo = where(
  (path) =>
    isLayer(path) &&
    path.fileSystem !== undefined &&
    isRefusedBySome(path.fileSystem.magic) &&
    path.fileSystem.isStackable === undefined,
  unsupported,
);

const remoteMagics = [
  k.NFS_SUPER_MAGIC,
  k.SMB2_SUPER_MAGIC,
  k.CIFS_SUPER_MAGIC,
  k.V9FS_MAGIC,
  k.CEPH_SUPER_MAGIC,
  k.AFS_SUPER_MAGIC,
  k.FUSE_SUPER_MAGIC,
];

const remote = where(
  (path) => isUpper(path) && isOn(path, ...remoteMagics),
  (name, path) => ({
    reason: 'upper-remote',
    what: `${name} is on ${fileSystemName(path)}, which lacks something that an upper layer needs: file types in directories, RENAME_WHITEOUT, or extended attributes`,
  }),
);

/** File systems with case-insensitive names. A directory of ext4 with case folding is a matter of kernel-messages.ts. */
const caselessMagics = [k.MSDOS_SUPER_MAGIC, k.EXFAT_SUPER_MAGIC, k.NTFS3_SUPER_MAGIC];

const onCaseless = where(
  (path) => isLayer(path) && isOn(path, ...caselessMagics),
  (name, path) => ({
    reason: 'layer-unsupported',
    what: `${name} is on ${fileSystemName(path)}, whose names are case-insensitive: overlayfs does not support it`,
  }),
);

const tooDeep = where(
  (path) => isLayer(path) && isOn(path, k.OVERLAYFS_SUPER_MAGIC),
  (name) => ({
    reason: 'too-deep',
    what: `${name} is on an overlay, and overlays cannot be stacked more than two deep`,
  }),
);

const NO_DIRECTORY_AGAIN: Text = {
  before: 'the kernel would mount, but a removed directory could not be created again',
  after: 'a removed directory cannot be created again',
};

/** The guard on the upperdir's attributes has failed. */
const withoutXattrs: Rule = {
  when: ({ guard, errno }) => guard === 'upperdir-has-no-xattrs' && errno === e.EOPNOTSUPP,
  find({ options, facts, failure }) {
    const upper = findRole(facts, 'upperdir');
    const { upperdir, temporary } = options;
    if (temporary !== undefined) {
      return {
        reason: 'upper-without-xattrs',
        what: text`on this kernel, tmpfs has no user.* attributes for an upperdir in memory: ${NO_DIRECTORY_AGAIN}`,
        hint: text`use Linux 6.6 or later, or an ${option('upperdir')} on a disk in the place of ${option('temporary')}`,
      };
    }
    if (upperdir === undefined) return undefined;
    const [kind = 'trusted'] = String(failure?.step?.args[1] ?? 'trusted.').split('.');
    const where = upper === undefined ? '' : ` (${fileSystemName(upper)})`;
    return {
      reason: 'upper-without-xattrs',
      what: text`the file system of the upperdir ${quotePath(upperdir)}${where} has no ${kind}.* attributes: ${NO_DIRECTORY_AGAIN}`,
      path: pathString(upperdir),
    };
  },
};

/** Limits a rule to failures to make the superblock: the condition alone is not a fault. */
const likely = ({ when, find }: Rule): Rule => ({ when: (failure) => isCreation(failure) && when(failure), find });

/** Rules about a directory that cannot be an upperdir. They come before the rules that compare it with its workdir. */
export const upperRules: readonly Rule[] = [withoutXattrs, readOnly, upperOnOverlay];

export const fileSystemRules: readonly Rule[] = [unbindable, pseudo, onCaseless, locked];

/** Rules about conditions that are not a fault by themselves, but the likeliest cause if there is no other. */
export const lastFileSystemRules: readonly Rule[] = [remote, layerForeign, tooDeep, likelyPseudo].map(likely);
