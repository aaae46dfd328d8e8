/**
 * Refuses options that conflict, and options that the running kernel lacks. The error names both options and the
 * remedy; the kernel would answer with a bare EINVAL, or silently drop one of them. There is one table, and
 * docs/options.md is made from it. Pure.
 */
import { EOPNOTSUPP } from '../errnos.js';
import { conflictingOptions, OverlayError } from '../errors.js';
import { type CheckedOptions, hasUpper, type NamedOption, type OverlayOptionName } from '../options/check.js';
import { firstKernel, type OptionRow, optionRows, optionTable } from '../options/table.js';
import { either, option, type Text, text } from '../text.js';
import { type KernelFeatures, needsMetacopy, type ProbedOption } from './record.js';

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
  readonly hint: Text;
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

/** Returns true if the options exclude metacopy, even if the caller has not named it. */
const excludesMetacopy = (redirectDir: string | null | undefined, hasUpper: boolean): boolean =>
  redirectDir === 'off' || redirectDir === 'nofollow' || (redirectDir === 'follow' && hasUpper);

const leaveOut = (name: string, why?: string): Text =>
  why === undefined ? text`leave ${option(name)} out` : text`leave ${option(name)} out: ${why}`;

const TRUSTED = 'the kernel keeps it in trusted.* attributes, which a process in a user namespace may not write';
const HANDLES = 'it needs file handles, which a process in a user namespace may not open';

