/**
 * Looks through the file of an LMDB environment, without LMDB: that trusts what the file says, and a program that reads a
 * damaged one with it may end by a signal. The layout is that of LMDB's data version 2, which lmdb uses. Pure.
 */

import { Slices } from '../kernel/slices.js';
import type { Task } from '../kernel/task.js';

const MAGIC = 0xbeefc0de;
const DATA_VERSION = 2;
const PAGE_HEADER = 24;
const NODE_HEADER = 8;
const DB_SIZE = 48;

const pageFlag = { branch: 0x01, leaf: 0x02, overflow: 0x04, meta: 0x08 } as const;
const nodeFlag = { big: 0x01, sub: 0x02 } as const;

/** The root of a tree that is empty. */
const NO_PAGE = 2n ** 64n - 1n;

/** The most pages on the way to a leaf: LMDB's CURSOR_STACK. */
const MOST_LEVELS = 32;

export interface Entry {
  readonly key: Buffer;
  readonly value: Buffer;
}

interface Meta {
  readonly pageSize: number;
  readonly lastPage: bigint;
  readonly transaction: bigint;
  /** The places of the trees of free pages and of tables. */
  readonly trees: readonly number[];
}

function readMeta(file: Buffer, at: number): Meta | undefined {
  if (file.length < at + 168) return undefined;
  const flags = file.readUInt16LE(at + 18);
  const isMeta = (flags & pageFlag.meta) !== 0 && file.readUInt32LE(at + 24) === MAGIC;
  if (!isMeta || (file.readUInt32LE(at + 28) & 0xffff) !== DATA_VERSION) return undefined;
  const pageSize = file.readUInt32LE(at + 48);
  if (pageSize < 512 || pageSize > 65536 || (pageSize & (pageSize - 1)) !== 0) return undefined;
  return {
    pageSize,
    lastPage: file.readBigUInt64LE(at + 144),
    transaction: file.readBigUInt64LE(at + 152),
    trees: [at + 48, at + 48 + DB_SIZE],
  };
}

/** Returns the newer one of the two meta pages. */
function findMeta(file: Buffer): Meta | undefined {
  const first = readMeta(file, 0);
  const metas = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
    .filter((size) => first === undefined || size === first.pageSize)
    .map((size) => readMeta(file, size));
  return [first, ...metas]
    .filter((meta) => meta !== undefined)
    .reduce<Meta | undefined>((a, b) => (a !== undefined && a.transaction >= b.transaction ? a : b), undefined);
}

/** The number of the last transaction, to tell if the file has changed meanwhile; undefined if there is none. */
export const lastTransaction = (file: Buffer): bigint | undefined => findMeta(file)?.transaction;

const MOST_PROBLEMS = 10;

class Reader {
  readonly problems: string[] = [];
  readonly #file: Buffer;
  readonly #pageSize: number;
  readonly #pages: number;
  readonly #seen: Uint8Array;
  readonly #slices = new Slices();

  constructor(file: Buffer, pageSize: number) {
    this.#file = file;
    this.#pageSize = pageSize;
    this.#pages = Math.floor(file.length / pageSize);
    this.#seen = new Uint8Array(this.#pages);
  }

  complain(problem: string): void {
    if (this.problems.length < MOST_PROBLEMS) this.problems.push(problem);
  }

