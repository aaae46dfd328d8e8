/** `overlayfs mount` */
import { kernelFeatures } from '../features/probe.js';
import type { OverlayOptions } from '../options/check.js';
import { optionTable, overlayOptionNames } from '../options/table.js';
import { mountOverlay } from '../overlay/mount.js';
import { fromBytes, type Path, toAbsolute } from '../paths.js';
import { type Command, type FlagGroup, libraryOptions, type Outcome, ownFlag } from './command.js';
import { dryRun } from './dry-run.js';
import { type Flag, flagsOf, kebab } from './flags.js';
import { type WayName, wayNames } from './mount-ways.js';
import type { Parsed } from './parse.js';
import { UsageError, unknownWord } from './usage-error.js';

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

/** Returns the options of the library. Their paths are absolute, as errors and plans show them. */
export function toMountOptions({ options, operands }: Parsed): OverlayOptions {
  const [target, ...rest] = operands;
  if (target === undefined) throw new UsageError('name the directory to mount on');
  if (rest.length > 0) {
    throw new UsageError(
      `${operands.length} directories to mount on: only one is possible`,
      'Give each lower layer its own --lower.',
    );
  }
  return { ...toDetachedOptions(options, ['dryRun', 'way']), target: toAbsolute(target) };
}

/** Returns the same options without a target; `own` names the flags that are not options of a mount. */
export function toDetachedOptions(options: Parsed['options'], own: readonly string[]): OverlayOptions {
  if (options['lowerdir'] === undefined) throw new UsageError('name the lower layers: --lower DIR, the topmost first');
  const chosen: Record<string, unknown> = libraryOptions(options, own);
  for (const { name } of mountFlags.filter(isLayer)) {
    const given = chosen[name] as Path | Path[] | undefined;
    if (given !== undefined) chosen[name] = Array.isArray(given) ? given.map(toAbsolute) : toAbsolute(given);
  }
  const names = chosen['allowDegraded'] as string[] | undefined;
  if (names !== undefined) chosen['allowDegraded'] = toOptionNames(names);
  return chosen as unknown as OverlayOptions;
}

async function run(parsed: Parsed): Promise<Outcome> {
  const options = toMountOptions(parsed);
  const { dryRun: isDry, way } = parsed.options;
  if (isDry) {
    const calls = dryRun(options, await kernelFeatures(), way as WayName | undefined);
    return { text: `${calls.join('\n')}\n`, json: { calls } };
  }
  if (way !== undefined) throw new UsageError('--way needs --dry-run', 'Add --dry-run.');
  const mounted = await mountOverlay(options);
  return { json: { target: fromBytes(mounted.pathBytes), id: mounted.id, options: mounted.options } };
}

export const mount: Command = {
  about:
    'Mounts an overlay of the lower layers, and of an upper layer that takes the changes, on TARGET. ' +
    'It mounts exactly what the options say, or nothing.',
  usage: [
    '--lower DIR... --upper DIR --work DIR [OPTION...] TARGET',
    '--lower DIR... --upper DIR --create [OPTION...] TARGET',
    '--lower DIR --lower DIR... [OPTION...] TARGET',
  ],
  groups: [
    ...mountGroups,
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
    'Repeat a flag for a list: --lower /a --lower /b puts /a above /b. The layers also have the names of ' +
    'mount(8): --lowerdir, --datadir, --upperdir, --workdir. A path may contain any byte; nothing in it is escaped.',
  examples: [
    'overlayfs mount --lower /srv/base --upper /srv/upper --work /srv/work /srv/merged',
    'overlayfs mount --lower /srv/app --lower /srv/base --upper /srv/upper --create /srv/merged',
    'overlayfs mount --lower /srv/app --lower /srv/base --atime noatime --redirect-dir nofollow /srv/view',
    'overlayfs mount --lower /srv/base --upper /srv/upper --work /srv/work --volatile --no-index /srv/merged',
    'overlayfs mount --dry-run --lower /srv/app --lower /srv/base /srv/view',
  ],
  run,
};
