/** `overlayfs run` */
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { isatty } from 'node:tty';
import { OverlayError } from '../errors.js';
import type { OverlayOptions } from '../options/check.js';
import { mountOverlay, type OverlayMount } from '../overlay/mount.js';
import { formatBytes, isAtOrBelow, type Path, toAbsolute, toReal } from '../paths.js';
import { type SpawnOptions, spawn } from '../programs/spawn.js';
import { type Command, type FlagGroup, type Outcome, ownFlag } from './command.js';
import { mountGroups, toDetachedOptions } from './mount.js';
import { ownLayers } from './own-layers.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

export const networkFlag = ownFlag(
  'network',
  'with --no-network, the program has a network of its own, with nothing but loopback',
  { default: 'true', hasNegative: true },
);

/** The flags of the namespaces of a program. */
const isolationFlags = [
  networkFlag,
  ownFlag('ownPids', 'processes of its own, with a small init and a new /proc; they all end with the program'),
  ownFlag('ownIpc', 'System V IPC and POSIX message queues of its own'),
  ownFlag('ownUts', 'a host name of its own'),
];

const ownFlags = [
  ownFlag('at', 'where the program sees the overlay: an existing directory', { kind: 'path', default: 'required' }),
  ownFlag('readonlyPath', 'a directory that the program can only read', {
    kind: 'path',
    isList: true,
    default: 'none',
  }),
  ownFlag('hidden', 'a directory or file that the program finds empty', {
    kind: 'path',
    isList: true,
    default: 'none',
  }),
  ownFlag('writable', 'a directory or file that the program can write to; all else but the overlay is read-only', {
    kind: 'path',
    isList: true,
    default: 'none',
  }),
  ...isolationFlags,
  ownFlag('root', 'user id 0 for the program, in a user namespace of its own'),
  ownFlag('subIds', 'maps the subordinate ids of the user too, by newuidmap(1) and newgidmap(1)'),
  ownFlag('cwd', 'where the program starts', {
    kind: 'path',
    default: 'the working directory if it is inside --at, else --at',
  }),
];

/** The groups of a detached mount, on which nothing can be stacked. */
const groups: readonly FlagGroup[] = [
  ...mountGroups.map(({ title, flags }) => ({ title, flags: flags.filter(({ name }) => name !== 'stack') })),
  { title: 'the program', flags: ownFlags },
];

