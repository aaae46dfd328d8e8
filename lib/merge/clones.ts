/** Clones of the directories and files that redirects lead to. A merge makes them before it changes these. */
import * as k from '../kernel/constants.js';
import type { Task } from '../kernel/task.js';
import { below, toBytePath } from '../trees/encodings.js';
import type { Attributes } from '../trees/records.js';
import type { Root } from '../trees/root.js';
import { examine, Walker } from '../trees/walk.js';
import { metadataOf, type TreeWriter, type WrittenXattr } from '../trees/write.js';
import { type Redirected, STAGING } from './check.js';

/** Hard-link copies of the directories and files that redirects lead to. */
export const CLONES = `${STAGING}/clones`;
const CLONES_UNDER_WAY = `${STAGING}/clones.new`;

/** Clones each directory or file that a redirect leads to, before the merge changes it. */
export function* makeClones(
  redirects: ReadonlyMap<bigint, Redirected>,
  dir: Root,
  writer: TreeWriter,
  { breathe, send }: { readonly breathe: () => Task<void>; readonly send: () => Task<void> },
): Task<void> {
  writer.add('directory', CLONES_UNDER_WAY, { mode: 0o700 });
  for (const [inode, { path, type }] of redirects) {
    const root = `${CLONES_UNDER_WAY}/${inode}`;
    if (type !== k.S_IFDIR) {
      // The file holds the data of a renamed metacopy.
      writer.add('link', root, { from: path });
      continue;
    }
    const walker = new Walker(toBytePath(path), {
      at: dir.descriptor,
      atPath: dir.path,
      attributes: 'all',
      followRoot: false,
    });
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          yield* breathe();
          if (walker.error !== 0) throw walker.failure();
          const to = walker.path === '' ? root : below(root, walker.path);
          const from = walker.path === '' ? path : below(path, walker.path);
          if (walker.type === k.S_IFDIR) {
            writer.add('directory', to, { mode: 0o700 });
            writer.addLast(to, { ...metadataOf(walker), xattrs: copied(walker.attributes) });
          } else writer.add('link', to, { from });
          if (writer.isFull) yield* send();
        }
      }
    } finally {
      walker.close();
    }
  }
  yield* writer.finish();
  // An exchange leaves another entry under the clone's name. The name holds the clone's own inode, by which a later
  // call tells the two apart.
  const inodes = [...redirects.keys()];
  const made = yield* examine(
    dir.descriptor,
    inodes.map((inode) => `${CLONES_UNDER_WAY}/${inode}`),
  );
  for (const inode of inodes) {
    made.advance();
    const from = `${CLONES_UNDER_WAY}/${inode}`;
    writer.add('rename', `${from}-${made.inode}`, { from, flags: ['tree'] });
  }
  writer.add('rename', CLONES, { from: CLONES_UNDER_WAY, flags: ['tree'] });
}

/** Maps an inode of the upper to the name of its clone, if no earlier call has put the clone in its place. */
export function* findClones(dir: Root): Task<Map<bigint, string>> {
  const clones = new Map<bigint, string>();
  const walker = new Walker(CLONES, { at: dir.descriptor, atPath: dir.path, followRoot: false });
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.depth !== 1) continue;
        const [upper, own] = walker.name.split('-');
        if (String(walker.inode) === own) clones.set(BigInt(upper as string), walker.name);
        if (walker.type === k.S_IFDIR) walker.skip();
      }
    }
  } finally {
    walker.close();
  }
  return clones;
}

const copied = (attributes: Attributes): WrittenXattr[] =>
  [...attributes].flatMap(([name, value]) => (value === undefined ? [] : [{ name, value: Buffer.from(value) }]));
