import test from 'ava';

/** The share of the repetitions that tests perform. `npm run test:long` performs all. */
const scale = Number(process.env['OVERLAYFS_TEST_SCALE'] ?? 0.1);

/** True when tests perform all repetitions. Tests that repeat another one at great cost are left out otherwise. */
export const isLong = scale >= 1;

/** Scales a number of repetitions, but not below `least`. */
export function scaled(n: number, least = 1): number {
  return Math.max(Math.round(n * scale), Math.min(least, n));
}

/** A share such as `4/1`: every 4th test, beginning with the second. */
const [every = 1, offset = 0] = (process.env['OVERLAYFS_TEST_EVERY'] ?? '1').split('/').map(Number);
const whole = (process.env['OVERLAYFS_TEST_WHOLE'] ?? '').split(',');
let declared = 0;

/**
 * With OVERLAYFS_TEST_EVERY, chooses the first kernel test of each file, and of the others those of this share. In a file
 * that OVERLAYFS_TEST_WHOLE names, chooses all.
 */
export function isChosen(): boolean {
  const i = declared++;
  return (
    i === 0 || i % every === offset % every || whole.some((file) => file !== '' && test.meta.file.endsWith(`/${file}`))
  );
}
