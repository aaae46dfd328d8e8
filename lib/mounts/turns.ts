/**
 * Whose turn it is with a mount: with the descriptor of a detached one, or with an object that is about to stand for
 * another mount. A plan has the descriptor's number: were it closed before the plan is performed, the number could be
 * another file's by then.
 */
import { EBUSY } from '../errnos.js';
import { OverlayError } from '../errors.js';

/** What uses the mount goes at the same time; what ends it goes alone. */
export class Turns {
  readonly #uses = new Set<Promise<unknown>>();
  #end: Promise<unknown> | undefined;

  /** Performs what uses it, when nothing is about to end it. */
  use<T>(perform: () => Promise<T>): Promise<T> {
    if (this.#end !== undefined) return settled(this.#end).then(() => this.use(perform));
    const use = perform();
    this.#uses.add(use);
    // The caller does not wait for this.
    const done = () => this.#uses.delete(use);
    use.then(done, done);
    return use;
  }

  /** Performs what ends it, when nothing uses it any more; what is asked for later comes later. */
  async end<T>(perform: () => Promise<T>): Promise<T> {
    const end = this.isTaken ? Promise.allSettled([...this.#uses, this.#end]).then(perform) : perform();
    this.#end = end;
    try {
      return await end;
    } finally {
      if (this.#end === end) this.#end = undefined;
    }
  }

  /** The same on the calling thread, which promises cannot be kept on while it waits. */
  useSync<T>(perform: () => T): T {
    if (this.#end !== undefined) throw underWay();
    return perform();
  }

  endSync<T>(perform: () => T): T {
    if (this.isTaken) throw underWay();
    return perform();
  }

  /** Whether a promise uses it, or is about to end it. */
  get isTaken(): boolean {
    return this.#uses.size > 0 || this.#end !== undefined;
  }
}

const settled = (promise: Promise<unknown>): Promise<unknown> => promise.catch(() => {});

const underWay = (): OverlayError =>
  new OverlayError({
    errno: EBUSY,
    reason: 'mount-busy',
    what: 'a promise of this mount is not kept yet',
    hint: 'await it first, or use the promise of this call too, which comes after it',
  });
