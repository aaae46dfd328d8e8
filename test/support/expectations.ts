/** Expectations that several tests have. */

import type { ExecutionContext } from 'ava';
import { OverlayError } from 'overlayfs';
import { countDescriptors } from './process.js';

/** Fields of an expected error. */
export interface Expected {
  readonly code: string;
  readonly reason: string;
  readonly path?: string;
  readonly syscall?: string | undefined;
}

/** Expects that the call fails, and that it changes neither what `look` returns nor the number of open descriptors. */
export async function failsAndLeaves(
  t: ExecutionContext,
  look: () => unknown,
  run: () => Promise<unknown>,
  expected: Expected,
): Promise<OverlayError> {
  const before = look();
  const descriptors = countDescriptors();
  const error = await t.throwsAsync(run, { instanceOf: OverlayError });
  t.like(error, { ...expected });
  t.true((error?.errno ?? 0) < 0);
  t.deepEqual(look(), before, 'nothing was made, removed or left behind');
  t.is(countDescriptors(), descriptors);
  return error as OverlayError;
}

/** Waits until the condition holds, or fails the test. */
export async function eventually(
  t: ExecutionContext,
  condition: () => boolean | Promise<boolean>,
  seconds = 10,
): Promise<void> {
  for (const end = Date.now() + seconds * 1000; !(await condition()); ) {
    if (Date.now() > end) return t.fail('the condition has not come true in time');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
