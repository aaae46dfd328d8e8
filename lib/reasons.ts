/**
 * The reasons why a call can fail, as one closed set: the reason's word, when it occurs, and what to do about it. The
 * texts of single errors say the same with their paths.
 */
interface ReasonText {
  readonly when: string;
  readonly todo: string;
}

export const reasons = {
  // The paths of a mount
  'lower-missing': {
    when: 'a lowerdir does not exist, or has been removed and is reached by a descriptor only',
    todo: 'check the path; lower layers are never created',
  },
  'lower-not-directory': { when: 'a lowerdir is not a directory', todo: 'name the directory that is the layer' },
  'upper-missing': {
    when: 'the upperdir does not exist, or has been removed and is reached by a descriptor only',
    todo: 'create it, or pass `create: true`',
  },
  'upper-not-directory': { when: 'the upperdir is not a directory', todo: 'name a directory' },
  'work-missing': { when: 'the workdir does not exist', todo: 'create it, or pass `create: true`' },
  'work-not-directory': { when: 'the workdir is not a directory', todo: 'name a directory' },
  'target-missing': { when: 'the target does not exist', todo: 'create it, or pass `create: true`' },
  'target-not-directory': { when: 'the target is not a directory', todo: 'name a directory' },
  'target-symlink': {
    when: 'the target is a symbolic link',
    todo: 'name what the link points to, so that the mount is where it is looked for',
  },
  'target-mounted': {
    when: 'the target is a mount point already',
    todo: 'unmount it first, or pass `stack: true` to mount over it',
  },
  'target-foreign': {
    when: 'the target is on a mount of another mount namespace, or on one that is attached nowhere',
    todo: 'name a directory that the mount namespace of the calling thread has',
  },
  'path-inaccessible': {
    when: 'a path cannot be reached: search permission, too many links, a name too long',
    todo: 'mend the path that the error names',
  },
  // The options together
  'conflicting-options': {
    when: 'two options cannot go together, or one lacks another',
    todo: 'leave one of them out, or add what is missing',
  },
  // The layers together
  'work-inside-upper': {
    when: 'one of upperdir and workdir lies inside the other, or they are the same',
    todo: 'put them beside each other on one file system',
  },
  'work-on-other-mount': {
    when: 'upperdir and workdir are on two file systems, or on two mounts of one',
    todo: 'put the workdir beside the upperdir',
  },
  'layers-overlap': {
    when: 'a lower layer lies inside another layer',
    todo: 'name no layer that lies inside another',
  },
  'layer-twice': {
    when: 'two layers are the same directory',
    todo: 'name each layer once',
  },
  'layer-unbindable': {
    when: 'a layer is on an unbindable mount (mount_namespaces(7)), of which an overlay cannot have a mount of its own',
    todo: 'make that mount private: mount --make-private',
  },
  'layer-locked': {
    when: 'in a user namespace, something is mounted inside a layer, which an overlay would uncover',
    todo: 'name a directory with no mount inside, or a recursive bind mount made in this namespace',
  },
  'layer-foreign': {
    when: 'a layer is on a mount of another mount namespace, or on one that is attached nowhere',
    todo: 'name the layer by a path that leads through the mounts of the mount namespace of the calling thread',
  },
  'layer-unsupported': {
    when: 'a layer is on a file system that overlayfs does not take: procfs, hugetlbfs, autofs, FAT and its like',
    todo: 'copy the tree to ext4, xfs, btrfs or tmpfs',
  },
  'layer-casefolded': {
    when: 'a layer is on a file system with case folding, which this kernel does not take (before 6.18, or beside layers without)',
    todo: 'use a file system that was made without the casefold feature, or Linux 6.18 with all layers alike',
  },
  'upper-read-only': {
    when: 'the upperdir or workdir is on a read-only mount or file system',
    todo: 'put both on a writable one, or leave both out for a read-only view',
  },
  'upper-unsupported': {
    when: 'the file system of the upperdir cannot hold an upper layer (an overlay, for one)',
    todo: 'put upperdir and workdir on ext4, xfs, btrfs or tmpfs',
  },
  'upper-without-xattrs': {
    when: 'the file system of the upperdir has no extended attributes of the kind that overlayfs keeps its marks in (ramfs; user.* on tmpfs before 6.6)',
    todo: 'put upperdir and workdir on ext4, xfs or btrfs, or on tmpfs from Linux 6.6 on',
  },
  'upper-remote': {
    when: 'the upperdir is on a remote file system (NFS, SMB, 9p, FUSE) that lacks something an upper needs',
    todo: 'put upperdir and workdir on a local file system',
  },
  'upper-not-writable': {
    when: 'the mounting user may not write to the upperdir, or nobody may: it is immutable, or can be appended to only',
    todo: 'make it writable for the mounting user (chown, chmod u+rwx, chattr -ia), or leave upperdir and workdir out for a read-only view',
  },
  'upper-in-use': {
    when: 'the upperdir is in use by another overlay',
    todo: 'unmount the other overlay, or use other directories',
  },
  'work-in-use': {
    when: 'the workdir is in use by another overlay',
    todo: 'use a workdir of its own for each overlay',
  },
  'lower-in-use': {
    when: 'with `index`, a lower layer is the upperdir or workdir of another overlay, or is inside one',
    todo: 'unmount the other overlay, or leave `index` out',
  },
  'mounted-read-only': {
    when: 'the kernel would have mounted read-only, since it cannot make its directory in the workdir, for none of the causes below',
    todo: 'empty the workdir and make it writable for the mounting user',
  },
  'work-leftovers': {
    when: 'the workdir holds directories in `work` that the kernel does not clear away',
    todo: 'empty the workdir',
  },
  'work-not-writable': {
    when: 'the mounting user may not write to the workdir',
    todo: 'make it writable for the mounting user: chown, or chmod u+rwx',
  },
  'work-removed': {
    when: 'the workdir has been removed, and is reached by a descriptor only',
    todo: 'make it again, and name it by its path',
  },
  'work-idmapped': {
    when: 'the workdir is on an idmapped mount that does not let the mounting user make a directory there',
    todo: 'use a mapping that holds the mounting user, or the directory through a mount without one',
  },
  'work-immutable': {
    when: 'the workdir, or what an earlier mount has left in it, is immutable, or can be appended to only',
    todo: 'take the attribute away: chattr -ia',
  },
  'volatile-leftover': {
    when: 'the workdir holds the mark of a volatile mount',
    todo: 'remove work/incompat in the workdir if the data is known to be whole; else start with a fresh upper',
  },
  'feature-unknown': {
    when: 'the workdir holds the mark of a feature that this kernel does not know',
    todo: 'mount it with the kernel that made it, or start with a fresh upperdir and workdir',
  },
  stale: {
    when: 'with `index`, the upperdir was made with other lower layers',
    todo: 'use the layers that the upper was made with, a fresh upperdir and workdir, or leave `index` out',
  },
  'index-of-other-upper': {
    when: 'with `index`, the index in the workdir was made with another upperdir',
    todo: 'use the workdir that belongs to the upperdir, or remove its `index` directory',
  },
  'index-stray': {
    when: 'with `index` or `nfsExport`, `index` in the workdir is no directory, or holds what is no entry of an index',
    todo: 'remove what the error names, use an empty workdir, or leave both options out',
  },
  'idmap-unsupported': {
    when: 'the file system of a layer, or the kernel, cannot show its files with other owners',
    todo: 'put the layer on ext4, xfs or btrfs (tmpfs: Linux 6.3), or leave `idmap` out',
  },
  'idmap-refused': {
    when: 'the ranges of `idmap` overlap, or the user namespace cannot serve as a map',
    todo: 'mend the ranges; a user namespace must not be the initial one',
  },
  'too-deep': { when: 'overlays are stacked more than two deep', todo: 'use the layers of the overlay below instead' },
  // The kernel and the process
  'no-privilege': {
    when: 'the process may not mount',
    todo: 'run it as root with CAP_SYS_ADMIN, or in a user namespace: unshare -Urm',
  },
  'capability-missing': {
    when: 'the process may mount, and lacks another capability: CAP_DAC_OVERRIDE, where there is an upperdir',
    todo: 'run it with that capability',
  },
  'namespace-foreign': {
    when: 'the process is in a user namespace to which its mount namespace does not belong',
    todo: 'start it with a mount namespace of its own: unshare -Urm',
  },
  'seccomp-denied': {
    when: 'a seccomp filter refuses the system calls of mounting (a container runtime, a service manager)',
    todo: 'allow mount(2), fsopen(2) and their like in the profile of the container or service',
  },
  'lsm-denied': {
    when: 'a security module (AppArmor, SELinux, Landlock) confines the process',
    todo: 'allow mounts in its profile, or run the process unconfined; a Landlock sandbox allows none',
  },
  'rootless-forbidden': {
    when: 'the machine lets no plain user make the namespaces that a rootless mount is made in',
    todo: 'have root allow user namespaces, or mount as root',
  },
  'sub-ids-missing': {
    when: '`subIds` is asked for, and the user has no subordinate ids, or newuidmap(1) and newgidmap(1) are not there',
    todo: 'have root give the user ids in /etc/subuid and /etc/subgid, and install both programs',
  },
  'sub-ids-refused': {
    when: 'newuidmap(1) or newgidmap(1) does not map the subordinate ids',
    todo: 'see that both are set-user-ID root or have their capabilities, that the process is not under no_new_privs, and what /etc/subuid and /etc/subgid say',
  },
  'shown-before': {
    when: 'a detached mount was shown to a program before, which a kernel before 6.15 can do once',
    todo: 'mount it anew for each program, or use Linux 6.15',
  },
  'proc-missing': {
    when: '/proc is not mounted, and the call needs it, or the only way that is left to mount does',
    todo: 'mount it (mount -t proc proc /proc); where that is refused too, the process lacks CAP_SYS_ADMIN',
  },
  'overlay-unavailable': {
    when: 'the kernel has no overlay file system',
    todo: 'load the module (modprobe overlay) or use a kernel that has it',
  },
  'option-unsupported': {
    when: 'the kernel does not have an option, or a value of it',
    todo: 'leave it out, or name it in `allowDegraded` to have it left out where the kernel lacks it',
  },
  'option-refused': {
    when: 'the kernel does not know an option or refuses its value',
    todo: 'leave the option out on this kernel',
  },
  'feature-dropped': {
    when: 'the kernel has mounted without a feature that was asked for, which it does without a word; the mount is taken down again',
    todo: 'leave the option out, or name it in `allowDegraded` to have the mount all the same',
  },
  'feature-unverifiable': {
    when: 'whether a feature that was asked for came into force cannot be read back',
    todo: 'name it in `allowDegraded` to mount without knowing',
  },
  'options-too-long': {
    when: 'the options pass the page that mount(2) takes, and the kernel is too old for another way',
    todo: 'use fewer layers or shorter paths',
  },
  'out-of-descriptors': {
    when: 'the process or the machine has no descriptor left',
    todo: 'raise the limit (ulimit -n) or do less at once',
  },
  'out-of-threads': {
    when: 'the process can start no thread, or no process',
    todo: 'raise the limit (ulimit -u, the pids of the control group), or do less at once',
  },
  'out-of-memory': {
    when: 'the kernel, or the control group of the process, has no memory for the mount',
    todo: 'free memory, or raise the limit of the control group',
  },
  'too-many-mounts': {
    when: 'the mount namespace has as many mounts as it may have (fs.mount-max)',
    todo: 'unmount what is of no use, or raise the limit: sysctl fs.mount-max',
  },
  'out-of-inodes': {
    when: 'the file system has no inode left',
    todo: 'remove files, or make a file system with more inodes',
  },
  'io-error': {
    when: 'the file system of a layer reports an I/O error, or is damaged',
    todo: 'look into the kernel log (dmesg), and check the file system',
  },
  'out-of-space': { when: 'the file system is full, or a quota is used up', todo: 'make room' },
  // Binding, and other mount namespaces
  'source-unbindable': {
    when: 'the source of a bind is on an unbindable mount, or on one of another namespace',
    todo: 'bind from another mount of it, or make the mount private first',
  },
  'target-mismatch': {
    when: 'of source and target of a bind, one is a directory and the other is not',
    todo: 'bind directories on directories, and files on files',
  },
  'namespace-missing': {
    when: 'the mount namespace is not there, or is none: the process that it is named by has ended',
    todo: 'name one that lives: /proc/PID/ns/mnt, or a descriptor that keeps it',
  },
  'namespace-denied': {
    when: 'the process may not join the mount namespace',
    todo: 'joining needs CAP_SYS_ADMIN in the user namespace that owns it, and CAP_SYS_ADMIN and CAP_SYS_CHROOT in its own',
  },
  chrooted: {
    when: 'the process is chrooted to a directory that is no mount point, where no mount namespace begins',
    todo: 'have its root changed by pivot_root(2) in a mount namespace of its own, or make the namespace outside',
  },
  'out-of-namespaces': {
    when: 'the limit on mount namespaces, of which each detached mount has one, or on user namespaces is reached',
    todo: 'raise /proc/sys/user/max_mnt_namespaces or max_user_namespaces, or close what is not needed',
  },
  // Unmounting
  'not-mounted': {
    when: 'the path is not a mount point, or not that of this mount any more',
    todo: 'check the path: it has to be the mount point itself',
  },
  'mount-busy': {
    when: 'something still uses the mount: an open file, a working directory, a mount inside it; or a promise of a detached one is not kept yet',
    todo: 'end its users, or pass `detach: true` to take it out of sight now and free it when they end',
  },
  'mount-locked': {
    when: 'the mount was inherited from outside this user namespace',
    todo: 'unmount it where it was mounted',
  },
  'work-unknown': {
    when: '`removeWork` is asked for, and the mount table does not tell which directory is the workdir',
    todo: 'unmount without `removeWork`, and remove the workdir by its path',
  },
  'work-not-empty': {
    when: "the mount is gone, but the workdir holds more than the kernel's own empty directory",
    todo: 'look at what is in it, and remove it if it is of no use',
  },
  // Whiteouts and opaque directories
  'path-missing': { when: 'the path, or its parent directory, does not exist', todo: 'check the path' },
  'path-exists': {
    when: 'something is where the whiteout should be, or comes back while it is removed',
    todo: 'pass `replace: true` to put the whiteout in its place',
  },
  'path-is-directory': {
    when: 'a directory is where the whiteout should be',
    todo: 'pass `recursive: true` with `replace` to remove it and all that it holds',
  },
  'mount-inside': {
    when: 'something is mounted at or inside a directory that is to be removed, or inside a mount that is to be replaced',
    todo: 'unmount it first',
  },
  'layer-in-use': {
    when: 'a directory that is to be removed is, or holds, a layer or the workdir of a mounted overlay',
    todo: 'unmount the overlay first',
  },
  'layer-changed': {
    when: 'a directory was moved, or changed again and again, while it was read',
    todo: 'let nothing change it meanwhile',
  },
  'path-not-directory': { when: 'the path, or its parent, is not a directory', todo: 'name a directory' },
  'merged-mount': {
    when: "the path is in a mounted overlay, where this can't be made",
    todo: 'use the path in the layer directory; layers that are to take marks cannot lie on an overlay',
  },
  'xattr-denied': {
    when: 'the file system or the kernel refuses the extended attribute',
    todo: 'trusted.* needs CAP_SYS_ADMIN in the initial user namespace: pass `userxattr: true` to use user.*',
  },
  'mark-unseen': {
    when: 'a directory of a layer is opaque by `trusted.overlay.opaque` only, which a rootless mount cannot read: it would show what the directory hides',
    todo: "set both marks, as root: `makeOpaque(dir, { marks: 'both' })`",
  },
  // Archives of layers
  'archive-invalid': {
    when: 'an archive is no tar archive, is cut or damaged, or has an entry that no layer can have',
    todo: 'fetch or make the archive anew',
  },
  'archive-limit': {
    when: 'an archive holds more than a limit of the call allows: entries, bytes, depth, ratio of compression',
    todo: 'raise the limit if the archive is trusted',
  },
  'layer-unpackable': {
    when: 'a layer holds something that an archive cannot say: a renamed directory or a metacopy without the layers below, or a file called `.wh.…`',
    todo: 'pass the layers below as `lowerdir`, or mend what the error names',
  },
  'digest-mismatch': {
    when: 'the archive is not the one that `expectedDigest` or `expectedDiffId` names',
    todo: 'fetch the archive anew, and check the digest',
  },
  'permission-denied': { when: 'the process may not change the directory', todo: 'run as its owner or as root' },
  'read-only': { when: 'the directory is on a read-only mount or file system', todo: 'use a writable one' },
  unexplained: {
    when: 'nothing that is known matches',
    todo: 'look at the system call, its errno and the kernel log (dmesg)',
  },
} as const satisfies Readonly<Record<string, ReasonText>>;

/** A word from a closed set that says why a call failed. */
export type Reason = keyof typeof reasons;

/** Returns what to do about the reason, as a part of a sentence. */
export const todoOf = (reason: Reason): string => reasons[reason].todo;
