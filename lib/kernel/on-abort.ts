/**
 * Registers one listener for each signal, however many calls wait for it, because EventTarget warns about many
 * listeners.
 */

const callbacks = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls the callback once, when the signal aborts. If the signal has already aborted, the callback is never called.
 *
 * @returns a function that removes the callback
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
