/**
 * The store: the records in an LMDB environment, which several processes may have open. docs/snapshots.md describes its
 * tables.
 */
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  openSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import * as e from '../errnos.js';
import { collect } from '../kernel/slices.js';
import { run } from '../kernel/task.js';
import { damaged, quoteKey, SnapshotError } from './errors.js';
import {
  BlockingTransactions,
  type Environment,
  loadLmdb,
  noteUse,
  type ReadTransaction,
  refuseLess,
  type Table,
  transact,
} from './lmdb.js';
import type { OpeningLock } from './opening-lock.js';
import { type Entry, lastTransaction, readPages } from './pages.js';
import {
  decodeNumber,
  decodeRecord,
  encodeNumber,
  encodeRecord,
  fromNumberKey,
  isSealed,
  type SnapshotRecord,
  toKey,
  toNumberKey,
} from './records.js';
import type { Reader, Writer } from './rules.js';

/** The version of the layout that this library reads and writes. */
const VERSION = 1;

const versionKey = Buffer.from('version');
const nextKey = Buffer.from('next');
const nothing = Buffer.alloc(0);

/** LMDB's errors for a file that is not as it should be: MDB_PAGE_NOTFOUND, MDB_CORRUPTED, MDB_INVALID and their like. */
const corruptions: ReadonlySet<unknown> = new Set([-30797, -30796, -30795, -30794, -30793, -30779]);

/** The name of the store's file in a root. */
export const STORE_FILE = 'metadata.mdb';

export interface StoreOptions {
  readonly isReadonly: boolean;
  /** True when a transaction is to be on the disk before its promise is fulfilled. */
  readonly isSynced: boolean;
  /** True when the calling thread writes, and waits for the disk. */
  readonly isBlocking: boolean;
  readonly lock: OpeningLock;
}

/** The readable part of a store. */
export interface ReadableTables extends Reader {
  readonly version: number | undefined;
  /** The numbers whose directories are to be removed. */
  removing(transaction?: ReadTransaction): Iterable<number>;
  checkVersion(): void;
  /** Returns true when a snapshot has this number, or one that is being removed. */
  hasNumber(id: number): boolean;
  /** All records in the order of their keys. */
  records(transaction?: ReadTransaction): Iterable<SnapshotRecord>;
  /** The numbers of all snapshots. */
  numbers(transaction?: ReadTransaction): Iterable<number>;
}

/** Records are read from lmdb's own buffer, without a copy. One that is damaged is null: undefined is one that is not there. */
const recordEncoder = { encode: encodeRecord, decode: (bytes: Buffer) => decodeRecord(bytes) ?? null };

/** The tables, inside a transaction. */
export class Tables implements ReadableTables, Writer {
  readonly #path: string;
  readonly #about: Table;
  readonly #snapshots: Table<SnapshotRecord | null>;
  readonly #numbers: Table;
  readonly #children: Table;
  readonly #removing: Table;

  constructor(path: string, environment: Environment, isReadonly: boolean) {
    const keys = { keyEncoding: 'binary', create: !isReadonly };
    const open = (name: string) => environment.openDB({ name, encoding: 'binary', ...keys });
    this.#path = path;
    this.#about = open('about');
    this.#snapshots = environment.openDB({ name: 'snapshots', encoder: recordEncoder, ...keys });
    this.#numbers = open('numbers');
    this.#children = open('children');
    this.#removing = open('removing');
  }

  damaged(what: string, key?: string): SnapshotError {
    return damaged(this.#path, what, key);
  }

  #check(record: SnapshotRecord | null, key?: string): SnapshotRecord {
    if (record === null || (key !== undefined && record.name !== key)) {
      throw this.damaged(
        key === undefined ? 'a record cannot be read' : `the record of ${quoteKey(key)} cannot be read`,
        key,
      );
    }
    return record;
  }