  /** Returns a page, once, if it is there and says that it is this one. */
  #take(number: bigint, flags: number, count = 1): Buffer | undefined {
    const page = Number(number);
    if (number < 2n || page + count > this.#pages) {
      this.complain(`page ${number} is behind the end of the file`);
      return undefined;
    }
    const at = page * this.#pageSize;
    const bytes = this.#file.subarray(at, at + count * this.#pageSize);
    if (bytes.readBigUInt64LE(0) !== number || (bytes.readUInt16LE(18) & 0x0f) !== flags) {
      this.complain(`page ${number} is not what it should be`);
      return undefined;
    }
    for (let i = page; i < page + count; i++) {
      if (this.#seen[i] !== 0) {
        this.complain(`page ${i} is used twice`);
        return undefined;
      }
      this.#seen[i] = 1;
    }
    return bytes;
  }

  /** Yields the nodes of a page by their offsets, and where the page ends. */
  *#nodes(page: Buffer, number: bigint): Generator<number> {
    // Counted from the end of the header on, as are the places of the nodes.
    const [lower, upper] = [page.readUInt16LE(20), page.readUInt16LE(22)];
    const room = this.#pageSize - PAGE_HEADER;
    if (lower > upper || upper > room || (lower & 1) !== 0) {
      this.complain(`page ${number} has a damaged header`);
      return;
    }
    for (let i = 0; i < lower; i += 2) {
      const place = page.readUInt16LE(PAGE_HEADER + i);
      const node = PAGE_HEADER + place;
      const isInside = place >= upper && place + NODE_HEADER <= room;
      if (isInside && place + NODE_HEADER + page.readUInt16LE(node + 6) <= room) yield node;
      else this.complain(`page ${number} has a damaged entry`);
    }
  }

  /** Reads the tree whose description is at a place of these bytes. `use` gets each entry, with its flags. */
  *readTree(bytes: Buffer, at: number, name: string, use: (entry: Entry, flags: number) => void): Task<void> {
    const [depth, count, root] = [
      bytes.readUInt16LE(at + 6),
      bytes.readBigUInt64LE(at + 32),
      bytes.readBigUInt64LE(at + 40),
    ];
    if (root === NO_PAGE) return;
    if (depth === 0 || depth > MOST_LEVELS) {
      this.complain(`the tree of ${name} has ${depth} levels`);
      return;
    }
    let found = 0n;
    const before = this.problems.length;
    const left: [number: bigint, level: number][] = [[root, depth]];
    for (let next = left.pop(); next !== undefined; next = left.pop()) {
      const [number, level] = next;
      const page = this.#take(number, level === 1 ? pageFlag.leaf : pageFlag.branch);
      if (page === undefined) continue;
      for (const node of this.#nodes(page, number)) {
        const [low, high, flags] = [page.readUInt16LE(node), page.readUInt16LE(node + 2), page.readUInt16LE(node + 4)];
        if (level > 1) left.push([BigInt(low + high * 2 ** 16) + (BigInt(flags) << 32n), level - 1]);
        else {
          found++;
          const keyEnd = node + NODE_HEADER + page.readUInt16LE(node + 6);
          const value = this.#value(page, keyEnd, low + high * 2 ** 16, flags, number);
          if (value !== undefined) use({ key: page.subarray(node + NODE_HEADER, keyEnd), value }, flags);
        }
      }
      yield* this.#slices.pause();
    }
    if (found !== count && this.problems.length === before) {
      this.complain(`${name} has ${found} entries instead of ${count}`);
    }
  }

  #value(page: Buffer, at: number, size: number, flags: number, number: bigint): Buffer | undefined {
    if ((flags & nodeFlag.big) === 0) {
      if (at + size <= this.#pageSize) return page.subarray(at, at + size);
    } else if (at + 8 <= this.#pageSize) {
      const count = Math.ceil((PAGE_HEADER + size) / this.#pageSize);
      return this.#take(page.readBigUInt64LE(at), pageFlag.overflow, count)?.subarray(PAGE_HEADER, PAGE_HEADER + size);
    }
    this.complain(`page ${number} has a damaged value`);
    return undefined;
  }
}

/** Reads all tables. `use` gets each entry, and says if it is wrong. Returns the first things that are wrong. */
export function* readPages(
  file: Buffer,
  use: (table: string, entry: Entry) => string | undefined,
): Task<readonly string[]> {
  const meta = findMeta(file);
  if (meta === undefined) return ['it has no valid meta page'];
  const reader = new Reader(file, meta.pageSize);
  const [free = 0, main = 0] = meta.trees;
  // LMDB makes the file longer before it writes to the pages, and may leave out free ones at the end.
  if (file.length % meta.pageSize !== 0) reader.complain('its last page is cut off');
  yield* reader.readTree(file, free, 'the free pages', () => {});
  const found: [name: string, description: Buffer][] = [];
  yield* reader.readTree(file, main, 'the tables', ({ key, value }, flags) => {
    if ((flags & nodeFlag.sub) !== 0 && value.length === DB_SIZE) found.push([nameOf(key), value]);
  });
  for (const [name, description] of found) {
    yield* reader.readTree(description, 0, `the table '${name}'`, (entry) => {
      const problem = use(name, entry);
      if (problem !== undefined) reader.complain(problem);
    });
  }
  return reader.problems;
}

/** The name of a table, which may end in a NUL. */
function nameOf(key: Buffer): string {
  const end = key.indexOf(0);
  return key.toString('utf8', 0, end < 0 ? key.length : end);
}
