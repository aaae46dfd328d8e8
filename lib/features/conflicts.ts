/**
 * Refuses options that conflict, and options that the running kernel lacks. The error names both options and the
 * remedy; the kernel would answer with a bare EINVAL, or silently drop one of them. There is one table, and
 * docs/options.md is made from it. Pure.
 */
import { EOPNOTSUPP } from '../errnos.js';
import { conflictingOptions, OverlayError } from '../errors.js';
import type { CheckedOptions, NamedOption, OverlayOptionName } from '../options/check.js';
import { type OptionRow, optionRows } from '../options/table.js';
import { type KernelFeatures, needsMetacopy, type ProbedOption } from './probe.js';

/** The input of a row's test. */
interface Case {
  /** The values that the caller named, keyed by the library's names, as they are sent: `'on'`, null for a bare word. */
  readonly named: Readonly<Partial<Record<OverlayOptionName, string | null>>>;
  readonly hasUpper: boolean;
  readonly hasData: boolean;
  readonly features: KernelFeatures;
}

/** The kernel's response to such a request. */
type Outcome =
  /** It fails with EINVAL or EPERM, without a message. */
  | 'refuses'
  /** It mounts without one of the options; without the first one if the row has a `lack`. */
  | 'drops'
  /** It mounts, but shows other options than it applies. */
  | 'lies';

export interface Conflict {
  /** The conflicting options, first the one to leave out. */
  readonly options: readonly string[];
  /** The condition in words, for the documentation. */
  readonly when: string;
  readonly applies: (found: Case) => boolean;
  readonly kernel: Outcome;
  readonly hint: string;
  /** The kind of the conflict. Without it the two options exclude each other. */
  readonly lack?: 'needs the other' | 'user namespace';
}

const isOn = (value: string | null | undefined): boolean => value === 'on' || value === 'require';
const isSet = (value: string | null | undefined): boolean => value === null;

/**
 * Only the initial user namespace gives access to trusted.* attributes. In any other, features that are kept in them
 * need userxattr or are not available.
 */
const lacksTrusted = ({ features, named }: Case): boolean => features.userNamespace && !isSet(named.userxattr);

/** Whether the options exclude metacopy, even if the caller has not named it. */
const excludesMetacopy = (redirectDir: string | null | undefined, hasUpper: boolean): boolean =>
  redirectDir === 'off' || redirectDir === 'nofollow' || (redirectDir === 'follow' && hasUpper);

