/** What searches through /proc have in common, which look at much. */

import { askTolerant, type Dialogue } from '../kernel/dialogue.js';
import type { Outputs } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';

/** A search goes on so long, in ms, before others have their turn. */
const SLICE = 4;

/** How long a search may go on: in all, and at a stretch. */
export class Patience {
  readonly #end: number;
  #sliceEnd = performance.now() + SLICE;
  /** Whether time has run out. */
  isOver = false;

  /** In ms. */
  constructor(limit: number) {
    this.#end = performance.now() + limit;
  }

  /** Whether no time is left for another look. */
  isLate(): boolean {
    this.isOver ||= performance.now() >= this.#end;
    return this.isOver;
  }

  isSliceOver(): boolean {
    return performance.now() >= this.#sliceEnd;
  }

  /** Has a plan performed, whereupon a new slice begins. */
  *look(plan: Plan): Dialogue<Outputs> {
    const outputs = yield* askTolerant(plan);
    this.#sliceEnd = performance.now() + SLICE;
    return outputs;
  }

  /** Lets others have their turn when it is time. */
  *pause(): Dialogue<void> {
    if (this.isSliceOver()) yield* this.look(new Plan());
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
