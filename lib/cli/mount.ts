/** `overlayfs mount` */
import { writeFileSync } from 'node:fs';
import { kernelFeatures } from '../features/probe.js';
import { baseline } from '../merge/baseline.js';
import { splitGiven } from '../mount-strings.js';
import type { OverlayOptions } from '../options/check.js';
import { readWords, toAttributes } from '../options/mount-words.js';
import { optionTable, overlayOptionNames } from '../options/table.js';
import { readGiven } from '../options/text.js';
import { dryRun } from '../overlay/dry-run.js';
import { mountOverlay } from '../overlay/mount.js';
import { type WayName, wayNames } from '../overlay/ways.js';
import { fromBytes, type Path, toAbsolute, toBytes } from '../paths.js';
import type { Command, FlagGroup, Outcome, Parsed } from './command.js';
import { type Flag, flagsOf, kebab, ownFlag } from './flags.js';
import { optionProblem } from './mount-option.js';
import { UsageError, unknownWord } from './usage-error.js';

/** Options of a mount as the flags give them, with those that are flags alone. */
export interface MountFlags extends Partial<Omit<OverlayOptions, 'temporary'>> {
  readonly temporary?: boolean;
  readonly temporarySize?: number;
  readonly temporaryInodes?: number;
  readonly options?: Path[];
  readonly baseline?: Path;
}

/** The target is an operand, not a flag. */
const mountFlags = flagsOf(optionTable).filter(({ name }) => name !== 'target');
const overlayNames: ReadonlySet<string> = new Set(overlayOptionNames);

const isLayer = ({ kind }: Flag): boolean => kind === 'path';
const isLibrarys = ({ name }: Flag): boolean =>
  ['create', 'stack', 'exclusive', 'namespace', 'allowDegraded'].includes(name);

/** The groups; each takes the flags that no earlier group takes. */
const groupRules: readonly (readonly [title: string, takes: (flag: Flag) => boolean])[] = [
  ['layers', isLayer],
  ["overlayfs' options", ({ name }) => overlayNames.has(name)],
  ['options of any mount', (flag) => !isLibrarys(flag)],
  ['how it is mounted', isLibrarys],
];

/** The flags in groups, for the help and for docs/options.md. */
export const mountGroups: readonly FlagGroup[] = groupRules.map(([title]) => ({
  title,
  flags: mountFlags.filter((flag) => groupRules.find(([, takes]) => takes(flag))?.[0] === title),
}));

/** Returns the library's names; accepts the names of flags and those of the library. */
function toOptionNames(given: readonly string[]): OverlayOptions['allowDegraded'] {
  const known = new Map(overlayOptionNames.flatMap((name) => [[name, name] as const, [kebab(name), name] as const]));
  return given.map((word) => {
    const name = known.get(word as keyof OverlayOptions);
    if (name === undefined) throw unknownWord('--allow-degraded cannot name', word, overlayOptionNames.map(kebab));
    return name;
  }) as OverlayOptions['allowDegraded'];
}

/** The flags of a mount that the table of options does not have. */
export const moreGroup: FlagGroup = {
  title: 'more',
  flags: [
    ownFlag('options', "options as mount(8) has them, the kernel's words separated by commas", {
      short: 'o',
      kind: 'path',
      value: 'OPTIONS',
      isList: true,
      default: 'none',
    }),
    ownFlag('temporary', 'an upper and a workdir in memory; all changes end with the mount'),
    ownFlag('temporarySize', 'with --temporary: the most that the changes take', {
      kind: 'size',
      default: 'half of the memory',
    }),
    ownFlag('temporaryInodes', 'with --temporary: the most files and directories', {
      kind: 'number',
      default: "tmpfs(5)'s",
    }),
  ],
};

/** `mount` and `run` take it. */
export const baselineFlag = ownFlag(
  'baseline',
  'writes the moment of the mount, by the clock of the topmost lower layer, for merge --since',
  { kind: 'path', value: 'FILE', default: 'none' },
);

/** Mounts, and writes the baseline that was taken before. */
export async function withBaseline<T>(
  { baseline: file, ...options }: MountFlags,
  mounted: () => Promise<T>,
): Promise<T> {
  if (file === undefined) return mounted();
  const [top = ''] = [options.lowerdir ?? []].flat() as Path[];
  const taken = await baseline(top);
  const result = await mounted();
  writeFileSync(Buffer.from(toBytes(file)), `${JSON.stringify(taken)}\n`);
  return result;
}

/** Reads the strings of -o. */
function readStrings(strings: readonly Path[]): Partial<OverlayOptions> {
  const words = readWords(
    splitGiven(Buffer.concat(strings.flatMap((text) => [Buffer.from(toBytes(text)), Buffer.from(',')]))),
  );
  const { options, others } = readGiven(words.rest);
  const [wrong] = others;
  if (wrong !== undefined) throw optionProblem(wrong, words.rest);
  const { lowerdir, datadir, ...named } = options;
  // It says relatime where no word of atime is given.
  const { atime, ...attributes } = toAttributes(words);
  return {
    ...(named as Partial<OverlayOptions>),
    ...(lowerdir.length > 0 && { lowerdir }),
    ...(datadir.length > 0 && { datadir }),
    ...attributes,
    ...(atime !== undefined && atime !== 'relatime' && { atime }),
  };
}