export const conflicts: readonly Conflict[] = [
  {
    options: ['metacopy', 'redirectDir'],
    when: "`metacopy: true` with `redirectDir: 'off'` or `'nofollow'`",
    applies: ({ named }) => isOn(named.metacopy) && (named.redirectDir === 'off' || named.redirectDir === 'nofollow'),
    kernel: 'refuses',
    hint: "leave `redirectDir` out, which is then 'on', or leave `metacopy` out",
  },
  {
    options: ['metacopy', 'redirectDir'],
    when: "`metacopy: true` with `redirectDir: 'follow'` and an upperdir",
    applies: ({ named, hasUpper }) => isOn(named.metacopy) && named.redirectDir === 'follow' && hasUpper,
    kernel: 'refuses',
    hint: "leave `redirectDir` out, which is then 'on', or leave `metacopy` out",
  },
  {
    options: ['nfsExport', 'upperdir'],
    when: "`nfsExport: true` without an upperdir, unless `redirectDir: 'nofollow'`",
    applies: ({ named, hasUpper }) => isOn(named.nfsExport) && !hasUpper && named.redirectDir !== 'nofollow',
    lack: 'needs the other',
    kernel: 'drops',
    hint: "add `redirectDir: 'nofollow'`, or an upperdir, or leave `nfsExport` out",
  },
  {
    options: ['nfsExport', 'index'],
    when: '`nfsExport: true` with `index: false`',
    applies: ({ named }) => isOn(named.nfsExport) && named.index === 'off',
    kernel: 'refuses',
    hint: 'leave `index` out, which is then true, or leave `nfsExport` out',
  },
  {
    options: ['nfsExport', 'metacopy'],
    when: '`nfsExport: true` with `metacopy: true`',
    applies: ({ named }) => isOn(named.nfsExport) && isOn(named.metacopy),
    kernel: 'refuses',
    hint: 'leave one of the two out',
  },
  {
    options: ['nfsExport', 'verity'],
    when: '`nfsExport: true` with `verity`, up to Linux 6.15',
    applies: ({ named, features }) => isOn(named.nfsExport) && isOn(named.verity) && needsMetacopy(features),
    kernel: 'drops',
    hint: 'leave one of the two out',
  },
  {
    options: ['userxattr', 'redirectDir'],
    when: "`userxattr: true` with `redirectDir: 'on'` or `'follow'`",
    applies: ({ named }) => isSet(named.userxattr) && (named.redirectDir === 'on' || named.redirectDir === 'follow'),
    kernel: 'refuses',
    hint: "leave `redirectDir` out, which is then 'nofollow', or leave `userxattr` out",
  },
  {
    options: ['userxattr', 'metacopy'],
    when: '`userxattr: true` with `metacopy: true`',
    applies: ({ named }) => isSet(named.userxattr) && isOn(named.metacopy),
    kernel: 'refuses',
    hint: 'leave one of the two out: `metacopy` files are never trusted in user.* attributes',
  },
  {
    options: ['index', 'upperdir'],
    when: '`index: true` without an upperdir',
    applies: ({ named, hasUpper }) => isOn(named.index) && !hasUpper,
    lack: 'needs the other',
    kernel: 'drops',
    hint: 'leave `index` out, or add an upperdir',
  },
  {
    options: ['volatile', 'upperdir'],
    when: '`volatile: true` without an upperdir',
    applies: ({ named, hasUpper }) => isSet(named.volatile) && !hasUpper,
    lack: 'needs the other',
    kernel: 'drops',
    hint: 'leave `volatile` out: nothing is written without an upperdir',
  },
  {
    options: ['volatile', 'fsync'],
    when: '`volatile: true` with `fsync`',
    applies: ({ named }) => isSet(named.volatile) && named.fsync !== undefined,
    kernel: 'drops',
    hint: 'leave one of the two out: `volatile` is a value of `fsync` to the kernel',
  },
  {
    options: ['uuid', 'upperdir'],
    when: "`uuid: 'on'` without an upperdir",
    applies: ({ named, hasUpper }) => named.uuid === 'on' && !hasUpper,
    lack: 'needs the other',
    kernel: 'drops',
    hint: "leave `uuid` out, or pass 'null'",
  },
  {
    options: ['verity', 'metacopy'],
    when: '`verity` with `metacopy: false`, up to Linux 6.15',
    applies: ({ named, features }) => isOn(named.verity) && named.metacopy === 'off' && needsMetacopy(features),
    kernel: 'refuses',
    hint: 'leave `metacopy` out, which is then true: on this kernel `verity` is kept in `metacopy` files',
  },
  {
    options: ['verity', 'redirectDir'],
    when: "`verity` with `redirectDir: 'off'` or `'nofollow'`, or `'follow'` and an upperdir, up to Linux 6.15",
    applies: ({ named, hasUpper, features }) =>
      isOn(named.verity) && excludesMetacopy(named.redirectDir, hasUpper) && needsMetacopy(features),
    kernel: 'refuses',
    hint: "leave `redirectDir` out, which is then 'on'",
  },
  {
    options: ['userxattr', 'verity'],
    when: '`userxattr: true` with `verity`, up to Linux 6.15',
    applies: ({ named, features }) => isSet(named.userxattr) && isOn(named.verity) && needsMetacopy(features),
    kernel: 'refuses',
    hint: 'leave one of the two out on this kernel',
  },
  {
    options: ['datadir', 'metacopy'],
    when: '`datadir` with `metacopy: false`, up to Linux 6.15',
    applies: ({ named, hasData, features }) => hasData && named.metacopy === 'off' && needsMetacopy(features),
    kernel: 'refuses',
    hint: 'leave `metacopy` out, which is then true: on this kernel data-only layers need it',
  },
  {
    options: ['datadir', 'redirectDir'],
    when: "`datadir` with `redirectDir: 'off'` or `'nofollow'`, or `'follow'` and an upperdir, up to Linux 6.15",
    applies: ({ named, hasData, hasUpper, features }) =>
      hasData && excludesMetacopy(named.redirectDir, hasUpper) && needsMetacopy(features),
    kernel: 'refuses',
    hint: "leave `redirectDir` out, which is then 'on': on this kernel data-only layers need metacopy",
  },
  {
    options: ['datadir', 'nfsExport'],
    when: '`datadir` with `nfsExport: true`, up to Linux 6.15',
    applies: ({ named, hasData, features }) => hasData && isOn(named.nfsExport) && needsMetacopy(features),
    kernel: 'refuses',
    hint: 'leave one of the two out: on this kernel data-only layers need metacopy, which excludes NFS export',
  },
  {
    options: ['datadir', 'userxattr'],
    when: '`datadir` with `userxattr: true`, up to Linux 6.15',
    applies: ({ named, hasData, features }) => hasData && isSet(named.userxattr) && needsMetacopy(features),
    kernel: 'refuses',
    hint: 'leave one of the two out on this kernel: data-only layers need `metacopy`, which `userxattr` excludes',
  },
  {
    options: ['redirectDir', 'userxattr'],
    when: "`redirectDir: 'on'` or `'follow'` in a user namespace, without userxattr",
    applies: (found) =>
      lacksTrusted(found) && (found.named.redirectDir === 'on' || found.named.redirectDir === 'follow'),
    lack: 'user namespace',
    kernel: 'lies',
    hint: 'leave `redirectDir` out: it is kept in trusted.* attributes, which a user namespace may not write',
  },
  {
    options: ['metacopy', 'userxattr'],
    when: '`metacopy: true` in a user namespace',
    applies: (found) => lacksTrusted(found) && isOn(found.named.metacopy),
    lack: 'user namespace',
    kernel: 'lies',
    hint: 'leave `metacopy` out: it is kept in trusted.* attributes, which a user namespace may not write',
  },
  {
    options: ['verity', 'userxattr'],
    when: '`verity` in a user namespace, without userxattr',
    applies: (found) => lacksTrusted(found) && isOn(found.named.verity),
    lack: 'user namespace',
    kernel: 'refuses',
    hint: 'add `userxattr: true` (Linux 6.16), or leave `verity` out',
  },
  {
    options: ['datadir', 'userxattr'],
    when: '`datadir` in a user namespace, without userxattr',
    applies: (found) => lacksTrusted(found) && found.hasData,
    lack: 'user namespace',
    kernel: 'refuses',
    hint: 'add `userxattr: true` (Linux 6.16), or leave `datadir` out',
  },
  {
    options: ['index', 'userxattr'],
    when: '`index: true` in a user namespace',
    applies: ({ named, features }) => isOn(named.index) && features.userNamespace,
    kernel: 'drops',
    hint: 'leave `index` out: it needs file handles, which a user namespace may not open',
    lack: 'user namespace',
  },
  {
    options: ['nfsExport', 'userxattr'],
    when: '`nfsExport: true` in a user namespace',
    applies: ({ named, features }) => isOn(named.nfsExport) && features.userNamespace,
    kernel: 'drops',
    hint: 'leave `nfsExport` out: it needs file handles, which a user namespace may not open',
    lack: 'user namespace',
  },
];