export const conflicts: readonly Conflict[] = [
  {
    options: ['metacopy', 'redirectDir'],
    when: "`metacopy: true` with `redirectDir: 'off'` or `'nofollow'`",
    applies: ({ named }) => isOn(named.metacopy) && (named.redirectDir === 'off' || named.redirectDir === 'nofollow'),
    kernel: 'refuses',
    hint: either(text`leave ${option('redirectDir')} out, which is then on`, leaveOut('metacopy')),
  },
  {
    options: ['metacopy', 'redirectDir'],
    when: "`metacopy: true` with `redirectDir: 'follow'` and an upperdir",
    applies: ({ named, hasUpper }) => isOn(named.metacopy) && named.redirectDir === 'follow' && hasUpper,
    kernel: 'refuses',
    hint: either(text`leave ${option('redirectDir')} out, which is then on`, leaveOut('metacopy')),
  },
  {
    options: ['nfsExport', 'upperdir'],
    when: "`nfsExport: true` without an upperdir, unless `redirectDir: 'nofollow'`",
    applies: ({ named, hasUpper }) => isOn(named.nfsExport) && !hasUpper && named.redirectDir !== 'nofollow',
    lack: 'needs the other',
    kernel: 'drops',
    hint: either(text`add ${option('redirectDir', 'nofollow')}`, 'add an upperdir', leaveOut('nfsExport')),
  },
  {
    options: ['nfsExport', 'index'],
    when: '`nfsExport: true` with `index: false`',
    applies: ({ named }) => isOn(named.nfsExport) && named.index === 'off',
    kernel: 'refuses',
    hint: either(text`leave ${option('index')} out, which is then on`, leaveOut('nfsExport')),
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
    hint: either(text`leave ${option('redirectDir')} out, which is then nofollow`, leaveOut('userxattr')),
  },
  {
    options: ['userxattr', 'metacopy'],
    when: '`userxattr: true` with `metacopy: true`',
    applies: ({ named }) => isSet(named.userxattr) && isOn(named.metacopy),
    kernel: 'refuses',
    hint: text`leave one of the two out: the kernel never trusts ${option('metacopy')} in user.* attributes`,
  },
  {
    options: ['index', 'upperdir'],
    when: '`index: true` without an upperdir',
    applies: ({ named, hasUpper }) => isOn(named.index) && !hasUpper,
    lack: 'needs the other',
    kernel: 'drops',
    hint: either(leaveOut('index'), 'add an upperdir'),
  },
  {
    options: ['volatile', 'upperdir'],
    when: '`volatile: true` without an upperdir',
    applies: ({ named, hasUpper }) => isSet(named.volatile) && !hasUpper,
    lack: 'needs the other',
    kernel: 'drops',
    hint: leaveOut('volatile', 'without an upperdir nothing is written'),
  },
  {
    options: ['volatile', 'fsync'],
    when: '`volatile: true` with `fsync`',
    applies: ({ named }) => isSet(named.volatile) && named.fsync !== undefined,
    kernel: 'drops',
    hint: text`leave one of the two out: for the kernel, ${option('volatile')} is a value of ${option('fsync')}`,
  },
  {
    options: ['uuid', 'upperdir'],
    when: "`uuid: 'on'` without an upperdir",
    applies: ({ named, hasUpper }) => named.uuid === 'on' && !hasUpper,
    lack: 'needs the other',
    kernel: 'drops',
    hint: either(leaveOut('uuid'), text`pass ${option('uuid', 'null')}`),
  },
  {
    options: ['verity', 'metacopy'],
    when: '`verity` with `metacopy: false`, up to Linux 6.15',
    applies: ({ named, features }) => isOn(named.verity) && named.metacopy === 'off' && needsMetacopy(features),
    kernel: 'refuses',
    hint: text`leave ${option('metacopy')} out, which is then on: this kernel keeps the digests of ${option('verity')} in metacopy files`,
  },
  {
    options: ['verity', 'redirectDir'],
    when: "`verity` with `redirectDir: 'off'` or `'nofollow'`, or `'follow'` and an upperdir, up to Linux 6.15",
    applies: ({ named, hasUpper, features }) =>
      isOn(named.verity) && excludesMetacopy(named.redirectDir, hasUpper) && needsMetacopy(features),
    kernel: 'refuses',
    hint: text`leave ${option('redirectDir')} out, which is then on`,
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
    hint: text`leave ${option('metacopy')} out, which is then on: on this kernel data-only layers need it`,
  },
  {
    options: ['datadir', 'redirectDir'],
    when: "`datadir` with `redirectDir: 'off'` or `'nofollow'`, or `'follow'` and an upperdir, up to Linux 6.15",
    applies: ({ named, hasData, hasUpper, features }) =>
      hasData && excludesMetacopy(named.redirectDir, hasUpper) && needsMetacopy(features),
    kernel: 'refuses',
    hint: text`leave ${option('redirectDir')} out, which is then on: on this kernel data-only layers need metacopy`,
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
    hint: text`leave one of the two out: on this kernel data-only layers need ${option('metacopy')}, which ${option('userxattr')} excludes`,
  },
  {
    options: ['redirectDir', 'userxattr'],
    when: "`redirectDir: 'on'` or `'follow'` in a user namespace, without userxattr",
    applies: (found) =>
      lacksTrusted(found) && (found.named.redirectDir === 'on' || found.named.redirectDir === 'follow'),
    lack: 'user namespace',
    kernel: 'lies',
    hint: leaveOut('redirectDir', TRUSTED),
  },
  {
    options: ['metacopy', 'userxattr'],
    when: '`metacopy: true` in a user namespace',
    applies: (found) => lacksTrusted(found) && isOn(found.named.metacopy),
    lack: 'user namespace',
    kernel: 'lies',
    hint: leaveOut('metacopy', TRUSTED),
  },
  {
    options: ['verity', 'userxattr'],
    when: '`verity` in a user namespace, without userxattr',
    applies: (found) => lacksTrusted(found) && isOn(found.named.verity),
    lack: 'user namespace',
    kernel: 'refuses',
    hint: either(text`add ${option('userxattr', true)} (Linux 6.16)`, leaveOut('verity')),
  },
  {
    options: ['datadir', 'userxattr'],
    when: '`datadir` in a user namespace, without userxattr',
    applies: (found) => lacksTrusted(found) && found.hasData,
    lack: 'user namespace',
    kernel: 'refuses',
    hint: either(text`add ${option('userxattr', true)} (Linux 6.16)`, leaveOut('datadir')),
  },
  {
    options: ['index', 'userxattr'],
    when: '`index: true` in a user namespace',
    applies: ({ named, features }) => isOn(named.index) && features.userNamespace,
    kernel: 'drops',
    hint: leaveOut('index', HANDLES),
    lack: 'user namespace',
  },
  {
    options: ['nfsExport', 'userxattr'],
    when: '`nfsExport: true` in a user namespace',
    applies: ({ named, features }) => isOn(named.nfsExport) && features.userNamespace,
    kernel: 'drops',
    hint: leaveOut('nfsExport', HANDLES),
    lack: 'user namespace',
  },
];

