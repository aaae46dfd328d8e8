/** The package lmdb, an optional peer dependency: the part of it that the store uses. */
import { existsSync, statSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';
import { calls } from '../kernel/calls.js';
import { perform } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { quoteKey, SnapshotError } from './errors.js';

export interface Table<V = Buffer> {
  get(key: Uint8Array): V | undefined;
  getRange(range: Range): Iterable<{ readonly key: Buffer; readonly value: V }>;
  getKeys(range: Range): Iterable<Buffer>;
  put(key: Uint8Array, value: V): unknown;
  remove(key: Uint8Array): unknown;
}

export interface Range {
  readonly start?: Uint8Array;
  readonly end?: Uint8Array;
  readonly limit?: number;
  readonly transaction?: ReadTransaction;
}

export interface ReadTransaction {
  done(): void;
}

export interface Environment {
  openDB<V = Buffer>(options: object): Table<V>;
  /** Performs the function in a transaction, with those that wait. The promise is settled when it is on the disk. */
  transaction<T>(perform: () => T): Promise<T>;
  /** Performs the function in a transaction on this thread. Returns when it is on the disk. */
  transactionSync(perform: () => void): void;
  useReadTransaction(): ReadTransaction;
  /** Makes the next read see what other processes have written. */
  resetReadTxn(): void;
  close(): Promise<void>;
}

export async function loadLmdb(): Promise<{ open(options: object): Environment }> {
  try {
    // Not a literal: the types of the package are not for all settings of TypeScript.
    const name: string = 'lmdb';
    return await import(name);
  } catch (cause) {
    throw new SnapshotError(
      {
        code: 'ERR_SNAPSHOT_DEPENDENCY_MISSING',
        what: 'the snapshotter needs the package lmdb, which is not installed or cannot be loaded',
        hint: 'run npm install lmdb',
      },
      { cause },
    );
  }
}

/** By device and inode: whether the first one that has opened a file syncs it, and how many have it open. */
const uses = new Map<string, { readonly isSynced: boolean; count: number }>();

function identityOf(path: string): string {
  const { dev, ino } = statSync(path, { bigint: true });
  return `${dev} ${ino}`;
}

/**
 * Throws if this thread has a file open that is not synced, and this one is to be: lmdb has one environment a process for
 * each file, with the options of the first opening.
 */
export function refuseLess(path: string, isSynced: boolean): void {
  if (!isSynced || !existsSync(path) || (uses.get(identityOf(path))?.isSynced ?? true)) return;
  throw new SnapshotError({
    code: 'ERR_SNAPSHOT_FAILED_PRECONDITION',
    what: `this program has the store ${quoteKey(path)} open with fsync 'none'`,
    hint: 'close the snapshotter that uses it so',
    path,
  });
}

/** Notes that a file is open. Returns what takes the note back. */
export function noteUse(path: string, isSynced: boolean): () => void {
  const identity = identityOf(path);
  const use = uses.get(identity) ?? { isSynced, count: 0 };
  use.count++;
  uses.set(identity, use);
  return () => {
    if (--use.count === 0) uses.delete(identity);
  };
}

/** In ms: the time for other listeners and for the message of a fatal error. */
const PATIENCE = 500;

let underWay = 0;

/**
 * In a transaction, a thread of lmdb waits for the event loop, and exit(3) waits for that thread. So a process that exits
 * then would stay, with the lock that other processes wait for.
 */
function exitAnyway(code: number): void {
  const plan = new Plan();
  plan.add(calls.exit_after, [PATIENCE, code]);
  void perform(plan);
}

/** Performs a transaction. The process can exit meanwhile. */
export async function transact<T>(environment: Environment, perform: () => T): Promise<T> {
  // A worker that exits waits for nothing, and leaves the other threads.
  if (underWay++ === 0 && isMainThread) process.on('exit', exitAnyway);
  try {
    return await environment.transaction(perform);
  } finally {
    if (--underWay === 0) process.off('exit', exitAnyway);
  }
}

interface Waiting {
  /** Performs it, and returns what settles its promise once the transaction is on the disk. */
  readonly perform: () => () => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Performs transactions on the calling thread, which waits for the disk. Functions that come in one turn of the event loop
 * share a transaction.
 */
export class BlockingTransactions {
  readonly #environment: Environment;
  #waiting: Waiting[] = [];

  constructor(environment: Environment) {
    this.#environment = environment;
  }

  perform<T>(perform: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const attempt = (): (() => void) => {
        try {
          const value = perform();
          return () => resolve(value);
        } catch (error) {
          // Other errors than refusals may come after changes: they undo the transaction.
          if (!(error instanceof SnapshotError)) throw error;
          return () => reject(error);
        }
      };
      this.#waiting.push({ perform: attempt, reject });
      if (this.#waiting.length === 1) setImmediate(() => this.#performAll());
    });
  }

  #performAll(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    let settlers: (() => void)[] = [];
    try {
      this.#environment.transactionSync(() => {
        settlers = waiting.map(({ perform }) => perform());
      });
    } catch (error) {
      for (const { reject } of waiting) reject(error);
      return;
    }
    for (const settle of settlers) settle();
  }
}
