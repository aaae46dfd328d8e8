/** Rows that this kernel cannot show: older kernels, other modules' parameters, SELinux, records of user namespaces. */
import type { KernelFeatures, ProbedOption } from '#lib/features/record.js';
import { knownOptions, linux61, linux510, linux612, newest } from '../../support/features.js';
import { conflict, lacking } from './errors.js';
import type { Given, RecordRow } from './row.js';

const inUser: KernelFeatures = { ...newest, userNamespace: true };
const inUser612: KernelFeatures = { ...linux612, userNamespace: true };
const withoutSelinux: KernelFeatures = { ...newest, options: knownOptions('context') };
const withoutOptions: KernelFeatures = {
  ...linux61,
  options: knownOptions(...(Object.keys(newest.options) as ProbedOption[])),
};
const unasked: KernelFeatures = {
  ...newest,
  fsContext: 'unknown',
  options: Object.fromEntries(
    Object.keys(newest.options).map((name) => [name, 'unknown']),
  ) as KernelFeatures['options'],
};

const row = (
  title: string,
  record: KernelFeatures,
  options: Given,
  expect: RecordRow['expect'] | readonly string[],
  view = false,
): RecordRow => ({
  title,
  record,
  options,
  view,
  expect: Array.isArray(expect) ? { sent: expect as readonly string[] } : (expect as RecordRow['expect']),
});
const view = (
  title: string,
  record: KernelFeatures,
  options: Given,
  expect: RecordRow['expect'] | readonly string[],
): RecordRow => row(title, record, options, expect, true);

const context = 'system_u:object_r:tmp_t:s0';