/** Returns the options of the library, without a target. Their paths are absolute, as errors and plans show them. */
export function toDetachedOptions(flags: MountFlags): OverlayOptions {
  const { options: strings, temporary, temporarySize, temporaryInodes, baseline: _, ...given } = flags;
  const written = strings === undefined ? {} : readStrings(strings);
  const twice = Object.keys(written).find((name) => name in given);
  if (twice !== undefined)
    throw new UsageError(`-o and --${kebab(twice)} both give ${twice}`, 'Leave one of the two out.');
  const chosen: Record<string, unknown> = { ...written, ...given };
  if (chosen['lowerdir'] === undefined)
    throw new UsageError('name the lower layers: --lowerdir DIR, the topmost first');
  for (const { name } of mountFlags.filter(isLayer)) {
    const paths = chosen[name] as Path | Path[] | undefined;
    if (paths !== undefined) chosen[name] = Array.isArray(paths) ? paths.map(toAbsolute) : toAbsolute(paths);
  }
  const limits = {
    ...(temporarySize !== undefined && { size: Math.ceil(temporarySize) }),
    ...(temporaryInodes !== undefined && { inodes: temporaryInodes }),
  };
  if (Object.keys(limits).length > 0 && !temporary) {
    throw new UsageError('--temporary-size and --temporary-inodes need --temporary', 'Add --temporary.');
  }
  if (temporary) chosen['temporary'] = Object.keys(limits).length > 0 ? limits : true;
  if (given.allowDegraded !== undefined) chosen['allowDegraded'] = toOptionNames(given.allowDegraded as string[]);
  return chosen as unknown as OverlayOptions;
}

/** Returns the options of a mount at the operand. */
export const toMountOptions = ({
  options,
  operands: [target = ''],
}: Pick<Parsed<MountFlags>, 'options' | 'operands'>): OverlayOptions => ({
  ...toDetachedOptions(options),
  target: toAbsolute(target),
});

interface Options extends MountFlags {
  readonly dryRun?: boolean;
  readonly way?: WayName;
}

async function run({ options, operands }: Parsed<Options>): Promise<Outcome> {
  const { dryRun: isDry, way, ...flags } = options;
  const wanted = toMountOptions({ options: flags, operands });
  if (isDry) {
    const calls = dryRun(wanted, await kernelFeatures(), way);
    return { text: `${calls.join('\n')}\n`, json: { calls } };
  }
  if (way !== undefined) throw new UsageError('--way needs --dry-run', 'Add --dry-run.');
  const mounted = await withBaseline(flags, () => mountOverlay(wanted));
  return { json: { target: fromBytes(mounted.pathBytes), id: mounted.id, options: mounted.options } };
}

export const mount: Command<Options> = {
  about:
    'Mounts an overlay of the lower layers, and of an upper layer that takes the changes, on TARGET. ' +
    'It mounts exactly what the options say, or nothing.',
  operands: '<TARGET>',
  forms: [
    '--lowerdir DIR... --upperdir DIR --workdir DIR [OPTION...] TARGET',
    '--lowerdir DIR... --upperdir DIR --create [OPTION...] TARGET',
    '--lowerdir DIR... --temporary [OPTION...] TARGET',
    '-o OPTIONS TARGET',
  ],
  groups: [
    ...mountGroups,
    { ...moreGroup, flags: [...moreGroup.flags, baselineFlag] },
    {
      title: 'plans',
      flags: [
        ownFlag('dryRun', 'prints the system calls of the mount without making them; needs no privilege'),
        ownFlag('way', 'with --dry-run: prints the calls of this fallback, as on a kernel that has no better one', {
          kind: 'word',
          words: wayNames,
          default: 'that of this kernel',
        }),
      ],
    },
  ],
  notes:
    'Repeat a flag for a list: --lowerdir /a --lowerdir /b puts /a above /b. A path may contain any byte; nothing in it is escaped.',
  examples: [
    'overlayfs mount --lowerdir /srv/base --upperdir /srv/upper --workdir /srv/work /srv/merged',
    'overlayfs mount --lowerdir /srv/app --lowerdir /srv/base --upperdir /srv/upper --create /srv/merged',
    'overlayfs mount --lowerdir /srv/app --lowerdir /srv/base --atime noatime --redirect-dir nofollow /srv/view',
    'overlayfs mount --lowerdir /srv/base --upperdir /srv/upper --workdir /srv/work --volatile --no-index /srv/merged',
    'overlayfs mount -o lowerdir=/srv/app:/srv/base,upperdir=/srv/upper,workdir=/srv/work,noatime /srv/merged',
    'overlayfs mount --dry-run --lowerdir /srv/app --lowerdir /srv/base /srv/view',
  ],
  run,
};