/** Returns the option as a part of a text, with the value that the caller named. */
function toPart(name: string, value: string | null | undefined): Text {
  if (value === undefined) return option(name);
  const form = optionRows[name]?.form;
  return option(name, form === 'flag' || (form === 'switch' ? value === 'on' : value));
}

/** The consequences in words. */
const outcomes = {
  refuses: 'the kernel refuses this',
  drops: { before: 'the kernel would silently drop one of them', after: 'the kernel has dropped one of them' },
  lies: {
    before: 'the kernel refuses this, or mounts without the option and shows it in the mount table',
    after: 'the mount table shows the option, but the mount lacks it',
  },
} as const satisfies Readonly<Record<Outcome, Text>>;

const DROPPED: Text = { before: 'the kernel would silently drop it', after: 'the kernel has dropped it' };

function conflictError({ options, kernel, lack, hint }: Conflict, { named }: Case): Error {
  const [first, second] = options.map((name) => toPart(name, named[name as OverlayOptionName])) as [Text, Text];
  const whats = {
    none: text`${first} and ${second} exclude each other: ${outcomes[kernel]}`,
    'needs the other': text`${first} has no effect without ${second}: ${DROPPED}`,
    'user namespace': text`${first} is not available in a user namespace: ${outcomes[kernel]}`,
  };
  return conflictingOptions(whats[lack ?? 'none'], hint);
}

/** Returns true if the mount may lack what the kernel would drop: either option, if the two exclude each other. */
function mayFall({ kernel, options, lack }: Conflict, allowed: readonly string[]): boolean {
  if (kernel !== 'drops' || allowed.length === 0) return false;
  return (lack === undefined ? options : options.slice(0, 1)).every((name) => allowed.includes(name));
}

function isLacking({ name, value }: NamedOption, { options }: KernelFeatures): boolean {
  // One probe answers for all options of SELinux.
  const kernel = optionTable[name].kernel.replace(/^.+context$/, 'context');
  return (
    options[kernel as ProbedOption] === false ||
    (value !== null && options[`${kernel}=${value}` as ProbedOption] === false)
  );
}

/** Returns true if a kernel that lacks the option does what the caller asks for without it. */
function isNeutral({ name, kernel, value }: NamedOption): boolean {
  const row: OptionRow = optionTable[name];
  switch (row.form) {
    case 'flag':
      return kernel === row.off;
    case 'switch':
      return value === 'off';
    default:
      return row.form === 'word' && value === row.neutral;
  }
}

function lackingError(named: NamedOption, { release }: KernelFeatures): OverlayError {
  const { name, value } = named;
  return new OverlayError({
    errno: EOPNOTSUPP,
    reason: 'option-unsupported',
    what: text`this kernel (${release}) does not know ${toPart(name, value)}, which needs Linux ${firstKernel(optionTable[name], value)}`,
    hint: either(
      'leave it out',
      text`pass ${option('allowDegraded', [name])} to mount without it on kernels that lack it`,
    ),
  });
}

/** A fault of the options. */
export interface Problem {
  readonly error: Error;
  /** True if the kernel refuses such a mount; otherwise it mounts and drops an option. */
  readonly isRefused: boolean;
}

/** Finds options that conflict or that the kernel lacks. Returns the options without those that the mount may lack. */
export function* findProblems(options: CheckedOptions, features: KernelFeatures): Generator<Problem, CheckedOptions> {
  const { overlay, datadir, allowDegraded } = options;
  if (datadir.length > 0 && features.options['datadir+'] === false && features.fsContext !== true) {
    const error = new OverlayError({
      errno: EOPNOTSUPP,
      reason: 'option-unsupported',
      what: text`this kernel (${features.release}) has no data-only layers (${option('datadir')}), which need Linux 6.5`,
      hint: 'use a newer kernel, or layers that contain their data',
    });
    yield { error, isRefused: true };
  }
  const kept: NamedOption[] = [];
  for (const named of overlay) {
    if (!isLacking(named, features)) kept.push(named);
    else if (!isNeutral(named) && !allowDegraded.includes(named.name)) {
      yield { error: lackingError(named, features), isRefused: true };
    }
  }
  const found: Case = {
    named: Object.fromEntries(kept.map(({ name, value }) => [name, value])),
    hasUpper: hasUpper(options),
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
