/** Entries of an archive become operations of a writer. */
import type { OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import type { Task } from '../kernel/task.js';
import type { OperationKind } from '../native.js';
import type { Path } from '../paths.js';
import type { FoundEntry } from '../tar/entry.js';
import { invalidArchive } from '../tar/invalid.js';
import { option, type Text, text } from '../text.js';
import { shownAttributes } from '../trees/marks.js';
import { findPath, findRoot, openLayers } from '../trees/stack.js';
import type { Bytes, OperationFields, TreeWriter, WrittenXattr } from '../trees/write.js';
import { opaqueName } from '../trees/xattrs.js';
import type { CheckedOptions } from './apply-options.js';
import { type Placed, Placement, Unseen } from './placement.js';

export interface SkippedEntries {
  /**
   * `'device'`: by the option `devices`. `'aufs'`: files of aufs itself. `'attribute'`: the file system or the kernel
   * refuses an attribute. `'attribute-unread'`: an ACL with names of users. `'opaque-root'`: the whole layer hides what
   * is below; the kernel ignores this mark on the root, so mount the layer without lower layers.
   */
  readonly reason: 'device' | 'aufs' | 'attribute' | 'attribute-unread' | 'opaque-root';
  readonly count: number;
  /** The name of the first one in the archive, where it is known. */
  readonly first: string | undefined;
}

/** Files up to this size are one operation. */
const MOST_INLINE = 256 * 1024;
/** They become those of an operation without a copy, which would take longer than the rest. */
type WritableFields = { -readonly [Name in keyof OperationFields]: OperationFields[Name] } & { readonly mode: number };

/** A file whose data is coming. */
interface Open {
  readonly entry: FoundEntry;
  readonly path: string;
  readonly replaces: boolean;
  /** The data so far of a small file: parts that do not follow each other in memory. A large one is written as it comes. */
  readonly parts: Buffer[] | undefined;
}

const MARK = /^(trusted|user)\.overlay\./;
/** A mark in an archive would plant a redirect or hide files; with one level more it is plain data (Linux 6.7). */
const escapeMark = (name: string): string => name.replace(MARK, '$1.overlay.overlay.');

/** The part of the reader's work that writes. */
export class Unpacking {
  readonly placement: Placement;
  readonly #writer: TreeWriter;
  readonly #checked: CheckedOptions;
  readonly #skipped = new Map<SkippedEntries['reason'], { count: number; first: string | undefined }>();
  /** The entries that operations come from: by operation, the byte at which the entry begins. */
  readonly #offsets: number[] = [];
  #open: Open | undefined;
  /** Data of a large file that is not passed on yet: more may follow it in memory. */
  #pending: { bytes: Buffer; readonly position: number } | undefined;
  #offset = 0;
  /** Directories that the next entry needs. It waits for them, and all after it. */
  unseen: Unseen | undefined;
  readonly #waiting: (() => void)[] = [];
  entries = 0;
  bytes = 0;
  whiteouts = 0;

  constructor(writer: TreeWriter, checked: CheckedOptions) {
    this.#writer = writer;
    this.#checked = checked;
    this.placement = new Placement(this, {
      layout: checked.layout,
      opaqueName: opaqueName(checked.userxattr),
      maxPathDepth: checked.maxPathDepth,
      ownerOfMissing: ownerOfMissing(checked.owners),
      describe: (entry) => this.#describe(entry),
    });
  }

  /** As the placement and this class pass operations on. */
  add(kind: OperationKind, path: Bytes, fields?: OperationFields): void {
    this.#offsets.push(this.#offset);
    this.#writer.add(kind, path, fields);
  }

  /** The number of operations so far. */
  get operations(): number {
    return this.#offsets.length;
  }

  /** The byte at which the entry of an operation begins. */
  offsetOf(operation: number): number {
    return this.#offsets[operation] ?? this.#offset;
  }

  /** Goes on when the unseen directories are in the picture. */
  resume(): void {
    this.unseen = undefined;
    while (this.unseen === undefined && this.#waiting.length > 0) this.#waiting.shift()?.();
  }

  entry(entry: FoundEntry): void {
    if (this.unseen !== undefined) {
      this.#waiting.push(() => this.entry(entry));
      return;
    }
    const { maxEntries, maxBytes, devices } = this.#checked;
    this.#offset = entry.offset;
    this.entries++;
    this.bytes += entry.size;
    const limit = (rule: Text): OverlayError => invalidArchive(entry.offset, entry.name, rule, 'archive-limit');
    if (this.entries > maxEntries) throw limit(text`it is one more than ${option('maxEntries')} allows, ${maxEntries}`);
    if (this.bytes > maxBytes)
      throw limit(text`with it, the files have more bytes than ${option('maxBytes')} allows, ${maxBytes}`);
    if (entry.unread.length > 0) this.#skip('attribute-unread', entry, entry.unread.length);
    const isDevice = entry.type === 'block' || (entry.type === 'character' && (entry.major !== 0 || entry.minor !== 0));
    if (isDevice && devices !== 'create') {
      if (devices === 'fail')
        throw invalidArchive(entry.offset, entry.name, text`it is a device, refused by ${option('devices', 'fail')}`);
      this.#skip('device', entry);
      return;
    }
    this.#place(entry);
  }

  #place(entry: FoundEntry): void {
    let placed: Placed;
    try {
      placed = this.placement.place(entry);
    } catch (error) {
      if (!(error instanceof Unseen)) throw error;
      this.unseen = error;
      this.#waiting.unshift(() => this.#place(entry));
      return;
    }
    if (placed.action === 'whiteout') this.whiteouts++;
    else if (placed.action === 'ignored') this.#skip('aufs', entry);
    else if (placed.action === 'opaque-root') this.#skip('opaque-root', entry);
    else if (placed.action === 'file') this.#begin(entry, placed.path, placed.replaces);
  }

  #skip(reason: SkippedEntries['reason'], { name }: FoundEntry, count = 1): void {
    const so = this.#skipped.get(reason);
    if (so === undefined) this.#skipped.set(reason, { count, first: Buffer.from(name, 'latin1').toString() });
    else so.count += count;
  }

  #describe(entry: FoundEntry): WritableFields {
    const { owners } = this.#checked;
    const { mode, mtime } = entry;
    const xattrs = entry.xattrs.size === 0 ? undefined : this.#xattrsOf(entry);
    if (owners === undefined) return { mode, mtime, xattrs };
    const [uid, gid] = [owners.uid(entry.uid), owners.gid(entry.gid)];
    // chown(2) takes the greatest number as "leave it".
    for (const [name, id, given] of [
      ['user', uid, entry.uid],
      ['group', gid, entry.gid],
    ] as const) {
      if (id >= 0 && id < 0xffffffff) continue;
      const rule = Number.isNaN(id)
        ? text`${option('owners')} does not map its ${name} ${given}`
        : `its ${name} ${given} is no id`;
      throw invalidArchive(entry.offset, entry.name, rule);
    }
    return { mode, uid, gid, mtime, xattrs };
  }

  #xattrsOf({ xattrs, type, offset, name: entryName }: FoundEntry): WrittenXattr[] {
    const isPrivileged = this.#checked.owners !== undefined;
    return Array.from(xattrs, ([given, value]) => {
      const name = escapeMark(given);
      if (name.length > 255) throw invalidArchive(offset, entryName, `an attribute has a name of ${name.length} bytes`);
      const isTrusted = name.startsWith('trusted.');
      const isUsers = name.startsWith('user.') && type !== 'file' && type !== 'directory';
      return {
        name,
        value,
        toleratesUnsupported: isTrusted,
        toleratesDenied: isTrusted || isUsers || (!isPrivileged && name.startsWith('security.')),
      };
    });
  }

  #begin(entry: FoundEntry, path: string, replaces: boolean): void {
    const isSmall = entry.size <= MOST_INLINE && entry.segments === undefined;
    this.#open = { entry, path, replaces, parts: isSmall ? [] : undefined };
    if (isSmall) return;
    // Its owner has to be able to open it again, whatever its mode.
    this.add('file', path, { mode: 0o600, ...(replaces && { flags: ['replace'] }) });
  }

  data(bytes: Buffer, position: number): void {
    if (this.unseen !== undefined) {
      this.#waiting.push(() => this.data(bytes, position));
      return;
    }
    if (this.#open === undefined) return;
    const { path, parts } = this.#open;
    if (parts !== undefined) {
      addPart(parts, bytes);
      return;
    }
    const joined = this.#pending && join(this.#pending.bytes, bytes, this.#pending.position, position);
    if (this.#pending !== undefined && joined !== undefined) this.#pending.bytes = joined;
    else {
      this.#flush(path);
      this.#pending = { bytes, position };
    }
  }

  #flush(path: string): void {
    if (this.#pending === undefined) return;
    const { bytes, position } = this.#pending;
    this.#pending = undefined;
    this.add('data', path, { data: bytes, number: position });
  }

  finish(): void {
    if (this.unseen !== undefined) {
      this.#waiting.push(() => this.finish());
      return;
    }
    if (this.#open === undefined) return;
    const { entry, path, replaces, parts } = this.#open;
    this.#open = undefined;
    const fields = this.#describe(entry);
    if (parts !== undefined) {
      const data = parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
      fields.data = data;
      if (replaces) fields.flags = ['replace'];
      this.add('file', path, fields);
      return;
    }
    this.#flush(path);
    if (entry.segments !== undefined) this.add('truncate', path, { number: entry.size });
    this.add('metadata', path, fields);
  }

  /** Gives directories without an entry the metadata that the layers below have for them. */
  *describeImplied(lowers: readonly Path[]): Task<void> {
    const { userxattr } = this.#checked;
    const { implied } = this.placement;
    if (lowers.length === 0 || implied.size === 0) return;
    const stack = yield* openLayers(lowers, { space: userxattr ? 'user' : 'trusted' });
    try {
      for (const [directory, path] of implied) {
        // Another entry may have taken its place.
        if (!this.placement.holds(directory, path)) continue;
        const [top] = path === '' ? [yield* findRoot(stack)] : yield* findPath(stack, path);
        if (top?.type !== k.S_IFDIR) continue;
        const xattrs = Array.from(shownAttributes(top.attributes, stack.space), ([name, value = Buffer.alloc(0)]) => ({
          name,
          value,
        }));
        const { mode, uid, gid, mtime } = top;
        const owner = this.#checked.owners === undefined ? {} : { uid, gid };
        this.add('metadata', path, { mode: mode & 0o7777, ...owner, xattrs });
        directory.mtime = mtime;
        if (this.#writer.isFull) yield* this.#writer.send();
      }
    } finally {
      stack.close();
    }
  }

  /** Ends with a chunk, which is about to be overwritten. Keeps what has come of a small file. */
  keep(): void {
    if (this.#open === undefined) return;
    const { parts, path } = this.#open;
    this.#flush(path);
    if (parts === undefined || parts.length === 0) return;
    parts[parts.length - 1] = Buffer.from(parts[parts.length - 1] as Buffer);
  }

  skipped(): SkippedEntries[] {
    const all = Array.from(this.#skipped, ([reason, rest]) => ({ reason, ...rest }));
    const { tolerated } = this.#writer.totals;
    return tolerated === 0 ? all : [...all, { reason: 'attribute', count: tolerated, first: undefined }];
  }
}

/** Returns both as one, if the second follows the first in memory and in the file. */
function join(first: Buffer, second: Buffer, position = 0, next = first.length): Buffer | undefined {
  const follows = first.buffer === second.buffer && first.byteOffset + first.length === second.byteOffset;
  if (!follows || position + first.length !== next) return undefined;
  return Buffer.from(first.buffer, first.byteOffset, first.length + second.length);
}

function addPart(parts: Buffer[], bytes: Buffer): void {
  const last = parts.at(-1);
  const joined = last && join(last, bytes);
  if (joined === undefined) parts.push(bytes);
  else parts[parts.length - 1] = joined;
}

/** Root, as far as it is mapped. */
export function ownerOfMissing(owners: CheckedOptions['owners']): { uid?: number; gid?: number } {
  if (owners === undefined) return {};
  const [uid, gid] = [owners.uid(0), owners.gid(0)];
  return { ...(uid >= 0 && { uid }), ...(gid >= 0 && { gid }) };
}
