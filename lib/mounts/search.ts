/** What searches through /proc have in common, which look at much. */

import { askTolerant, type Dialogue } from '../kernel/dialogue.js';
import type { Outputs } from '../kernel/perform.js';
import type { Plan } from '../kernel/plan.js';
import { Slices } from '../kernel/slices.js';

/** How long a search may go on: in all, and at a stretch. */
export class Patience extends Slices {
  readonly #end: number;
  /** Whether time has run out before all was looked at. */
  wasLate = false;

  /** In ms. */
  constructor(limit: number) {
    super();
    this.#end = performance.now() + limit;
  }

  /** Whether no time is left for another look. */
  isLate(): boolean {
    this.wasLate ||= performance.now() >= this.#end;
    return this.wasLate;
  }

  /** Has a plan performed, whereupon a new slice begins. */
  *look(plan: Plan): Dialogue<Outputs> {
    const outputs = yield* askTolerant(plan);
    this.begin();
    return outputs;
  }
}

/** What comes of reading in /proc; undefined when the process has ended or may not be looked at. */
export function attempt<T>(read: () => T, onDenied?: () => void): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM') onDenied?.();
    return undefined;
  }
}
