/**
 * The reasons why a call can fail, as one set, each with what to do about it. The texts of single errors say the
 * same with their paths. docs/errors-page.ts has the condition of each reason, and the headings.
 */
import { either, option, type Text, text } from './text.js';

const create = either('create it', text`pass ${option('create', true)}`);

export const reasons = {
  // The paths of a mount
  'lower-missing': 'check the path; the library never creates lower layers',
  'lower-not-directory': 'name a directory as the layer',
  'upper-missing': create,
  'upper-not-directory': 'name a directory',
  'work-missing': create,
  'work-not-directory': 'name a directory',
  'target-missing': create,
  'target-not-directory': 'name a directory',
  'target-symlink': 'name the directory that the link points to',
  'target-mounted': either('unmount it first', text`pass ${option('stack', true)} to mount over it`),
  'target-foreign': 'name a directory in the mount namespace of the calling thread',
  'path-inaccessible': 'correct the path that the error names, or its permissions',
  // The options together
  'invalid-argument': 'pass what the message says',
  'conflicting-options': 'leave one of them out, or add the missing one',
  // The layers together, and what they are on
  'work-inside-upper': 'put them side by side on one file system',
  'work-on-other-mount': 'put the workdir beside the upperdir',
  'layers-overlap': 'name no layer that is inside another one',
  'layer-twice': 'name each layer once',
  'layer-unbindable': 'make that mount private: mount --make-private',
  'layer-locked': 'name a directory with no mount inside, or a recursive bind mount made in this namespace',
  'layer-foreign': 'name the layer by a path through the mounts of the mount namespace of the calling thread',
  'layer-unsupported': 'copy the tree to ext4, xfs, btrfs or tmpfs',
  'layer-casefolded':
    'use a file system made without the casefold feature, or Linux 6.18 with case folding on all layers',
  'upper-read-only': 'put both on a writable file system, or leave both out for a read-only view',
  'upper-unsupported': 'put the upperdir and the workdir on ext4, xfs, btrfs or tmpfs',
  'upper-without-xattrs': 'put the upperdir and the workdir on ext4, xfs or btrfs, or on tmpfs with Linux 6.6 or later',
  'upper-remote': 'put the upperdir and the workdir on a local file system',
  'upper-not-writable':
    'make it writable for the mounting user (chown, chmod u+rwx, chattr -ia), or leave the upperdir and the workdir out for a read-only view',
  'upper-in-use': 'unmount the other overlay, or use other directories',
  'work-in-use': 'give each overlay a workdir of its own',
  'lower-in-use': either('unmount the other overlay', text`leave ${option('index')} out`),
  'mounted-read-only': 'empty the workdir and make it writable for the mounting user',
  'work-leftovers': 'empty the workdir',
  'work-not-writable': 'make it writable for the mounting user: chown, or chmod u+rwx',
  'work-removed': 'create it again, and name it by its path',
  'work-idmapped':
    'use a mapping that contains the mounting user, or reach the directory through a mount without a mapping',
  'work-immutable': 'remove the attribute: chattr -ia',
  'volatile-leftover':
    'remove work/incompat in the workdir if you know that the data is complete; otherwise start with a fresh upperdir',
  'feature-unknown': 'mount it with the kernel that made it, or start with a fresh upperdir and workdir',
  stale: either(
    'use the layers that the upperdir was made with',
    'start with a fresh upperdir and workdir',
    text`leave ${option('index')} out`,
  ),
  'index-of-other-upper': 'use the workdir that belongs to the upperdir, or remove the directory index in it',
  'index-stray': 'remove what the error names, use an empty workdir, or leave both options out',
  'idmap-unsupported': either(
    'put the layer on ext4, xfs or btrfs (tmpfs: Linux 6.3)',
    text`leave ${option('idmap')} out`,
  ),
  'idmap-refused': 'correct the ranges; a user namespace must not be the initial one',
  'too-deep': 'use the layers of the overlay below instead',
  // The kernel and the process
  'no-privilege': "start it by 'overlayfs unshare', or as root with CAP_SYS_ADMIN",
  'capability-missing': 'run it with that capability',
  'namespace-foreign': "start it by 'overlayfs unshare', with a mount namespace of its own",
  'seccomp-denied': 'allow mount(2), fsopen(2) and the related calls in the profile of the container or service',
  'lsm-denied': 'allow mounts in its profile, or run the process unconfined; a Landlock sandbox allows no mounts',
  'rootless-forbidden': 'have root allow user namespaces, or mount as root',
  'sub-ids-missing': 'have root add ids for the user to /etc/subuid and /etc/subgid, and install both programs',
  'sub-ids-refused':
    'check that both programs are set-user-ID root or have their capabilities, that the process does not run under no_new_privs, and what /etc/subuid and /etc/subgid contain',
  'shown-before': 'mount it anew for each program, or use Linux 6.15',
  'proc-missing': 'mount it (mount -t proc proc /proc); if that is refused too, the process lacks CAP_SYS_ADMIN',
  'process-killed':
    'try again, and find what kills it: the kernel log (dmesg) names a process that is killed for lack of memory',
  'program-missing': 'check its name, and that it and its interpreter are where the program runs',
  'program-unexecutable': 'make it executable (chmod +x), for this processor, on a mount without noexec',
  'platform-unsupported': 'run it on Linux: on a machine, in a virtual machine, in WSL 2, or in a container',
  'overlay-unavailable': 'load the module (modprobe overlay) or use a kernel that has it',
  'option-unsupported': either(
    'leave it out',
    text`name it in ${option('allowDegraded')} to mount without it on kernels that lack it`,
  ),
  'option-refused': 'leave the option out on this kernel',
  'feature-dropped': either('leave the option out', text`name it in ${option('allowDegraded')} to mount without it`),
  'feature-unverifiable': text`name it in ${option('allowDegraded')} to mount without the check`,
  'options-too-long': 'use fewer layers or shorter paths',
  'out-of-descriptors': 'raise the limit (ulimit -n), or do less at once',
  'out-of-threads': 'raise the limit (ulimit -u, the pids of the control group), or do less at once',
  'out-of-memory': 'free memory, or raise the limit of the control group',
  'too-many-mounts': 'unmount what you do not need, or raise the limit: sysctl fs.mount-max',
  'out-of-inodes': 'remove files, or create a file system with more inodes',
  'too-many-subdirectories': 'remove subdirectories, or use a directory that holds fewer',
  'io-error': 'read the kernel log (dmesg), and check the file system',
  'out-of-space': 'free some space',
  // Binding, and other mount namespaces
  'source-unbindable': 'bind from another mount of it, or make the mount private first',
  'target-mismatch': 'bind directories on directories, and files on files',
  'namespace-missing': 'name the namespace of a running process, /proc/PID/ns/mnt, or pass a descriptor that keeps it',
  'namespace-denied':
    'run it with CAP_SYS_ADMIN in the user namespace that owns the mount namespace, and with CAP_SYS_ADMIN and CAP_SYS_CHROOT in its own',
  'out-of-namespaces': 'raise /proc/sys/user/max_mnt_namespaces or max_user_namespaces, or close what you do not need',
  // Unmounting
  'not-mounted': 'check the path: it must be the mount point itself',
  'mount-busy': either(
    'end its users',
    text`pass ${option('detach', true)} to detach it now and free it when they end`,
  ),
  'mount-covered': 'unmount the mount that covers it first',
  'mount-locked': 'unmount it where it was mounted',
  // Whiteouts, opaque directories, and changes of layers
  'path-missing': 'check the path',
  'path-exists': either('remove it first', text`pass ${option('replace', true)} to put the whiteout in its place`),
  'path-is-directory': either(
    'remove it first',
    text`pass ${option('recursive', true)} with ${option('replace')} to remove it with all its contents`,
  ),
  'mount-inside': 'unmount it first',
  'layer-in-use': 'unmount the overlay first',
  'layer-changed': 'let nothing change the layer meanwhile',
  'layers-incomplete': 'name the layers below too',
  'layers-swapped': either(
    'name the upper first, and then the directory to merge it into',
    text`pass ${option('unmarked', true)} if that is the order`,
  ),
  'layer-conflict': text`look at the conflicts, and pass ${option('conflict', 'ours')} or ${option('conflict', 'theirs')}`,
  'path-not-directory': 'name a directory',
  'merged-mount': 'use the path in the layer directory; a layer that takes marks cannot be on an overlay',
  'xattr-denied': either(
    'run as root, because trusted.* needs CAP_SYS_ADMIN in the initial user namespace',
    text`pass ${option('userxattr', true)} to use user.*`,
  ),
  'mark-unseen': text`set both marks as root: makeOpaque with ${option('marks', 'both')}`,
  'permission-denied': 'run as its owner or as root',
  'read-only': 'use a writable file system',
  // Archives of layers
  'archive-invalid': 'fetch or make the archive anew',
  'archive-limit': 'raise the limit if you trust the archive',
  'digest-mismatch': 'fetch the archive anew, and check the digest',
  'layer-unpackable': 'change what the error names',
  // Snapshots, images and programs
  missing: 'check the name',
  exists: 'use that one, remove it, or choose another name',
  'failed-precondition': 'do first what the message says',
  'store-damaged': 'restore it from a backup',
  'store-version': 'use the version of the library that made it',
  'store-failed': 'look at the message and the kernel log (dmesg)',
  'not-synced': 'check the disk; the change need not be repeated now',
  closed: 'open it again',
  'in-use': 'end the other user first',
  'dependency-missing': 'install the package that the message names',
  'media-type': 'make the image with media types of OCI',
  'image-invalid': 'fetch or make the image anew',
  'not-started': 'name a program that the image has',
  'runtime-failed': 'correct what the runtime says',
  'commit-failed': 'remove the cause, and commit the snapshot that the error names',
  'program-failed': 'correct what the program says: the error has its output',
  'program-output': either(text`raise ${option('maxBuffer')}`, 'have the program write less'),
  // No known cause
  unexplained: 'look at the system call, its errno and the kernel log (dmesg)',
} as const satisfies Readonly<Record<string, Text>>;

/** A word that says why a call failed. The set may grow in a minor release. */
export type Reason = keyof typeof reasons;

/** Returns what to do about the reason, as a part of a sentence. */
export const todoOf = (reason: Reason): Text => reasons[reason];
