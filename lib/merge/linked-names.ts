/**
 * The names of a directory tree whose files have other hard links, as a baseline keeps them. Without `index`, the kernel
 * does not mark the copy of such a file, so that the upper alone does not tell it from a new file.
 */
import * as e from '../errnos.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { Slices } from '../kernel/slices.js';
import type { Task } from '../kernel/task.js';
import type { Path } from '../paths.js';
import { openRoot } from '../trees/root.js';
import { Walker } from '../trees/walk.js';

/** Bytes of a hash. A store of packages has a hundred thousand such names, each of some hundred bytes. */
const SIZE = 8;

/** A path has one character a byte. */
const hashOf = (path: string): Buffer =>
  process.getBuiltinModule('node:crypto').createHash('sha256').update(path, 'latin1').digest().subarray(0, SIZE);

const gone: ReadonlySet<number> = new Set([e.EACCES, e.ENOENT]);

/** Returns the hashes in base64. Leaves out directories that the process may not read: it can change no file in them. */
export function* recordLinkedNames(dir: Path): Task<string> {
  const root = yield* openRoot(dir);
  const hashes: Buffer[] = [];
  const slices = new Slices();
  const walker = new Walker('', { at: root.descriptor, atPath: dir, unsorted: true });
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.error !== 0 && !gone.has(walker.error)) throw walker.failure();
        if (walker.type === k.S_IFDIR || walker.links < 2) continue;
        hashes.push(hashOf(walker.path));
        if (slices.isOver()) yield* slices.pause();
      }
    }
  } finally {
    walker.close();
    close({ descriptor: root.descriptor });
  }
  return Buffer.concat(hashes.sort(Buffer.compare)).toString('base64');
}

export const isLinkedNames = (value: unknown): value is string =>
  typeof value === 'string' && Buffer.from(value, 'base64').length % SIZE === 0;

export class LinkedNames {
  readonly #hashes = new Set<string>();

  constructor(text: string) {
    const bytes = Buffer.from(text, 'base64').toString('latin1');
    for (let at = 0; at < bytes.length; at += SIZE) this.#hashes.add(bytes.slice(at, at + SIZE));
  }

  has(path: string): boolean {
    return this.#hashes.has(hashOf(path).toString('latin1'));
  }
}