const passedOn = ['SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const;
/** The terminal sends these to the program by itself. */
const ofTerminal = ['SIGINT', 'SIGQUIT'] as const;

/** True if a terminal sends its signals to this process, and so to the program, which is in the same group. */
function isInForeground(): boolean {
  try {
    const stat = readFileSync('/proc/self/stat', 'latin1');
    // Skips the name, which may hold anything. The fields are state, parent, group, session, terminal, its foreground
    // group.
    const [, , group, , terminal, foreground] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return terminal !== '0' && group === foreground;
  } catch {
    return isatty(0);
  }
}

/**
 * Passes signals on. Installed before the program starts: a signal that comes meanwhile is passed on afterwards. Calls
 * `otherwise` while no program runs.
 */
export function passSignals(
  child: () => ChildProcess | undefined,
  otherwise: (signal: NodeJS.Signals) => void = () => {},
): void {
  const pass = (signal: NodeJS.Signals, isPassedOn: () => boolean): void => {
    process.on(signal, () => {
      const running = child();
      if (running === undefined || running.exitCode !== null || running.signalCode !== null) otherwise(signal);
      else if (!isPassedOn()) running.kill(signal);
    });
  };
  for (const signal of passedOn) pass(signal, () => false);
  for (const signal of ofTerminal) pass(signal, isInForeground);
}

/** Returns the options of `spawn` for these flags. */
function toIsolation(options: Parsed['options']): Pick<SpawnOptions, 'network' | 'pids' | 'ipc' | 'uts'> {
  return {
    ...(options['network'] === false && { network: false }),
    ...(options['ownPids'] === true && { pids: 'own' as const }),
    ...(options['ownIpc'] === true && { ipc: 'own' as const }),
    ...(options['ownUts'] === true && { uts: 'own' as const }),
  };
}

/** Returns the program and its arguments. Node passes them as text. */
export const toTexts = (operands: readonly Path[]): string[] =>
  operands.map((operand) => {
    if (typeof operand === 'string') return operand;
    throw new UsageError(`an argument of the program is not UTF-8: '${formatBytes(operand)}'`);
  });

async function runProgram({ options, operands }: Parsed): Promise<Outcome> {
  const [command, ...args] = toTexts(operands);
  const { at, readonlyPath, hidden, writable, root, subIds, cwd } = options as {
    readonly at?: Path;
    readonly readonlyPath?: Path[];
    readonly hidden?: Path[];
    readonly writable?: Path[];
    readonly root?: boolean;
    readonly subIds?: boolean;
    readonly cwd?: Path;
  };
  if (at === undefined) throw new UsageError('name where the program sees the overlay: --at DIR');
  if (command === undefined) throw new UsageError('name the program to run', 'It comes after --, with its arguments.');
  const overlay = toDetachedOptions(options, [...ownFlags.map(({ name }) => name)]);
  const { upperdir, workdir, create, exclusive } = overlay as {
    readonly upperdir?: Path;
    readonly workdir?: Path;
  } & OverlayOptions;
  const own = exclusive === false ? undefined : await ownLayers(upperdir, workdir, create);
  let mount: OverlayMount;
  try {
    mount = await mountOverlay({ ...overlay, rootless: 'auto', subIds: subIds ?? false });
  } catch (error) {
    own?.undo();
    throw error;
  }
  const place = toAbsolute(at);
  const stdio = options['json'] ? (['inherit', 2, 2] as const) : 'inherit';
  let child: ChildProcess | undefined;
  passSignals(() => child);
  try {
    const started = spawn(command, args, {
      mount,
      at: place,
      readonly: readonlyPath ?? [],
      hidden: hidden ?? [],
      ...(writable && { writable }),
      ...toIsolation(options),
      root: root ?? false,
      cwd: cwd ?? startIn(place),
      stdio: typeof stdio === 'string' ? stdio : [...stdio],
    });
    child = started;
    const ended = new Promise<readonly [code: number | null, signal: NodeJS.Signals | null]>((resolve, reject) => {
      started.on('error', reject);
      started.on('close', (...outcome) => resolve(outcome));
    });
    const [code, signal] = await ended;
    return { json: { code, signal }, exitCode: signal === null ? (code ?? 0) : 128 + constants.signals[signal] };
  } catch (error) {
    const exitCode = notStarted(error);
    if (exitCode === undefined) throw error;
    return { json: {}, errors: [error], exitCode };
  } finally {
    await mount.unmount();
    own?.release();
  }
}

/** Returns the working directory if it is in the overlay, else the overlay's root. */
function startIn(at: Path): Path {
  try {
    const here = toReal(toAbsolute('.'));
    return isAtOrBelow(here, toReal(at)) ? here : at;
  } catch {
    return at; // it has been removed
  }
}

/** Returns the exit code of shells for a program that does not exist or cannot be executed. */
export function notStarted(error: unknown): number | undefined {
  if (!(error instanceof Error) || error instanceof OverlayError) return undefined;
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (syscall?.startsWith('spawn') !== true) return undefined;
  return code === 'ENOENT' ? 127 : 126;
}

export const run: Command = {
  about:
    'Runs a program that sees an overlay of the layers at the directory --at, as the same user. No other program sees ' +
    'it, and it ends with the program; the changes are in the upper layer. Needs no privilege on machines that allow ' +
    'plain users to create user namespaces.',
  usage: ['--lower DIR... --upper DIR --work DIR --at DIR [OPTION...] -- COMMAND [ARG...]'],
  groups,
  notes:
    'The exit code is that of the program: 128 plus the number of the signal that ended it, 127 if it is not ' +
    'found, 126 if it cannot be executed. With --json the program ' +
    'writes to standard error.',
  examples: [
    'overlayfs run --lower /srv/app --upper /tmp/changes --create --at /srv/app -- npm install',
    'overlayfs run --lower "$PWD" --upper /tmp/changes --create --at "$PWD" --no-network --own-pids --writable /tmp -- npm test',
    'overlayfs run --lower "$PWD" --upper /tmp/changes --create --at "$PWD" -- sh -c \'rm -rf .git; ls -a\'',
  ],
  hasArguments: true,
  run: runProgram,
};
