/** docs/errors.md, made from the table of reasons. Pure. */
import { type Reason, reasons } from '#lib/reasons.js';
import { sentence } from '#lib/text.js';

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('<', '&lt;');

/** The headings, each with the first reason below it, in the order of the table. lib/reasons.ts has them as comments. */
export const sections: Readonly<Partial<Record<Reason, string>>> = {
  'lower-missing': 'The paths of a mount',
  'invalid-argument': 'The options together',
  'work-inside-upper': 'The layers together, and what they are on',
  'no-privilege': 'The kernel and the process',
  'source-unbindable': 'Binding, and other mount namespaces',
  'not-mounted': 'Unmounting',
  'path-missing': 'Whiteouts, opaque directories, and changes of layers',
  'archive-invalid': 'Archives of layers',
  missing: 'Snapshots, images and programs',
  unexplained: 'No known cause',
};

/** When a call fails for each reason. */
const conditions: Readonly<Record<Reason, string>> = {
  'lower-missing': 'a lowerdir does not exist, or has been removed and only a descriptor still leads to it',
  'lower-not-directory': 'a lowerdir is not a directory',
  'upper-missing': 'the upperdir does not exist, or has been removed and only a descriptor still leads to it',
  'upper-not-directory': 'the upperdir is not a directory',
  'work-missing': 'the workdir does not exist',
  'work-not-directory': 'the workdir is not a directory',
  'target-missing': 'the target does not exist',
  'target-not-directory': 'the target is not a directory',
  'target-symlink': 'the target is a symbolic link',
  'target-mounted': 'the target is already a mount point',
  'target-foreign': 'the target is on a mount of another mount namespace, or on a mount that is not attached',
  'path-inaccessible':
    'a path cannot be reached: search permission is missing, there are too many symbolic links, or a name is too long',
  'invalid-argument':
    'an argument has a wrong type or value; the error is a TypeError or a RangeError with the code of Node',
  'conflicting-options': 'two options exclude each other, or one needs another',
  'work-inside-upper': 'the upperdir and the workdir are the same directory, or one is inside the other',
  'work-on-other-mount': 'the upperdir and the workdir are on two file systems, or on two mounts of one file system',
  'layers-overlap': 'a layer is inside another one',
  'layer-twice': 'two layers are the same directory',
  'layer-unbindable': 'a layer is on an unbindable mount (mount_namespaces(7)), which an overlay cannot clone',
  'layer-locked':
    'in a user namespace, something is mounted inside a layer, and an overlay would uncover the directory below it',
  'layer-foreign': 'a layer is on a mount of another mount namespace, or on a mount that is not attached',
  'layer-unsupported':
    'a layer is on a file system that overlayfs does not support: procfs, hugetlbfs, autofs, FAT and similar ones; on later releases of Linux 6.18, debugfs, tracefs, bpf and binfmt_misc',
  'layer-casefolded':
    'a layer is on a file system with case folding, which this kernel does not accept (before 6.18, or beside layers without case folding)',
  'upper-read-only': 'the upperdir or the workdir is on a read-only mount or file system',
  'upper-unsupported': 'the file system of the upperdir cannot hold an upper layer (an overlay, for example)',
  'upper-without-xattrs':
    'the file system of the upperdir lacks the extended attributes in which overlayfs keeps its marks (ramfs; user.* on tmpfs before 6.6)',
  'upper-remote':
    'the upperdir is on a remote file system (NFS, SMB, 9p, FUSE) that lacks something an upper layer needs',
  'upper-not-writable': 'the mounting user may not write to the upperdir, or the upperdir is immutable or append-only',
  'upper-in-use': 'another overlay uses the upperdir',
  'work-in-use': 'another overlay uses the workdir',
  'lower-in-use': 'with `index`, a lower layer is the upperdir or workdir of another overlay, or is inside one',
  'mounted-read-only':
    'the kernel cannot create its directory in the workdir and would mount read-only, and no cause below explains it',
  'work-leftovers': 'the `work` directory in the workdir holds directories that the kernel does not remove',
  'work-not-writable': 'the mounting user may not write to the workdir',
  'work-removed': 'the workdir has been removed, and only a descriptor still leads to it',
  'work-idmapped': 'the workdir is on an idmapped mount that does not let the mounting user create a directory there',
  'work-immutable': 'the workdir, or a directory that an earlier mount left in it, is immutable or append-only',
  'volatile-leftover': 'the workdir holds the mark of a volatile mount',
  'feature-unknown': 'the workdir holds the mark of a feature that this kernel does not know',
  stale: 'with `index`, the upperdir was made with other lower layers',
  'index-of-other-upper': 'with `index`, the index in the workdir was made with another upperdir',
  'index-stray':
    'with `index` or `nfsExport`, `index` in the workdir is not a directory, or holds a file that is not an index entry',
  'idmap-unsupported': 'the file system of a layer, or the kernel, cannot show files with other owners',
  'idmap-refused': 'the ranges of `idmap` overlap, or the user namespace cannot serve as a mapping',
  'too-deep': 'overlays are stacked more than two deep',
  'no-privilege': 'the process may not mount',
  'capability-missing': 'the process may mount but lacks CAP_DAC_OVERRIDE, which an overlay with an upperdir needs',
  'namespace-foreign': 'the mount namespace of the process does not belong to its user namespace',
  'seccomp-denied': 'a seccomp filter refuses the system calls of mounting (a container runtime, a service manager)',
  'lsm-denied': 'a security module (AppArmor, SELinux, Landlock) confines the process',
  'rootless-forbidden': 'the machine does not let plain users create the namespaces that a rootless mount needs',
  'sub-ids-missing':
    '`subIds` is set, and the user has no subordinate ids, or newuidmap(1) and newgidmap(1) are not installed',
  'sub-ids-refused': 'newuidmap(1) or newgidmap(1) does not map the subordinate ids',
  'shown-before': 'a detached mount was already shown to a program, and a kernel before 6.15 can do this only once',
  'proc-missing': 'the call needs /proc, which is not mounted',
  'overlay-unavailable': 'the kernel has no overlay file system',
  'process-killed':
    'a process that the library starts to mount, or to make a user namespace, was killed by another one',
  'program-missing': 'a program that is to be started, or its interpreter, does not exist where it runs',
  'program-unexecutable': 'the kernel does not execute a program that is to be started',
  'platform-unsupported': 'the program does not run on Linux',
  'option-unsupported': 'the kernel does not have an option, or a value of it',
  'option-refused': 'the kernel does not know an option, or refuses its value',
  'feature-dropped':
    'the kernel silently mounted without a feature that the caller asked for; the library has unmounted it again',
  'feature-unverifiable': 'the library cannot read back whether a requested feature is in force',
  'options-too-long':
    'the options are longer than the page that mount(2) accepts, and the kernel is too old for another way',
  'out-of-descriptors': 'the process or the machine has no file descriptor left',
  'out-of-threads': 'the process cannot start a thread or a process',
  'out-of-memory': 'the kernel, or the control group of the process, has no memory for the mount',
  'too-many-mounts': 'the mount namespace has reached its limit of mounts (fs.mount-max)',
  'out-of-inodes': 'the file system has no inode left',
  'too-many-subdirectories':
    'a directory in which one is to be made holds as many subdirectories as its file system allows (ext4 without dir_nlink: 64998)',
  'io-error': 'the file system of a layer reports an I/O error, or is damaged',
  'out-of-space': 'the file system is full, or a quota is used up',
  'source-unbindable': 'the source of a bind is on an unbindable mount, or on a mount of another namespace',
  'target-mismatch': 'one of the source and the target of a bind is a directory, and the other is not',
  'namespace-missing': 'the mount namespace does not exist, or the process that names it has ended',
  'namespace-denied': 'the process may not join the mount namespace',
  'out-of-namespaces':
    'the limit on mount namespaces or user namespaces is reached; each detached mount has a mount namespace of its own',
  'not-mounted': 'the path is not a mount point, or no longer the mount point of this mount',
  'mount-busy':
    'something still uses the mount: an open file, a working directory, a mount inside it, a pending promise of a detached mount, or another call that is mounting at the target',
  'mount-covered': 'the path does not lead to the mount, because another mount covers it or a directory above it',
  'mount-locked': 'the mount was inherited from outside this user namespace',
  'path-missing': 'the path, or its parent directory, does not exist',
  'path-exists': 'a file exists where the whiteout should be, or appears again while the library removes it',
  'path-is-directory': 'a directory exists where the whiteout should be',
  'mount-inside':
    'something is mounted at or inside a directory that is to be removed, or inside a mount that is to be replaced',
  'layer-in-use':
    'a directory that is to be removed, or to be emptied by a merge, is or contains a layer or the workdir of a mounted overlay',
  'layer-changed':
    'a directory was moved, or changed again and again, while it was read; a file changed while it was copied; or another program removed a layer during a mount',
  'layers-incomplete':
    'an entry of a layer depends on layers below it, or on the index in the workdir, which the call does not have',
  'layers-swapped':
    'nothing in the upper of a merge has a mark of overlayfs, and the directory deletes or changes its entries as an upper of it would',
  'layer-conflict':
    'others have changed files that a merge would change, since the baseline; `conflicts` lists them all',
  'path-not-directory': 'the path, or its parent, is not a directory',
  'merged-mount': 'the path is a mounted overlay, which is no layer, or in one, where no marks can be made',
  'xattr-denied': 'the file system or the kernel refuses the extended attribute',
  'mark-unseen':
    'a directory of a layer is opaque only by `trusted.overlay.opaque`, which a rootless mount cannot read, so the mount would show what the directory hides',
  'permission-denied': 'the process may not change the directory',
  'read-only': 'the directory is on a read-only mount or file system',
  'archive-invalid': 'an archive is no tar archive, is cut or damaged, or has an entry that no layer can have',
  'archive-limit': 'an archive holds more than a limit of the call allows: entries, bytes, depth, ratio of compression',
  'digest-mismatch': 'the archive is not the one that `expectedDigest` or `expectedDiffId` names',
  'layer-unpackable': 'a layer holds something that no archive can say, such as a file called `.wh.x`',
  missing: 'a snapshot, an image, a blob, a platform or a user does not exist: `role` says which',
  exists: 'a snapshot of that name exists',
  'failed-precondition': 'the snapshot is of another kind, or is used, so that it cannot take part in the call',
  'store-damaged': 'the store of the snapshots is damaged; it can be opened with `readonly`',
  'store-version': 'another version of this library has made or changed the store',
  'store-failed': 'the store could not be read or written',
  'not-synced': 'the change is made, and a power cut may undo it: fsync(2) failed',
  closed: 'the snapshotter is closed',
  'in-use': 'another server has the store or the address',
  'dependency-missing': 'a package that is an optional peer dependency is not installed',
  'media-type': 'a blob is of a type that this library does not read',
  'image-invalid': 'a document of the image has not the form that it should have',
  'not-started': 'the image says nothing to run, or the program did not start',
  'runtime-failed': 'the OCI runtime ended before it had started the program',
  'commit-failed': 'the container has run, and its changes could not be committed: they are in the snapshot `key`',
  'program-failed': 'a program that `run` started with `check` did not end with 0',
  'program-output': 'a program wrote more than `maxBuffer` bytes',
  unexplained: 'no known cause matches',
};

