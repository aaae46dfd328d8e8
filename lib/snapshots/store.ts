/**
 * The store: the records in an SQLite database, which several processes may have open. docs/snapshots.md describes its
 * tables.
 */
import { existsSync, linkSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { collect, Slices } from '../kernel/slices.js';
import { run } from '../kernel/task.js';
import { splitPath } from '../paths.js';
import { damaged, quoteKey, SnapshotError, UNREADABLE } from './errors.js';
import { explain, explainErrno, failed, fileSystemOf, rootOf, shortageOf, unsynced } from './failures.js';
import type { SnapshotRecord } from './records.js';
import { type Connection, code, codeOf, loadSqlite } from './sqlite.js';
import { SCHEMA, Tables } from './tables.js';

/** The name of the store's file in a root. */
export const STORE_FILE = 'metadata.db';

/** The store of versions before 0.1, which kept it with the package lmdb. */
const OLD_FILE = 'metadata.mdb';

/** Space that a removal gives up when nothing else is left: one directory and one file, two inodes. */
const RESERVE = 'reserve';
/** In bytes: more than a removal and the files of an opening take. */
const RESERVED = 2 ** 18;

/** In ms: SQLite waits this long for a lock on the calling thread, and then the event loop goes on. */
const BUSY_TIMEOUT = 2;
/** Readers are kept waiting by a recovery only. */
const READ_TRIES = 100;
/** In ms: the longest pause between two tries, and the longest time that another process may keep the lock. */
const BACKOFF_MAX = 8;
const BUSY_MAX = 60_000;

/** After a failed fsync(2): others that read or write keep one from ending. */
const CHECKPOINT_TRIES = 20;
/** In pages of 4 KiB: more in the write-ahead log would keep the event loop for longer when they are moved to the file. */
const CHECKPOINT_PAGES = 200;

export interface StoreOptions {
  readonly isReadonly: boolean;
  /** True when a transaction is to be on the disk before its promise is fulfilled. */
  readonly isSynced: boolean;
}

export interface WriteOptions {
  /** It takes little and frees more, so that it may use the reserve on a full disk. */
  readonly isRemoval?: boolean;
  /** A power cut may undo it: nothing is lost before the next transaction, which is synced with it. */
  readonly isProvisional?: boolean;
}

export class Store {
  readonly path: string;
  readonly #options: StoreOptions;
  readonly #connect: () => Connection;
  readonly #tables: Tables;
  /** Connections that read a state of their own while this one writes. */
  readonly #readers: Tables[] = [];
  /** The write-ahead log, for fsync(2). SQLite holds no lock on this file that a close(2) would end. */
  #log: Held | undefined;
  #syncing: Promise<void> | undefined;
  #nextSync: Promise<void> | undefined;
  /** True after a failed fsync(2): the next one reports no error, although the kernel may have given up what it had to write. */
  #isDoubtful = false;
  #hasReserve = true;
  /** Callers that write without end, and never wait for the disk, would keep the event loop. */
  readonly #slices = new Slices();

  private constructor(path: string, options: StoreOptions, connect: () => Connection) {
    this.path = path;
    this.#options = options;
    this.#connect = connect;
    this.#tables = new Tables(path, connect());
  }

  /** Opens the store, and makes it where there is none. */
  static async open(path: string, options: StoreOptions): Promise<Store> {
    const { DatabaseSync } = await loadSqlite();
    refuseOther(path, options);
    const connect = (): Connection => {
      const { isReadonly, isSynced } = options;
      const connection = isReadonly ? openReadonly(DatabaseSync, path) : new DatabaseSync(path);
      connection.exec(`PRAGMA busy_timeout = ${BUSY_TIMEOUT}; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF`);
      connection.exec(`PRAGMA synchronous = ${isSynced ? 'NORMAL' : 'OFF'}; PRAGMA cell_size_check = ON`);
      if (!isReadonly) connection.exec(`PRAGMA wal_autocheckpoint = ${CHECKPOINT_PAGES}`);
      return connection;
    };
    const openNow = async (): Promise<Store> => {
      if (!existsSync(path)) await make(DatabaseSync, path, options.isSynced);
      if (!options.isReadonly) await makeSharedMemory(path);
      const store = await whileBusy(path, () => new Store(path, options, connect));
      try {
        await whileBusy(path, () => store.#prepare());
        if (!options.isReadonly) await store.#openLog();
      } catch (error) {
        await store.close();
        throw error;
      }
      return store;
    };
    const store = await openNow().catch((error) => {
      if (options.isReadonly || shortageOf(path, error) === undefined || !giveUpReserve(path)) {
        throw explain(path, error, options.isReadonly);
      }
      return openNow().catch((again) => Promise.reject(explain(path, again)));
    });
    return store;
  }

  /** Checks the store. */
  #prepare(): void {
    const tables = this.#tables;
    tables.checkVersion();
    if (this.#options.isReadonly) return;
    if (!hasLog(this.path)) {
      const { size } = statSync(this.path);
      const wanted = tables.size;
      // Another process may have written meanwhile.
      if (size < wanted && !hasLog(this.path)) throw damaged(this.path, `it has ${size} of ${wanted} bytes`);
    }
    tables.checkPages();
    this.#makeReserve();
  }

  /** Writes the names of the files to the disk, and opens the log. */
  async #openLog(): Promise<void> {
    // A first transaction makes the log.
    await whileBusy(this.path, () => this.#tables.transact('IMMEDIATE', () => {}));
    const plan = new Plan();
    const flags = k.O_CLOEXEC;
    const log = plan.add(calls.openat2, [k.AT_FDCWD, `${this.path}-wal`, flags, 0], { keep: true, output: 0 });
    if (this.#options.isSynced) {
      const [root] = splitPath(this.path);
      plan.add(calls.fsync, [plan.add(calls.openat2, [k.AT_FDCWD, root, flags | k.O_DIRECTORY, 0])]);
    }
    const outcome = await perform(plan);
    if (outcome instanceof StepFailure) throw explainErrno(this.path, outcome.errno);
    this.#log = { descriptor: outcome.result(plan.stepOf(log)) };
    await this.#sync();
  }

  /** Calls a function that reads one state of the store: all that was acknowledged before, by any process. */
  read<T>(use: (tables: Tables) => T): T {
    for (let tries = 1; ; tries++) {
      try {
        return this.#tables.transact('DEFERRED', () => use(this.#tables));
      } catch (error) {
        // Another process recovers the log of one that was killed, in a few milliseconds.
        if (codeOf(error) !== code.busy || tries === READ_TRIES) throw explain(this.path, error);
      }
    }
  }

  #explained<T>(use: () => T): T {
    try {
      return use();
    } catch (error) {
      throw explain(this.path, error);
    }
  }

  /** Reads much, in slices, of a state of the store that does not change meanwhile. */
  async readAll<T, R>(list: (tables: Tables) => Iterable<T>, make: (item: T) => R | undefined): Promise<R[]> {
    const tables = this.#readers.pop() ?? this.#explained(() => new Tables(this.path, this.#connect()));
    try {
      tables.connection.exec('BEGIN');
      // The state is that of the first read. Another process may recover the log meanwhile.
      await whileBusy(this.path, () => tables.version);
      return await run(collect(list(tables), make));
    } catch (error) {
      throw explain(this.path, error);
    } finally {
      // Not COMMIT: SQLite has ended the transaction itself after an I/O error.
      tables.rollBack();
      this.#readers.push(tables);
    }
  }

  /** Reads what is left of a damaged store that is only read. Undefined if the error is another one. */
  async readRemains<R>(error: unknown, make: (item: SnapshotRecord) => R | undefined): Promise<R[] | undefined> {
    if (!this.#options.isReadonly || !isDamage(error)) return undefined;
    const remains = new Remains(this.path, this.#connect());
    try {
      return await run(collect(remains.records(), make));
    } finally {
      remains.close();
    }
  }

  /** Calls a function in a transaction, which an error undoes. */
  async write<T>(use: (tables: Tables) => T, { isRemoval, isProvisional }: WriteOptions = {}): Promise<T> {
    const tables = this.#tables;
    const transaction = (): T =>
      tables.transact('IMMEDIATE', () => {
        tables.checkVersion();
        return use(tables);
      });
    try {
      const result = await whileBusy(this.path, transaction).catch((error) => {
        if (!isRemoval || shortageOf(this.path, error) === undefined) throw error;
        this.#makeRoom();
        return whileBusy(this.path, transaction);
      });
      await this.#sync(isProvisional);
      if (!this.#hasReserve) this.#makeReserve();
      return result;
    } catch (error) {
      throw explain(this.path, error);
    }
  }

  /** Waits until what has been committed is on the disk. Transactions that come meanwhile share the next fsync(2). */
  async #sync(isProvisional = false): Promise<void> {
    if (!this.#options.isSynced || isProvisional || this.#log === undefined) return await run(this.#slices.pause());
    const { descriptor } = this.#log;
    this.#nextSync ??= (async () => {
      // One that has begun may miss the latest transaction.
      await this.#syncing?.catch(() => {});
      this.#nextSync = undefined;
      this.#syncing = this.#syncLog(descriptor);
      await this.#syncing;
    })();
    await this.#nextSync;
  }

  async #syncLog(descriptor: number): Promise<void> {
    const plan = new Plan();
    plan.add(calls.fsync, [descriptor]);
    const outcome = await perform(plan);
    const errno = outcome instanceof StepFailure ? outcome.errno : 0;
    this.#isDoubtful ||= outcome instanceof StepFailure;
    // The log is trusted no more then. A checkpoint writes the changes to the file, and waits for the disk.
    for (let tries = 1; this.#isDoubtful; tries++) {
      if (this.#checkpoint('FULL')) this.#isDoubtful = false;
      else if (tries === CHECKPOINT_TRIES) throw unsynced(this.path, errno);
      else await setTimeout(BACKOFF_MAX);
    }
  }

  #makeReserve(): void {
    try {
      const directory = reserveOf(this.path);
      if (!existsSync(directory)) makeReserve(directory);
      this.#hasReserve = true;
    } catch {
      // The disk is full.
      this.#hasReserve = false;
    }
  }

  /** Gives up the reserve, and the space of the write-ahead log. */
  #makeRoom(): void {
    giveUpReserve(this.path);
    this.#hasReserve = false;
    this.#checkpoint('TRUNCATE');
  }

  /** Moves the write-ahead log to the file, as far as others do not read it. Returns true when all of it is on the disk. */
  #checkpoint(mode: 'FULL' | 'TRUNCATE'): boolean {
    try {
      return this.#tables.checkpoint(mode);
    } catch {
      // Others use the log, or the disk is full. The next one that opens the store reads it.
      return false;
    }
  }

  /** Closes the store. No call may be under way. */
  async close(): Promise<void> {
    for (const tables of this.#readers) tables.close();
    if (!this.#options.isReadonly) this.#checkpoint('TRUNCATE');
    this.#tables.close();
    if (this.#log !== undefined) close(this.#log);
  }
}

const isDamage = (error: unknown): boolean =>
  error instanceof SnapshotError && error.code === 'ERR_SNAPSHOT_STORE_DAMAGED';

/** The readable part of a damaged store: records whose pages are whole. The names of the directories are their keys. */
class Remains extends Tables {
  override *records(): ReturnType<Tables['records']> {
    const found = numbersBeside(this.path).flatMap((id) => {
      try {
        return this.byId(id) ?? [];
      } catch {
        return [];
      }
    });
    yield* found.sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
  }
}

type DatabaseSync = Awaited<ReturnType<typeof loadSqlite>>['DatabaseSync'];

/** Makes an empty store under a name of its own, so that no crash leaves half of one. */
async function make(Database: DatabaseSync, path: string, isSynced: boolean): Promise<void> {
  const own = temporaryName(path);
  try {
    const connection = new Database(own);
    try {
      connection.exec(`PRAGMA synchronous = OFF; BEGIN; ${SCHEMA} COMMIT; PRAGMA journal_mode = WAL`);
    } finally {
      connection.close();
    }
    if (isSynced) await syncFile(own);
    linkSync(own, path);
  } catch (error) {
    // Before its own files go: they may be what takes the last space.
    const shortage = shortageOf(own, error);
    if (shortage !== undefined) throw explainErrno(path, shortage, error as Error);
    // Another process has made one meanwhile.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    for (const suffix of ['', '-journal', '-wal', '-shm']) rmSync(own + suffix, { force: true });
  }
}

const temporaryName = (path: string): string =>
  `${path}.${process.getBuiltinModule('node:crypto').randomBytes(6).toString('hex')}`;

/**
 * Makes the file of SQLite's shared memory on btrfs, which copies a page before a write to it: on a full disk that would
 * end the process (SIGBUS). Linux 6.17 needs no space for a file that is not copied on write.
 */
async function makeSharedMemory(path: string): Promise<void> {
  const shared = `${path}-shm`;
  // The flag itself tells where statfs(2) is denied: other file systems refuse it.
  if (existsSync(shared) || (fileSystemOf(rootOf(path))?.type ?? k.BTRFS_SUPER_MAGIC) !== k.BTRFS_SUPER_MAGIC) return;
  // Under a name of its own: a close(2) of the file itself would end the locks of this process on it.
  const own = temporaryName(path);
  try {
    writeFileSync(own, '', { mode: statSync(path).mode & 0o777, flag: 'wx' });
    const plan = new Plan();
    plan.add(calls.set_flags, [plan.add(calls.openat2, [k.AT_FDCWD, own, k.O_CLOEXEC, 0]), k.FS_NOCOW_FL]);
    await perform(plan);
    linkSync(own, shared);
  } catch {
    // Another process has made it, or SQLite will say why nobody can.
  } finally {
    rmSync(own, { force: true });
  }
}

async function syncFile(path: string): Promise<void> {
  const plan = new Plan();
  plan.add(calls.fsync, [plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_CLOEXEC, 0])]);
  const outcome = await perform(plan);
  if (outcome instanceof StepFailure) throw explainErrno(path, outcome.errno);
}

