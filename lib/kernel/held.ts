/**
 * Descriptors that outlive the plan which made them: each is closed once, by whoever holds it, with its object if
 * nobody does, or with the environment (a worker that ends).
 */
import { addon } from '../native.js';
import { calls } from './calls.js';
import { perform } from './perform.js';
import { Plan } from './plan.js';

/** A descriptor that is open until it is taken. */
export interface Held {
  /** -1 once it is closed. */
  descriptor: number;
}

/** Takes the descriptor, to be closed; undefined when that has been done. */
export function take(held: Held): number | undefined {
  const { descriptor } = held;
  if (descriptor < 0) return undefined;
  held.descriptor = -1;
  addon().disown(descriptor);
  return descriptor;
}

/** Closes the descriptor now; a second time does nothing. */
export function close(held: Held): void {
  const { descriptor } = held;
  if (descriptor < 0) return;
  held.descriptor = -1;
  // Not by node:fs, which warns in a worker of what it has not opened; not by a plan, whose outputs would take the
  // place of another's.
  addon().close(descriptor);
}

/** Closes the descriptor on a thread: what it holds may have to be written back, or waited for. */
export async function closeLater(held: Held): Promise<void> {
  const descriptor = take(held);
  if (descriptor === undefined) return;
  const plan = new Plan();
  plan.add(calls.close, [descriptor]);
  await perform(plan);
}

interface Forgotten {
  readonly held: Held;
  readonly warning: (descriptor: number) => string | undefined;
}

// Like FileHandle: what is forgotten is closed, with a warning, since that comes when it comes.
const forgotten = new FinalizationRegistry<Forgotten>(({ held, warning }) => {
  if (held.descriptor < 0) return;
  const text = warning(held.descriptor);
  if (text !== undefined) process.emitWarning(text);
  closeLater(held).catch(() => {});
});

/** Has the descriptor closed when the object is gone, with a warning if there is a text for it. */
export function closeWith(owner: object, held: Held, warning: Forgotten['warning']): void {
  forgotten.register(owner, { held, warning });
}
