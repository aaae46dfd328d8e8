/** The descriptors of mounts without a place: each is closed once, and if nobody does it, with its object. */
import { calls } from '../kernel/calls.js';
import { perform } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { addon } from '../native.js';

/** A descriptor that is open until it is taken. */
export interface Held {
  /** -1 once it is closed. */
  descriptor: number;
}

/** Takes the descriptor, to be closed by a plan; undefined when that has been done. */
export function take(held: Held): number | undefined {
  const { descriptor } = held;
  if (descriptor < 0) return undefined;
  held.descriptor = -1;
  addon().disown(descriptor);
  return descriptor;
}

// Like FileHandle: what is forgotten is closed, with a warning, since that comes when it comes.
const forgotten = new FinalizationRegistry<Held>((held) => {
  const descriptor = take(held);
  if (descriptor === undefined) return;
  process.emitWarning(
    `The detached mount of descriptor ${descriptor} is closed by garbage collection: unmount it, or have it disposed of with \`using\``,
  );
  const plan = new Plan();
  plan.add(calls.close, [descriptor]);
  void perform(plan);
});

/** Has the descriptor closed when the object is gone. */
export function closeWith(owner: object, held: Held): void {
  forgotten.register(owner, held);
}
