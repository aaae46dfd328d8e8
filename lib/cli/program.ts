/** A program that a command runs: its arguments, its signals, its exit code. */
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { isatty } from 'node:tty';
import type { OverlayError } from '../errors.js';
import { formatBytes, type Path } from '../paths.js';
import { endOf } from '../programs/run.js';
import type { Outcome, Parsed } from './command.js';
import { ownFlag } from './flags.js';
import { UsageError } from './usage-error.js';

export const programCodes = 'The exit code is that of the program. With --json the program writes to standard error.';

export const mapRootFlag = ownFlag('mapRoot', 'user id 0 for the program, in a user namespace of its own', {
  short: 'r',
});

export const subIdsFlag = ownFlag(
  'subIds',
  'maps the subordinate ids of the user too, by newuidmap(1) and newgidmap(1)',
);

export const networkFlag = ownFlag(
  'network',
  'the network of the machine, or one of its own with nothing but loopback',
  { kind: 'word', words: ['host', 'none'], default: 'host' },
);

/** Returns the program and its arguments. Node passes them as text. */
export const toTexts = (operands: readonly Path[]): string[] =>
  operands.map((operand) => {
    if (typeof operand === 'string') return operand;
    throw new UsageError(`an argument of the program is not UTF-8: '${formatBytes(operand)}'`);
  });

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

/** Returns the exit code of shells for a program that does not exist or cannot be executed. */
export function notStarted(error: unknown): number | undefined {
  const { reason } = error as Partial<OverlayError>;
  if (reason === 'program-missing') return 127;
  return reason === 'program-unexecutable' ? 126 : undefined;
}

/** Starts a program on the terminal of this one, and waits for its end. */
export async function runToEnd(
  { isJson }: Pick<Parsed, 'isJson'>,
  start: (stdio: 'inherit' | ['inherit', 2, 2]) => ChildProcess,
): Promise<Outcome> {
  let child: ChildProcess | undefined;
  passSignals(() => child);
  try {
    const started = start(isJson ? ['inherit', 2, 2] : 'inherit');
    child = started;
    const [code, signal] = await endOf(started);
    return {
      ...(isJson && { json: { code, signal } }),
      exitCode: signal === null ? (code ?? 0) : 128 + constants.signals[signal],
    };
  } catch (error) {
    const exitCode = notStarted(error);
    if (exitCode === undefined) throw error;
    return { errors: [error], exitCode };
  }
}
