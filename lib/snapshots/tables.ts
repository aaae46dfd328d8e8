/** The tables of the store, through one connection. */
import { damaged, quoteKey, SnapshotError } from './errors.js';
import type { Labels, SnapshotKind, SnapshotRecord } from './records.js';
import type { Reader, Writer } from './rules.js';
import type { Connection, Row, Statement } from './sqlite.js';

/** The version of the layout that this library reads and writes: SQLite's `user_version`. */
export const VERSION = 2;

/** SQLite's `application_id`: "ovls". */
const APPLICATION = 0x6f766c73;

/** `next` is the first number that no directory has had. Times are in nanoseconds since 1970, `size` is in bytes. */
export const SCHEMA = `
CREATE TABLE snapshots (
  id       INTEGER PRIMARY KEY CHECK (id > 0),
  name     TEXT NOT NULL UNIQUE CHECK (name <> ''),
  kind     TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
  parent   INTEGER REFERENCES snapshots (id) CHECK (parent <> id),
  created  INTEGER NOT NULL,
  updated  INTEGER NOT NULL,
  labels   TEXT NOT NULL CHECK (json_type(labels) = 'object'),
  size     INTEGER,
  inodes   INTEGER,
  project  INTEGER,
  CHECK ((kind = 'committed') = (size IS NOT NULL AND inodes IS NOT NULL))
) STRICT;
CREATE INDEX children ON snapshots (parent) WHERE parent IS NOT NULL;
CREATE TABLE removing (id INTEGER PRIMARY KEY) STRICT;
CREATE TABLE numbers (next INTEGER NOT NULL CHECK (next > 0)) STRICT;
INSERT INTO numbers VALUES (1);
PRAGMA application_id = ${APPLICATION};
PRAGMA user_version = ${VERSION};
`;

const FIELDS = `
SELECT s.id, s.name, s.kind, p.name AS parent, s.created, s.updated, s.labels, s.size, s.inodes, s.project
FROM snapshots AS s LEFT JOIN snapshots AS p ON p.id = s.parent`;

const queries = {
  version: 'PRAGMA user_version',
  size: 'SELECT page_count * page_size AS size FROM pragma_page_count, pragma_page_size',
  application: 'PRAGMA application_id',
  check: 'PRAGMA quick_check(1)',
  checkParents: 'PRAGMA foreign_key_check',
  byName: `${FIELDS} WHERE s.name = ?`,
  byId: `${FIELDS} WHERE s.id = ?`,
  all: `${FIELDS} ORDER BY s.name`,
  put: `
    INSERT INTO snapshots (id, name, kind, parent, created, updated, labels, size, inodes, project)
    VALUES (?, ?, ?, (SELECT id FROM snapshots WHERE name = ?), ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, kind = excluded.kind, parent = excluded.parent,
      created = excluded.created, updated = excluded.updated, labels = excluded.labels, size = excluded.size,
      inodes = excluded.inodes`,
  delete: 'DELETE FROM snapshots WHERE id = ?',
  child: 'SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1',
  ancestors: `
    WITH RECURSIVE above (id, depth) AS (
      SELECT parent, 1 FROM snapshots WHERE id = ? AND parent IS NOT NULL
      UNION SELECT s.parent, depth + 1 FROM above JOIN snapshots AS s ON s.id = above.id
        WHERE s.parent IS NOT NULL AND depth < 10000
    ) SELECT id FROM above ORDER BY depth`,
  number: 'SELECT 1 FROM snapshots WHERE id = ?1 UNION ALL SELECT 1 FROM removing WHERE id = ?1',
  numbers: 'SELECT id FROM snapshots',
  take: 'UPDATE numbers SET next = next + ?1 RETURNING next - ?1 AS first',
  removing: 'SELECT id FROM removing',
  putRemoving: 'INSERT OR IGNORE INTO removing VALUES (?)',
  deleteRemoving: 'DELETE FROM removing WHERE id = ?',
} as const;

const noLabels: Labels = Object.freeze({});

function toRecord(row: Row): SnapshotRecord {
  const { id, name, kind, parent, created, updated, labels, size, inodes, project } = row;
  const record = {
    name: String(name),
    id: Number(id),
    kind: kind as SnapshotKind,
    parent: parent === null ? '' : String(parent),
    created: created as bigint,
    updated: updated as bigint,
    labels: labels === '{}' ? noLabels : (JSON.parse(String(labels)) as Labels),
  };
  return {
    ...record,
    ...(size !== null && { usage: { bytes: Number(size), inodes: Number(inodes) } }),
    ...(project !== null && { project: Number(project) }),
  };
}

export class Tables implements Reader, Writer {
  readonly path: string;
  readonly connection: Connection;
  readonly #statements = new Map<keyof typeof queries, Statement>();
  #isInTransaction = false;

  constructor(path: string, connection: Connection) {
    this.path = path;
    this.connection = connection;
  }

