/** The kernel's own verdict: mount(2) with text that is put together here, and what the mount table shows. */
import { MNT_DETACH, native } from '../../support/index.js';
import { type Line, overlayAt } from '../rows/mount-table.js';

/**
 * The library's options as the kernel's text, one by one. The lists are written by hand on purpose: they judge the table
 * of options, and a list made from it would repeat its mistakes. A new option needs a line here.
 */
const switches: Readonly<Record<string, string>> = { index: 'index', nfsExport: 'nfs_export', metacopy: 'metacopy' };
const words: Readonly<Record<string, string>> = {
  redirectDir: 'redirect_dir',
  uuid: 'uuid',
  xino: 'xino',
  verity: 'verity',
  fsync: 'fsync',
};
const flags: Readonly<Record<string, string>> = {
  volatile: 'volatile',
  userxattr: 'userxattr',
  overrideCreds: 'override_creds',
  defaultPermissions: 'default_permissions',
};
/** The names of all of them. */
export const judged: readonly string[] = Object.keys({ ...switches, ...words, ...flags });

/** The options of a caller for overlayfs itself, in the kernel's words; a wrong value is not among them. */
export function asked(options: Readonly<Record<string, unknown>>): [name: string, value: string | null][] {
  const list: [string, string | null][] = [];
  for (const [name, value] of Object.entries(options)) {
    if (name in switches && typeof value === 'boolean') list.push([switches[name] as string, value ? 'on' : 'off']);
    if (name in words && typeof value === 'string') list.push([words[name] as string, value]);
    if (name in flags && value === true) list.push([flags[name] as string, null]);
  }
  return list;
}

const list = (value: unknown): string[] => (value === undefined ? [] : Array.isArray(value) ? value : [String(value)]);
const escaped = (path: string): string => path.replace(/[,:\\]/g, (char) => `\\${char}`);

/** All of them as mount(2) takes them. */
export function textOf(options: Readonly<Record<string, unknown>>, wrongText: string | undefined, dir: string): string {
  const at = (path: string) => escaped(`${dir}/${path}`);
  const parts: string[] = [];
  const lowers = list(options['lowerdir']).map(at).join(':');
  const data = list(options['datadir']).map((path) => `::${at(path)}`);
  if (lowers !== '' || data.length > 0) parts.push(`lowerdir=${lowers}${data.join('')}`);
  for (const name of ['upperdir', 'workdir']) {
    if (options[name] !== undefined) parts.push(`${name}=${at(String(options[name]))}`);
  }
  const wrongName = wrongText?.split('=')[0];
  for (const [name, value] of asked(options)) {
    if (name !== wrongName) parts.push(value === null ? name : `${name}=${value}`);
  }
  if (wrongText !== undefined) parts.push(wrongText);
  return parts.join(',');
}

/** 0 and the line, or the errno. */
export function mountDirectly(
  options: Readonly<Record<string, unknown>>,
  wrongText: string | undefined,
  dir: string,
): { errno: number; line: Line | undefined } {
  const target = `${dir}/m`;
  const errno = native.mount('direct', target, 'overlay', 0, textOf(options, wrongText, dir));
  if (errno !== 0) return { errno, line: undefined };
  const line = overlayAt(target);
  native.umount(target, MNT_DETACH);
  return { errno, line };
}
