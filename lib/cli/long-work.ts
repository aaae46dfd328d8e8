/** Work that takes long: a progress bar on a terminal, and signals that end it cleanly. */
import type { Progress } from '../progress.js';
import type { Parsed } from './command.js';

const WIDTH = 24;
/** In ms. Work that is done sooner shows no bar. */
const DELAY = 500;
const INTERVAL = 100;

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export function formatSize(bytes: number): string {
  let [size, unit] = [bytes, 0];
  for (; size >= 1024 && unit < units.length - 1; unit++) size /= 1024;
  return `${unit === 0 ? size : size.toFixed(1)} ${units[unit]}`;
}

const bar = (share: number): string => {
  const done = Math.round(WIDTH * share);
  return `[${'#'.repeat(done)}${'.'.repeat(WIDTH - done)}]`;
};

export function formatProgress({ entries, totalEntries, bytes, totalBytes = 0 }: Progress): string {
  const copied = bytes === 0 ? '' : `, ${formatSize(bytes)}`;
  if (totalBytes > 0) {
    const share = Math.min(1, bytes / totalBytes);
    return `${bar(share)} ${Math.floor(share * 100)} %, ${entries} entries${copied}`;
  }
  if (totalEntries === undefined) return `${entries} entries${copied}`;
  const share = totalEntries === 0 ? 1 : Math.min(1, entries / totalEntries);
  return `${bar(share)} ${entries} of ${totalEntries} entries${copied}`;
}

class ProgressBar {
  readonly #start = performance.now();
  readonly #isShown: boolean;
  #last = 0;
  #isDirty = false;

  constructor({ isJson, isQuiet }: Pick<Parsed, 'isJson' | 'isQuiet'>) {
    this.#isShown = !isJson && !isQuiet && process.stderr.isTTY === true;
  }

  readonly show = (progress: Progress): void => {
    const now = performance.now();
    if (!this.#isShown || now - this.#start < DELAY || now - this.#last < INTERVAL) return;
    this.#last = now;
    this.#isDirty = true;
    process.stderr.write(`\r\x1b[K${formatProgress(progress)}`);
  };

  /** Takes the bar away, before anything else is printed. */
  readonly end = (): void => {
    if (this.#isDirty) process.stderr.write('\r\x1b[K');
    this.#isDirty = false;
  };
}

/** Performs work that shows a progress bar. */
export async function withBar<T>(
  parsed: Pick<Parsed, 'isJson' | 'isQuiet'>,
  work: (bar: ProgressBar) => Promise<T>,
): Promise<T> {
  const bar = new ProgressBar(parsed);
  try {
    return await work(bar);
  } finally {
    bar.end();
  }
}

/**
 * Performs work that these signals abort. When it has cleaned up, the process dies of the signal, as its parent expects.
 * A second signal ends it at once.
 */
export async function untilInterrupted<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  let received: NodeJS.Signals | undefined;
  const forget = (): void => {
    for (const name of names) process.off(name, stop);
  };
  const stop = (name: NodeJS.Signals): void => {
    received = name;
    forget();
    controller.abort();
  };
  for (const name of names) process.on(name, stop);
  try {
    return await work(controller.signal);
  } catch (error) {
    if (received !== undefined) process.kill(process.pid, received);
    throw error;
  } finally {
    forget();
  }
}

/** Performs work with both: returns the options of the library's calls for them. */
export const performLong = <T>(
  parsed: Pick<Parsed, 'isJson' | 'isQuiet'>,
  work: (options: { onProgress: (progress: Progress) => void; signal: AbortSignal }) => Promise<T>,
): Promise<T> => withBar(parsed, (bar) => untilInterrupted((signal) => work({ onProgress: bar.show, signal })));
