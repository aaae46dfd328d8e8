/**
 * The order of calls on one mount: on the file descriptor of a detached mount, or on an object that is about to stand
 * for another mount. A plan holds the number of the file descriptor. If it were closed before the plan is performed,
 * the number could refer to another file by then.
 */
import { EBUSY } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { inEitherForm, type Task } from './task.js';

/**
 * A lock that calls which use the mount share, and that a call which ends the mount has alone. A promise waits for its
 * turn. The synchronous form throws instead, because no promise can settle while its thread waits.
 */
export class SharedLock {
  readonly #shares = new Set<Promise<void>>();
  /** The last call that has the lock alone, or waits for it. */
  #alone: Promise<void> | undefined;

  /** Runs a call that uses the mount, after a pending call that ends it. */
  *share<T>(body: () => Task<T>): Task<T> {
    while (this.#alone !== undefined) yield* this.#wait(this.#alone);
    const { ended, end } = turn();
    this.#shares.add(ended);
    try {
      return yield* body();
    } finally {
      this.#shares.delete(ended);
      end();
    }
  }

  /** Runs a call that ends the mount, after all calls that use it. Calls that are made later run after it. */
  *exclude<T>(body: () => Task<T>): Task<T> {
    const { ended, end } = turn();
    if (this.isTaken) {
      const others = Promise.all([...this.#shares, this.#alone]);
      yield* this.#wait(others, () => {
        this.#alone = ended;
      });
    } else this.#alone = ended;
    try {
      return yield* body();
    } finally {
      if (this.#alone === ended) this.#alone = undefined;
      end();
    }
  }

  /** True while a call uses the mount or is about to end it. */
  get isTaken(): boolean {
    return this.#shares.size > 0 || this.#alone !== undefined;
  }

  #wait(others: Promise<unknown>, register?: () => void): Task<unknown> {
    const later = (): Promise<unknown> => {
      register?.();
      return others;
    };
    const now = (): never => {
      throw stillPending();
    };
    return inEitherForm(later, now);
  }
}

/** Returns a promise for the end of a call. It never rejects. */
function turn(): { readonly ended: Promise<void>; readonly end: () => void } {
  let end = () => {};
  const ended = new Promise<void>((resolve) => {
    end = resolve;
  });
  return { ended, end };
}

const stillPending = (): OverlayError =>
  new OverlayError({
    errno: EBUSY,
    reason: 'mount-busy',
    what: 'a promise of this mount is still pending',
    hint: 'await it first, or use the promise form of this call, which runs after it',
  });
