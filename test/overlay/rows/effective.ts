/** The options that are in force: what the mount table shows, and for the rest the defaults. */
import { readFileSync } from 'node:fs';

type Options = ReadonlyMap<string, string | null>;

function parameter(name: string): boolean {
  try {
    return readFileSync(`/sys/module/overlay/parameters/${name}`, 'latin1').startsWith('Y');
  } catch {
    return false;
  }
}

const word = (name: string): string => (parameter(name) ? 'on' : 'off');
const follow = parameter('redirect_always_follow') ? 'follow' : 'nofollow';

/** The values of options that are not named. */
const defaults: Readonly<Record<string, string>> = {
  redirect_dir: parameter('redirect_dir') ? 'on' : follow,
  index: word('index'),
  nfs_export: word('nfs_export'),
  metacopy: word('metacopy'),
  xino: parameter('xino_auto') ? 'auto' : 'off',
  uuid: 'auto',
  fsync: 'auto',
  verity: 'off',
  userxattr: 'off',
  default_permissions: 'off',
};

/** An option as the kernel keeps it. */
export function kept(name: string, value: string | null, isView: boolean): [name: string, value: string] {
  if (name === 'volatile') return ['fsync', 'volatile'];
  if (name !== 'redirect_dir') return [name, value ?? 'on'];
  // Nothing is ever renamed in a view: there, both follow.
  const stored = value === 'off' || value === null ? follow : value;
  return [name, isView && stored === 'follow' ? 'on' : stored];
}

/** All options in force. */
export function effective(options: Options, isView: boolean): Record<string, string> {
  const all = { ...defaults, ...Object.fromEntries([kept('redirect_dir', defaults['redirect_dir'] ?? '', isView)]) };
  for (const [name, value] of options) {
    const [stored, word] = kept(name, value, isView);
    all[stored] = word;
  }
  return all;
}

/** `name=value` and bare words as a map. */
export function toMap(list: readonly string[]): Options {
  return new Map(
    list.map((text): [string, string | null] => {
      const at = text.indexOf('=');
      return at < 0 ? [text, null] : [text.slice(0, at), text.slice(at + 1)];
    }),
  );
}
