/**
 * The reasons why a call can fail, as one closed set: the reason's word, when it occurs, and what to do about it. The
 * texts of single errors say the same with their paths.
 */
import { either, option, type Text, text } from './text.js';

interface ReasonText {
  readonly when: string;
  readonly todo: Text;
}

const create = either('create it', text`pass ${option('create', true)}`);

export const reasons = {
  // The paths of a mount
  'lower-missing': {
    when: 'a lowerdir does not exist, or has been removed and only a descriptor still leads to it',
    todo: 'check the path; the library never creates lower layers',
  },
  'lower-not-directory': { when: 'a lowerdir is not a directory', todo: 'name a directory as the layer' },
  'upper-missing': {
    when: 'the upperdir does not exist, or has been removed and only a descriptor still leads to it',
    todo: create,
  },
  'upper-not-directory': { when: 'the upperdir is not a directory', todo: 'name a directory' },
  'work-missing': { when: 'the workdir does not exist', todo: create },
  'work-not-directory': { when: 'the workdir is not a directory', todo: 'name a directory' },
  'target-missing': { when: 'the target does not exist', todo: create },
  'target-not-directory': { when: 'the target is not a directory', todo: 'name a directory' },
  'target-symlink': { when: 'the target is a symbolic link', todo: 'name the directory that the link points to' },
  'target-mounted': {
    when: 'the target is already a mount point',
    todo: either('unmount it first', text`pass ${option('stack', true)} to mount over it`),
  },
  'target-foreign': {
    when: 'the target is on a mount of another mount namespace, or on a mount that is not attached',
    todo: 'name a directory in the mount namespace of the calling thread',
  },
  'path-inaccessible': {
    when: 'a path cannot be reached: search permission is missing, there are too many symbolic links, or a name is too long',
    todo: 'correct the path that the error names, or its permissions',
  },
  // The options together
  'conflicting-options': {
    when: 'two options exclude each other, or one needs another',
    todo: 'leave one of them out, or add the missing one',
  },
  // The layers together
  'work-inside-upper': {
    when: 'the upperdir and the workdir are the same directory, or one is inside the other',
    todo: 'put them side by side on one file system',
  },
  'work-on-other-mount': {
    when: 'the upperdir and the workdir are on two file systems, or on two mounts of one file system',
    todo: 'put the workdir beside the upperdir',
  },
  'layers-overlap': { when: 'a lower layer is inside another layer', todo: 'name no layer that is inside another one' },
  'layer-twice': { when: 'two layers are the same directory', todo: 'name each layer once' },
  'layer-unbindable': {
    when: 'a layer is on an unbindable mount (mount_namespaces(7)), which an overlay cannot clone',
    todo: 'make that mount private: mount --make-private',
  },
  'layer-locked': {
    when: 'in a user namespace, something is mounted inside a layer, and an overlay would uncover the directory below it',
    todo: 'name a directory with no mount inside, or a recursive bind mount made in this namespace',
  },
  'layer-foreign': {
    when: 'a layer is on a mount of another mount namespace, or on a mount that is not attached',
    todo: 'name the layer by a path through the mounts of the mount namespace of the calling thread',
  },
  'layer-unsupported': {
    when: 'a layer is on a file system that overlayfs does not support: procfs, hugetlbfs, autofs, FAT and similar ones',
    todo: 'copy the tree to ext4, xfs, btrfs or tmpfs',
  },
  'layer-casefolded': {
    when: 'a layer is on a file system with case folding, which this kernel does not accept (before 6.18, or beside layers without case folding)',
    todo: 'use a file system made without the casefold feature, or Linux 6.18 with case folding on all layers',
  },
  'upper-read-only': {
    when: 'the upperdir or the workdir is on a read-only mount or file system',
    todo: 'put both on a writable file system, or leave both out for a read-only view',
  },
  'upper-unsupported': {
    when: 'the file system of the upperdir cannot hold an upper layer (an overlay, for example)',
    todo: 'put the upperdir and the workdir on ext4, xfs, btrfs or tmpfs',
  },
  'upper-without-xattrs': {
    when: 'the file system of the upperdir lacks the extended attributes in which overlayfs keeps its marks (ramfs; user.* on tmpfs before 6.6)',
    todo: 'put the upperdir and the workdir on ext4, xfs or btrfs, or on tmpfs with Linux 6.6 or later',
  },
  'upper-remote': {
    when: 'the upperdir is on a remote file system (NFS, SMB, 9p, FUSE) that lacks something an upper layer needs',
    todo: 'put the upperdir and the workdir on a local file system',
  },
  'upper-not-writable': {
    when: 'the mounting user may not write to the upperdir, or the upperdir is immutable or append-only',
    todo: 'make it writable for the mounting user (chown, chmod u+rwx, chattr -ia), or leave the upperdir and the workdir out for a read-only view',
  },
  'upper-in-use': {
    when: 'another overlay uses the upperdir',
    todo: 'unmount the other overlay, or use other directories',
  },
  'work-in-use': { when: 'another overlay uses the workdir', todo: 'give each overlay a workdir of its own' },
  'lower-in-use': {
    when: 'with `index`, a lower layer is the upperdir or workdir of another overlay, or is inside one',
    todo: either('unmount the other overlay', text`leave ${option('index')} out`),
  },
  'mounted-read-only': {
    when: 'the kernel cannot create its directory in the workdir and would mount read-only, and no cause below explains it',
    todo: 'empty the workdir and make it writable for the mounting user',
  },
  'work-leftovers': {
    when: 'the `work` directory in the workdir holds directories that the kernel does not remove',
    todo: 'empty the workdir',
  },
  'work-not-writable': {
    when: 'the mounting user may not write to the workdir',
    todo: 'make it writable for the mounting user: chown, or chmod u+rwx',
  },
  'work-removed': {
    when: 'the workdir has been removed, and only a descriptor still leads to it',
    todo: 'create it again, and name it by its path',
  },
  'work-idmapped': {
    when: 'the workdir is on an idmapped mount that does not let the mounting user create a directory there',
    todo: 'use a mapping that contains the mounting user, or reach the directory through a mount without a mapping',
  },
  'work-immutable': {
    when: 'the workdir, or a directory that an earlier mount left in it, is immutable or append-only',
    todo: 'remove the attribute: chattr -ia',
  },
  'volatile-leftover': {
    when: 'the workdir holds the mark of a volatile mount',
    todo: 'remove work/incompat in the workdir if you know that the data is complete; otherwise start with a fresh upperdir',
  },
  'feature-unknown': {
    when: 'the workdir holds the mark of a feature that this kernel does not know',
    todo: 'mount it with the kernel that made it, or start with a fresh upperdir and workdir',
  },
  stale: {
    when: 'with `index`, the upperdir was made with other lower layers',
    todo: either(
      'use the layers that the upperdir was made with',
      'start with a fresh upperdir and workdir',
      text`leave ${option('index')} out`,
    ),
  },
  'index-of-other-upper': {
    when: 'with `index`, the index in the workdir was made with another upperdir',
    todo: 'use the workdir that belongs to the upperdir, or remove the directory index in it',
  },
  'index-stray': {
    when: 'with `index` or `nfsExport`, `index` in the workdir is not a directory, or holds a file that is not an index entry',
    todo: 'remove what the error names, use an empty workdir, or leave both options out',
  },
  'idmap-unsupported': {
    when: 'the file system of a layer, or the kernel, cannot show files with other owners',
    todo: either('put the layer on ext4, xfs or btrfs (tmpfs: Linux 6.3)', text`leave ${option('idmap')} out`),
  },
  'idmap-refused': {
    when: 'the ranges of `idmap` overlap, or the user namespace cannot serve as a mapping',
    todo: 'correct the ranges; a user namespace must not be the initial one',
  },
  'too-deep': { when: 'overlays are stacked more than two deep', todo: 'use the layers of the overlay below instead' },
  // The kernel and the process
  'no-privilege': {
    when: 'the process may not mount',
    todo: 'run it as root with CAP_SYS_ADMIN, or in a user namespace: unshare -Urm',
  },
  'capability-missing': {
    when: 'the process may mount but lacks CAP_DAC_OVERRIDE, which an overlay with an upperdir needs',
    todo: 'run it with that capability',
  },
  'namespace-foreign': {
    when: 'the mount namespace of the process does not belong to its user namespace',
    todo: 'start the process with a mount namespace of its own: unshare -Urm',
  },
  'seccomp-denied': {
    when: 'a seccomp filter refuses the system calls of mounting (a container runtime, a service manager)',
    todo: 'allow mount(2), fsopen(2) and the related calls in the profile of the container or service',
  },
  'lsm-denied': {
    when: 'a security module (AppArmor, SELinux, Landlock) confines the process',
    todo: 'allow mounts in its profile, or run the process unconfined; a Landlock sandbox allows no mounts',
  },
  'rootless-forbidden': {
    when: 'the machine does not let plain users create the namespaces that a rootless mount needs',
    todo: 'have root allow user namespaces, or mount as root',
  },
  'sub-ids-missing': {
    when: '`subIds` is set, and the user has no subordinate ids, or newuidmap(1) and newgidmap(1) are not installed',
    todo: 'have root add ids for the user to /etc/subuid and /etc/subgid, and install both programs',
  },
  'sub-ids-refused': {
    when: 'newuidmap(1) or newgidmap(1) does not map the subordinate ids',
    todo: 'check that both programs are set-user-ID root or have their capabilities, that the process does not run under no_new_privs, and what /etc/subuid and /etc/subgid contain',
  },
  'shown-before': {
    when: 'a detached mount was already shown to a program, and a kernel before 6.15 can do this only once',
    todo: 'mount it anew for each program, or use Linux 6.15',
  },
  'proc-missing': {
    when: 'the call needs /proc, which is not mounted',
    todo: 'mount it (mount -t proc proc /proc); if that is refused too, the process lacks CAP_SYS_ADMIN',
  },
  'overlay-unavailable': {
    when: 'the kernel has no overlay file system',
    todo: 'load the module (modprobe overlay) or use a kernel that has it',
  },
  'option-unsupported': {
    when: 'the kernel does not have an option, or a value of it',
    todo: either(
      'leave it out',
      text`name it in ${option('allowDegraded')} to mount without it on kernels that lack it`,
    ),
  },
  'option-refused': {
    when: 'the kernel does not know an option, or refuses its value',
    todo: 'leave the option out on this kernel',
  },
  'feature-dropped': {
    when: 'the kernel silently mounted without a feature that the caller asked for; the library has unmounted it again',
    todo: either('leave the option out', text`name it in ${option('allowDegraded')} to mount without it`),
  },
  'feature-unverifiable': {
    when: 'the library cannot read back whether a requested feature is in force',
    todo: text`name it in ${option('allowDegraded')} to mount without the check`,
  },
  'options-too-long': {
    when: 'the options are longer than the page that mount(2) accepts, and the kernel is too old for another way',
    todo: 'use fewer layers or shorter paths',
  },
  'out-of-descriptors': {
    when: 'the process or the machine has no file descriptor left',
    todo: 'raise the limit (ulimit -n), or do less at once',
  },
  'out-of-threads': {
    when: 'the process cannot start a thread or a process',
    todo: 'raise the limit (ulimit -u, the pids of the control group), or do less at once',
  },
  'out-of-memory': {
    when: 'the kernel, or the control group of the process, has no memory for the mount',
    todo: 'free memory, or raise the limit of the control group',
  },
  'too-many-mounts': {
    when: 'the mount namespace has reached its limit of mounts (fs.mount-max)',
    todo: 'unmount what you do not need, or raise the limit: sysctl fs.mount-max',
  },
  'out-of-inodes': {
    when: 'the file system has no inode left',
    todo: 'remove files, or create a file system with more inodes',
  },
  'io-error': {
    when: 'the file system of a layer reports an I/O error, or is damaged',
    todo: 'read the kernel log (dmesg), and check the file system',
  },
  'out-of-space': { when: 'the file system is full, or a quota is used up', todo: 'free some space' },
  // Binding, and other mount namespaces
  'source-unbindable': {
    when: 'the source of a bind is on an unbindable mount, or on a mount of another namespace',
    todo: 'bind from another mount of it, or make the mount private first',
  },
  'target-mismatch': {
    when: 'one of the source and the target of a bind is a directory, and the other is not',
    todo: 'bind directories on directories, and files on files',
  },
  'namespace-missing': {
    when: 'the mount namespace does not exist, or the process that names it has ended',
    todo: 'name the namespace of a running process, /proc/PID/ns/mnt, or pass a descriptor that keeps it',
  },
  'namespace-denied': {
    when: 'the process may not join the mount namespace',
    todo: 'run it with CAP_SYS_ADMIN in the user namespace that owns the mount namespace, and with CAP_SYS_ADMIN and CAP_SYS_CHROOT in its own',
  },
  chrooted: {
    when: 'the process is chrooted to a directory that is not a mount point, so it cannot create a mount namespace',
    todo: 'change its root by pivot_root(2) in a mount namespace of its own, or create the namespace outside the chroot',
  },
  'out-of-namespaces': {
    when: 'the limit on mount namespaces or user namespaces is reached; each detached mount has a mount namespace of its own',
    todo: 'raise /proc/sys/user/max_mnt_namespaces or max_user_namespaces, or close what you do not need',
  },
  // Unmounting
  'not-mounted': {
    when: 'the path is not a mount point, or no longer the mount point of this mount',
    todo: 'check the path: it must be the mount point itself',
  },
  'mount-busy': {
    when: 'something still uses the mount: an open file, a working directory, a mount inside it, or a pending promise of a detached mount',
    todo: either('end its users', text`pass ${option('detach', true)} to detach it now and free it when they end`),
  },
  'mount-locked': {
    when: 'the mount was inherited from outside this user namespace',
    todo: 'unmount it where it was mounted',
  },
  'work-unknown': {
    when: '`removeWork` is set, and the mount table does not show which directory is the workdir',
    todo: text`unmount without ${option('removeWork')}, and remove the workdir by its path`,
  },
  'work-not-empty': {
    when: 'the mount is gone, but the workdir holds more than the empty directory of the kernel',
    todo: 'look at its contents, and remove it if you do not need them',
  },
  // Whiteouts and opaque directories
  'path-missing': { when: 'the path, or its parent directory, does not exist', todo: 'check the path' },
  'path-exists': {
    when: 'a file exists where the whiteout should be, or appears again while the library removes it',
    todo: text`pass ${option('replace', true)} to put the whiteout in its place`,
  },
  'path-is-directory': {
    when: 'a directory exists where the whiteout should be',
    todo: text`pass ${option('recursive', true)} with ${option('replace')} to remove it with all its contents`,
  },
  'mount-inside': {
    when: 'something is mounted at or inside a directory that is to be removed, or inside a mount that is to be replaced',
    todo: 'unmount it first',
  },
  'layer-in-use': {
    when: 'a directory that is to be removed is, or contains, a layer or the workdir of a mounted overlay',
    todo: 'unmount the overlay first',
  },
  'path-not-directory': { when: 'the path, or its parent, is not a directory', todo: 'name a directory' },
  'merged-mount': {
    when: 'the path is in a mounted overlay, where such marks cannot be made',
    todo: 'use the path in the layer directory; a layer that takes marks cannot be on an overlay',
  },
  'xattr-denied': {
    when: 'the file system or the kernel refuses the extended attribute',
    todo: text`trusted.* needs CAP_SYS_ADMIN in the initial user namespace: pass ${option('userxattr', true)} to use user.*`,
  },
  'mark-unseen': {
    when: 'a directory of a layer is opaque only by `trusted.overlay.opaque`, which a rootless mount cannot read, so the mount would show what the directory hides',
    todo: text`set both marks as root: makeOpaque with ${option('marks', 'both')}`,
  },
  'permission-denied': { when: 'the process may not change the directory', todo: 'run as its owner or as root' },
  'read-only': { when: 'the directory is on a read-only mount or file system', todo: 'use a writable file system' },
  unexplained: {
    when: 'no known cause matches',
    todo: 'look at the system call, its errno and the kernel log (dmesg)',
  },
} as const satisfies Readonly<Record<string, ReasonText>>;

/** A word from a closed set that says why a call failed. */
export type Reason = keyof typeof reasons;

/** Returns what to do about the reason, as a part of a sentence. */
export const todoOf = (reason: Reason): Text => reasons[reason].todo;
