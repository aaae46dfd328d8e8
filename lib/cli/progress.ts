/** A bar on a terminal for work that takes long. */
import { formatSize } from './size.js';

/** In ms: people see no more. */
const PAUSE = 100;
const WIDTH = 30;

export interface Progress {
  /** Bytes that are done, of a total if it is known. */
  show(done: number, total: number | undefined, entries: number): void;
  /** Takes the bar away. */
  end(): void;
}

/** Returns a bar on standard error if that is a terminal, else one that shows nothing. */
export function progressBar(stream: NodeJS.WriteStream = process.stderr): Progress {
  if (!stream.isTTY) return { show: () => {}, end: () => {} };
  let next = performance.now() + PAUSE;
  let isShown = false;
  return {
    show(done, total, entries) {
      const now = performance.now();
      if (now < next) return;
      next = now + PAUSE;
      isShown = true;
      stream.write(`\r\u001b[K${barText(done, total, entries)}`);
    },
    end() {
      if (isShown) stream.write('\r\u001b[K');
    },
  };
}

export function barText(done: number, total: number | undefined, entries: number): string {
  const counts = `${formatSize(done)}, ${entries} entries`;
  if (total === undefined || total === 0) return counts;
  const part = Math.min(1, done / total);
  const filled = Math.round(part * WIDTH);
  return `[${'='.repeat(filled)}${' '.repeat(WIDTH - filled)}] ${Math.floor(part * 100)}%  ${counts}`;
}
