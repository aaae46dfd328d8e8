/** Lets a number of requests run at once, and the others wait in their order. Pure. */

/** A request that waits for its turn. */
interface Waiting {
  readonly begin: () => void;
}

export class Limit {
  readonly #most: number;
  #running = 0;
  readonly #queue = new Set<Waiting>();

  constructor(most: number) {
    this.#most = most;
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#queue.size;
  }

  /**
   * Takes a place, or calls `begin` when there is one. Returns a function that gives up waiting, or undefined if the place
   * is taken at once.
   */
  enter(begin: () => void): (() => void) | undefined {
    if (this.#running < this.#most) {
      this.#running++;
      return undefined;
    }
    const waiting = { begin };
    this.#queue.add(waiting);
    return () => this.#queue.delete(waiting);
  }

  /** Gives the place to the request that has waited longest. */
  leave(): void {
    const [next] = this.#queue;
    if (next === undefined) {
      this.#running--;
      return;
    }
    this.#queue.delete(next);
    next.begin();
  }
}
