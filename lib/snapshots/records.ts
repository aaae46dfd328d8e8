/**
 * The records of the store as bytes. docs/snapshots.md describes this layout; a change of it needs a new version of the
 * store. Pure.
 */
/** The kind of a snapshot: one that is being written, a read-only view, or one that is complete. */
export type SnapshotKind = 'active' | 'view' | 'committed';

export type Labels = Readonly<Record<string, string>>;

/** The space that a snapshot takes, without its parents. */
export interface SnapshotUsage {
  /** In bytes. */
  readonly size: number;
  readonly inodes: number;
}

export interface SnapshotRecord {
  readonly name: string;
  /** The number of its directory. */
  readonly id: number;
  readonly kind: SnapshotKind;
  /** The name of the parent, or `''`. */
  readonly parent: string;
  /** In nanoseconds since 1970, like `updated`. */
  readonly created: bigint;
  readonly updated: bigint;
  readonly labels: Labels;
  /** Set for a committed snapshot. */
  readonly usage?: SnapshotUsage;
  /** The project whose quota tells its usage, where it was made with one. */
  readonly project?: number;
}

/** Names of fewer bytes are keys as they are. A key of a longer name has exactly this size: its start, and its digest. */
const LONG_KEY = 480;
const DIGEST = 32;

/** Returns the key of a name in the table `snapshots`. */
export function toKey(name: string): Buffer {
  const bytes = Buffer.from(name);
  if (bytes.length < LONG_KEY) return bytes;
  const { createHash } = process.getBuiltinModule('node:crypto');
  return Buffer.concat([bytes.subarray(0, LONG_KEY - DIGEST), createHash('sha256').update(bytes).digest()]);
}

/** Returns the key of a number in the table `removing`, or of a parent's number and a child's in `children`. */
export function toNumberKey(...numbers: readonly number[]): Buffer {
  const key = Buffer.alloc(8 * numbers.length);
  numbers.forEach((number, i) => {
    key.writeBigUInt64BE(BigInt(number), 8 * i);
  });
  return key;
}

/** Returns the number at a position of such a key. */
export const fromNumberKey = (key: Uint8Array, position = 0): number =>
  Number(Buffer.from(key.buffer, key.byteOffset, key.length).readBigUInt64BE(8 * position));

const CHECKSUM = 4;

// At the first use: programs that have no store need no node:zlib.
let checksum = (bytes: Uint8Array): number => {
  checksum = process.getBuiltinModule('node:zlib').crc32;
  return checksum(bytes);
};

/** Puts a checksum before the text: CRC-32, 4 bytes, little-endian. */
function seal(text: string): Buffer {
  const size = Buffer.byteLength(text);
  const bytes = Buffer.allocUnsafe(CHECKSUM + size);
  bytes.write(text, CHECKSUM);
  bytes.writeUInt32LE(checksum(bytes.subarray(CHECKSUM)));
  return bytes;
}

/** Returns the text behind the checksum, or undefined if they do not belong together. */
function unseal(bytes: Buffer): string | undefined {
  if (bytes.length < CHECKSUM) return undefined;
  // lmdb reads into a larger buffer, whose `length` it sets.
  const text = bytes.subarray(CHECKSUM, bytes.length);
  return checksum(text) === bytes.readUInt32LE() ? text.toString() : undefined;
}

const noLabels: Labels = Object.freeze({});

/** Labels that are empty are left out: then there is less to read. */
export function encodeRecord({ created, updated, labels, ...rest }: SnapshotRecord): Buffer {
  const given = Object.keys(labels).length === 0 ? {} : { labels };
  return seal(JSON.stringify({ ...rest, ...given, created: String(created), updated: String(updated) }));
}

const kinds: ReadonlySet<unknown> = new Set<SnapshotKind>(['active', 'view', 'committed']);

/** Returns undefined if the bytes are damaged, or no record. */
export function decodeRecord(bytes: Buffer): SnapshotRecord | undefined {
  const text = unseal(bytes);
  if (text === undefined) return undefined;
  try {
    const record = JSON.parse(text);
    const { name, id, kind, parent, created, updated } = record;
    record.labels ??= noLabels;
    const isRecord =
      typeof name === 'string' &&
      typeof parent === 'string' &&
      typeof record.labels === 'object' &&
      kinds.has(kind) &&
      Number.isSafeInteger(id) &&
      id > 0;
    if (!isRecord) return undefined;
    record.created = BigInt(created);
    // Most snapshots are never updated.
    record.updated = updated === created ? record.created : BigInt(updated);
    return record;
  } catch {
    return undefined;
  }
}

/** Returns true when bytes of `encodeRecord` or `encodeNumber` are as they were written. */
export const isSealed = (bytes: Buffer): boolean => unseal(bytes) !== undefined;

export const encodeNumber = (number: number): Buffer => seal(String(number));

/** Returns undefined if the bytes are damaged. */
export function decodeNumber(bytes: Buffer): number | undefined {
  const number = Number(unseal(bytes) || undefined);
  return Number.isSafeInteger(number) ? number : undefined;
}
