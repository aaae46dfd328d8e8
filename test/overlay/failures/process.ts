/** Mounts by processes that may not do everything: without capabilities, under a filter, in user namespaces. */
import { join } from 'node:path';
import { type Feature, isLong, packageRoot } from '../../support/index.js';
import { asNobody } from '../../support/plain-user.js';
import { withoutProc } from '../../support/without-proc.js';
import { fails } from '../rows/errors.js';
import type { Given, Refusal } from '../rows/row.js';
import { dirs, mode, overlay, removed, type Setup, tmpfs } from '../rows/setup.js';

export interface ProcessRow {
  readonly title: string;
  /** A command that runs the program. */
  readonly command: readonly string[];
  /** System calls that a filter refuses, and how. */
  readonly filter?: { readonly calls: readonly (keyof typeof numbers)[]; readonly errno: number };
  /** True if it is in a Landlock sandbox. */
  readonly sandbox?: boolean;
  readonly needs?: readonly Feature[];
  readonly view?: boolean;
  readonly setup?: readonly Setup[];
  readonly options: Given;
  readonly expect: { readonly error: Refusal };
  /** The remedy: another command, or steps, or options. */
  readonly mend?: {
    readonly command?: readonly string[];
    readonly filter?: undefined;
    readonly sandbox?: false;
    readonly steps?: readonly Setup[];
    readonly options?: Given;
  };
}

const isArm = process.arch === 'arm64';
export const numbers = {
  mount: isArm ? 40 : 165,
  fsopen: 430,
  move_mount: 429,
  openat2: 437,
  faccessat2: 439,
} as const;

const EPERM = 1;
const ENOSYS = 38;

const dropping = (...names: string[]) => [
  'setpriv',
  `--bounding-set=${names.map((name) => `-${name}`).join(',')}`,
  `--inh-caps=${names.map((name) => `-${name}`).join(',')}`,
];
const withoutAdmin = dropping('sys_admin');
/** Root, whom modes bind like anyone else, that may mount. */
const mountOnly = ['setpriv', '--bounding-set=-all,+sys_admin', '--inh-caps=-all,+sys_admin'];
const inUser = ['unshare', '-Urm'];
const unshared = [process.execPath, join(packageRoot, 'dist/cli/main.js'), 'unshare'];

/**
 * A mount namespace that has as many mounts as it may have, or but for one: a directory is bound into itself, and
 * with it what it holds, which doubles them each time.
 */
const fullNamespace = (spared: 0 | 1) => [
  'sh',
  '-ec',
  `fill=$(mktemp -d)
  trap 'rmdir "$fill"' EXIT
  unshare -m sh -ec '${fillNamespace(spared)}' "$fill" "$@"`,
  'sh',
];

/** Its end takes all these mounts: umount(8) would read and compare each of them. */
const fillNamespace = (spared: 0 | 1) => `
  mount -t tmpfs fill "$0"
  mkdir "$0/all"
  ${spared ? 'mkdir "$0/spared"; mount -t tmpfs spared "$0/spared"' : ''}
  for i in $(seq 0 29); do mkdir "$0/all/$i" "$0/$i"; done
  mount --bind "$0/all" "$0/all"
  for i in $(seq 0 29); do mount --rbind "$0/all" "$0/all/$i" 2>/dev/null || break; done
  for i in $(seq 29 -1 0); do mount --rbind "$0/all/$i" "$0/$i" 2>/dev/null || :; done
  ${spared ? 'umount "$0/spared"' : ''}
  "$@"`;

const noPrivilege = (text: RegExp) => fails('EPERM', 'no-privilege', text);
const seccomp = (text: RegExp) => fails('explained', 'seccomp-denied', text);

const row = (
  title: string,
  command: readonly string[],
  options: Given,
  expect: ProcessRow['expect'],
  more: Partial<ProcessRow> = {},
): ProcessRow => {
  // Linux 5.10 has no overlays in user namespaces, whatever else is wrong or right there.
  const isInUserNamespace = command.some((word) => word.startsWith('-U'));
  const needs = [...(more.needs ?? []), ...(isInUserNamespace ? (['rootless'] as const) : [])];
  return { title, command, options, expect, ...more, needs };
};

const filtered = (
  title: string,
  calls: readonly (keyof typeof numbers)[],
  errno: number,
  expect: ProcessRow['expect'],
): ProcessRow => row(title, [], {}, expect, { filter: { calls, errno }, mend: { filter: undefined } });