/** Performs something again while another process has the lock that it needs. */
async function whileBusy<T>(path: string, use: () => T): Promise<T> {
  const end = performance.now() + BUSY_MAX;
  for (let pause = 1; ; pause = Math.min(BACKOFF_MAX, pause * 2)) {
    try {
      return use();
    } catch (error) {
      const found = codeOf(error);
      if (found !== code.busy && found !== code.locked) throw error;
      if (performance.now() > end) {
        const problem = `another program has kept it locked for ${BUSY_MAX / 1000} s`;
        throw failed(path, problem, 'find it with fuser(1), and end it', error as Error);
      }
      await setTimeout(pause * (0.5 + Math.random()));
    }
  }
}

/** On a file system that is read-only, SQLite has to be told that nobody changes the file. */
function openReadonly(Database: DatabaseSync, path: string): Connection {
  const connection = new Database(path, { readOnly: true });
  try {
    connection.exec('PRAGMA user_version');
    return connection;
  } catch (error) {
    connection.close();
    if (codeOf(error) !== code.cannotOpen || hasLog(path)) throw error;
    const url = pathToFileURL(path);
    url.searchParams.set('immutable', '1');
    return new Database(url, { readOnly: true });
  }
}

/** Returns true when changes may not be in the file of the store yet. */
const hasLog = (path: string): boolean => (statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0) > 0;

