/** File systems that can be no layer, or no upper, and those that are full. */
import { fails } from '../rows/errors.js';
import { bind, dirs, file, overlay, ramfs, runs, tmpfs, unmounted } from '../rows/setup.js';
import { type FailureRow, refused } from './row.js';
import {
  attributed,
  crowded,
  filled,
  fused,
  idmapped,
  limited,
  made,
  ofType,
  remounted,
  squashed,
  without,
  withoutInodes,
} from './steps.js';

const someFiles = Array.from({ length: 9 }, (_, i) => `fs/file-${i}`);
const plain = { upperdir: 'u', workdir: 'w' };
const noXattrs = (path: string) =>
  fails('ENOTSUP', 'upper-without-xattrs', /ramfs.*has no trusted\.\* attributes/, path);
const noLayer = (type: string, path: string) =>
  fails('EINVAL', 'layer-unsupported', new RegExp(`is on ${type}, which overlayfs does not support`), path);

export const specialRows: readonly FailureRow[] = [
  refused(
    'ramfs: upper and work',
    { upperdir: 'ram/u', workdir: 'ram/w' },
    noXattrs('ram/u'),
    [ramfs('ram', 'u', 'w')],
    {
      instead: plain,
    },
  ),
  refused(
    'ramfs: upper and work, readonly',
    { upperdir: 'ram/u', workdir: 'ram/w', readonly: true },
    noXattrs('ram/u'),
    [ramfs('ram', 'u', 'w')],
    { instead: plain },
  ),
  refused(
    'ramfs: upper and work, with userxattr',
    { upperdir: 'ram/u', workdir: 'ram/w', userxattr: true },
    fails('ENOTSUP', 'upper-without-xattrs', /ramfs.*has no user\.\* attributes/, 'ram/u'),
    [ramfs('ram', 'u', 'w')],
    { instead: plain, needs: ['userxattr'] },
  ),
  refused(
    'ramfs: upper on it, work elsewhere',
    { upperdir: 'ram/u' },
    fails('EINVAL', 'work-on-other-mount', /on another file system/, 'w'),
    [ramfs('ram', 'u')],
    {
      instead: plain,
    },
  ),
  refused(
    'ramfs: work on it, upper elsewhere',
    { workdir: 'ram/w' },
    fails('EINVAL', 'work-on-other-mount', /on another file system/, 'ram/w'),
    [ramfs('ram', 'w')],
    { instead: plain },
  ),
  ...['/proc', '/proc/self', '/proc/sys'].map((path) =>
    refused(`procfs: ${path} as lower`, { lowerdir: ['l1', path] }, noLayer('proc', path), [], {
      instead: { lowerdir: 'l1' },
    }),
  ),
  refused('procfs: as data-only layer', { datadir: '/proc' }, noLayer('proc', '/proc'), [], {
    instead: { datadir: 'd1' },
    needs: ['data-only layers without metacopy'],
  }),
  refused(
    'procfs: as upper and work',
    { upperdir: '/proc/sys/kernel', workdir: '/proc/sys/vm' },
    fails('explained', 'explained', /\/proc\/sys\/kernel/, '/proc/sys/kernel'),
    [],
    { instead: plain },
  ),
  refused(
    'hugetlbfs: as lower',
    { lowerdir: ['l1', 'huge'] },
    noLayer('hugetlbfs', 'huge'),
    [ofType('hugetlbfs', 'huge')],
    { instead: { lowerdir: 'l1' }, needs: ['hugetlbfs'] },
  ),
  refused(
    'hugetlbfs: as upper and work',
    { upperdir: 'huge/u', workdir: 'huge/w' },
    fails('explained', 'explained', /huge\/u/, 'huge/u'),
    [ofType('hugetlbfs', 'huge'), dirs('huge/u', 'huge/w')],
    { instead: plain, needs: ['hugetlbfs'] },
  ),
  ...['sysfs', 'mqueue', 'devpts', 'cgroup2', 'debugfs', 'bpf'].map((type) =>
    refused(
      `${type}: as upper and work`,
      { upperdir: 'own', workdir: 'own' },
      fails('explained', 'explained', /own/, 'own'),
      [ofType(type, 'own')],
      { instead: plain },
    ),
  ),
  refused(
    'squashfs: as upper and work',
    { upperdir: 'sq/u', workdir: 'sq/w' },
    fails('EINVAL', 'upper-read-only', /sq\/u' is on a read-only file system/, 'sq/u'),
    [dirs('from/u', 'from/w'), squashed('from', 'sq')],
    { instead: plain, needs: ['mksquashfs'] },
  ),
  refused(
    'squashfs: as upper, work elsewhere',
    { upperdir: 'sq/u' },
    fails('EINVAL', 'explained', /sq\/u'/, 'sq/u'),
    [dirs('from/u'), squashed('from', 'sq')],
    { instead: plain, needs: ['mksquashfs'] },
  ),
  refused(
    'squashfs: twice the same directory',
    { lowerdir: ['sq', 'again', 'l1'] },
    fails('ELOOP', 'layer-twice', /lowerdir\[1\] '.*again' and the lowerdir\[0\] '.*sq'/, 'again'),
    [dirs('from/u'), squashed('from', 'sq'), bind('sq', 'again')],
    { instead: { lowerdir: ['sq', 'l1'] }, needs: ['mksquashfs'] },
  ),
  refused(
    'vfat: as upper and work',
    { upperdir: 'fat/u', workdir: 'fat/w' },
    fails('explained', 'explained', /fat\/u'/, 'fat/u'),
    [made('vfat', 'fat', 'u', 'w')],
    { instead: plain, where: 'mkfs.vfat' },
  ),
  refused(
    'vfat: as lower',
    { lowerdir: ['l1', 'fat/l'] },
    fails('EINVAL', 'layer-unsupported', /vfat/, 'fat/l'),
    [made('vfat', 'fat', 'l')],
    { instead: { lowerdir: 'l1' }, where: 'mkfs.vfat' },
  ),
  refused(
    'overlay: as upper and work',
    { upperdir: 'o/u', workdir: 'o/w' },
    fails('EINVAL', 'upper-unsupported', /it is (an )?overlay/, 'o/u'),
    [dirs('x/u', 'x/w'), overlay('l1,x/u,x/w', 'o'), dirs('o/u', 'o/w')],
    { instead: plain },
  ),
  refused(
    'overlay: a view as upper',
    { upperdir: 'o' },
    fails('EINVAL', 'explained', /'.*\/o'/, 'o'),
    [overlay('l1:l2', 'o')],
    { instead: plain },
  ),
  refused(
    'overlay: two deep, as lower',
    { lowerdir: 'o2' },
    fails('EINVAL', 'too-deep', /more than two deep/, 'o2'),
    [overlay('l1:l2', 'o1'), overlay('o1:d1', 'o2')],
    { instead: { lowerdir: ['o1', 'd1'] } },
  ),
  refused(
    'overlay: two deep, as the last of several lowers',
    { lowerdir: ['d1', 'd2', 'o2'] },
    fails('EINVAL', 'too-deep', /lowerdir\[2\].*more than two deep/, 'o2'),
    [dirs('a', 'b', 'c'), overlay('a:b', 'o1'), overlay('o1:c', 'o2')],
    { instead: { lowerdir: ['d1', 'd2', 'o1', 'c'] } },
  ),
  refused(
    'overlay: its own mount as its lower once more',
    { lowerdir: ['o1', 'o1'] },
    fails('ELOOP', 'layer-twice', /same directory/, 'o1'),
    [overlay('l1:l2', 'o1')],
    { instead: { lowerdir: 'o1' } },
  ),
  refused(
    'ext4: full',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'out-of-space', /fs\/w' is full/, 'fs/w'),
    [made('ext4', 'fs', 'u', 'w'), filled('fs')],
    { remedy: [without('fs/1048576-0', 'fs/1048576-1')], needs: ['mkfs.ext4'] },
  ),
  refused(
    'ext4: no inode left',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'out-of-inodes', /fs\/w' has no inode left/, 'fs/w'),
    [made('ext4 of few inodes', 'fs', 'u', 'w'), withoutInodes('fs')],
    { remedy: [without(...someFiles)], needs: ['mkfs.ext4'] },
  ),
  refused(
    'tmpfs: no inode left',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'out-of-inodes', /fs\/w' has no inode left/, 'fs/w'),
    [ofType('tmpfs', 'fs', 'nr_inodes=40'), dirs('fs/u', 'fs/w'), withoutInodes('fs')],
    { remedy: [without(...someFiles)] },
  ),
  refused(
    'tmpfs: no inode left for what is to be made',
    { upperdir: 'fs/u', workdir: 'fs/w', create: true },
    fails('ENOSPC', 'out-of-inodes', /fs\/u' has no inode left/, 'fs/u'),
    [ofType('tmpfs', 'fs', 'nr_inodes=40'), withoutInodes('fs')],
    { remedy: [without(...someFiles)] },
  ),
  refused(
    'ext4: a work that has as many subdirectories as it may have',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails(
      'EROFS',
      'too-many-subdirectories',
      /created in the workdir '.*fs\/w': it holds as many subdirectories as its file system allows, so/,
      'fs/w',
    ),
    [crowded('fs', 'w', 'u', 'w2')],
    { instead: { workdir: 'fs/w2' }, needs: ['mkfs.ext4 and debugfs(8)'] },
  ),
  refused(
    'ext4: a work that has as many subdirectories as it may have, made read-only instead',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'too-many-subdirectories', /pass `readonlySuperblock: true` for a read-only mount/, 'fs/w'),
    [crowded('fs', 'w', 'u')],
    { instead: { readonlySuperblock: true }, needs: ['mkfs.ext4 and debugfs(8)'] },
  ),
  refused(
    'ext4: what is to be made in a directory that has as many subdirectories as it may have',
    { upperdir: 'fs/full/u', workdir: 'fs/w', create: true },
    fails(
      'EMLINK',
      'too-many-subdirectories',
      /fs\/full\/u' cannot be created: its parent holds as many subdirectories/,
      'fs/full/u',
    ),
    [crowded('fs', 'full', 'u')],
    { instead: { upperdir: 'fs/u' }, needs: ['mkfs.ext4 and debugfs(8)'] },
  ),
  refused(
    'ext4: what is to be made on a read-only mount',
    { upperdir: 'fs/u', workdir: 'fs/w', create: true },
    fails('EROFS', 'upper-read-only', /the upperdir '.*fs\/u' is on a read-only file system/, 'fs/u'),
    [made('ext4', 'fs'), remounted('fs', 'ro')],
    { remedy: [remounted('fs', 'rw')], needs: ['mkfs.ext4'] },
  ),
  refused(
    'ext4: a work that may be appended to only',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'work-immutable', /fs\/w' is immutable or append-only/, 'fs/w'),
    [made('ext4', 'fs', 'u', 'w', 'w/work/x'), attributed('+a', 'fs/w')],
    { remedy: [attributed('-a', 'fs/w')], needs: ['mkfs.ext4'] },
  ),
  refused(
    "ext4: the kernel's own directory in the work is immutable",
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'work-immutable', /contains '.*fs\/w\/work', which is immutable/, 'fs/w'),
    [made('ext4', 'fs', 'u', 'w', 'w/work'), attributed('+i', 'fs/w/work')],
    { remedy: [attributed('-i', 'fs/w/work')], needs: ['mkfs.ext4'] },
  ),
  refused(
    'ext4: the work holds a file that is immutable',
    { upperdir: 'fs/u', workdir: 'fs/w' },
    fails('EROFS', 'work-immutable', /contains '.*fs\/w\/work\/x\/y', which is immutable/, 'fs/w'),
    [made('ext4', 'fs', 'u', 'w'), file('fs/w/work/x/y'), attributed('+i', 'fs/w/work/x/y')],
    { remedy: [attributed('-i', 'fs/w/work/x/y')], needs: ['mkfs.ext4'] },
  ),
  refused(
    'btrfs: a quota that is used up',
    { upperdir: 'fs/sub/u', workdir: 'fs/sub/w' },
    fails(
      'EROFS',
      'out-of-space',
      /no directory can be created in the workdir '.*fs\/sub\/w': a quota is used up/,
      'fs/sub/w',
    ),
    [made('btrfs', 'fs'), limited('fs/sub')],
    { remedy: [runs('btrfs', 'qgroup', 'limit', 'none', 'fs/sub')], needs: ['mkfs.btrfs with quotas'] },
  ),
  refused(
    'btrfs: a quota that is used up, for what is to be made',
    { upperdir: 'fs/sub/new', workdir: 'fs/sub/w', create: true },
    fails('EDQUOT', 'out-of-space', /a quota leaves no space to create the directory '.*fs\/sub\/new'/, 'fs/sub/new'),
    [made('btrfs', 'fs'), limited('fs/sub')],
    { remedy: [runs('btrfs', 'qgroup', 'limit', 'none', 'fs/sub')], needs: ['mkfs.btrfs with quotas'] },
  ),
  refused(
    'FUSE: upper and work, without RENAME_WHITEOUT',
    { upperdir: 'fuse/u', workdir: 'fuse/w' },
    fails('EINVAL', 'upper-remote', /fuse\/u' is on fuse.*, which lacks something that an upper layer needs/, 'fuse/u'),
    [fused('fuse', 'u', 'w')],
    { instead: plain, needs: ['a FUSE file system'] },
  ),
  refused(
    'FUSE: as upper, work elsewhere',
    { upperdir: 'fuse/u' },
    fails('EINVAL', 'work-on-other-mount', /on another file system/, 'w'),
    [fused('fuse', 'u')],
    { instead: plain, needs: ['a FUSE file system'] },
  ),
  refused(
    'ext4: a lower with case folding',
    { lowerdir: ['l1', 'fs/l'] },
    fails('explained', 'explained', /fs\/l'/, 'fs/l'),
    [made('ext4 with casefold', 'fs', 'l'), attributed('+F', 'fs/l')],
    // Asked by mount(2), the kernel tells its log only.
    { instead: { lowerdir: 'l1' }, where: 'mkfs.ext4 with casefold', needs: ['fsContext'], ways: ['as it comes'] },
  ),
  refused(
    'upper and work on a bind mount that has no id for the mounting user',
    { upperdir: 'mapped/u', workdir: 'mapped/w' },
    fails('EROFS', 'work-idmapped', /mapped\/w' is on an idmapped mount/, 'mapped/w'),
    [dirs('own/u', 'own/w'), idmapped('own', 'mapped')],
    { instead: { upperdir: 'own/u', workdir: 'own/w' }, needs: ['idmapped layers'], on: 'disk' },
  ),
  refused(
    "something is mounted in the kernel's own directory",
    {},
    fails('EROFS', 'mount-inside', /something is mounted in the workdir '.*\/w', at '.*w\/work\/in'/, 'w'),
    [dirs('w/work/in'), tmpfs('w/work/in')],
    { remedy: [unmounted('w/work/in')] },
  ),
];