function show(name: string, { named }: Case): string {
  const value = named[name as OverlayOptionName];
  if (value === undefined) return `"${name}"`;
  const form = optionRows[name]?.form;
  const shown = form === 'flag' ? 'true' : form === 'switch' ? String(value === 'on') : `'${value}'`;
  return `"${name}: ${shown}"`;
}

function conflictError(conflict: Conflict, found: Case): Error {
  const [first, second] = conflict.options.map((name) => show(name, found)) as [string, string];
  const ends = {
    refuses: 'the kernel refuses that',
    drops: 'the kernel would mount, and drop one of them without a word',
    lies: 'the kernel refuses that, or mounts without it and shows it all the same',
  };
  const whats = {
    'needs the other': `${first} is of no use without ${second}: the kernel would mount and drop it without a word`,
    'user namespace': `${first} cannot be had in a user namespace as it is: ${ends[conflict.kernel]}`,
  };
  const what = conflict.lack ? whats[conflict.lack] : `${first} cannot go with ${second}: ${ends[conflict.kernel]}`;
  return conflictingOptions(what, conflict.hint);
}

/** Whether the mount may lack what the kernel would drop: either option, if the two exclude each other. */
function mayFall({ kernel, options, lack }: Conflict, allowed: readonly string[]): boolean {
  if (kernel !== 'drops' || allowed.length === 0) return false;
  return (lack === undefined ? options : options.slice(0, 1)).every((name) => allowed.includes(name));
}

