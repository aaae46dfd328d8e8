/**
 * A dialogue with the kernel, in which each question may depend on the previous answers. It is written once, as a
 * generator of questions, and runs in two forms: synchronously on the calling thread, or with promises.
 */
import { type Dirent, readdirSync } from 'node:fs';
import { abortError } from '../errors.js';
import { type Path, toBytes } from '../paths.js';
import { onAbort } from './on-abort.js';
import { type Outputs, perform, performSync, StepFailure } from './perform.js';
import { Plan } from './plan.js';

/** A request for the names in a directory. The answer is empty when the directory cannot be read. */
export interface Listing {
  readonly list: Path;
}

export interface ListedEntry {
  readonly name: Path;
  readonly isDirectory: boolean;
}

/** A plan that the signal cancels. The synchronous form ignores the signal. */
interface Cancellable {
  readonly plan: Plan;
  readonly signal: AbortSignal;
}

/** A wait. */
interface Pause {
  /** In ms. 0 lets other callbacks of the event loop run; the synchronous form then does nothing. */
  readonly pause: number;
  readonly signal?: AbortSignal | undefined;
}

/** A step with a separate function for each form, because only one form can await promises. */
interface TwoForms {
  readonly later: () => Promise<unknown>;
  readonly now: () => unknown;
}

type Question = Plan | Cancellable | Listing | Pause | TwoForms;
export type Dialogue<T> = Generator<Question, T, unknown>;

/** Results that a dialogue has before its end. */
class Results<T> {
  readonly items: readonly T[];

  constructor(items: readonly T[]) {
    this.items = items;
  }
}

/** A dialogue whose results are many, and come out one by one. */
export type StreamDialogue<T, R = void> = Generator<Question | Results<T>, R, unknown>;

/** Hands results to the consumer of a stream. */
export function* emit<T>(items: readonly T[]): StreamDialogue<T> {
  if (items.length > 0) yield new Results(items);
}

/**
 * Asks the kernel to perform a plan. The outputs are valid until the next question. In the promise form, the plan is
 * undone when the signal aborts.
 */
export function* ask(plan: Plan, signal?: AbortSignal): Dialogue<Outputs | StepFailure> {
  return (yield signal === undefined ? plan : { plan, signal }) as Outputs | StepFailure;
}

/** Asks the kernel to perform a plan whose steps tolerate every error. */
export function* askTolerant(plan: Plan): Dialogue<Outputs> {
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw new Error(`a plan that tolerates all errors has failed: ${outcome.errno}`);
  return outcome;
}

export function* list(path: Path): Dialogue<readonly ListedEntry[]> {
  return (yield { list: path }) as readonly ListedEntry[];
}

/**
 * Waits this many milliseconds. With 0 it lets other callbacks of the event loop run.
 *
 * @throws {Error} `ABORT_ERR` when the signal aborts; the synchronous form ignores the signal
 */
export function* pause(milliseconds: number, signal?: AbortSignal): Dialogue<void> {
  yield { pause: milliseconds, signal };
}

/** Calls `later` in the promise form and `now` in the synchronous form. */
export function* inEitherForm<T>(later: () => Promise<T>, now: () => T): Dialogue<T> {
  return (yield { later, now }) as T;
}

const listOptions = { encoding: 'buffer', withFileTypes: true } as const;
const directory = (path: Path): Buffer => Buffer.from(toBytes(path));
const toListed = (entries: readonly Dirent<Buffer>[]): ListedEntry[] =>
  entries.map((entry) => ({ name: entry.name, isDirectory: entry.isDirectory() }));

function readSync(path: Path): ListedEntry[] {
  try {
    return toListed(readdirSync(directory(path), listOptions));
  } catch {
    return [];
  }
}

async function read(path: Path): Promise<ListedEntry[]> {
  try {
    const { readdir } = process.getBuiltinModule('node:fs/promises');
    return toListed(await readdir(directory(path), listOptions));
  } catch {
    return [];
  }
}

