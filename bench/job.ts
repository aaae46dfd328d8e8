/** A job of many files, which takes milliseconds: its time, and what its rows have in common. */

/** Returns the time of a job in ms. */
export async function timed(action: () => unknown): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

export const jobRow = { unit: 'ms', ratio: 'ours / peer', waits: false, spreads: true } as const;