  #statement(name: keyof typeof queries): Statement {
    let statement = this.#statements.get(name);
    if (statement === undefined) {
      statement = this.connection.prepare(queries[name]);
      // Times have more than 53 bits.
      statement.setReadBigInts(true);
      this.#statements.set(name, statement);
    }
    return statement;
  }

  *#rows(name: keyof typeof queries): Generator<Row> {
    try {
      yield* this.#statement(name).iterate();
    } catch (error) {
      // With Node's own SQLite, the statement would throw this again when it is next used.
      this.#statements.delete(name);
      throw error;
    }
  }

  /** With the package, the descriptors stay until the garbage collector has found the statements. */
  close(): void {
    this.#statements.clear();
    this.connection.close();
  }

  /** Calls a function in a transaction, which an error undoes. */
  transact<T>(kind: 'DEFERRED' | 'IMMEDIATE', use: () => T): T {
    if (this.#isInTransaction) return use();
    this.connection.exec(`BEGIN ${kind}`);
    this.#isInTransaction = true;
    try {
      const result = use();
      this.connection.exec('COMMIT');
      return result;
    } catch (error) {
      this.rollBack();
      throw error;
    } finally {
      this.#isInTransaction = false;
    }
  }

  /** Ends a transaction without its changes. */
  rollBack(): void {
    try {
      this.connection.exec('ROLLBACK');
    } catch {
      // SQLite has done it itself, after an error of the disk.
    }
  }

  /** Moves the write-ahead log to the file. Returns true when all of it is there, and on the disk. */
  checkpoint(mode: 'FULL' | 'TRUNCATE'): boolean {
    const { busy, log, checkpointed } = this.connection.prepare(`PRAGMA wal_checkpoint(${mode})`).get() ?? {};
    return busy === 0 && log === checkpointed;
  }

  damaged(what: string, key?: string): SnapshotError {
    return damaged(this.path, what, key);
  }

  /** In bytes, as the database itself says. */
  get size(): number {
    return Number(this.#statement('size').get()?.['size']);
  }

  /** 0 for a database without tables. */
  get version(): number {
    return Number(this.#statement('version').get()?.['user_version']);
  }

  /** Throws unless the store has the version that this library knows. */
  checkVersion(): void {
    const { version, path } = this;
    if (version === VERSION) return;
    const application = Number(this.#statement('application').get()?.['application_id']);
    if (application !== APPLICATION) throw this.damaged('it is a database of another program, or has lost its tables');
    throw new SnapshotError({
      code: 'ERR_SNAPSHOT_STORE_VERSION',
      what: `the store ${quoteKey(path)} has version ${version}, and this library knows version ${VERSION}`,
      hint: version > VERSION ? 'use the newer version of overlayfs that made it' : 'use the version that made it',
      path,
    });
  }

  /** Throws if pages, rows or references contradict each other. */
  checkPages(): void {
    let problem: Row | undefined;
    let broken: Row | undefined;
    try {
      problem = this.#statement('check').get();
      broken = this.#statement('checkParents').get();
    } catch (error) {
      // A constraint cannot be evaluated, for example.
      throw this.damaged((error as Error).message);
    }
    const text = String(problem?.['quick_check']);
    if (text !== 'ok') throw this.damaged(text.replaceAll('\n', ' '));
    if (broken !== undefined) throw this.damaged(`the parent of the snapshot ${broken['rowid']} is missing`);
  }

  get(name: string): SnapshotRecord | undefined {
    const row = this.#statement('byName').get(name);
    return row && this.#toRecord(row, name);
  }

  byId(id: number): SnapshotRecord | undefined {
    const row = this.#statement('byId').get(id);
    return row && this.#toRecord(row);
  }

  #toRecord(row: Row, key?: string): SnapshotRecord {
    try {
      return toRecord(row);
    } catch {
      throw this.damaged(`the record of ${quoteKey(key ?? String(row['name']))} cannot be read`, key);
    }
  }

  /** All records in the order of their names. */
  *records(): Generator<SnapshotRecord> {
    for (const row of this.#rows('all')) yield this.#toRecord(row);
  }

  /** Adds a record, or changes the one of its number. */
  put({ id, name, kind, parent, created, updated, labels, usage, project }: SnapshotRecord): void {
    const { bytes = null, inodes = null } = usage ?? {};
    const values = [id, name, kind, parent, created, updated, JSON.stringify(labels), bytes, inodes, project ?? null];
    this.#statement('put').run(...values);
  }

  delete({ id }: SnapshotRecord): void {
    this.#statement('delete').run(id);
  }

  hasChild(id: number): boolean {
    return this.#statement('child').get(id) !== undefined;
  }

  /** The numbers of the ancestors, the immediate parent first. */
  ancestors(id: number): number[] {
    return this.#statement('ancestors').all(id).map(toId);
  }

  /** Returns true when a snapshot has this number, or one that is being removed. */
  hasNumber(id: number): boolean {
    return this.#statement('number').get(id) !== undefined;
  }

  /** The numbers of all snapshots. */
  *numbers(): Generator<number> {
    for (const row of this.#rows('numbers')) yield toId(row);
  }

  /** Takes numbers for new directories. No number is ever given out again. Returns the first of them. */
  takeNumbers(count: number): number {
    const row = this.#statement('take').get(count);
    if (row === undefined) throw this.damaged("its table 'numbers' is empty");
    return Number(row['first']);
  }

  /** The numbers whose directories are to be removed. */
  *removing(): Generator<number> {
    for (const row of this.#rows('removing')) yield toId(row);
  }

  putRemoving({ id }: SnapshotRecord): void {
    this.#statement('putRemoving').run(id);
  }

  deleteRemoving(id: number): void {
    this.#statement('deleteRemoving').run(id);
  }
}

const toId = (row: Row): number => Number(row['id']);
