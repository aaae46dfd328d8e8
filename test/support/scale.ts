/** The share of the repetitions that tests perform. `npm run test:long` performs all. */
const scale = Number(process.env['OVERLAYFS_TEST_SCALE'] ?? 0.1);

/** True when tests perform all repetitions. Tests that repeat another one at great cost are left out otherwise. */
export const isLong = scale >= 1;

/** Scales a number of repetitions, but not below `least`. */
export function scaled(n: number, least = 1): number {
  return Math.max(Math.round(n * scale), Math.min(least, n));
}

const every = Number(process.env['OVERLAYFS_TEST_EVERY'] ?? 1);
let declared = 0;

/** With OVERLAYFS_TEST_EVERY=n, chooses the first kernel test of each file and every n-th after it. */
export const isChosen = (): boolean => declared++ % every === 0;
