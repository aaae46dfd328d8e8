/** Searches through /proc that look at much: written once, run with a promise or on the calling thread. */

import type { Outputs } from '../kernel/perform.js';
import { perform, performSync, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';

/** A search yields plans of looks, all errors of which it tolerates, and is given what they have found. */
export type Search<T> = Generator<Plan, T, Outputs>;

function toOutputs(outcome: Outputs | StepFailure): Outputs {
  if (outcome instanceof StepFailure) throw new Error(`a look that tolerates all errors has failed: ${outcome.errno}`);
  return outcome;
}

/** The looks are performed on a thread of the library's; between them others have their turn. */
export async function runSearch<T>(search: Search<T>): Promise<T> {
  let next = search.next();
  while (!next.done) next = search.next(toOutputs(await perform(next.value)));
  return next.value;
}

export function runSearchSync<T>(search: Search<T>): T {
  let next = search.next();
  while (!next.done) next = search.next(toOutputs(performSync(next.value)));
  return next.value;
}

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
  *look(plan: Plan): Search<Outputs> {
    const outputs = yield plan;
    this.#sliceEnd = performance.now() + SLICE;
    return outputs;
  }

  /** Lets others have their turn when it is time. */
  *pause(): Search<void> {
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
