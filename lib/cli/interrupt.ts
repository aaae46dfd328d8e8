/** Work that leaves something behind if a signal kills it. */

const names = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Performs work that these signals abort. When it has cleaned up, the process dies of the signal, as its parent expects.
 * A second signal ends it at once.
 */
export async function untilInterrupted<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let received: NodeJS.Signals | undefined;
  const forget = (): void => {
    for (const name of names) process.off(name, stop);
  };
  const stop = (name: NodeJS.Signals): void => {
    received = name;
    forget();
    controller.abort();
  };
  for (const name of names) process.on(name, stop);
  try {
    return await work(controller.signal);
  } catch (error) {
    if (received !== undefined) process.kill(process.pid, received);
    throw error;
  } finally {
    forget();
  }
}
