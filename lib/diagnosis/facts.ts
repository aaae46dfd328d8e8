/** The facts of a diagnosis: plain data about the paths of a mount, the mount table and the process. */
import type { Subject } from '../kernel/plan.js';
import type { StatResult } from '../kernel/stat.js';
import type { Path } from '../paths.js';
import type { NamespaceSettings } from '../rootless/refusal.js';

/** The file system of a path, from statfs(2). */
export interface FileSystemFacts {
  readonly magic: number;
  readonly isReadOnly: boolean;
  /** False if the kernel takes no layer on it. Asked only for file systems that some kernels refuse. */
  readonly isStackable?: boolean | undefined;
  /** Free blocks for users other than root, and free inodes, with the totals. Both are 0 if there is no limit. */
  readonly freeBlocks: number;
  readonly blocks: number;
  readonly freeInodes: number;
  readonly inodes: number;
}

/** The mount that holds a path, from the mount table. */
export interface MountFacts {
  /** The type as in the table: `ext4`. */
  readonly type: string;
  readonly target: Path;
  readonly isUnbindable: boolean;
  readonly isIdmapped: boolean;
  /** A mount point below the path, if there is one. */
  readonly inside: Path | undefined;
}

/** A path of the mount, and the file that it leads to. */
export interface PathFacts {
  readonly subject: Subject;
  readonly found: StatResult;
  /** True if the path is missing and `create` would make it. The other facts are then as they would be. */
  readonly isMissing: boolean;
  /** True if the path's last component is a symbolic link. */
  readonly isSymlink: boolean;
  /** Undefined if statfs(2) failed. */
  readonly fileSystem: FileSystemFacts | undefined;
  /** Undefined if the table of this namespace has no such mount, or was not read. */
  readonly mount: MountFacts | undefined;
  /** For the upperdir and workdir: the errno of faccessat2(2) for writing, or 0 if it is writable. */
  readonly writeErrno: number;
}

export interface ProcessFacts {
  /** The effective capabilities, as a bit mask. */
  readonly capabilities: bigint;
  readonly isInUserNamespace: boolean;
  /** True if the process runs under a seccomp(2) filter. */
  readonly hasSeccompFilter: boolean;
  /** The system call that has failed, if the filter refuses it. */
  readonly filteredCall: string | undefined;
  /** The label of the security module that confines the process: an AppArmor profile or an SELinux context. */
  readonly label: string | undefined;
}

/** Another overlay that uses a directory of this mount, or used it when the facts were gathered. */
export interface OtherUse {
  /** The target of the other overlay, or the descriptor path of a detached one; undefined if it is not visible. */
  readonly target: Path | undefined;
  /** The role of the directory in the other overlay. */
  readonly as: 'upperdir' | 'workdir';
  readonly subject: Subject;
  /** True if another call of this process is about to mount it. */
  readonly isPending?: boolean;
}

/** The origin of the upperdir and of the index, from their attributes. */
export interface OriginFacts {
  /** True if the upperdir was first mounted with the topmost lower layer; undefined if that is not known. */
  readonly isOfLower: boolean | undefined;
  /** The lower layer with which it was first mounted, if the library can still find it. */
  readonly lower: Path | undefined;
  /** True if the index belongs to the upperdir; undefined if that is not known. */
  readonly isIndexOfUpper: boolean | undefined;
  readonly indexUpper: Path | undefined;
}

export interface WorkFacts {
  /** A directory two levels below `work/work` that is not empty, so that the kernel does not remove it. */
  readonly leftover: Path | undefined;
  /** The kernel's own directory in the workdir, or an entry of it, that is immutable or append-only. */
  readonly immutable: Path | undefined;
  /** `index` in the workdir if it is not a directory, or a file in it that is not an entry of an index. */
  readonly strayIndex: Path | undefined;
  /** The names in `work/work/incompat`: features that a kernel must know to mount the upperdir. */
  readonly incompatible: readonly string[];
  /** The errno of making a directory in the workdir, as the kernel must; undefined if that works or was not tried. */
  readonly attempt: number | undefined;
}

/** True if the kernel reports that a directory is in use; undefined if it was not asked. */
export interface UseFacts {
  readonly upper: boolean | undefined;
  readonly work: boolean | undefined;
}

export interface Facts {
  /** The target, lower layers, data-only layers, upperdir and workdir. */
  readonly paths: readonly PathFacts[];
  /** The identity of the parent directory by that of the directory; see identityOf. */
  readonly parents: ReadonlyMap<string, string>;
  readonly process: ProcessFacts;
  /** The number of mounts of the namespace; 0 if the table could not be read. */
  readonly mountCount: number;
  /** The most mounts that a namespace may have (fs.mount-max). */
  readonly mountMax: number;
  readonly otherUses: readonly OtherUse[];
  readonly origin: OriginFacts;
  readonly work: WorkFacts;
  readonly use: UseFacts;
  /** Set for a mount in namespaces of its own. */
  readonly namespaces: NamespaceSettings | undefined;
  /** True if the library stopped early because a file system did not answer. */
  readonly isIncomplete: boolean;
}

/** Facts that `gather` fills in. */
export type Draft = { -readonly [Name in keyof Facts]: Facts[Name] };

export const emptyFacts = (): Draft => ({
  paths: [],
  parents: new Map(),
  process: {
    capabilities: ~0n,
    isInUserNamespace: false,
    hasSeccompFilter: false,
    filteredCall: undefined,
    label: undefined,
  },
  mountCount: 0,
  mountMax: 0,
  otherUses: [],
  origin: { isOfLower: undefined, lower: undefined, isIndexOfUpper: undefined, indexUpper: undefined },
  work: { leftover: undefined, immutable: undefined, strayIndex: undefined, incompatible: [], attempt: undefined },
  use: { upper: undefined, work: undefined },
  namespaces: undefined,
  isIncomplete: false,
});

/** Returns the device and inode of a file as one word; undefined if there is no file. */
export function identityOf({ errno, type, device, inode }: StatResult): string | undefined {
  return errno === 0 && type !== 0 ? `${device.toString(36)}:${inode.toString(36)}` : undefined;
}

/** Returns true if one of the directories above a directory is `ancestor`. */
export function isInside(identity: string, ancestor: string, parents: Facts['parents']): boolean {
  const seen = new Set<string>();
  for (let at = parents.get(identity); at !== undefined && !seen.has(at); at = parents.get(at)) {
    if (at === ancestor) return true;
    seen.add(at);
  }
  return false;
}
