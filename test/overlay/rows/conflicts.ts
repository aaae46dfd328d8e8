/** Options that do not go together, and some that do though they look as if they did not. */
import { conflict } from './errors.js';
import { type Expected, type Row, row, shown, viewRow } from './row.js';

const metacopyRedirect = (word: string): Expected =>
  conflict(new RegExp(`metacopy: true.*redirectDir: '${word}'.*leave .redirectDir. out`, 'i'));

export const conflictRows: readonly Row[] = [
  row('metacopy with redirectDir off', { metacopy: true, redirectDir: 'off' }, metacopyRedirect('off')),
  row('metacopy with redirectDir nofollow', { metacopy: true, redirectDir: 'nofollow' }, metacopyRedirect('nofollow')),
  row('metacopy with redirectDir follow', { metacopy: true, redirectDir: 'follow' }, metacopyRedirect('follow')),
  viewRow('metacopy with redirectDir off, in a view', { metacopy: true, redirectDir: 'off' }, metacopyRedirect('off')),
  viewRow(
    'metacopy with redirectDir nofollow, in a view',
    { metacopy: true, redirectDir: 'nofollow' },
    metacopyRedirect('nofollow'),
  ),
  viewRow(
    'metacopy with redirectDir follow, in a view, goes',
    { metacopy: true, redirectDir: 'follow' },
    shown('metacopy=on', 'redirect_dir=follow'),
  ),
  row('no metacopy with redirectDir off goes', { metacopy: false, redirectDir: 'off' }, shown('redirect_dir=off')),

  row(
    'nfsExport without index',
    { nfsExport: true, index: false },
    conflict(/`nfsExport: true`.*`index: false`.*leave `index` out/i),
  ),
  viewRow('nfsExport without index, in a view', { nfsExport: true, index: false }, conflict(/`nfsExport: true`/)),
  row('nfsExport with index goes', { nfsExport: true, index: true }, shown('nfs_export=on', 'index=on')),
  row(
    'nfsExport with metacopy',
    { nfsExport: true, metacopy: true },
    conflict(/`nfsExport: true`.*`metacopy: true`.*one of the two/i),
  ),
  viewRow('nfsExport with metacopy, in a view', { nfsExport: true, metacopy: true }, conflict(/`nfsExport: true`/)),
  row(
    'nfsExport without metacopy goes',
    { nfsExport: true, metacopy: false },
    shown('nfs_export=on', 'index=on', 'metacopy=off'),
  ),
  viewRow(
    'nfsExport in a view, with redirectDir on',
    { nfsExport: true, redirectDir: 'on' },
    conflict(/`nfsExport: true`.*`upperdir`.*redirectDir: 'nofollow'/),
  ),
  viewRow(
    'nfsExport in a view, with redirectDir off',
    { nfsExport: true, redirectDir: 'off' },
    conflict(/`nfsExport: true`.*`upperdir`/),
  ),
  row('nfsExport with verity goes', { nfsExport: true, verity: 'on' }, shown('nfs_export=on', 'index=on', 'verity=on')),
  viewRow('nfsExport with verity, in a view', { nfsExport: true, verity: 'on' }, conflict(/`nfsExport: true`/)),
  viewRow(
    'nfsExport with verity and redirectDir nofollow, in a view, goes',
    { nfsExport: true, verity: 'on', redirectDir: 'nofollow' },
    shown('nfs_export=on', 'verity=on', 'redirect_dir=nofollow'),
  ),
  viewRow(
    'nfsExport with no index and redirectDir nofollow, in a view',
    { nfsExport: true, index: false, redirectDir: 'nofollow' },
    conflict(/`nfsExport: true`.*`index: false`/),
  ),

  viewRow('nfsExport in a view may fall away', { nfsExport: true, allowDegraded: ['nfsExport'] }, shown()),
  viewRow('index in a view may fall away', { index: true, allowDegraded: ['index'] }, shown()),
  viewRow('volatile in a view may fall away', { volatile: true, allowDegraded: ['volatile'] }, shown()),
  {
    ...viewRow('uuid in a view may fall away', { uuid: 'on', allowDegraded: ['uuid'] }, shown('uuid=null')),
    needs: ['uuid=null'],
  },
  viewRow(
    'what else may fall away lets no conflict pass',
    { nfsExport: true, allowDegraded: ['index'] },
    conflict(/`nfsExport: true` has no effect/),
  ),
  row(
    'what the kernel refuses does not fall away',
    { nfsExport: true, index: false, allowDegraded: ['nfsExport', 'index'] },
    conflict(/`nfsExport: true`.*`index: false`/),
  ),

  row('verity without metacopy goes', { verity: 'on', metacopy: false }, shown('verity=on', 'metacopy=off')),
  viewRow('verity without metacopy, in a view, goes', { verity: 'require', metacopy: false }, shown('verity=require')),
  row('verity with redirectDir off goes', { verity: 'on', redirectDir: 'off' }, shown('verity=on', 'redirect_dir=off')),
  row(
    'verity with redirectDir follow goes',
    { verity: 'require', redirectDir: 'follow' },
    shown('verity=require', 'redirect_dir=follow'),
  ),
  row(
    'verity with redirectDir nofollow goes',
    { verity: 'on', redirectDir: 'nofollow' },
    shown('verity=on', 'redirect_dir=nofollow'),
  ),

  ...['on', 'follow'].flatMap((redirectDir): Row[] => {
    const expect = conflict(new RegExp(`userxattr: true.*redirectDir: '${redirectDir}'.*nofollow`));
    return [
      row(`userxattr with redirectDir ${redirectDir}`, { userxattr: true, redirectDir }, expect),
      viewRow(`userxattr with redirectDir ${redirectDir}, in a view`, { userxattr: true, redirectDir }, expect),
    ];
  }),
  // "off" is what the caller means; the word that goes with userxattr is sent.
  ...['off', 'nofollow'].flatMap((redirectDir): Row[] => {
    const expect = shown('userxattr', 'redirect_dir=nofollow');
    return [
      row(`userxattr with redirectDir ${redirectDir} goes`, { userxattr: true, redirectDir }, expect),
      viewRow(`userxattr with redirectDir ${redirectDir}, in a view, goes`, { userxattr: true, redirectDir }, expect),
    ];
  }),
  row(
    'userxattr with metacopy',
    { userxattr: true, metacopy: true },
    conflict(/`userxattr: true`.*`metacopy: true`.*one of the two/i),
  ),
  viewRow(
    'userxattr with metacopy, in a view',
    { userxattr: true, metacopy: true },
    conflict(/`userxattr: true`.*`metacopy: true`/),
  ),
  row(
    'userxattr with no metacopy goes',
    { userxattr: true, metacopy: false },
    shown('userxattr', 'redirect_dir=nofollow', 'metacopy=off'),
  ),
  // On the disk: tmpfs had no user.* attributes before 6.6, and index stands on them here.
  {
    ...row(
      'userxattr with index goes',
      { userxattr: true, index: true },
      shown('userxattr', 'redirect_dir=nofollow', 'index=on'),
    ),
    on: 'disk',
  },
  // On the disk: tmpfs had no user.* attributes before 6.6, and index stands on them here.
  {
    ...row(
      'userxattr with nfsExport goes',
      { userxattr: true, nfsExport: true },
      shown('userxattr', 'redirect_dir=nofollow', 'index=on', 'nfs_export=on'),
    ),
    on: 'disk',
  },
  viewRow(
    'userxattr with nfsExport, in a view',
    { userxattr: true, nfsExport: true },
    conflict(/`nfsExport: true`.*redirectDir: 'nofollow'/),
  ),
  viewRow(
    'userxattr with nfsExport and redirectDir nofollow, in a view, goes',
    { userxattr: true, nfsExport: true, redirectDir: 'nofollow' },
    shown('userxattr', 'redirect_dir=nofollow', 'nfs_export=on'),
  ),
  row(
    'userxattr with volatile goes',
    { userxattr: true, volatile: true },
    shown('userxattr', 'redirect_dir=nofollow', 'volatile'),
  ),
  row(
    'userxattr with verity goes',
    { userxattr: true, verity: 'on' },
    shown('userxattr', 'redirect_dir=nofollow', 'verity=on'),
  ),
  viewRow(
    'userxattr with verity, in a view, goes',
    { userxattr: true, verity: 'require' },
    shown('userxattr', 'redirect_dir=nofollow', 'verity=require'),
  ),
  row(
    'userxattr with data-only layers goes',
    { userxattr: true, datadir: 'd1' },
    shown('userxattr', 'redirect_dir=nofollow'),
  ),
  row('data-only layers without metacopy go', { datadir: 'd1', metacopy: false }, shown('metacopy=off')),
  row('data-only layers with metacopy go', { datadir: 'd1', metacopy: true }, shown('metacopy=on', 'redirect_dir=on')),

  row(
    'volatile with fsync strict',
    { volatile: true, fsync: 'strict' },
    conflict(/`volatile: true`.*`fsync: 'strict'`/),
  ),
  row('volatile with fsync auto', { volatile: true, fsync: 'auto' }, conflict(/`volatile: true`.*`fsync: 'auto'`/)),
  row('no volatile with fsync strict goes', { volatile: false, fsync: 'strict' }, shown('fsync=strict')),
  viewRow(
    'volatile in a view, with nothing to write',
    { volatile: true },
    conflict(/without an upperdir nothing is written/i),
  ),
  viewRow('index in a view', { index: true }, conflict(/`index: true`.*add an upperdir/i)),
  viewRow('uuid on in a view', { uuid: 'on' }, conflict(/`uuid: 'on'`.*pass `uuid: 'null'`/)),
];
