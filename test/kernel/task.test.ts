/**
 * One generator in both forms. Imports internals: each public call is one such generator, and none throws at each
 * place.
 */
import test from 'ava';
import { inEitherForm, pause, run, runSync, type Task } from '#lib/kernel/task.js';

const failure = new Error('no thread');

/** Takes something, asks a question whose answer is an error, and gives back. */
function* asking(log: string[]): Task<string> {
  log.push('taken');
  try {
    yield* inEitherForm<never>(
      () => Promise.reject(failure),
      () => {
        throw failure;
      },
    );
    return 'answered';
  } finally {
    log.push('given back');
  }
}

function* recovering(log: string[]): Task<string> {
  try {
    return yield* asking(log);
  } catch (error) {
    return (error as Error).message;
  }
}

const forms = { promise: run, synchronous: async <T>(task: Task<T>) => runSync(task) };

for (const [form, perform] of Object.entries(forms)) {
  test(`an error in a result goes through the task (${form})`, async (t) => {
    const log: string[] = [];
    t.is(await t.throwsAsync(async () => perform(asking(log))), failure);
    t.is(await perform(recovering(log)), 'no thread');
    t.deepEqual(log, ['taken', 'given back', 'taken', 'given back']);
  });

  test(`a pause takes its time (${form})`, async (t) => {
    const start = performance.now();
    await perform(pause(20));
    t.true(performance.now() - start >= 19);
  });
}

test('a pause ends when its signal aborts', async (t) => {
  const reason = new Error('enough');
  const controller = new AbortController();
  const pending = run(pause(60_000, controller.signal));
  controller.abort(reason);
  t.like(await t.throwsAsync(pending), { code: 'ABORT_ERR', cause: reason });
  await t.throwsAsync(run(pause(60_000, controller.signal)), { code: 'ABORT_ERR' });
});