const reserveOf = (path: string): string => `${rootOf(path)}/${RESERVE}`;

function makeReserve(directory: string): void {
  const { mkdirSync } = process.getBuiltinModule('node:fs');
  mkdirSync(directory);
  try {
    // Not zeros: a file system that compresses would keep nothing.
    writeFileSync(`${directory}/space`, process.getBuiltinModule('node:crypto').randomBytes(RESERVED));
  } catch (error) {
    rmSync(directory, { recursive: true, force: true });
    throw error;
  }
}

function giveUpReserve(path: string): boolean {
  const directory = reserveOf(path);
  if (!existsSync(directory)) return false;
  rmSync(directory, { recursive: true, force: true });
  return true;
}

/** The numbers of the directories of snapshots beside a store. */
function numbersBeside(path: string): number[] {
  const directory = `${rootOf(path)}/snapshots`;
  return existsSync(directory)
    ? readdirSync(directory)
        .filter((name) => /^[1-9]\d{0,14}$/.test(name))
        .map(Number)
    : [];
}

/** In bytes. SQLite takes a shorter file for an empty one, and writes over it. */
const SMALLEST_PAGE = 512;

/** Throws unless the file is a store, or can become one. The file itself is not opened: its close(2) would end locks. */
function refuseOther(path: string, { isReadonly }: StoreOptions): void {
  const old = `${rootOf(path)}/${OLD_FILE}`;
  if (existsSync(old)) {
    throw new SnapshotError({
      code: 'ERR_SNAPSHOT_STORE_VERSION',
      what: `the store ${quoteKey(old)} was made with the package lmdb, which this library does not read any more`,
      hint: 'choose another root, and make the snapshots there again; or use the version of overlayfs that made it',
      path: old,
    });
  }
  const found = statSync(path, { throwIfNoEntry: false });
  if (found !== undefined && !found.isFile()) {
    throw failed(path, 'it is not a regular file', 'move away what has its name, or choose another root');
  }
  if (found !== undefined && found.size >= SMALLEST_PAGE) return;
  if (found !== undefined && found.size > 0) {
    throw damaged(path, `it has ${found.size} bytes, fewer than a page`, undefined, UNREADABLE);
  }
  const { length } = numbersBeside(path);
  if (length > 0) {
    // Neither an empty file nor a missing one is a new store then.
    const what = `it is ${found === undefined ? 'missing' : 'empty'}, and 'snapshots' beside it holds ${length} directories`;
    const hint = 'restore it from a backup, or choose another root: the directories have the files, but no names';
    throw damaged(path, what, undefined, hint);
  }
  if (found !== undefined && !isReadonly) {
    throw failed(path, 'it is an empty file', 'remove it, and open the root again');
  }
  if (!isReadonly) return;
  throw new SnapshotError({
    code: 'ERR_SNAPSHOT_NOT_FOUND',
    what: `there is no store ${quoteKey(path)}`,
    hint: 'check the root',
    path,
  });
}
