/**
 * SQLite: `node:sqlite` where Node has it without a flag, else the optional peer dependency `@photostructure/sqlite`, which
 * has the same interface. Both open their files close-on-exec.
 */
import { missingPackages } from '../peers.js';
import { SnapshotError } from './errors.js';

export type Value = string | number | bigint | null;
export type Row = Readonly<Record<string, Value>>;

export interface Statement {
  get(...values: Value[]): Row | undefined;
  all(...values: Value[]): Row[];
  iterate(...values: Value[]): IterableIterator<Row>;
  run(...values: Value[]): { readonly changes: number | bigint };
  setReadBigInts(isOn: boolean): void;
}

export interface Connection {
  exec(sql: string): void;
  prepare(sql: string): Statement;
  close(): void;
}

interface Sqlite {
  readonly DatabaseSync: new (path: string | URL, options?: { readonly readOnly?: boolean }) => Connection;
}

/** The package for a Node without `node:sqlite`. Its versions from 2 on need Node 22. */
const SQLITE_PACKAGE = '@photostructure/sqlite';

let loaded: Sqlite | undefined;

/** Returns Node's own SQLite, without its warning that the module is experimental (Node 22 to 24). */
function builtIn(): Sqlite | undefined {
  const { emitWarning } = process;
  process.emitWarning = (warning: string | Error, ...rest: unknown[]): void => {
    if (!String(warning).startsWith('SQLite ')) Reflect.apply(emitWarning, process, [warning, ...rest]);
  };
  try {
    return process.getBuiltinModule('node:sqlite') as unknown as Sqlite | undefined;
  } finally {
    process.emitWarning = emitWarning;
  }
}

/** @throws {SnapshotError} `ERR_SNAPSHOT_DEPENDENCY_MISSING` */
export async function loadSqlite(): Promise<Sqlite> {
  try {
    // Not a literal: the types of the package are not for all settings of TypeScript.
    const name: string = SQLITE_PACKAGE;
    loaded ??= builtIn() ?? ((await import(name)) as Sqlite);
    return loaded;
  } catch (cause) {
    throw new SnapshotError(
      {
        code: 'ERR_SNAPSHOT_DEPENDENCY_MISSING',
        ...missingPackages('the snapshotter', [`${SQLITE_PACKAGE}@1`], 'Node 22.13 and later have SQLite themselves'),
      },
      { cause },
    );
  }
}

/** The primary result codes that mean something here: https://sqlite.org/rescode.html */
export const code = {
  /** A statement that does not fit the tables. */
  error: 1,
  busy: 5,
  locked: 6,
  readonly: 8,
  io: 10,
  corrupt: 11,
  full: 13,
  cannotOpen: 14,
  notADatabase: 26,
} as const;

/** The messages of SQLite for these codes, by sqlite3_errstr(). */
const codes: ReadonlyMap<string, number> = new Map([
  ['database is locked', code.busy],
  ['database table is locked', code.locked],
  ['attempt to write a readonly database', code.readonly],
  ['disk I/O error', code.io],
  ['database disk image is malformed', code.corrupt],
  ['database or disk is full', code.full],
  ['unable to open database file', code.cannotOpen],
  ['file is not a database', code.notADatabase],
]);

/** Returns the primary result code of an error of SQLite, 0 if it is not known; undefined for another error. */
export function codeOf(error: unknown): number | undefined {
  const { errcode, code: name, message } = error as NodeJS.ErrnoException & { readonly errcode?: unknown };
  if (typeof errcode === 'number') return errcode & 0xff;
  // The package gives the errors of `all` and `iterate` no code.
  return name === 'ERR_SQLITE_ERROR' ? (codes.get(message) ?? 0) : undefined;
}