const intro = `# Errors

All errors of the library have \`code\`, \`reason\` and \`hint\`, and \`OverlayError.is(error)\` is true for all of them. \`reason\`
is a word from the tables below: decide by it. A minor release may add reasons, so treat an unknown one as a failure.
\`hint\` is one sentence that says what to do. \`role\` tells which layer of a mount the error is about, by the name of its
option.

| the call failed because of | class | \`code\` |
| --- | --- | --- |
| the machine: its files, mounts, rights, shortages | \`OverlayError\` | the name of the errno, \`ENOENT\` |
| a program that did not end with 0 | \`ProgramError\`, a subclass | \`ERR_PROGRAM_…\` |
| a rule or the store of snapshots; an image | \`SnapshotError\`, \`ImageError\`, subclasses | \`ERR_SNAPSHOT_…\`, \`ERR_IMAGE_…\` |
| wrong arguments, or options that conflict | \`TypeError\` or \`RangeError\` | Node's: \`ERR_INVALID_ARG_TYPE\`, … |

An \`OverlayError\` has the shape of Node's own system errors (\`errno\`, \`syscall\`, \`path\`, \`dest\`), and \`kernel\` has the
messages of the kernel, if there are any. \`syscall\` is absent if the library refuses before the kernel does. If a mount has
several layers, the message names the layer by number and path. An aborted call rejects with Node's \`AbortError\`, for
which \`OverlayError.is\` is false.

\`JSON.stringify(error)\` has the name, the message and all these fields, without the stack; \`JSON.parse\` gives them back.
The stack begins at the caller of the library. It is empty for a promise that nobody awaits.

Only after a failure, the library examines the layers, the mount table and the process to find the reason. If a file
system does not answer, a promise waits two seconds and then continues with the facts that it has; a synchronous call
waits as long as it takes. \`explain(options)\` and \`overlayfs explain\` find the faults that show without a mount;
[cli.md](cli.md#explain) says which they do not look for.

\`\`\`js
import { mountOverlay, OverlayError } from 'overlayfs';

try {
  await mountOverlay({ lowerdir: ['/no/layer', '/usr'], rootless: 'auto' });
} catch (error) {
  if (!OverlayError.is(error) || error.reason !== 'lower-missing') throw error;
  console.log(error.code, error.role, error.path);   // ENOENT lowerdir /no/layer
}
\`\`\`

\`exclusive\`, the default, refuses an upperdir or workdir that another overlay uses, if this process has mounted that
overlay, on any thread, or the mount table of this namespace has shown it. The directory stays in use until the kernel
reports that the superblock of the overlay is gone: a clone, a bind, an open file, a program or another mount namespace
keeps it after an unmount. Two calls of one process never mount with the same directory, or on the same target, at the
same time; the second one is refused. \`exclusive\` cannot see:

- overlays of other processes that this namespace's table does not show: rootless or detached ones, those in other mount
  namespaces, and those that were unmounted lazily before this process looked;
- overlays of other processes whose upperdir and workdir the table shows by paths that do not lead there: relative ones,
  and ones that have been renamed or are covered since;
- the second of two overlays that other processes have mounted with one directory, once the first has ended;
- overlays that others mount at the very same moment;
- before Linux 6.8, all overlays of other processes.

With \`index: true\` the kernel itself refuses these, and also a lower layer that is
another overlay's upperdir or workdir, or lies in one. Without, the kernel takes such a lower layer, and what the mount
shows when the other overlay changes is undefined.
`;

