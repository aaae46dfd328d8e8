/** Long work on the JavaScript thread, in slices between which the event loop has its turn. */
import { type Dialogue, pause } from './dialogue.js';

/** In ms. */
const SLICE = 2;

/** The slices of one piece of work. The synchronous form does not pause between them. */
export class Slices {
  #end = performance.now() + SLICE;

  isOver(): boolean {
    return performance.now() >= this.#end;
  }

  /** Begins a new slice, after something else has had its turn. */
  begin(): void {
    this.#end = performance.now() + SLICE;
  }

  /** Lets others have their turn when it is time. */
  *pause(): Dialogue<void> {
    if (!this.isOver()) return;
    yield* pause(0);
    this.begin();
  }
}

/** So many items are gone through between two looks at the clock. */
const ITEMS = 16;

/** What a function makes of each item, in slices; undefined is left out. */
export function* collect<T, R>(items: Iterable<T>, make: (item: T, index: number) => R | undefined): Dialogue<R[]> {
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
