/**
 * The order of calls on one mount: on the file descriptor of a detached mount, or on an object that is about to stand
 * for another mount. A plan holds the number of the file descriptor. If it were closed before the plan is performed,
 * the number could refer to another file by then.
 */
import { EBUSY } from '../errnos.js';
import { OverlayError } from '../errors.js';

/** Calls that use the mount run concurrently. A call that ends it runs alone. */
export class Turns {
  readonly #uses = new Set<Promise<unknown>>();
  #end: Promise<unknown> | undefined;

  /** Runs a call that uses the mount, after a pending call that ends it. */
  use<T>(perform: () => Promise<T>): Promise<T> {
    if (this.#end !== undefined) return settled(this.#end).then(() => this.use(perform));
    const use = perform();
    this.#uses.add(use);
    // The caller does not wait for this.
    const done = () => this.#uses.delete(use);
    use.then(done, done);
    return use;
  }

  /** Runs a call that ends the mount, after all calls that use it. Calls that are made later run after it. */
  async end<T>(perform: () => Promise<T>): Promise<T> {
    const end = this.isTaken ? Promise.allSettled([...this.#uses, this.#end]).then(perform) : perform();
    this.#end = end;
    try {
      return await end;
    } finally {
      if (this.#end === end) this.#end = undefined;
    }
  }

  /**
   * The synchronous form of `use`. It throws while a promise ends the mount, because no promise can settle while this
   * thread waits.
   */
  useSync<T>(perform: () => T): T {
    if (this.#end !== undefined) throw underWay();
    return perform();
  }

  endSync<T>(perform: () => T): T {
    if (this.isTaken) throw underWay();
    return perform();
  }

  /** True while a promise uses the mount or is about to end it. */
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