const firstUse = `
## Errors of files in a mount

The kernel can refuse calls of a program in an overlay that is mounted correctly:

| call | error | cause and remedy |
| --- | --- | --- |
| rename(2) of a directory of a lower layer | \`EXDEV\` | Without \`redirectDir: 'on'\` such a directory cannot be moved: copy it, as mv(1) does, or mount with that option. |
| any, on the name of an upperdir or workdir that lies inside a lower layer | \`ELOOP\` | The kernel shows no layer in itself: use another path to it. |
| open(2) for writing, chmod(2), … of a file of a lower layer | \`ENOSPC\`, \`EDQUOT\` | The whole file is copied to the upper first: make room there, or raise the quota. |
| the same in a user namespace (\`EOVERFLOW\`), or with \`idmap\` (\`EACCES\`) | \`EOVERFLOW\`, \`EACCES\` | The file belongs to someone who has no id there, so a copy could not, whatever its mode: add a range that holds the owner. |
| any that writes | \`EROFS\` | It is a view, without an upper, or was mounted with \`readonly\`. |
| open(2) of a file that was copied up with \`metacopy\`, in a mount without it | \`EPERM\` | Its content is still in the lower layer: mount with \`metacopy: true\`. |
| mknod(2) of a device 0:0 | \`EPERM\` | Whiteouts are made in a layer's own directory: \`whiteout\`. |
| rmdir(2) of a directory that looks empty | \`ENOTEMPTY\` | It holds whiteouts that somebody has put there: remove it in the upperdir. |
| open(2) with \`verity: 'require'\` | \`EIO\` | The file has no digest, or a wrong one. |

\`effective()\` tells which options are in force.
`;

export function errorsPage(): string {
  let page = intro;
  for (const [reason, todo] of Object.entries(reasons)) {
    const title = sections[reason as Reason];
    if (title !== undefined) page += `\n## ${title}\n\n| reason | when | what to do |\n| --- | --- | --- |\n`;
    page += `| \`${reason}\` | ${cell(sentence(conditions[reason as Reason]))} | ${cell(sentence(todo))} |\n`;
  }
  return page + firstUse;
}
