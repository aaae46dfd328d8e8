/** How a test says that it mounts, and what it needs for that. */

import test, { type ExecutionContext } from 'ava';
import { cannotMount, type Feature, hasFeature } from './probes.js';
import { isChosen } from './scale.js';

type Body = (t: ExecutionContext) => void | Promise<void>;

/** A test whose outcome is the kernel's, one at a time. */
export function kernelTest(title: string, body: Body): void {
  if (isChosen()) test.serial(title, body);
}

interface Conditions {
  readonly needs?: Feature | readonly Feature[] | undefined;
}

/**
 * A test that mounts: skipped, with the reason, where that cannot be (with REQUIRE_MOUNT=1 a failure), and
 * where the kernel or the machine lacks what the test needs.
 */
export function mountTest(title: string, body: Body): void;
export function mountTest(title: string, conditions: Conditions, body: Body): void;
export function mountTest(title: string, ...rest: [Body] | [Conditions, Body]): void {
  const [{ needs = [] }, body] = rest.length === 1 ? [{} as Conditions, rest[0]] : rest;
  if (!isChosen()) return;
  const lacking = [needs].flat().filter((feature) => !hasFeature(feature));
  if (cannotMount !== undefined) {
    if (process.env['REQUIRE_MOUNT'] === '1') test(title, (t) => t.fail(cannotMount));
    else test.skip(`${title} (${cannotMount})`, body);
  } else if (lacking.length > 0) {
    test.skip(`${title} (needs ${lacking.join(', ')}, which this machine lacks)`, body);
  } else {
    test.serial(title, body);
  }
}
