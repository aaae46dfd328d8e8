/** The look in its two forms, and how long a promise waits for it. */
import { hold, holdSync } from '../../kernel/dialogue.js';
import type { CheckedOptions } from '../options.js';
import { emptyFacts, type Facts } from './facts.js';
import { gather, type Wanted } from './gather.js';

/** A file system that has not answered by then is not waited for. */
const BOUND_MILLISECONDS = 2000;

/** Looks on the calling thread, however long that takes. */
export function lookSync(options: CheckedOptions, wanted: Wanted): Facts {
  const draft = emptyFacts();
  holdSync(gather(draft, options, wanted));
  return draft;
}

/** Looks on the library's threads; when a file system hangs, what is known by then is the answer. */
export async function look(options: CheckedOptions, wanted: Wanted): Promise<Facts> {
  const draft = emptyFacts();
  let timer: NodeJS.Timeout | undefined;
  const bound = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      draft.isIncomplete = true;
      resolve();
    }, BOUND_MILLISECONDS);
  });
  await Promise.race([bound, hold(gather(draft, options, wanted))]);
  clearTimeout(timer);
  // What still comes in is not to change it.
  return { ...draft };
}