  #number(key: Buffer): number | undefined {
    const bytes = this.#about.get(key);
    if (bytes === undefined) return undefined;
    const number = decodeNumber(bytes);
    if (number === undefined) throw this.damaged(`its '${key}' cannot be read`);
    return number;
  }

  get version(): number | undefined {
    return this.#number(versionKey);
  }

  /** Makes an empty store one of this version. */
  initialize(): void {
    this.#about.put(versionKey, encodeNumber(VERSION));
    this.#about.put(nextKey, encodeNumber(1));
  }

  checkVersion(): void {
    checkVersion(this.#path, this.version);
  }

  /** Takes numbers for new directories. No number is ever given out again. Returns the first of them. */
  takeNumbers(count: number): number {
    const first = this.#number(nextKey);
    if (first === undefined) throw this.damaged("it has no 'next'");
    this.#about.put(nextKey, encodeNumber(first + count));
    return first;
  }

  get(name: string): SnapshotRecord | undefined {
    const record = this.#snapshots.get(toKey(name));
    return record === undefined ? undefined : this.#check(record, name);
  }

  put(record: SnapshotRecord): void {
    this.#snapshots.put(toKey(record.name), record);
    this.#numbers.put(toNumberKey(record.id), Buffer.from(record.name));
  }

  delete({ name, id }: SnapshotRecord): void {
    this.#snapshots.remove(toKey(name));
    this.#numbers.remove(toNumberKey(id));
  }

  hasNumber(id: number): boolean {
    return this.#numbers.get(toNumberKey(id)) !== undefined || this.#removing.get(toNumberKey(id)) !== undefined;
  }

  *records(transaction?: ReadTransaction): Generator<SnapshotRecord> {
    const range = transaction === undefined ? {} : { transaction };
    for (const { value } of this.#snapshots.getRange(range)) yield this.#check(value);
  }

  numbers(transaction?: ReadTransaction): Iterable<number> {
    return numbersOf(this.#numbers, transaction);
  }

  link(parent: number, child: number): void {
    this.#children.put(toNumberKey(parent, child), nothing);
  }

  unlink(parent: number, child: number): void {
    this.#children.remove(toNumberKey(parent, child));
  }

  hasChild(id: number): boolean {
    const range = { start: toNumberKey(id), end: toNumberKey(id + 1), limit: 1 };
    return !this.#children.getKeys(range)[Symbol.iterator]().next().done;
  }

  putRemoving(record: SnapshotRecord): void {
    this.#removing.put(toNumberKey(record.id), encodeRecord(record));
  }

  deleteRemoving(id: number): void {
    this.#removing.remove(toNumberKey(id));
  }

  removing(transaction?: ReadTransaction): Iterable<number> {
    return numbersOf(this.#removing, transaction);
  }
}

/** The numbers that are the keys of a table. */
function* numbersOf(table: Table, transaction?: ReadTransaction): Generator<number> {
  const range = transaction === undefined ? {} : { transaction };
  for (const key of table.getKeys(range)) yield fromNumberKey(key);
}

/** Throws unless the store has the version that this library knows. */
function checkVersion(path: string, version: number | undefined): void {
  if (version === VERSION) return;
  if (version === undefined) throw damaged(path, 'it has no version');
  throw new SnapshotError({
    code: 'ERR_SNAPSHOT_STORE_VERSION',
    what: `the store ${quoteKey(path)} has version ${version}, and this library knows version ${VERSION}`,
    hint: version > VERSION ? 'use the newer version of overlayfs that made it' : 'use the version that made it',
    path,
  });
}

/** The readable rest of a damaged store. */
class Remains implements ReadableTables {
  readonly version: number | undefined;
  readonly #removing: readonly number[];
  readonly #path: string;
  readonly #records: ReadonlyMap<string, SnapshotRecord>;

  constructor(path: string, tables: ReadonlyMap<string, readonly Entry[]>) {
    const about = tables.get('about')?.find(({ key }) => key.equals(versionKey));
    const records = (tables.get('snapshots') ?? [])
      .map(({ value }) => decodeRecord(value))
      .filter((it) => it !== undefined);
    this.version = about && decodeNumber(about.value);
    this.#removing = (tables.get('removing') ?? []).map(({ key }) => fromNumberKey(key));
    this.#path = path;
    this.#records = new Map(records.map((record) => [record.name, record]));
  }

  /** Reads what can be read of a file. */
  static async read(path: string, file: Buffer): Promise<Remains> {
    const tables = new Map<string, Entry[]>();
    const add = (table: string, entry: Entry): string | undefined => {
      const entries = tables.get(table) ?? [];
      tables.set(table, entries);
      const problem = checkEntry(table, entry);
      if (problem === undefined) entries.push(entry);
      return problem;
    };
    await run(readPages(file, add));
    return new Remains(path, tables);
  }

  checkVersion(): void {
    // Without a version it may be that of another layout; its records have been read all the same.
    if (this.version !== undefined) checkVersion(this.#path, this.version);
  }

  damaged(what: string, key?: string): SnapshotError {
    return damaged(this.#path, what, key);
  }

  get(name: string): SnapshotRecord | undefined {
    return this.#records.get(name);
  }

  hasChild(id: number): boolean {
    const name = [...this.#records.values()].find((record) => record.id === id)?.name;
    return [...this.#records.values()].some(({ parent }) => parent === name);
  }

  hasNumber(id: number): boolean {
    return this.#removing.includes(id) || [...this.#records.values()].some((record) => record.id === id);
  }

  records(): Iterable<SnapshotRecord> {
    return this.#records.values();
  }

  removing(): Iterable<number> {
    return this.#removing;
  }

  numbers(): Iterable<number> {
    return Array.from(this.#records.values(), ({ id }) => id);
  }
}

/** The tables whose values are sealed. */
const sealedTables: ReadonlySet<string> = new Set(['about', 'snapshots', 'removing']);

const checkEntry = (table: string, { value }: Entry): string | undefined =>
  sealedTables.has(table) && !isSealed(value) ? `an entry of '${table}' does not match its checksum` : undefined;

/** How often to look again, while other processes write. Then they use the store, so it is not damaged. */
const MOST_LOOKS = 5;

interface Damage {
  readonly file: Buffer;
  readonly problems: readonly string[];
}

/** In bytes: more than LMDB writes when it makes one of its files. */
const ROOM = 2 ** 15;

/** The descriptors that LMDB opens. */
const DESCRIPTORS = 3;

/**
 * Throws if LMDB could not open its files, or make them: then it would end the process by a signal. The locks are not
 * opened, since a close(2) would end those that this process holds.
 */
function refuseShortage(path: string, isReadonly: boolean): void {
  const held: number[] = [];
  try {
    for (const file of isReadonly ? [] : [path, `${path}-lock`]) {
      if (statSync(file, { throwIfNoEntry: false })?.size) accessSync(file, constants.R_OK | constants.W_OK);
      else {
        held.push(openSync(`${file}-room`, 'w'));
        rmSync(`${file}-room`, { force: true });
      }
    }
    for (const room of held) writeFileSync(room, Buffer.alloc(ROOM));
    while (held.length < DESCRIPTORS) held.push(openSync('/', 'r'));
  } finally {
    for (const descriptor of held) closeSync(descriptor);
  }
}

/** One that another thread opens for reading would be open for reading only in all threads of the process. */
function isWritable(path: string): boolean {
  try {
    for (const file of [path, `${path}-lock`]) accessSync(file, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Throws if the store can be no store: to read a pipe would last for ever. */
function refuseOther(path: string): void {
  if (statSync(path, { throwIfNoEntry: false })?.isFile() ?? true) return;
  throw failed(path, 'it is no regular file', 'move away what has its name, or choose another root');
}

/** Looks through the file of a store. `'empty'`: there is none, or nobody has written to it yet. */
async function examine(path: string): Promise<Damage | 'empty' | 'whole'> {
  const { readFile } = process.getBuiltinModule('node:fs/promises');
  let last: bigint | undefined;
  for (let i = 0; i < MOST_LOOKS && existsSync(path); i++) {
    const file = await readFile(path);
    if (file.length === 0) return 'empty';
    const transaction = lastTransaction(file);
    let isEmpty = true;
    const check = (table: string, entry: Entry): string | undefined => {
      isEmpty = false;
      return checkEntry(table, entry);
    };
    const problems = await run(readPages(file, check));
    if (problems.length === 0) return isEmpty ? 'empty' : 'whole';
    if (i > 0 && transaction === last) return { file, problems };
    last = transaction;
  }
  return existsSync(path) ? 'whole' : 'empty';
}

interface LmdbError extends Error {
  /** A number from LMDB, a name from node:fs. */
  readonly code?: unknown;
  readonly errno?: number;
  /** Rejected with the reason, when a transaction could not be written. */
  readonly commitError?: Promise<never>;
}

export class Store {
  readonly path: string;
  /** Undefined for a damaged store that is open for reading. */
  readonly #environment: Environment | undefined;
  readonly #tables: ReadableTables;
  readonly #blocking: BlockingTransactions | undefined;
  readonly #lock: OpeningLock | undefined;
  readonly #endUse: (() => void) | undefined;

  private constructor(path: string, tables: ReadableTables, environment?: Environment, options?: StoreOptions) {
    this.path = path;
    this.#environment = environment;
    this.#tables = tables;
    this.#endUse = options && noteUse(path, options.isSynced);
    this.#lock = options?.lock;
    this.#blocking = environment && options?.isBlocking ? new BlockingTransactions(environment) : undefined;
  }

  /** Opens the store, and makes it where there is none. */
  static async open(path: string, options: StoreOptions): Promise<Store> {
    const { isReadonly, isSynced, lock } = options;
    const lmdb = await loadLmdb();
    refuseOther(path);
    const state = await examine(path).catch(async (error) => Promise.reject(await explain(path, error)));
    // A process that has ended may have made its file only. LMDB completes that, but cannot read it.
    if (isReadonly && state === 'empty') {
      throw new SnapshotError({
        code: 'ERR_SNAPSHOT_NOT_FOUND',
        what: `there is no store ${quoteKey(path)}`,
        hint: 'check the root',
        path,
      });
    }
    if (typeof state === 'object') {
      if (!isReadonly) throw damaged(path, state.problems.join('; '));
      const remains = await Remains.read(path, state.file);
      remains.checkVersion();
      return new Store(path, remains);
    }
    const openNow = async (): Promise<Store> => {
      if (!isReadonly) refuseLess(path, isSynced);
      refuseShortage(path, isReadonly);
      const environment = lmdb.open({
        path,
        noSubdir: true,
        readOnly: isReadonly && !isWritable(path),
        noSync: !isSynced,
        // A promise is fulfilled when the transaction is on the disk, not before.
        overlappingSync: false,
        // Its batches have promises of their own, which nobody could handle when a transaction fails.
        eventTurnBatching: false,
        encoding: 'binary',
        keyEncoding: 'binary',
        maxDbs: 8,
      });
      try {
        return new Store(path, new Tables(path, environment, isReadonly), environment, options);
      } catch (error) {
        await environment.close();
        throw error;
      }
    };
    let store: Store;
    try {
      store = await lock.whileOpening(openNow);
    } catch (error) {
      throw error instanceof SnapshotError ? error : await explain(path, error as LmdbError);
    }
    try {
      if (!isReadonly && store.read((tables) => tables.version) === undefined) await store.#initialize();
      store.read((tables) => tables.checkVersion());
    } catch (error) {
      await store.close();
      throw error;
    }
    return store;
  }

  async #initialize(): Promise<void> {
    await this.#perform((tables) => {
      if (tables.version === undefined) tables.initialize();
    });
  }

  /** Calls a function that reads. It sees all that was acknowledged before, by any process. */
  read<T>(perform: (tables: ReadableTables) => T): T {
    this.#environment?.resetReadTxn();
    return perform(this.#tables);
  }

  /** Reads much, in slices, of a state of the store that does not change meanwhile. */
  async readAll<T, R>(
    list: (tables: ReadableTables, transaction?: ReadTransaction) => Iterable<T>,
    make: (item: T) => R | undefined,
  ): Promise<R[]> {
    this.#environment?.resetReadTxn();
    const transaction = this.#environment?.useReadTransaction();
    try {
      return await run(collect(list(this.#tables, transaction), make));
    } finally {
      transaction?.done();
    }
  }

  /** Calls a function in a transaction. It throws before it changes anything, or not at all. */
  async write<T>(perform: (tables: Tables) => T): Promise<T> {
    return this.#perform((tables) => {
      tables.checkVersion();
      return perform(tables);
    });
  }

  async #perform<T>(perform: (tables: Tables) => T): Promise<T> {
    // Only a store that is open for reading has no environment, and nobody writes to one.
    const [environment, lock] = [this.#environment as Environment, this.#lock as OpeningLock];
    const inTables = (): T => perform(this.#tables as Tables);
    try {
      if (isFull(this.path, ROOM_TO_WRITE)) throw noSpace(this.path);
      return await lock.whileUsing(() => this.#blocking?.perform(inTables) ?? transact(environment, inTables));
    } catch (error) {
      if (error instanceof SnapshotError) throw error;
      throw await explain(this.path, error as LmdbError);
    }
  }

  /** Closes the store. No call may be under way. */
  async close(): Promise<void> {
    const environment = this.#environment;
    if (environment !== undefined) await this.#lock?.whileClosing(() => environment.close());
    this.#endUse?.();
  }
}

function failed(path: string, problem: string, hint: string, cause?: Error, reason?: 'out-of-space'): SnapshotError {
  const what = `the store ${quoteKey(path)} could not be used: ${problem}`;
  return new SnapshotError({ code: 'ERR_SNAPSHOT_STORE_FAILED', what, hint, path, reason }, { cause });
}

const toWrite = 'run as its owner or as root, on a file system that can be written';
const hints: ReadonlyMap<number, string> = new Map([
  [e.EACCES, toWrite],
  [e.EPERM, toWrite],
  [e.EROFS, toWrite],
  [e.EMFILE, 'raise the limit (ulimit -n), or do less at once'],
]);

/** Returns the error for a failure of LMDB, or of a system call on its file. */
async function explain(path: string, error: LmdbError): Promise<Error> {
  const cause = await (error.commitError?.catch((reason: LmdbError) => reason) ?? error);
  const { code, errno = 0 } = cause as LmdbError;
  const number = typeof code === 'number' ? code : -errno;
  if (corruptions.has(number)) return damaged(path, cause.message);
  if (number === e.ENOSPC || number === e.EDQUOT || (number === e.EIO && isFull(path, NEARLY_FULL))) {
    return noSpace(path, cause);
  }
  return failed(path, cause.message, hints.get(number) ?? 'see the kernel log (dmesg); nothing was changed', cause);
}

function noSpace(path: string, cause?: Error): SnapshotError {
  const hint = 'make room there; nothing was changed';
  return failed(path, 'no space is left on its file system', hint, cause, 'out-of-space');
}

/** In bytes. For LMDB, a write that was cut short is an I/O error. */
const NEARLY_FULL = 2 ** 20;

/**
 * In bytes: as much as a transaction writes. One that cannot be written would do harm: lmdb (3.5) writes the text of its
 * error past the end of a buffer.
 */
const ROOM_TO_WRITE = 2 ** 16;

/** In bytes: as much as ext4 keeps for itself, which statfs(2) counts among the space of root. */
const MOST_KEPT = 2 ** 24;

/** Returns true if a file system has less space than that. Some do not say how much they have. */
function isFull(path: string, room: number): boolean {
  const { blocks, bavail, bfree, bsize } = statfsSync(path);
  if (blocks === 0 || bavail * bsize >= room) return false;
  return process.geteuid?.() !== 0 || bfree * bsize < MOST_KEPT + room;
}
