/**
 * A dialogue with the kernel, in which what comes next depends on what was answered: written once, as a
 * generator of questions, and held in two forms, on this thread and with promises.
 */
import { type Dirent, readdirSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { type Path, toBytes } from '../paths.js';
import { type Outputs, perform, performSync, StepFailure } from './perform.js';
import { Plan } from './plan.js';

/** The names in a directory; none where it cannot be read. */
export interface Listing {
  readonly list: Path;
}

export interface ListedEntry {
  readonly name: Path;
  readonly isDirectory: boolean;
}

type Answer = Outputs | StepFailure | readonly ListedEntry[];
export type Dialogue<T> = Generator<Plan | Listing, T, Answer>;

/** The outputs are valid until the next question. */
export function* ask(plan: Plan): Dialogue<Outputs | StepFailure> {
  return (yield plan) as Outputs | StepFailure;
}

/** The same, for a plan that tolerates all that may go wrong with its steps. */
export function* askTolerant(plan: Plan): Dialogue<Outputs> {
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw new Error(`a plan that tolerates all errors has failed: ${outcome.errno}`);
  return outcome;
}

export function* list(path: Path): Dialogue<readonly ListedEntry[]> {
  return (yield { list: path }) as readonly ListedEntry[];
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
    return toListed(await readdir(directory(path), listOptions));
  } catch {
    return [];
  }
}

export function holdSync<T>(dialogue: Dialogue<T>): T {
  let next = dialogue.next();
  while (!next.done) {
    const question = next.value;
    next = dialogue.next(question instanceof Plan ? performSync(question) : readSync(question.list));
  }
  return next.value;
}

export async function hold<T>(dialogue: Dialogue<T>): Promise<T> {
  let next = dialogue.next();
  while (!next.done) {
    const question = next.value;
    next = dialogue.next(question instanceof Plan ? await perform(question) : await read(question.list));
  }
  return next.value;
}
