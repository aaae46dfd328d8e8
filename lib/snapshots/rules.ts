/** containerd's rules for the records, each inside one transaction. A rule checks everything before it changes anything. */
import { option, text } from '../text.js';
import { alreadyExists, failedPrecondition, invalidArgument, notFound, quoteKey } from './errors.js';
import type { Labels, SnapshotRecord, SnapshotUsage } from './records.js';

/** The reads of a transaction. */
export interface Reader {
  get(name: string): SnapshotRecord | undefined;
  hasChild(id: number): boolean;
  /** The numbers of the ancestors, the immediate parent first. */
  ancestors(id: number): readonly number[];
  /** The error for records that contradict each other. */
  damaged(what: string, key: string): Error;
}

/** The changes of a transaction. */
export interface Writer extends Reader {
  put(record: SnapshotRecord): void;
  delete(record: SnapshotRecord): void;
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
  writer.delete(record);
  writer.putRemoving(record);
  return record;
}

/** Changes labels. Returns the new record. */
export function setLabels(
  writer: Writer,
  key: string,
  change: (labels: Labels) => Labels,
  now: bigint,
): SnapshotRecord {
  const record = find(writer, key);
  const changed = { ...record, labels: change(record.labels), updated: now };
  writer.put(changed);
  return changed;
}

/** Returns the numbers of the ancestors, the immediate parent first. */
export function ancestorsOf(reader: Reader, { id, name }: SnapshotRecord): readonly number[] {
  const ancestors = reader.ancestors(id);
  if (new Set([id, ...ancestors]).size <= ancestors.length)
    throw reader.damaged(`the parents of ${quoteKey(name)} form a circle`, name);
  return ancestors;
}
