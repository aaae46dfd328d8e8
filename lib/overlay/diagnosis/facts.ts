/** What a diagnosis knows: plain data about the paths of a mount, the mount table and the process. */
import type { Found } from '../../kernel/look.js';
import type { Subject } from '../../kernel/plan.js';
import type { Path } from '../../paths.js';
import type { NamespaceSettings } from '../refusal.js';

/** statfs(2) of a path's file system. */
export interface FileSystemFacts {
  readonly magic: number;
  readonly isReadOnly: boolean;
  /** Blocks for users other than root, and inodes; of how many. A file system without a limit has 0 of 0. */
  readonly freeBlocks: number;
  readonly blocks: number;
  readonly freeInodes: number;
  readonly inodes: number;
}

/** The mount that a path is on, from the mount table. */
export interface MountFacts {
  /** `ext4`, as the table has it. */
  readonly type: string;
  readonly target: Path;
  readonly isUnbindable: boolean;
  readonly isIdmapped: boolean;
  /** Where something is mounted below the path. */
  readonly inside: Path | undefined;
}

/** A path of the mount and what is there. */
export interface PathFacts {
  readonly subject: Subject;
  readonly found: Found;
  /** It is not there, and `create` makes it: all this is as it would be then. */
  readonly isUnmade: boolean;
  /** Whether the path's last component is a symbolic link. */
  readonly isSymlink: boolean;
  /** Undefined where nothing could be asked. */
  readonly fileSystem: FileSystemFacts | undefined;
  /** Undefined where the table of this namespace has no such mount, or was not looked at. */
  readonly mount: MountFacts | undefined;
  /** Of upper and work: the errno of writing to it, 0 where it may be written; faccessat2(2). */
  readonly writeErrno: number;
}

export interface ProcessFacts {
  /** The effective capabilities, as a bit mask. */
  readonly capabilities: bigint;
  readonly isInUserNamespace: boolean;
  /** Whether a filter of seccomp(2) is in force. */
  readonly hasSeccompFilter: boolean;
  /** The label of a security module that confines the process: an AppArmor profile, an SELinux context. */
  readonly label: string | undefined;
}

/** Another overlay that uses a directory of this mount, or did so when it was looked. */
export interface OtherUse {
  /** Where the other overlay is mounted: a target, or the descriptor of a detached one; undefined for one out of sight. */
  readonly target: Path | undefined;
  /** As what it uses the directory. */
  readonly as: 'upperdir' | 'workdir';
  readonly subject: Subject;
  /** Whether another call of this process is about to mount it. */
  readonly isPending?: boolean;
}

/** What the attributes of upper and index say about where they come from. */
export interface OriginFacts {
  /** Whether the upper was made with the topmost lower; undefined where that is not known. */
  readonly isOfLower: boolean | undefined;
  /** The lower that it was made with, where it can still be found. */
  readonly lower: Path | undefined;
  /** Whether the index belongs to the upper; undefined where that is not known. */
  readonly isIndexOfUpper: boolean | undefined;
  readonly indexUpper: Path | undefined;
}

export interface WorkFacts {
  /** A directory in `work/work` that the kernel does not clear away, since it holds something two deep. */
  readonly leftover: Path | undefined;
  /** The kernel's own directory in the workdir, or what is in it, that is immutable or can be appended to only. */
  readonly immutable: Path | undefined;
  /** `index` in the workdir where it is no directory, or what in it is no entry of an index. */
  readonly strayIndex: Path | undefined;
  /** Names in `work/work/incompat`: features that have to be known to whoever mounts this. */
  readonly incompatible: readonly string[];
  /** The errno of making a directory in the workdir, as the kernel has to; undefined where that works, or was not tried. */
  readonly attempt: number | undefined;
}

/** Whether the kernel says that a directory is in use; undefined where it was not asked. */
export interface UseFacts {
  readonly upper: boolean | undefined;
  readonly work: boolean | undefined;
}

export interface Facts {
  /** Target, lowers, data-only layers, upper, work. */
  readonly paths: readonly PathFacts[];
  /** By a directory's identity that of the one above it; see identityOf. */
  readonly parents: ReadonlyMap<string, string>;
  readonly process: ProcessFacts;
  /** The mounts of the namespace; 0 where the table could not be read. */
  readonly mountCount: number;
  /** As many as a namespace may have (fs.mount-max). */
  readonly mountMax: number;
  readonly otherUses: readonly OtherUse[];
  readonly origin: OriginFacts;
  readonly work: WorkFacts;
  readonly use: UseFacts;
  /** Of a mount that was to be made in namespaces of its own. */
  readonly namespaces: NamespaceSettings | undefined;
  /** Whether the look was given up, since a file system did not answer. */
  readonly isIncomplete: boolean;
}

/** A draft to be filled in. */
export type Draft = { -readonly [Name in keyof Facts]: Facts[Name] };

export const emptyFacts = (): Draft => ({
  paths: [],
  parents: new Map(),
  process: { capabilities: ~0n, isInUserNamespace: false, hasSeccompFilter: false, label: undefined },
  mountCount: 0,
  mountMax: 0,
  otherUses: [],
  origin: { isOfLower: undefined, lower: undefined, isIndexOfUpper: undefined, indexUpper: undefined },
  work: { leftover: undefined, immutable: undefined, strayIndex: undefined, incompatible: [], attempt: undefined },
  use: { upper: undefined, work: undefined },
  namespaces: undefined,
  isIncomplete: false,
});

/** A directory as one word; undefined where nothing is. */
export function identityOf({ errno, type, device, inode }: Found): string | undefined {
  return errno === 0 && type !== 0 ? `${device.toString(36)}:${inode.toString(36)}` : undefined;
}

/** The directory above, and the one above that: whether one of them is `ancestor`. */
export function isInside(identity: string, ancestor: string, parents: Facts['parents']): boolean {
  const seen = new Set<string>();
  for (let at = parents.get(identity); at !== undefined && !seen.has(at); at = parents.get(at)) {
    if (at === ancestor) return true;
    seen.add(at);
  }
  return false;
}
