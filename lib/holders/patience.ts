/** Shared parts of the searches through /proc, which look at many files. */
import type { Outputs } from '../kernel/perform.js';
import type { Plan } from '../kernel/plan.js';
import { Slices } from '../kernel/slices.js';
import { askTolerant, type Task } from '../kernel/task.js';

/** The time limits of a search: in total, and for one slice. */
export class Patience extends Slices {
  readonly #end: number;
  /** True when time ran out before the search was complete. */
  wasLate = false;
  /** True when a part of the machine could not be seen. */
  isPartial = false;

  /** The limit is in ms. */
  constructor(limit: number) {
    super();
    this.#end = performance.now() + limit;
  }

  /** Returns true when no time is left. */
  isLate(): boolean {
    this.wasLate ||= performance.now() >= this.#end;
    return this.wasLate;
  }

  /** Performs a plan, and then begins a new slice. */
  *look(plan: Plan): Task<Outputs> {
    const outputs = yield* askTolerant(plan);
    this.begin();
    return outputs;
  }
}

/** Returns the result of reading in /proc; undefined when the process has ended or may not be inspected. */
export function attempt<T>(read: () => T, onDenied?: () => void): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM') onDenied?.();
    return undefined;
  }
}
