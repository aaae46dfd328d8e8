/** Divides long work on the JavaScript thread into slices and lets the event loop run between them. */
import { pause, type Task } from './task.js';

/** In ms. */
const SLICE = 2;

/** The slices of one piece of work. The synchronous form does not pause between them. */
export class Slices {
  #end = performance.now() + SLICE;

  isOver(): boolean {
    return performance.now() >= this.#end;
  }

  /** Starts a new slice after other callbacks have run. */
  begin(): void {
    this.#end = performance.now() + SLICE;
  }

  /** Lets other callbacks run when the slice is over. */
  *pause(): Task<void> {
    if (!this.isOver()) return;
    yield* pause(0);
    this.begin();
  }
}

/** The number of items between two checks of the clock. */
const ITEMS = 16;

/** Returns the results of a function for each item, computed in slices. Results that are undefined are left out. */
export function* collect<T, R>(items: Iterable<T>, make: (item: T, index: number) => R | undefined): Task<R[]> {
  const slices = new Slices();
  const made: R[] = [];
  let index = 0;
  for (const item of items) {
    const one = make(item, index++);
    if (one !== undefined) made.push(one);
    if (index % ITEMS === 0 && slices.isOver()) yield* slices.pause();
  }
  return made;
}