export const recordRows: readonly RecordRow[] = [
  // Up to 6.15, verity and data-only layers stand on metacopy.
  row(
    '6.12: verity without metacopy',
    linux612,
    { verity: 'on', metacopy: false },
    conflict(/`verity: 'on'`.*`metacopy: false`/),
  ),
  view(
    '6.12: verity without metacopy, in a view',
    linux612,
    { verity: 'require', metacopy: false },
    conflict(/`verity: 'require'`/),
  ),
  row('6.12: verity with metacopy', linux612, { verity: 'on', metacopy: true }, [
    'verity=on',
    'metacopy=on',
    'redirect_dir=on',
  ]),
  row(
    '6.12: verity with redirectDir off',
    linux612,
    { verity: 'on', redirectDir: 'off' },
    conflict(/`verity: 'on'`.*`redirectDir: 'off'`/),
  ),
  row(
    '6.12: verity with redirectDir follow',
    linux612,
    { verity: 'on', redirectDir: 'follow' },
    conflict(/`verity: 'on'`.*`redirectDir: 'follow'`/),
  ),
  row(
    '6.12: verity with redirectDir nofollow',
    linux612,
    { verity: 'require', redirectDir: 'nofollow' },
    conflict(/`verity: 'require'`.*`redirectDir: 'nofollow'`/),
  ),
  row('6.12: verity with redirectDir on', linux612, { verity: 'on', redirectDir: 'on' }, [
    'verity=on',
    'redirect_dir=on',
  ]),
  row('6.12: verity off with metacopy off', linux612, { verity: 'off', metacopy: false }, [
    'verity=off',
    'metacopy=off',
  ]),
  row(
    '6.12: userxattr with verity',
    linux612,
    { userxattr: true, verity: 'on' },
    conflict(/`userxattr: true`.*`verity: 'on'`.*this kernel/),
  ),
  row(
    '6.12: data-only layers without metacopy',
    linux612,
    { datadir: 'd', metacopy: false },
    conflict(/`datadir`.*`metacopy: false`/),
  ),
  row('6.12: data-only layers bring metacopy along', linux612, { datadir: 'd' }, ['metacopy=on', 'redirect_dir=on']),
  row('6.12: data-only layers with metacopy', linux612, { datadir: 'd', metacopy: true }, [
    'metacopy=on',
    'redirect_dir=on',
  ]),
  row(
    '6.12: data-only layers with userxattr',
    linux612,
    { datadir: 'd', userxattr: true },
    conflict(/`datadir`.*`userxattr: true`.*this kernel/),
  ),
  row(
    '6.12: data-only layers with redirectDir nofollow',
    linux612,
    { datadir: 'd', redirectDir: 'nofollow' },
    conflict(/`datadir`.*`redirectDir/),
  ),
  row(
    '6.12: data-only layers with redirectDir off',
    linux612,
    { datadir: 'd', redirectDir: 'off' },
    conflict(/`datadir`.*`redirectDir/),
  ),
  view(
    '6.12: data-only layers with redirectDir nofollow, in a view',
    linux612,
    { datadir: 'd', redirectDir: 'nofollow' },
    conflict(/`datadir`.*`redirectDir/),
  ),
  row('6.12: data-only layers with nfsExport', linux612, { datadir: 'd', nfsExport: true }, conflict(/`nfsExport/)),
  view(
    '6.12: verity with redirectDir nofollow, in a view',
    linux612,
    { verity: 'on', redirectDir: 'nofollow' },
    conflict(/`verity: 'on'`.*`redirectDir/),
  ),
  row(
    '6.12: verity with nfsExport',
    linux612,
    { verity: 'on', nfsExport: true },
    conflict(/`nfsExport: true`.*`verity: 'on'`/),
  ),
  row('6.12: no overrideCreds', linux612, { overrideCreds: true }, lacking(/6\.12\.0.*`overrideCreds: true`.*6\.15/)),
  row('6.12: overrideCreds is off there', linux612, { overrideCreds: false }, []),
  row('6.12: no fsync', linux612, { fsync: 'strict' }, lacking(/`fsync: 'strict'`.*7\.0/)),
  row('6.12: fsync may fall away', linux612, { fsync: 'strict', allowDegraded: ['fsync'] }, []),
  row('6.12: volatile is there', linux612, { volatile: true }, ['volatile']),

  row('6.1: no verity', linux61, { verity: 'on' }, lacking(/6\.1\.0.*`verity: 'on'`.*6\.6/)),
  row('6.1: verity is off there', linux61, { verity: 'off' }, []),
  row('6.1: no data-only layers', linux61, { datadir: 'd' }, lacking(/`datadir`.*6\.5/)),
  row('6.1: uuid off is there', linux61, { uuid: 'off' }, ['uuid=off']),
  row('6.1: uuid on is there', linux61, { uuid: 'on' }, ['uuid=on']),
  row('6.1: no uuid null', linux61, { uuid: 'null' }, lacking(/`uuid: 'null'`.*6\.6/)),
  row('6.1: no uuid auto', linux61, { uuid: 'auto' }, lacking(/`uuid: 'auto'`.*6\.6/)),
  row('6.1: uuid auto may fall away', linux61, { uuid: 'auto', allowDegraded: ['uuid'] }, []),
  row(
    '6.1: verity may fall away, and then metacopy off is no conflict',
    linux61,
    { verity: 'on', metacopy: false, allowDegraded: ['verity'] },
    ['metacopy=off'],
  ),
  row(
    '6.1: what may fall away is not what else is lacking',
    linux61,
    { verity: 'on', fsync: 'auto', allowDegraded: ['verity'] },
    lacking(/`fsync: 'auto'`/),
  ),
  row('5.10: no userxattr', linux510, { userxattr: true }, lacking(/`userxattr: true`.*5\.11/)),
  row('5.10: userxattr false needs none', linux510, { userxattr: false }, []),
  row('5.10: no uuid', linux510, { uuid: 'on' }, lacking(/`uuid: 'on'`.*5\.11/)),
  row('5.10: no SELinux', linux510, { context }, lacking(/`context.*SELinux/)),

  row('a kernel with SELinux: context', newest, { context }, [`context=${context}`]),
  row('a kernel with SELinux: fscontext', newest, { fscontext: context }, [`fscontext=${context}`]),
  row('a kernel with SELinux: defcontext', newest, { defcontext: context }, [`defcontext=${context}`]),
  row('a kernel with SELinux: rootcontext', newest, { rootcontext: context }, [`rootcontext=${context}`]),
  row('a kernel without SELinux: rootcontext', withoutSelinux, { rootcontext: context }, lacking(/`rootcontext/)),
  row('a kernel that could not be asked is taken at its best', unasked, { verity: 'on', fsync: 'strict' }, [
    'verity=on',
    'fsync=strict',
  ]),
  row(
    'a kernel without any option: what is off needs none',
    withoutOptions,
    {
      redirectDir: 'off',
      index: false,
      nfsExport: false,
      metacopy: false,
      xino: 'off',
      verity: 'off',
      volatile: false,
      userxattr: false,
      overrideCreds: false,
      defaultPermissions: false,
    },
    [],
  ),
  row(
    'a kernel without any option: uuid off hides the UUID',
    withoutOptions,
    { uuid: 'off' },
    lacking(/`uuid: 'off'`/),
  ),
  row('a kernel without any option: a context', withoutOptions, { context: 'off' }, lacking(/`context/)),

  // In a user namespace.
  row('user namespace: userxattr goes without saying', inUser, {}, ['userxattr', 'redirect_dir=nofollow']),
  view('user namespace: userxattr goes without saying in a view', inUser, {}, ['userxattr', 'redirect_dir=nofollow']),
  row('user namespace: userxattr can be declined', inUser, { userxattr: false }, []),
  row('user namespace: redirectDir on', inUser, { redirectDir: 'on' }, conflict(/`redirectDir: 'on'`.*user namespace/)),
  row('user namespace: redirectDir follow', inUser, { redirectDir: 'follow' }, conflict(/`redirectDir: 'follow'`/)),
  row('user namespace: redirectDir off', inUser, { redirectDir: 'off' }, ['userxattr', 'redirect_dir=nofollow']),
  row('user namespace: redirectDir nofollow', inUser, { redirectDir: 'nofollow' }, [
    'userxattr',
    'redirect_dir=nofollow',
  ]),
  row('user namespace: metacopy', inUser, { metacopy: true }, conflict(/`metacopy: true`.*user namespace/)),
  view('user namespace: metacopy, in a view', inUser, { metacopy: true }, conflict(/`metacopy: true`/)),
  row('user namespace: metacopy off', inUser, { metacopy: false }, [
    'metacopy=off',
    'userxattr',
    'redirect_dir=nofollow',
  ]),
  row('user namespace: verity', inUser, { verity: 'on' }, conflict(/`verity: 'on'`.*userxattr: true/)),
  row('user namespace: verity with userxattr', inUser, { verity: 'on', userxattr: true }, [
    'verity=on',
    'userxattr',
    'redirect_dir=nofollow',
  ]),
  row('user namespace: data-only layers', inUser, { datadir: 'd' }, conflict(/`datadir`.*userxattr: true/)),
  row('user namespace: data-only layers with userxattr', inUser, { datadir: 'd', userxattr: true }, [
    'userxattr',
    'redirect_dir=nofollow',
  ]),
  row(
    'user namespace: 6.12, verity with userxattr',
    inUser612,
    { verity: 'on', userxattr: true },
    conflict(/`userxattr: true`.*`verity: 'on'`/),
  ),
  row(
    'user namespace: 6.12, data-only layers with userxattr',
    inUser612,
    { datadir: 'd', userxattr: true },
    conflict(/`datadir`.*`userxattr: true`/),
  ),
  row('user namespace: volatile', inUser, { volatile: true }, ['volatile', 'userxattr', 'redirect_dir=nofollow']),
];
