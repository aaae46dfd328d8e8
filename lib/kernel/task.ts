/**
 * A task: several requests to the kernel, each of which may depend on the results before it. A task is written once, as
 * a generator of requests, and runs in two forms: synchronously on the calling thread, or with promises.
 */

import { type Dirent, readdirSync } from 'node:fs';
import { abortError } from '../errors.js';
import { type Path, toBytes } from '../paths.js';
import { addCaller } from '../stack.js';
import { onAbort } from './on-abort.js';
import { type Outputs, perform, performSync, StepFailure } from './perform.js';
import { Plan } from './plan.js';

/** A request for the names in a directory. The result is empty when the directory cannot be read. */
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

type Request = Plan | Cancellable | Listing | Pause | TwoForms;
export type Task<T> = Generator<Request, T, unknown>;

/** Results that a task has before its end. */
class Results<T> {
  readonly items: readonly T[];

  constructor(items: readonly T[]) {
    this.items = items;
  }
}

/** A task whose results are many, and come out one by one. */
export type StreamTask<T, R = void> = Generator<Request | Results<T>, R, unknown>;

/** Hands results to the consumer of a stream. */
export function* emit<T>(items: readonly T[]): StreamTask<T> {
  if (items.length > 0) yield new Results(items);
}

/**
 * Asks the kernel to perform a plan. The outputs are valid until the next request. In the promise form, the plan is
 * undone when the signal aborts.
 */
export function* ask(plan: Plan, signal?: AbortSignal): Task<Outputs | StepFailure> {
  return (yield signal === undefined ? plan : { plan, signal }) as Outputs | StepFailure;
}

/** Asks the kernel to perform a plan whose steps tolerate every error. */
export function* askTolerant(plan: Plan): Task<Outputs> {
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw new Error(`a plan that tolerates all errors has failed: ${outcome.errno}`);
  return outcome;
}

export function* list(path: Path): Task<readonly ListedEntry[]> {
  return (yield { list: path }) as readonly ListedEntry[];
}

/**
 * Waits this many milliseconds. With 0 it lets other callbacks of the event loop run.
 *
 * @throws {Error} `ABORT_ERR` when the signal aborts; the synchronous form ignores the signal
 */
export function* pause(milliseconds: number, signal?: AbortSignal): Task<void> {
  yield { pause: milliseconds, signal };
}

/** Calls `later` in the promise form and `now` in the synchronous form. */
export function* inEitherForm<T>(later: () => Promise<T>, now: () => T): Task<T> {
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

function performRequestSync(request: Request): unknown {
  if (request instanceof Plan) return performSync(request);
  if ('plan' in request) return performSync(request.plan);
  if ('list' in request) return readSync(request.list);
  if ('now' in request) return request.now();
  if (request.pause > 0) Atomics.wait(sleepWord, 0, 0, request.pause);
  return undefined;
}

function performRequest(request: Request): Promise<unknown> {
  if (request instanceof Plan) return perform(request);
  if ('plan' in request) return perform(request.plan, request.signal);
  if ('list' in request) return read(request.list);
  if ('later' in request) return request.later();
  if (request.pause === 0) return new Promise((resolve) => setImmediate(resolve));
  return sleep(request.pause, request.signal);
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
 * Runs a task on the calling thread. An error in a result is thrown into the task, so that it can release everything that
 * it has acquired.
 */
export function runSync<T>(task: Task<T>): T {
  let next = task.next();
  while (!next.done) {
    let result: unknown;
    try {
      result = performRequestSync(next.value);
    } catch (error) {
      next = task.throw(error);
      continue;
    }
    next = task.next(result);
  }
  return next.value;
}

export async function run<T>(task: Task<T>): Promise<T> {
  return drive(task, () => false);
}

async function drive<T>(task: Task<T>, isSynchronous: (request: Request) => boolean): Promise<T> {
  let next = task.next();
  while (!next.done) {
    const request = next.value;
    let result: unknown;
    try {
      // The outputs of a plan on this thread are valid until the next plan, so nothing may come between.
      result = isSynchronous(request) ? performRequestSync(request) : await performRequest(request);
    } catch (error) {
      next = task.throw(error);
      continue;
    }
    next = task.next(result);
  }
  return next.value;
}

/** In ms. */
const BRIEF = 2;

/**
 * Runs a task with promises, but performs what it asks for on the calling thread until some time has passed: then a brief
 * task takes no hand-over between threads. For programs whose event loop may wait for the disk.
 */
export async function runBriefly<T>(task: Task<T>): Promise<T> {
  const end = performance.now() + BRIEF;
  return drive(task, (request) => !('pause' in request) && performance.now() < end);
}

/** The results of a task, with promises. An async generator would take three turns of the queue for each result. */
export function stream<T>(task: StreamTask<T>): AsyncIterableIterator<T> {
  /** A loop over the results awaits each one, so that V8 knows no caller. */
  const beginning = new Error();
  let items: readonly T[] = [];
  let taken = 0;
  /** The calls that wait for more results, one after the other. */
  let last: Promise<unknown> = Promise.resolve();
  let waiting = 0;

  async function fill(): Promise<boolean> {
    let next = task.next();
    while (!next.done) {
      const request = next.value;
      if (request instanceof Results) {
        items = request.items;
        taken = 0;
        return true;
      }
      let result: unknown;
      try {
        result = await performRequest(request);
      } catch (error) {
        next = task.throw(error);
        continue;
      }
      next = task.next(result);
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
    try {
      if (taken >= items.length && !(await fill())) return { value: undefined, done: true };
      return { value: items[taken++] as T, done: false };
    } catch (error) {
      addCaller(error, beginning);
      throw error;
    }
  }

  return {
    next: () =>
      waiting === 0 && taken < items.length
        ? Promise.resolve({ value: items[taken++] as T, done: false })
        : inTurn(take),
    return: () =>
      inTurn(async () => {
        items = [];
        task.return();
        return { value: undefined, done: true };
      }),
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
