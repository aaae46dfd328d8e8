/** The end of a container: the signal that its image asks for, a time to end in, then SIGKILL. */
import type { ChildProcess } from 'node:child_process';
import { constants } from 'node:os';
import { pause, run } from '../kernel/task.js';

const { signals } = constants;

/** The real-time signals of a program; the C library keeps 32 and 33. signal(7) */
const [SIGRTMIN, SIGRTMAX] = [34, 64];

/** The form of StopSignal in an image, for messages. */
export const SIGNAL_FORM = 'a signal, such as SIGTERM, TERM, 15 or SIGRTMIN+3';

/** Returns the number of a signal that is written as StopSignal in an image; undefined if there is no such signal. */
export function toSignalNumber(written: string): number | undefined {
  const [, digits, base, distance = '0'] =
    /^(?:(\d{1,2})|(?:SIG)?(RTMIN(?=$|\+)|RTMAX(?=$|-))(?:[+-](\d{1,2}))?)$/i.exec(written) ?? [];
  if (digits !== undefined) return Number(digits) >= 1 && Number(digits) <= SIGRTMAX ? Number(digits) : undefined;
  if (base === undefined) {
    const name = `SIG${written.toUpperCase().replace(/^SIG/, '')}`;
    return Object.hasOwn(signals, name) ? signals[name as NodeJS.Signals] : undefined;
  }
  const number = base.toUpperCase() === 'RTMIN' ? SIGRTMIN + Number(distance) : SIGRTMAX - Number(distance);
  return number >= SIGRTMIN && number <= SIGRTMAX ? number : undefined;
}

/** Sends a signal to the program of a container. Returns whether it was sent. */
export type Send = (signal: number) => boolean | Promise<boolean>;

export interface StopWay {
  readonly signal: number;
  /** In milliseconds. */
  readonly timeout: number;
}

/** The times that SIGKILL is sent in vain before the runtime itself is killed. */
const MOST_KILLS = 250;

const isRunning = ({ pid, exitCode, signalCode }: ChildProcess): boolean =>
  pid !== undefined && exitCode === null && signalCode === null;

/** Ends a container. A runtime knows it only some time after it has been started, and refuses signals until then. */
export async function stop(child: ChildProcess, send: Send, { signal, timeout }: StopWay): Promise<void> {
  const late = performance.now() + timeout;
  let isSent = false;
  while (isRunning(child) && performance.now() < late) {
    isSent = isSent || (await send(signal));
    await run(pause(20));
  }
  for (let left = MOST_KILLS; isRunning(child); left--) {
    if (left === 0) child.kill('SIGKILL');
    await send(signals.SIGKILL);
    await run(pause(20));
  }
}
