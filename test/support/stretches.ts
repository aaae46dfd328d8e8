/** How long calls keep the event loop at a stretch. For a process of its own. */
import { openSync, readSync } from 'node:fs';

/** In ms. */
export const LONGEST = 10;

let schedule: number | undefined;
const text = Buffer.alloc(128);

/** The time without that in which this thread waited for a processor, in ms. */
function clock(): number {
  schedule ??= openSync('/proc/thread-self/schedstat', 'r');
  const size = readSync(schedule, text, 0, text.length, 0);
  return performance.now() - Number(text.toString('latin1', 0, size).split(' ')[1]) / 1e6;
}

async function longestStretch(call: () => Promise<unknown>): Promise<number> {
  let isOver = false;
  let longest = 0;
  let last = 0;
  const tick = () => {
    const now = clock();
    longest = Math.max(longest, now - last);
    last = now;
    if (!isOver) setImmediate(tick);
  };
  await new Promise(setImmediate);
  last = clock();
  setImmediate(tick);
  await call();
  isOver = true;
  await new Promise(setImmediate);
  return longest;
}

/** The same; where it is too long, without what an idle loop on this machine is kept for in the same time. */
export async function measure(call: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  const longest = await longestStretch(call);
  if (longest <= LONGEST) return longest;
  const took = performance.now() - start;
  const idle = await longestStretch(() => new Promise((resolve) => setTimeout(resolve, took)));
  return Math.max(longest - idle, 0);
}

/** Returns the first of several measurements that is good enough, else the least: the machine does other things too. */
export async function leastOf(rounds: number, once: () => Promise<number>): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < rounds && least > LONGEST; round++) {
    if (round > 0) await new Promise((resolve) => setTimeout(resolve, 100));
    least = Math.min(least, await once());
  }
  return least;
}