/** Directories that belong to someone else, the mount's own parent included. */
const owned = (path: string, bits: number): Setup => mode(path, bits);

export const processRows: readonly ProcessRow[] = [
  row('without CAP_SYS_ADMIN', withoutAdmin, {}, noPrivilege(/lacks CAP_SYS_ADMIN in the initial user namespace/), {
    mend: { command: [] },
  }),
  row('without CAP_SYS_ADMIN, a view', withoutAdmin, {}, noPrivilege(/lacks CAP_SYS_ADMIN/), {
    view: true,
    mend: { command: [] },
  }),
  row(
    'without /proc and CAP_SYS_ADMIN',
    [...withoutProc, ...withoutAdmin],
    {},
    fails('ENOENT', 'proc-missing', /needs \/proc, which is not mounted/),
    { mend: { command: [] }, needs: ['programs without /proc'] },
  ),
  row(
    'without /proc and CAP_SYS_ADMIN, detached',
    [...withoutProc, ...withoutAdmin],
    { target: undefined },
    fails('EPERM', 'no-privilege', /this process may not mount\./),
    { mend: { command: withoutProc }, needs: ['programs without /proc'] },
  ),
  row('without any capability', dropping('all'), {}, noPrivilege(/lacks CAP_SYS_ADMIN/), { mend: { command: [] } }),
  row(
    'without any capability, a lower that is missing too',
    dropping('all'),
    { lowerdir: 'none' },
    fails('explained', 'explained', /./),
    { mend: { command: [], steps: [dirs('none')] } },
  ),
  row(
    'in a user namespace without a mount namespace of its own',
    ['unshare', '-Ur'],
    {},
    fails('EPERM', 'namespace-foreign', /does not belong to its user namespace/),
    { mend: { command: unshared } },
  ),
  row(
    'in a user namespace as nobody there',
    ['unshare', '-Um'],
    {},
    noPrivilege(/lacks CAP_SYS_ADMIN in its user namespace/),
    { mend: { command: unshared } },
  ),
  filtered(
    'a filter that refuses fsopen and mount',
    ['fsopen', 'mount'],
    EPERM,
    seccomp(/has CAP_SYS_ADMIN, but its seccomp filter refuses mount\(2\)/),
  ),
  filtered(
    'a filter that does not know fsopen and refuses mount',
    ['fsopen', 'mount'],
    ENOSYS,
    seccomp(/seccomp filter/),
  ),
  filtered(
    'a filter that refuses move_mount',
    ['move_mount'],
    EPERM,
    seccomp(/its seccomp filter refuses move_mount\(2\)/),
  ),
  ...([[], inUser] as const).map((command) =>
    row(
      `in a Landlock sandbox${command.length > 0 ? ', in a user namespace' : ''}`,
      command,
      {},
      fails('EPERM', 'lsm-denied', /move_mount\(2\) is refused, as in a Landlock sandbox/),
      { sandbox: true, needs: ['Landlock', 'fsContext'], mend: { sandbox: false } },
    ),
  ),
  // Filling a namespace takes seconds.
  row(
    'in a mount namespace that is full',
    fullNamespace(0),
    {},
    fails('ENOSPC', 'too-many-mounts', /it has \d+, and fs\.mount-max is \d+/, 'm'),
    { mend: { command: isLong ? fullNamespace(1) : [] } },
  ),
  ...(isLong
    ? [
        row(
          'in a mount namespace that is full, by mount(2)',
          fullNamespace(0),
          {},
          fails('ENOSPC', 'too-many-mounts', /it has \d+, and fs\.mount-max is \d+/, 'm'),
          { filter: { calls: ['fsopen'], errno: ENOSYS }, mend: { command: fullNamespace(1) } },
        ),
      ]
    : []),
  row('with CAP_SYS_ADMIN alone', mountOnly, {}, fails('EACCES', 'capability-missing', /lacks CAP_DAC_OVERRIDE/, 'w'), {
    mend: { command: [] },
  }),
  row(
    'an upper that may not be written',
    mountOnly,
    {},
    fails('EACCES', 'upper-not-writable', /may not write to the upperdir '.*\/u'/, 'u'),
    { setup: [owned('u', 0o555)], mend: { command: [] } },
  ),
  row(
    'an upper of mode 000',
    mountOnly,
    {},
    fails('EACCES', 'upper-not-writable', /may not write to the upperdir/, 'u'),
    { setup: [owned('u', 0)], mend: { command: [] } },
  ),
  row(
    'a work that may not be written',
    mountOnly,
    {},
    fails('EROFS', 'work-not-writable', /may not write to the workdir '.*\/w'/, 'w'),
    { setup: [owned('w', 0o555)], mend: { command: [] } },
  ),
  row('a work of mode 000', mountOnly, {}, fails('EROFS', 'work-not-writable', /may not write to the workdir/, 'w'), {
    setup: [owned('w', 0)],
    mend: { command: [] },
  }),
  row(
    'a lower in a directory that may not be searched',
    mountOnly,
    { lowerdir: 'x/l' },
    fails('EACCES', 'path-inaccessible', /may not search/, 'x/l'),
    { setup: [dirs('x/l'), mode('x', 0o600)], mend: { command: [] } },
  ),
  row(
    'what is to be made in a directory that may not be written',
    mountOnly,
    { upperdir: 'x/u', create: true },
    fails('EACCES', 'permission-denied', /may not create the directory '.*x\/u'/, 'x/u'),
    { setup: [dirs('x'), mode('x', 0o555)], mend: { command: [] } },
  ),
  row(
    "in a user namespace, an upper that is someone else's",
    [...inUserOf()],
    {},
    fails('EACCES', 'upper-not-writable', /upperdir '.*\/u'/, 'u'),
    { setup: [mode('u', 0o755), mode('w', 0o777)], mend: { steps: [mode('u', 0o777)] } },
  ),
  row(
    "in a user namespace, a work that is someone else's",
    [...inUserOf()],
    {},
    fails('EROFS', 'work-not-writable', /workdir '.*\/w'/, 'w'),
    { setup: [mode('u', 0o777)], mend: { steps: [mode('w', 0o777)] } },
  ),
  row(
    'in a user namespace, a lower that holds a mount',
    inUser,
    { lowerdir: 'x' },
    fails('EINVAL', 'layer-locked', /mounted inside the lowerdir '.*\/x', at '.*\/x\/in'/, 'x'),
    { setup: [dirs('x/in'), tmpfs('x/in')], mend: { options: { lowerdir: 'l1' } } },
  ),
  row(
    'in a user namespace, the root as one lower of several',
    inUser,
    { lowerdir: ['l1', '/'] },
    fails('EINVAL', 'layer-locked', /mounted inside the lowerdir\[1\] '\/'/, '/'),
    { view: true, mend: { options: { lowerdir: ['l1', 'l2'] } } },
  ),
  row(
    'in a user namespace, an upper in use outside',
    inUser,
    {},
    fails('EBUSY', 'upper-in-use', /overlay at '.*other'/, 'u'),
    { setup: [overlay('l2,u,w', 'other')], mend: { options: { exclusive: false } }, needs: ['uniqueMountId'] },
  ),
  row(
    'in a user namespace, a lower twice',
    inUser,
    { lowerdir: ['l1', 'l2', 'l1'] },
    fails('ELOOP', 'layer-twice', /lowerdir\[2\]/, 'l1'),
    { mend: { options: { lowerdir: ['l1', 'l2'] } } },
  ),
  row(
    'in a user namespace, a lower that is missing',
    inUser,
    { lowerdir: 'none' },
    fails('ENOENT', 'lower-missing', /does not exist/, 'none'),
    { mend: { steps: [dirs('none')] } },
  ),
  row(
    'in a user namespace, a work inside the upper',
    inUser,
    { workdir: 'u/w' },
    fails('EINVAL', 'work-inside-upper', /inside/, 'u/w'),
    { setup: [dirs('u/w')], mend: { options: { workdir: 'w' } } },
  ),
  row(
    'in a user namespace, what lies in the work two deep',
    inUser,
    {},
    fails('EROFS', 'work-leftovers', /w\/work\/a\/b'/, 'w'),
    { setup: [dirs('w/work/a/b/c')], mend: { steps: [removed('w/work')] } },
  ),
  row(
    'in a user namespace, after a volatile mount',
    inUser,
    {},
    fails('EINVAL', 'volatile-leftover', /volatile/, 'w'),
    { setup: [dirs('w/work/incompat/volatile')], mend: { steps: [removed('w/work')] } },
  ),
];

/** Root of a user namespace, nobody outside. */
function inUserOf(): readonly string[] {
  return [...asNobody, ...inUser];
}
