/** The process that has made something which is to go with it. Its locks tell whether it lives, this tells who it was. */
import { readFileSync } from 'node:fs';

export interface Maker {
  /** In the PID namespace of that process. */
  readonly pid: number;
  /** When the process started, in clock ticks since the boot: the field `starttime` of proc_pid_stat(5). */
  readonly startTime?: string | undefined;
  /** /proc/sys/kernel/random/boot_id, random(4) */
  readonly bootId?: string | undefined;
  /** The script that it ran, or Node. */
  readonly program: string;
  /** When it made this, as in ISO 8601. */
  readonly made: string;
}

/** Returns the text of a file; undefined if it cannot be read. */
export function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** The label of a snapshot that goes with the process which has made it. */
export const MAKER_LABEL = 'overlayfs/maker';

export const bootId = (): string | undefined => read('/proc/sys/kernel/random/boot_id');

export const ownMaker = (): Maker => ({
  pid: process.pid,
  // The name of the program, in parentheses, may have spaces.
  startTime: read('/proc/self/stat')?.split(') ').at(-1)?.split(' ')[19],
  bootId: bootId(),
  program: (process.argv[1] ?? process.execPath).slice(0, 1000).toWellFormed(),
  made: new Date().toISOString(),
});

/** Reads what `ownMaker` has returned from JSON. Returns undefined for any other text. */
export function parseMaker(text: string): Maker | undefined {
  try {
    const { pid, startTime, bootId, program, made } = JSON.parse(text) as Maker;
    if (!Number.isInteger(pid) || typeof program !== 'string' || typeof made !== 'string') return undefined;
    return { pid, startTime, bootId, program, made };
  } catch {
    return undefined;
  }
}
