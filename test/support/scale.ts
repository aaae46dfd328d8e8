/** How much is done where much is done: 1 is all of it. */
const scale = Number(process.env['OVERLAYFS_TEST_SCALE'] ?? 1);

/** This many, or fewer where OVERLAYFS_TEST_SCALE is below 1. */
export function scaled(n: number, least = 1): number {
  return Math.max(Math.round(n * scale), Math.min(least, n));
}

const every = Number(process.env['OVERLAYFS_TEST_EVERY'] ?? 1);
let declared = 0;

/** With OVERLAYFS_TEST_EVERY=n, of the kernel tests of a file the first and each n-th after it. */
export const isChosen = (): boolean => declared++ % every === 0;
