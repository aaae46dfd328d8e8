/** Compares the request with the outcome. */
import { effective, kept } from '../rows/effective.js';
import type { Line } from '../rows/mount-table.js';
import { asked } from './kernel.js';

type Options = Readonly<Record<string, unknown>>;

/** The options of overlayfs that did not come as asked: `index=on, came off`. */
export function fallen(options: Options, line: Line): string[] {
  const isView = options['upperdir'] === undefined;
  const found = effective(line.options, isView);
  return asked(options).flatMap(([name, value]) => {
    const [stored, want] = kept(name, value, isView);
    // Options that are never shown cannot be compared.
    if (stored === 'override_creds') return [];
    if (stored === 'xino' && isOnOneFileSystem(options)) return [];
    // A fresh upper gets a UUID.
    if (stored === 'uuid' && want === 'auto' && found['uuid'] === 'on') return [];
    // Off is the one that follows or the one that does not.
    if (name === 'redirect_dir' && value === 'off' && found[stored] === 'nofollow') return [];
    return found[stored] === want ? [] : [`${stored}=${want}, came ${found[stored]}`];
  });
}

/** Data-only layers do not count: their files have the numbers of those that redirect to them. */
function isOnOneFileSystem(options: Options): boolean {
  const paths = ['lowerdir', 'upperdir'].flatMap((name) => options[name] as string | string[] | undefined);
  return new Set(paths.filter((path) => path !== undefined).map((path) => String(path).split('/')[0])).size === 1;
}

/** The attributes, the superblock's flag and the propagation that did not come as asked. */
export function attributesAmiss(options: Options, line: Line): string[] {
  const want = new Set([options['readonly'] ? 'ro' : 'rw']);
  for (const name of ['nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime']) if (options[name]) want.add(name);
  const atime = (options['atime'] as string | undefined) ?? 'relatime';
  if (atime !== 'strictatime') want.add(atime);
  const propagation = (options['propagation'] as string | undefined) ?? 'private';
  const superblock = options['upperdir'] === undefined || options['readonlySuperblock'] ? 'ro' : 'rw';
  const shared = propagation === 'slave' ? 'private' : propagation;
  const amiss: string[] = [];
  if ([...want].sort().join() !== [...line.attributes].sort().join()) amiss.push(`attributes ${line.attributes}`);
  if (line.superblock !== superblock) amiss.push(`superblock ${line.superblock}`);
  if (line.propagation !== shared) amiss.push(`propagation ${line.propagation}`);
  return amiss;
}
