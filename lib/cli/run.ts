/** `overlayfs run` */
import { run as runTask } from '../kernel/task.js';
import { internalsOf } from '../mounts/mount.js';
import { removeWork } from '../mounts/work-removal.js';
import { mountOverlay, type OverlayMount } from '../overlay/mount.js';
import { ownLayers } from '../overlay/own-layers.js';
import { type Path, toAbsolute } from '../paths.js';
import { onlyOf, startIn } from '../programs/run.js';
import { type SpawnOptions, spawn } from '../programs/spawn.js';
import type { Command, FlagGroup, Outcome, Parsed } from './command.js';
import { ownFlag } from './flags.js';
import { baselineFlag, type MountFlags, moreGroup, mountGroups, toDetachedOptions, withBaseline } from './mount.js';
import { mapRootFlag, networkFlag, programCodes, runToEnd, subIdsFlag, toTexts } from './program.js';
import { UsageError } from './usage-error.js';

interface Options
  extends Omit<MountFlags, 'namespace' | 'readonly'>,
    Pick<SpawnOptions, 'dev' | 'dieWithParent' | 'mapRoot' | 'subIds' | 'unshare'> {
  readonly at?: Path;
  readonly readonlyPath?: Path[];
  readonly hidden?: Path[];
  readonly writable?: Path[];
  readonly network?: 'host' | 'none';
  readonly cwd?: Path;
}

const paths = { kind: 'path', value: 'PATH', isList: true, default: 'none' } as const;

const programFlags = [
  ownFlag('at', 'where the program sees the overlay: an existing directory', {
    kind: 'path',
    default: 'the only lower directory',
  }),
  ownFlag('readonlyPath', 'a directory that the program can only read; a file works until others replace it', {
    ...paths,
    option: 'readonly',
  }),
  ownFlag(
    'hidden',
    'a directory or file that the program finds empty; name the directory of a file that others may replace: it would come back',
    paths,
  ),
  ownFlag(
    'writable',
    'a directory or file that the program can write to; all else but the overlay is read-only',
    paths,
  ),
  ownFlag('dev', 'a small /dev of its own, or all devices of the machine', {
    kind: 'word',
    words: ['own', 'host'],
    default: 'own with one of the three flags above, else host',
  }),
  networkFlag,
  ownFlag('unshare', 'a namespace of its own: network; processes, which end with it; System V IPC; host name', {
    kind: 'word',
    words: ['net', 'pid', 'ipc', 'uts'],
    isList: true,
    default: 'none',
  }),
  ownFlag('dieWithParent', 'the program ends when this command does, also by SIGKILL'),
  mapRootFlag,
  subIdsFlag,
  ownFlag('cwd', 'where the program starts', {
    kind: 'path',
    default: 'the working directory if it is inside --at, else --at',
  }),
];

/** The groups of a detached mount, on which nothing can be stacked. */
const groups: readonly FlagGroup[] = [
  ...mountGroups.map(({ title, flags }) => ({ title, flags: flags.filter(({ name }) => name !== 'stack') })),
  { ...moreGroup, flags: [...moreGroup.flags, baselineFlag] },
  { title: 'the program', flags: programFlags },
];

async function runProgram(parsed: Parsed<Options>): Promise<Outcome> {
  const [command, ...args] = toTexts(parsed.operands);
  const { at, readonlyPath = [], hidden = [], writable, network, unshare = [], cwd, ...rest } = parsed.options;
  const { dev, dieWithParent = false, mapRoot = false, subIds = false, ...flags } = rest;
  if (command === undefined) {
    throw new UsageError('name the program to run', 'It comes after the options, with its arguments.');
  }
  const overlay = toDetachedOptions(flags);
  const place = at === undefined ? onlyOf([overlay.lowerdir].flat() as Path[]) : toAbsolute(at);
  if (place === undefined) {
    throw new UsageError('name where the program sees the overlay: --at DIR', 'There are several lower layers.');
  }
  const own = overlay.exclusive === false ? undefined : await ownLayers(overlay);
  let mount: OverlayMount;
  try {
    mount = await withBaseline(flags, () => mountOverlay({ ...overlay, rootless: 'auto', subIds }));
  } catch (error) {
    await own?.undo();
    throw error;
  }
  let hasRun = false;
  try {
    const outcome = await runToEnd(parsed, (stdio) =>
      spawn(command, args, {
        mounts: [{ source: mount, target: place }],
        readonly: readonlyPath,
        hidden,
        ...(writable && { writable }),
        ...(dev && { dev }),
        unshare: [...new Set([...unshare, ...(network === 'none' ? (['net'] as const) : [])])],
        dieWithParent,
        mapRoot,
        cwd: cwd ?? startIn(place),
        stdio,
      }),
    );
    hasRun = outcome.errors === undefined;
    return outcome;
  } finally {
    const { mounted } = internalsOf(mount);
    await mount.unmount();
    if (own?.ownsWork) await runTask(removeWork(mounted));
    if (hasRun) own?.release();
    else await own?.undo();
  }
}

export const run: Command<Options> = {
  about:
    'Runs a program that sees an overlay of the layers in the place of its lower directory, or at --at, as the same ' +
    'user. No other program sees it, and it ends with the program; the changes are in the upper layer. Needs no privilege on machines that allow ' +
    'plain users to create user namespaces.',
  operands: '[COMMAND] [ARG...]',
  forms: [
    '--lowerdir DIR --temporary [OPTION...] [--] COMMAND [ARG...]',
    '--lowerdir DIR... --upperdir DIR --workdir DIR --at DIR [OPTION...] [--] COMMAND [ARG...]',
  ],
  runsProgram: true,
  groups,
  notes: programCodes,
  examples: [
    'overlayfs run --lowerdir "$PWD" --temporary npm test',
    'overlayfs run --lowerdir "$PWD" --temporary --temporary-size 2G --network none npm test',
    'overlayfs run --lowerdir /srv/app --upperdir /tmp/changes --create npm install',
    'overlayfs run --lowerdir "$PWD" --upperdir /tmp/changes --create --network none --unshare pid --writable /tmp npm test',
  ],
  run: runProgram,
};
