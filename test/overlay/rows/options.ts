/** Each option with each of its values, with an upperdir and without. */
import { conflict, fails, lacking } from './errors.js';
import { type Expected, type Given, type Row, shown } from './row.js';
import { dirs, tmpfs } from './setup.js';

const both = (options: Given, writable: Expected, view: Expected): Row[] => [
  { title: `${nameOf(options)}, with an upperdir`, options, expect: writable },
  { title: `${nameOf(options)}, in a view`, view: true, options, expect: view },
];

const nameOf = (options: Given): string =>
  Object.entries(options)
    .map(([name, value]) => `${name}: ${JSON.stringify(value)}`)
    .join(', ');

const plain: Expected = {};

/** Layers on two file systems, where xino is of use. */
const onTwo = (xino: string, expect: Expected, view: boolean): Row => ({
  title: `xino: "${xino}", layers on two file systems, ${view ? 'in a view' : 'with an upperdir'}`,
  view,
  setup: [tmpfs('other', 'l')],
  options: { lowerdir: ['l1', 'other/l'], xino },
  expect,
});

const contexts = (name: string): Row[] => [
  {
    title: `${name}, on a kernel without SELinux`,
    options: { [name]: 'system_u:object_r:tmp_t:s0' },
    expect: lacking(new RegExp(`does not know \`${name}(: '.*')?\`.*SELinux.*allowDegraded: \\['${name}'\\]`)),
  },
  {
    title: `${name} may fall away, on a kernel without SELinux`,
    options: { [name]: 'system_u:object_r:tmp_t:s0:c1,c2', allowDegraded: [name] },
    expect: { notShown: [name] },
  },
];

