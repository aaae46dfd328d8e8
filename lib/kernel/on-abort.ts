/** One listener for each signal, however many calls wait for its abort: EventTarget warns of many listeners. */

const callbacks = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Has the signal's abort call back once. A signal that has aborted already calls nobody.
 *
 * @returns what takes the callback away
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  let all = callbacks.get(signal);
  if (all === undefined) {
    const made = new Set<() => void>();
    callbacks.set(signal, made);
    signal.addEventListener(
      'abort',
      () => {
        for (const each of made) each();
      },
      { once: true },
    );
    all = made;
  }
  const own = all.add(callback);
  return () => own.delete(callback);
}
