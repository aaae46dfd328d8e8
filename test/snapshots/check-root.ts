/**
 * Checks a root against the layout in docs/snapshots.md, without the library: the records by SQLite itself, the
 * directories by node:fs.
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

export interface FoundRecord {
  readonly name: string;
  readonly id: number;
  readonly kind: 'active' | 'view' | 'committed';
  readonly parent: string;
  readonly created: string;
  readonly updated: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly usage?: { readonly size: number; readonly inodes: number };
}

export interface FoundRoot {
  readonly records: ReadonlyMap<string, FoundRecord>;
  /** The first number that nobody has taken. */
  readonly next: number;
  readonly removing: readonly number[];
  /** Contradictions to the layout. */
  readonly problems: readonly string[];
}

type Row = Readonly<Record<string, string | number | null>>;

interface Database {
  prepare(sql: string): { all(): Row[] };
  exec(sql: string): void;
  close(): void;
}

/** SQLite as the library chooses it: two in one process would not see each other's locks. */
export async function openDatabase(root: string, options: { readOnly?: boolean } = {}): Promise<Database> {
  const name: string = '@photostructure/sqlite';
  const module: unknown = process.getBuiltinModule('node:sqlite') ?? (await import(name));
  const { DatabaseSync } = module as { DatabaseSync: new (path: string, options: object) => Database };
  return new DatabaseSync(join(root, 'metadata.db'), options);
}

/** `isClean`: after a clean-up, when nothing may be left of what was removed or broken off. */
export async function checkRoot(root: string, isClean: boolean): Promise<FoundRoot> {
  const database = await openDatabase(root, { readOnly: true });
  try {
    database.exec('PRAGMA busy_timeout = 5000; BEGIN');
    const all = (sql: string): Row[] => database.prepare(sql).all();
    const only = (sql: string): string => String(Object.values(all(sql)[0] ?? {})[0]);
    const problems: string[] = [];
    const expect = (isTrue: boolean, problem: string): void => {
      if (!isTrue) problems.push(problem);
    };

    expect(only('PRAGMA user_version') === '2', `the version is ${only('PRAGMA user_version')}`);
    expect(only('PRAGMA integrity_check') === 'ok', only('PRAGMA integrity_check'));
    expect(all('PRAGMA foreign_key_check').length === 0, 'a parent is missing');
    const next = Number(only('SELECT next FROM numbers'));
    const records = new Map<string, FoundRecord>();
    const byId = new Map<number, FoundRecord>();
    const fields = 'id, name, kind, parent, CAST(created AS TEXT) AS created, CAST(updated AS TEXT) AS updated, labels';
    const rows = all(`SELECT ${fields}, size, inodes FROM snapshots`);
    const nameOf = new Map(rows.map(({ id, name }) => [id, String(name)]));
    for (const { id, name, kind, parent, created, updated, labels, size, inodes } of rows) {
      const record = {
        ...{ id: Number(id), name: String(name), kind: kind as FoundRecord['kind'] },
        parent: parent === null ? '' : String(nameOf.get(parent as number)),
        ...{ created: String(created), updated: String(updated), labels: JSON.parse(String(labels)) },
        ...(size !== null && { usage: { size: Number(size), inodes: Number(inodes) } }),
      };
      expect(record.id < next, `${name} has the number ${id}, which nobody has taken`);
      records.set(record.name, record);
      byId.set(record.id, record);
    }
    for (const { name, parent } of records.values()) {
      if (parent === '') continue;
      expect(records.get(parent)?.kind === 'committed', `the parent of ${name} is ${records.get(parent)?.kind}`);
    }
    const removing = all('SELECT id FROM removing').map(({ id }) => Number(id));
    for (const id of removing) expect(!byId.has(id), `${id} is being removed, and ${byId.get(id)?.name} has it`);
    for (const { name, id, kind } of records.values()) {
      for (const part of kind === 'view' ? ['fs'] : ['fs', 'work']) {
        expect(existsSync(join(root, 'snapshots', String(id), part)), `${name} has no ${id}/${part}`);
      }
    }
    if (isClean) {
      const found = readdirSync(join(root, 'snapshots'));
      for (const id of found) expect(byId.has(Number(id)), `the directory ${id} is nobody's`);
      expect(readdirSync(join(root, 'removed')).length === 0, 'something is left in removed');
      expect(removing.length === 0, `${removing} are still being removed`);
    }
    return { records, next, removing, problems };
  } finally {
    database.close();
  }
}