export const eachOptionRows: readonly Row[] = [
  { title: 'nothing but the layers, with an upperdir', options: {}, expect: plain },
  { title: 'nothing but the layers, in a view', view: true, options: {}, expect: plain },
  { title: 'nothing but the layers, on the disk', on: 'disk', options: {}, expect: plain },
  {
    title: 'a fresh upper gets a UUID by itself',
    options: { uuid: 'auto' },
    expect: plain,
  },

  ...both({ redirectDir: 'on' }, shown('redirect_dir=on'), shown('redirect_dir=on')),
  ...both({ redirectDir: 'off' }, shown('redirect_dir=off'), shown('redirect_dir=off')),
  ...both({ redirectDir: 'follow' }, shown('redirect_dir=follow'), shown('redirect_dir=follow')),
  ...both({ redirectDir: 'nofollow' }, shown('redirect_dir=nofollow'), shown('redirect_dir=nofollow')),
  ...both({ index: true }, shown('index=on'), conflict(/`index: true`.*`upperdir`/)),
  ...both({ index: false }, shown('index=off'), shown('index=off')),
  ...both({ nfsExport: true }, shown('nfs_export=on', 'index=on'), conflict(/`nfsExport: true`.*`upperdir`/)),
  ...both({ nfsExport: false }, shown('nfs_export=off'), shown('nfs_export=off')),
  ...both(
    { nfsExport: true, redirectDir: 'nofollow' },
    shown('nfs_export=on', 'index=on', 'redirect_dir=nofollow'),
    shown('nfs_export=on', 'redirect_dir=nofollow'),
  ),
  ...both({ metacopy: true }, shown('metacopy=on', 'redirect_dir=on'), shown('metacopy=on', 'redirect_dir=on')),
  ...both({ metacopy: false }, shown('metacopy=off'), shown('metacopy=off')),
  ...both(
    { metacopy: true, redirectDir: 'on' },
    shown('metacopy=on', 'redirect_dir=on'),
    shown('metacopy=on', 'redirect_dir=on'),
  ),
  ...both({ uuid: 'on' }, shown('uuid=on'), conflict(/`uuid: 'on'`.*`upperdir`/)),
  { title: 'uuid: "off", with an upperdir', options: { uuid: 'off' }, expect: shown('uuid=off') },
  {
    title: 'uuid: "off", in a view',
    view: true,
    options: { uuid: 'off' },
    expect: fails('ENOTSUP', 'feature-dropped', /mounted without `uuid: 'off'`/),
    needs: ['uuid=off over one file system only'],
  },
  ...[false, true].map(
    (view): Row => ({
      title: `uuid: "off", layers on two file systems, ${view ? 'in a view' : 'with an upperdir'}`,
      view,
      setup: [tmpfs('other', 'l')],
      options: { lowerdir: ['l1', 'other/l'], uuid: 'off' },
      expect: shown('uuid=off'),
      needs: ['uuid=off over several file systems'],
    }),
  ),
  ...both({ uuid: 'null' }, shown('uuid=null'), shown('uuid=null')),
  ...both({ uuid: 'auto' }, plain, plain),
  // On one file system the numbers are unique as they are.
  ...both({ xino: 'on' }, { notShown: ['xino'] }, { notShown: ['xino'] }),
  ...both({ xino: 'auto' }, { notShown: ['xino'] }, { notShown: ['xino'] }),
  ...both({ xino: 'off' }, { notShown: ['xino'] }, { notShown: ['xino'] }),
  onTwo('on', shown('xino=on'), false),
  onTwo('on', shown('xino=on'), true),
  onTwo('auto', shown('xino=auto'), false),
  onTwo('auto', shown('xino=auto'), true),
  onTwo('off', shown('xino=off'), false),
  onTwo('off', shown('xino=off'), true),
  ...both({ verity: 'off' }, shown('verity=off'), shown('verity=off')),
  ...both({ verity: 'on' }, shown('verity=on'), shown('verity=on')),
  ...both({ verity: 'require' }, shown('verity=require'), shown('verity=require')),
  ...both({ volatile: true }, shown('volatile'), conflict(/`volatile: true`.*`upperdir`/)),
  ...both({ volatile: false }, { notShown: ['volatile', 'fsync'] }, { notShown: ['volatile', 'fsync'] }),
  ...both({ fsync: 'auto' }, shown('fsync=auto'), shown('fsync=auto')),
  ...both({ fsync: 'strict' }, shown('fsync=strict'), shown('fsync=strict')),
  ...both(
    { userxattr: true },
    shown('userxattr', 'redirect_dir=nofollow'),
    shown('userxattr', 'redirect_dir=nofollow'),
  ),
  ...both({ userxattr: false }, { notShown: ['userxattr'] }, { notShown: ['userxattr'] }),
  ...both({ overrideCreds: true }, { notShown: ['override_creds'] }, { notShown: ['override_creds'] }),
  ...both({ overrideCreds: false }, { notShown: ['nooverride_creds'] }, { notShown: ['nooverride_creds'] }),
  ...both({ defaultPermissions: true }, shown('default_permissions'), shown('default_permissions')),
  ...both({ defaultPermissions: false }, plain, plain),
  ...['context', 'fscontext', 'defcontext', 'rootcontext'].flatMap(contexts),

  ...both({ datadir: 'd1' }, { datadir: [['d1'], ['d1']] }, { datadir: [['d1'], ['d1']] }),
  {
    title: 'an option that is undefined is one left out',
    options: { redirectDir: undefined, index: undefined, volatile: undefined, datadir: undefined, source: undefined },
    expect: plain,
  },
  {
    title: 'everything at once, with an upperdir',
    options: {
      redirectDir: 'on',
      index: true,
      metacopy: true,
      nfsExport: false,
      uuid: 'null',
      xino: 'on',
      verity: 'on',
      volatile: true,
      overrideCreds: true,
      defaultPermissions: true,
      userxattr: false,
      datadir: ['d1', 'd2'],
    },
    expect: shown(
      'redirect_dir=on',
      'index=on',
      'metacopy=on',
      'uuid=null',
      'verity=on',
      'volatile',
      'default_permissions',
    ),
  },
  {
    title: 'everything that a view can have, at once',
    view: true,
    options: {
      redirectDir: 'nofollow',
      nfsExport: true,
      metacopy: false,
      uuid: 'null',
      fsync: 'strict',
      overrideCreds: false,
      defaultPermissions: true,
    },
    expect: shown('redirect_dir=nofollow', 'nfs_export=on', 'uuid=null', 'fsync=strict', 'default_permissions'),
  },
  {
    title: 'uuid off on two file systems, where it may fall away',
    setup: [tmpfs('other', 'l')],
    options: { lowerdir: 'other/l', uuid: 'off', allowDegraded: ['uuid'] },
    expect: { shown: ['uuid=null'], files: {} },
    needs: ['uuid=off over one file system only'],
  },
  {
    title: 'index on an upper of the disk',
    on: 'disk',
    options: { index: true },
    expect: shown('index=on'),
  },
  {
    title: 'userxattr on the disk, with index',
    on: 'disk',
    options: { userxattr: true, index: true },
    expect: shown('userxattr', 'index=on', 'redirect_dir=nofollow'),
  },
  { title: 'a source with a name', options: { source: 'mine' }, expect: { source: 'mine' } },
  {
    title: 'a source with characters that the mount table escapes',
    options: { source: 'a b\t#\\c' },
    expect: { source: 'a b\t#\\c' },
  },
  {
    title: 'a source of 255 bytes',
    options: { source: 's'.repeat(255) },
    expect: { source: 's'.repeat(255) },
  },
  {
    title: 'a source that looks like an option',
    options: { source: 'ro,index=on' },
    expect: { source: 'ro,index=on' },
  },
  {
    title: 'names for allowDegraded where nothing is lacking',
    options: { metacopy: true, allowDegraded: ['metacopy', 'index'] },
    expect: shown('metacopy=on', 'redirect_dir=on'),
  },
  {
    title: 'create makes upperdir, workdir and target',
    setup: [dirs('x')],
    options: { upperdir: 'x/a/u', workdir: 'x/b/w', create: true },
    expect: { upperdir: [['x/a/u'], ['x/a/u']], workdir: [['x/b/w'], ['x/b/w']] },
  },
  {
    title: 'create chooses the workdir',
    options: { upperdir: 'x/u', workdir: undefined, create: true },
    expect: { workdir: [['x/u.work'], ['x/u.work']] },
  },
];
