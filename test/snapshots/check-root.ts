/**
 * Checks a root against the layout in docs/snapshots.md, without the library: the records by LMDB itself, the
 * directories by node:fs.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';

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

interface Table {
  getRange(range: object): Iterable<{ key: Buffer; value: Buffer }>;
  get(key: Buffer): Buffer | undefined;
}

function unseal(bytes: Buffer | undefined): string {
  if (bytes === undefined || bytes.length < 4) throw new Error('there is no checksum');
  const text = bytes.subarray(4);
  if (bytes.readUInt32LE() !== crc32(text)) throw new Error(`the checksum is wrong: ${text}`);
  return text.toString();
}

function keyOf(name: string): string {
  const bytes = Buffer.from(name);
  if (bytes.length < 480) return bytes.toString('hex');
  return bytes.subarray(0, 448).toString('hex') + createHash('sha256').update(bytes).digest('hex');
}

/** `isClean`: after a clean-up, when nothing may be left of what was removed or broken off. */
export async function checkRoot(root: string, isClean: boolean): Promise<FoundRoot> {
  const name: string = 'lmdb';
  const { open } = await import(name);
  const options = { encoding: 'binary', keyEncoding: 'binary' };
  const environment = open({ path: join(root, 'metadata.mdb'), noSubdir: true, readOnly: true, ...options, maxDbs: 8 });
  try {
    const table = (name: string): Table => environment.openDB({ name, ...options });
    const entries = (name: string) => [...table(name).getRange({})];
    const number = (key: string) => Number(unseal(table('about').get(Buffer.from(key))));
    const problems: string[] = [];
    const expect = (isTrue: boolean, problem: string): void => {
      if (!isTrue) problems.push(problem);
    };

    expect(number('version') === 1, `the version is ${number('version')}`);
    const next = number('next');
    const records = new Map<string, FoundRecord>();
    const byId = new Map<number, FoundRecord>();
    for (const { key, value } of entries('snapshots')) {
      const record: FoundRecord = { labels: {}, ...JSON.parse(unseal(value)) };
      expect(key.toString('hex') === keyOf(record.name), `${record.name} has another key`);
      expect(!byId.has(record.id), `two records have the number ${record.id}`);
      expect(record.id < next, `${record.name} has the number ${record.id}, which nobody has taken`);
      records.set(record.name, record);
      byId.set(record.id, record);
    }
    const numbers = new Map(entries('numbers').map(({ key, value }) => [Number(key.readBigUInt64BE()), String(value)]));
    expect(numbers.size === records.size, 'numbers and snapshots differ in size');
    for (const { name, id } of records.values()) expect(numbers.get(id) === name, `${id} is not that of ${name}`);

    const links = new Set(entries('children').map(({ key }) => `${key.readBigUInt64BE()} ${key.readBigUInt64BE(8)}`));
    let children = 0;
    for (const { name, id, parent } of records.values()) {
      if (parent === '') continue;
      children++;
      const above = records.get(parent);
      expect(above?.kind === 'committed', `the parent of ${name} is ${above?.kind}`);
      expect(links.has(`${above?.id} ${id}`), `${name} is no child of ${parent}`);
    }
    expect(links.size === children, 'children and snapshots differ');

    const removing = entries('removing').map(({ key }) => Number(key.readBigUInt64BE()));
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
    await environment.close();
  }
}
