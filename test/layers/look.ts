/** Reads the contents of a tree in a form that can be compared. */
import { seeTree } from './random-tree.js';

export interface Seen {
  readonly path: string;
  readonly [key: string]: unknown;
}

/** Returns the contents of a tree without accidental values: groups of linked paths replace inode numbers. */
export function look(root: string): Seen[] {
  const seen = [...seeTree(root).values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  const first = new Map<bigint, string>();
  return seen.map(({ inode, size, ...rest }) => {
    const isDirectory = rest.type === 0o040000;
    if (!first.has(inode)) first.set(inode, rest.path);
    return { ...rest, ...(isDirectory ? {} : { size, linked: first.get(inode) }) };
  });
}
