/** What a tree holds, in a form that can be compared. */
import { seeTree } from './random-tree.js';

export interface Seen {
  readonly path: string;
  readonly [key: string]: unknown;
}

/** What a tree holds, without what is by chance: inode numbers become groups of linked paths. */
export function look(root: string): Seen[] {
  const seen = [...seeTree(root).values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  const first = new Map<bigint, string>();
  return seen.map(({ inode, size, ...rest }) => {
    const isDirectory = rest.type === 0o040000;
    if (!first.has(inode)) first.set(inode, rest.path);
    return { ...rest, ...(isDirectory ? {} : { size, linked: first.get(inode) }) };
  });
}
