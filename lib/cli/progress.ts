/** A progress bar on a terminal, for long work. */

const WIDTH = 24;
/** In ms. Work that is done sooner shows no bar. */
const DELAY = 500;
const INTERVAL = 100;

export interface Progress {
  readonly entries: number;
  readonly totalEntries?: number;
  readonly bytes: number;
  /** The part that is done, 0 to 1, where the number of entries is not known beforehand. */
  readonly share?: number | undefined;
}

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

export function formatProgress({ entries, totalEntries, bytes, share: part }: Progress): string {
  const copied = bytes === 0 ? '' : `, ${formatSize(bytes)}`;
  if (part !== undefined) return `${bar(part)} ${Math.floor(part * 100)} %, ${entries} entries${copied}`;
  if (totalEntries === undefined) return `${entries} entries${copied}`;
  const share = totalEntries === 0 ? 1 : Math.min(1, entries / totalEntries);
  return `${bar(share)} ${entries} of ${totalEntries} entries${copied}`;
}

export class ProgressBar {
  readonly #isShown: boolean;
  readonly #start = performance.now();
  #last = 0;
  #isDirty = false;

  constructor(isJson: boolean) {
    this.#isShown = !isJson && process.stderr.isTTY === true;
  }

  readonly show = (progress: Progress): void => {
    const now = performance.now();
    if (!this.#isShown || now - this.#start < DELAY || now - this.#last < INTERVAL) return;
    this.#last = now;
    this.#isDirty = true;
    process.stderr.write(`\r\x1b[K${formatProgress(progress)}`);
  };

  /** Takes the bar away, before anything else is printed. */
  end(): void {
    if (this.#isDirty) process.stderr.write('\r\x1b[K');
    this.#isDirty = false;
  }
}