const sleepWord = new Int32Array(new SharedArrayBuffer(4));

function answerSync(question: Question): unknown {
  if (question instanceof Plan) return performSync(question);
  if ('plan' in question) return performSync(question.plan);
  if ('list' in question) return readSync(question.list);
  if ('now' in question) return question.now();
  if (question.pause > 0) Atomics.wait(sleepWord, 0, 0, question.pause);
  return undefined;
}

function answer(question: Exclude<Question, Plan>): Promise<unknown> {
  if ('plan' in question) return perform(question.plan, question.signal);
  if ('list' in question) return read(question.list);
  if ('later' in question) return question.later();
  if (question.pause === 0) return new Promise((resolve) => setImmediate(resolve));
  return sleep(question.pause, question.signal);
}

function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(abortError(signal));
      return;
    }
    const forget =
      signal &&
      onAbort(signal, () => {
        clearTimeout(timer);
        forget?.();
        reject(abortError(signal));
      });
    const timer = setTimeout(() => {
      forget?.();
      resolve();
    }, milliseconds);
  });
}

/**
 * Runs a dialogue on the calling thread. An error in an answer is thrown into the dialogue, so that it can release what
 * it holds.
 */
export function holdSync<T>(dialogue: Dialogue<T>): T {
  let next = dialogue.next();
  while (!next.done) {
    let answered: unknown;
    try {
      answered = answerSync(next.value);
    } catch (error) {
      next = dialogue.throw(error);
      continue;
    }
    next = dialogue.next(answered);
  }
  return next.value;
}

export async function hold<T>(dialogue: Dialogue<T>): Promise<T> {
  let next = dialogue.next();
  while (!next.done) {
    const question = next.value;
    let answered: unknown;
    try {
      answered = await (question instanceof Plan ? perform(question) : answer(question));
    } catch (error) {
      next = dialogue.throw(error);
      continue;
    }
    next = dialogue.next(answered);
  }
  return next.value;
}

/** The results of a dialogue on the calling thread. */
export function* streamSync<T>(dialogue: StreamDialogue<T>): Generator<T, void, undefined> {
  try {
    let next = dialogue.next();
    while (!next.done) {
      const question = next.value;
      let answered: unknown;
      try {
        if (question instanceof Results) yield* question.items;
        else answered = answerSync(question);
      } catch (error) {
        next = dialogue.throw(error);
        continue;
      }
      next = dialogue.next(answered);
    }
  } finally {
    dialogue.return();
  }
}

/** The results of a dialogue, with promises. An async generator would take three turns of the queue for each result. */
export function stream<T>(dialogue: StreamDialogue<T>): AsyncIterableIterator<T> {
  let items: readonly T[] = [];
  let taken = 0;
  /** The calls that wait for more results, one after the other. */
  let last: Promise<unknown> = Promise.resolve();
  let waiting = 0;

  async function fill(): Promise<boolean> {
    let next = dialogue.next();
    while (!next.done) {
      const question = next.value;
      if (question instanceof Results) {
        items = question.items;
        taken = 0;
        return true;
      }
      let answered: unknown;
      try {
        answered = await (question instanceof Plan ? perform(question) : answer(question));
      } catch (error) {
        next = dialogue.throw(error);
        continue;
      }
      next = dialogue.next(answered);
    }
    return false;
  }

  const inTurn = <R>(call: () => Promise<R>): Promise<R> => {
    waiting++;
    const called = last.then(call).finally(() => waiting--);
    last = called.catch(() => {});
    return called;
  };

  async function take(): Promise<IteratorResult<T>> {
    if (taken >= items.length && !(await fill())) return { value: undefined, done: true };
    return { value: items[taken++] as T, done: false };
  }

  return {
    next: () =>
      waiting === 0 && taken < items.length
        ? Promise.resolve({ value: items[taken++] as T, done: false })
        : inTurn(take),
    return: () =>
      inTurn(async () => {
        items = [];
        dialogue.return();
        return { value: undefined, done: true };
      }),
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
