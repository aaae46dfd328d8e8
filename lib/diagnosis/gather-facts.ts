/** Gathers the facts, asynchronously with a time limit, or synchronously. */
import { run, runSync } from '../kernel/task.js';
import type { CheckedOptions } from '../options/check.js';
import { emptyFacts, type Facts } from './facts.js';
import { gather, type Wanted } from './gather.js';

/** How long the asynchronous form waits for a file system. */
const BOUND_MILLISECONDS = 2000;

/** Gathers the facts on the calling thread, without a time limit. */
export function gatherFactsSync(options: CheckedOptions, wanted: Wanted): Facts {
  const draft = emptyFacts();
  runSync(gather(draft, options, wanted));
  return draft;
}

/** Gathers the facts on the library's threads. If a file system hangs, returns the facts that are known by then. */
export async function gatherFacts(options: CheckedOptions, wanted: Wanted): Promise<Facts> {
  const draft = emptyFacts();
  let timer: NodeJS.Timeout | undefined;
  const bound = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      draft.isIncomplete = true;
      resolve();
    }, BOUND_MILLISECONDS);
  });
  await Promise.race([bound, run(gather(draft, options, wanted))]);
  clearTimeout(timer);
  // Facts that arrive later must not change the result.
  return { ...draft };
}
