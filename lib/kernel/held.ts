/**
 * File descriptors that outlive the plan that made them. Each is closed once: by its owner, or when its owner is
 * garbage collected, or when the environment (a worker) ends.
 */
import { addon } from '../native.js';
import { calls } from './calls.js';
import { perform } from './perform.js';
import { Plan } from './plan.js';

/** A file descriptor that stays open until it is taken or closed. */
export interface Held {
  /** -1 once it is closed. */
  descriptor: number;
  /** A descriptor that keeps the mount at its place. It is closed after the first. */
  readonly place?: Held | undefined;
  /** A descriptor of a clone that has no place. It is closed last. */
  readonly spare?: Held | undefined;
}

/**
 * Takes the file descriptors away from their holder, so that the caller closes them, in this order. Returns none when
 * they are already taken or closed.
 */
export function take(held: Held): readonly number[] {
  const { descriptor, place, spare } = held;
  if (descriptor < 0) return [];
  held.descriptor = -1;
  addon().disown(descriptor);
  return [descriptor, ...(place === undefined ? [] : take(place)), ...(spare === undefined ? [] : take(spare))];
}

/** Closes the file descriptor at once. A second call does nothing. */
export function close(held: Held): void {
  const { descriptor } = held;
  if (descriptor < 0) return;
  held.descriptor = -1;
  // node:fs is not used, because in a worker it warns about file descriptors that it did not open. A plan is not used
  // either, because its outputs would overwrite those of another plan.
  addon().close(descriptor);
  if (held.place !== undefined) close(held.place);
  if (held.spare !== undefined) close(held.spare);
}

/** Closes the file descriptor on another thread, because closing may write data back or block. */
export async function closeLater(held: Held): Promise<void> {
  const descriptors = take(held);
  if (descriptors.length === 0) return;
  const plan = new Plan();
  for (const descriptor of descriptors) plan.add(calls.close, [descriptor]);
  await perform(plan);
}

interface Forgotten {
  readonly held: Held;
  readonly warning: (descriptor: number) => string | undefined;
}

// As with FileHandle, a file descriptor that its owner forgot is closed with a warning: the time of garbage collection
// is not predictable.
const forgotten = new FinalizationRegistry<Forgotten>(({ held, warning }) => {
  if (held.descriptor < 0) return;
  const text = warning(held.descriptor);
  if (text !== undefined) process.emitWarning(text);
  closeLater(held).catch(() => {});
});

/** Closes the file descriptor when the owner is garbage collected. Emits a warning when `warning` returns a text. */
export function closeWith(owner: object, held: Held, warning: Forgotten['warning']): void {
  forgotten.register(owner, { held, warning });
}