/** Returns the first kernel that has an option, or a value of it. */
function firstKernel({ name, value }: NamedOption): string {
  const row = optionRows[name] as OptionRow;
  const firstOfValue = row.form === 'word' && value !== null ? row.firstOf?.[value] : undefined;
  return firstOfValue ?? row.first ?? '?';
}

function isLacking({ kernel, value }: NamedOption, { options }: KernelFeatures): boolean {
  const base = kernel.replace(/^no(?=override_creds)/, '').replace(/^.+context$/, 'context');
  return (
    options[base as ProbedOption] === false || (value !== null && options[`${base}=${value}` as ProbedOption] === false)
  );
}

/** An option that is off is off on a kernel that lacks it, too. This is not so for `uuid=off`, which hides the UUID. */
const isOff = ({ kernel, value }: NamedOption): boolean =>
  value === null ? kernel.startsWith('no') : value === 'off' && kernel !== 'uuid';

function lackingError(name: string, shown: string, first: string, { release }: KernelFeatures): OverlayError {
  return new OverlayError({
    errno: EOPNOTSUPP,
    reason: 'option-unsupported',
    what: `this kernel (${release}) does not know ${shown}, which comes with Linux ${first}`,
    hint: `leave it out, or pass \`allowDegraded: ['${name}']\` to have it left out where the kernel lacks it`,
  });
}

/** A fault of the options. */
export interface Problem {
  readonly error: Error;
  /** Whether the kernel refuses such a mount; otherwise it mounts and drops an option. */
  readonly isRefused: boolean;
}

/** Finds options that conflict or that the kernel lacks. Returns the options without those that the mount may lack. */
export function* findProblems(options: CheckedOptions, features: KernelFeatures): Generator<Problem, CheckedOptions> {
  const { overlay, datadir, upperdir, allowDegraded } = options;
  if (datadir.length > 0 && features.options['datadir+'] === false && features.fsContext !== true) {
    const error = new OverlayError({
      errno: EOPNOTSUPP,
      reason: 'option-unsupported',
      what: `this kernel (${features.release}) has no data-only layers, "datadir": they come with Linux 6.5`,
      hint: 'use a newer kernel, or layers that hold their data themselves',
    });
    yield { error, isRefused: true };
  }
  const kept: NamedOption[] = [];
  for (const option of overlay) {
    if (!isLacking(option, features)) kept.push(option);
    else if (!isOff(option) && !allowDegraded.includes(option.name)) {
      const found: Case = { named: { [option.name]: option.value }, hasUpper: true, hasData: false, features };
      const error = lackingError(option.name, show(option.name, found), firstKernel(option), features);
      yield { error, isRefused: true };
    }
  }
  const found: Case = {
    named: Object.fromEntries(kept.map(({ name, value }) => [name, value])),
    hasUpper: upperdir !== undefined,
    hasData: datadir.length > 0,
    features,
  };
  for (const conflict of conflicts) {
    if (!conflict.applies(found) || mayFall(conflict, allowDegraded)) continue;
    yield { error: conflictError(conflict, found), isRefused: conflict.kernel !== 'drops' };
  }
  return kept.length === overlay.length ? options : { ...options, overlay: kept };
}

/**
 * Throws if options conflict or the kernel lacks one. Returns the options without those that the kernel lacks and the
 * mount may lack.
 */
export function checkConflicts(options: CheckedOptions, features: KernelFeatures): CheckedOptions {
  if (options.overlay.length === 0 && options.datadir.length === 0) return options;
  const { done, value } = findProblems(options, features).next();
  if (!done) throw value.error;
  return value;
}
