/** A user namespace changes this: trusted.* attributes are out of reach there. */
import { conflict, fails } from './errors.js';
import type { Given, UserRow } from './row.js';

const row = (title: string, options: Given, expect: UserRow['expect']): UserRow => ({ title, options, expect });
const view = (title: string, options: Given, expect: UserRow['expect']): UserRow => ({
  ...row(title, options, expect),
  view: true,
});
const shown = (...options: string[]): UserRow['expect'] => ({ shown: options });
const byUser = ['userxattr', 'redirect_dir=nofollow'];

export const userRows: readonly UserRow[] = [
  row('userxattr goes without saying', {}, shown(...byUser)),
  row('userxattr named', { userxattr: true }, shown(...byUser)),
  // Older kernels show redirect_dir as it was asked for, not as it is.
  { ...row('userxattr declined', { userxattr: false }, shown('redirect_dir=nofollow')), needs: ['fsContext'] },
  view('a view', {}, shown(...byUser)),
  view('a view with userxattr', { userxattr: true }, shown(...byUser)),
  row('redirectDir on', { redirectDir: 'on' }, conflict(/`redirectDir: 'on'`/)),
  row('redirectDir follow', { redirectDir: 'follow' }, conflict(/`redirectDir: 'follow'`/)),
  row('redirectDir off', { redirectDir: 'off' }, shown(...byUser)),
  row('redirectDir nofollow', { redirectDir: 'nofollow' }, shown(...byUser)),
  view('redirectDir nofollow, in a view', { redirectDir: 'nofollow' }, shown(...byUser)),
  row('metacopy', { metacopy: true }, conflict(/`metacopy: true`/)),
  row('no metacopy', { metacopy: false }, shown(...byUser)),
  row('verity', { verity: 'on' }, conflict(/`verity: 'on'`/)),
  row('verity with userxattr', { verity: 'on', userxattr: true }, shown(...byUser, 'verity=on')),
  row('data-only layers', { datadir: 'd1' }, conflict(/`datadir`/)),
  row('data-only layers with userxattr', { datadir: 'd1', userxattr: true }, shown(...byUser)),
  row('volatile', { volatile: true }, shown(...byUser, 'volatile')),
  row('defaultPermissions', { defaultPermissions: true }, shown(...byUser, 'default_permissions')),
  row('index', { index: true }, conflict(/`index: true`/)),
  row('index may fall away', { index: true, allowDegraded: ['index'] }, shown(...byUser)),
  row('nfsExport', { nfsExport: true }, conflict(/`nfsExport: true`/)),
  row('nfsExport may fall away', { nfsExport: true, allowDegraded: ['nfsExport'] }, shown(...byUser)),
  row('a lower that is missing', { lowerdir: 'none' }, fails('ENOENT', 'lower-missing', /does not exist/, 'none')),
  row('an attribute and an option', { nosuid: true, xino: 'off' }, shown(...byUser)),
];
