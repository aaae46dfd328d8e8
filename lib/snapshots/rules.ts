/** containerd's rules for the records, each inside one transaction. A rule checks everything before it changes anything. */
import { option, text } from '../text.js';
import { alreadyExists, failedPrecondition, invalidArgument, notFound, quoteKey } from './errors.js';
import type { Labels, SnapshotRecord, SnapshotUsage } from './records.js';

/** The reads of a transaction. */
export interface Reader {
  get(name: string): SnapshotRecord | undefined;
  hasChild(id: number): boolean;
  /** The error for records that contradict each other. */
  damaged(what: string, key: string): Error;
}

/** The changes of a transaction. */
export interface Writer extends Reader {
  put(record: SnapshotRecord): void;
  delete(record: SnapshotRecord): void;
  link(parent: number, child: number): void;
  unlink(parent: number, child: number): void;
  putRemoving(record: SnapshotRecord): void;
}

export function find(reader: Reader, key: string): SnapshotRecord {
  const record = reader.get(key);
  if (record === undefined) throw notFound(key);
  return record;
}

/** Returns the parent's record, if there is to be one. */
function findParent(reader: Reader, key: string, parent: string): SnapshotRecord | undefined {
  if (parent === '') return undefined;
  const record = reader.get(parent);
  if (record === undefined) throw notFound(parent, `the parent ${quoteKey(parent)} of ${quoteKey(key)} does not exist`);
  return record;
}

export interface Creation {
  readonly key: string;
  readonly parent: string;
}

/** Checks that a snapshot can be made. Returns its parent. */
export function checkCreation(reader: Reader, { key, parent }: Creation): SnapshotRecord | undefined {
  const found = findParent(reader, key, parent);
  if (found !== undefined && found.kind !== 'committed') {
    throw invalidArgument(
      parent,
      `the parent ${quoteKey(parent)} of ${quoteKey(key)} is not committed`,
      'commit it first, or name a committed snapshot',
    );
  }
  if (reader.get(key) !== undefined) throw alreadyExists(key);
  return found;
}

/** Adds a snapshot that can be made. */
export function create(writer: Writer, record: SnapshotRecord, parent: SnapshotRecord | undefined): void {
  writer.put(record);
  if (parent !== undefined) writer.link(parent.id, record.id);
}

export interface Committal {
  readonly name: string;
  readonly key: string;
  /** The parent to rebase on, or `''`. */
  readonly parent: string;
}

/** Checks that a snapshot can be committed. Returns it, and the parent that it will have. */
export function checkCommittal(
  reader: Reader,
  { name, key, parent }: Committal,
): { readonly active: SnapshotRecord; readonly newParent: SnapshotRecord | undefined } {
  const active = find(reader, key);
  if (reader.get(name) !== undefined) throw alreadyExists(name);
  if (active.kind !== 'active') {
    throw failedPrecondition(
      key,
      `the snapshot ${quoteKey(key)} is not active, but ${active.kind}`,
      'commit a snapshot that was prepared',
    );
  }
  if (parent !== '' && active.parent !== '' && parent !== active.parent) {
    throw invalidArgument(
      key,
      `the snapshot ${quoteKey(key)} has the parent ${quoteKey(active.parent)} and cannot get ${quoteKey(parent)}`,
      text`leave ${option('parent')} out: only a snapshot without a parent can be rebased`,
    );
  }
  const newParent = findParent(reader, key, active.parent === '' ? parent : active.parent);
  if (newParent !== undefined && newParent.kind !== 'committed') {
    throw failedPrecondition(
      newParent.name,
      `the parent ${quoteKey(newParent.name)} of ${quoteKey(key)} is not committed`,
      'commit it first, or name a committed snapshot',
    );
  }
  return { active, newParent };
}

export interface CommittedFields {
  readonly labels: Labels;
  readonly usage: SnapshotUsage;
  readonly now: bigint;
}

/** Makes an active snapshot a committed one of another name. Its labels are replaced. */
export function commit(writer: Writer, committal: Committal, { labels, usage, now }: CommittedFields): void {
  const { active, newParent } = checkCommittal(writer, committal);
  const { id, project } = active;
  const parent = newParent?.name ?? '';
  writer.delete(active);
  writer.put({
    name: committal.name,
    id,
    kind: 'committed',
    parent,
    created: now,
    updated: now,
    labels,
    usage,
    ...(project !== undefined && { project }),
  });
  if (newParent !== undefined) writer.link(newParent.id, id);
}

/** Takes the record away. Its number is then among those whose directories are to be removed. */
export function remove(writer: Writer, key: string): SnapshotRecord {
  const record = find(writer, key);
  if (writer.hasChild(record.id)) {
    throw failedPrecondition(
      key,
      `the snapshot ${quoteKey(key)} cannot be removed: it has children`,
      'remove its children first',
    );
  }
  const parent = findParent(writer, key, record.parent);
  writer.delete(record);
  if (parent !== undefined) writer.unlink(parent.id, record.id);
  writer.putRemoving(record);
  return record;
}

/** Changes labels. Returns the new record. */
export function update(writer: Writer, key: string, change: (labels: Labels) => Labels, now: bigint): SnapshotRecord {
  const record = find(writer, key);
  const changed = { ...record, labels: change(record.labels), updated: now };
  writer.put(changed);
  return changed;
}

/** Returns the ancestors' records, the immediate parent first. */
export function ancestorsOf(reader: Reader, { name, parent }: SnapshotRecord): SnapshotRecord[] {
  const ancestors: SnapshotRecord[] = [];
  const seen = new Set([name]);
  for (let next = parent; next !== ''; ) {
    if (seen.has(next)) throw reader.damaged(`the parents of ${quoteKey(name)} form a circle`, name);
    seen.add(next);
    const record = reader.get(next);
    if (record === undefined)
      throw reader.damaged(`the parent ${quoteKey(next)} of ${quoteKey(name)} is missing`, name);
    ancestors.push(record);
    next = record.parent;
  }
  return ancestors;
}
