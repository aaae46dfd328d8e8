/**
 * The marks of a layer: its entries' types, device numbers and extended attributes that mean something to overlayfs.
 * Pure; works on the records of a walk.
 */

import * as k from '../kernel/constants.js';
import type { Attributes, Records } from './records.js';

/**
 * The namespace of the attributes that count: `trusted.overlay.*`, or `user.overlay.*` for a mount with `userxattr`.
 * `'either'` if the namespace is not known.
 */
export type MarkSpace = 'trusted' | 'user' | 'either';

const prefixes = { trusted: 'trusted.overlay.', user: 'user.overlay.' } as const;
const ESCAPE = 'overlay.';

/** Returns the name of a mark without its prefix, or undefined if the attribute is no mark of this namespace. */
export function markName(attribute: string, space: MarkSpace): string | undefined {
  for (const one of ['trusted', 'user'] as const) {
    if (space !== one && space !== 'either') continue;
    const prefix = prefixes[one];
    if (!attribute.startsWith(prefix)) continue;
    const name = attribute.slice(prefix.length);
    return name.startsWith(ESCAPE) ? undefined : name;
  }
  return undefined;
}

/** Returns the attribute's name as it shows through a mount; undefined if it does not show. */
export function shownName(attribute: string, space: MarkSpace): string | undefined {
  for (const one of ['trusted', 'user'] as const) {
    const prefix = prefixes[one];
    if ((space !== one && space !== 'either') || !attribute.startsWith(prefix)) continue;
    const name = attribute.slice(prefix.length);
    return name.startsWith(ESCAPE) ? prefix + name.slice(ESCAPE.length) : undefined;
  }
  return attribute;
}

/** Returns the attributes as they show through a mount: marks are hidden, and escaped names lose one level. */
export function shownAttributes(attributes: Attributes, space: MarkSpace): Attributes {
  if (attributes.size === 0) return attributes;
  const shown = new Map<string, Buffer | undefined>();
  for (const [attribute, value] of attributes) {
    const name = shownName(attribute, space);
    if (name !== undefined) shown.set(name, value);
  }
  return shown;
}

export interface Marks {
  /** On a directory: `'y'` hides the contents below it; `'x'` says that empty files in it may be whiteouts. */
  readonly opaque?: 'y' | 'x';
  /** On an empty file, which is then a whiteout. */
  readonly whiteout?: true;
  /**
   * The path of the contents or data in the layers below: a path from the root of the overlay, which begins with a slash,
   * or a name in the same directory. It has one character for each byte.
   */
  readonly redirect?: string;
  /** On a file: its data is that of the file below. */
  readonly metacopy?: true;
  /** On a directory: some of its entries may be copied up. */
  readonly impure?: true;
  /** The file handle of the entry that was copied up. The value may be empty. */
  readonly origin?: Buffer;
  /**
   * On a file in the index: its links in the overlay, by those that its inode has in the upper. Infinity if they cannot be
   * told from these.
   */
  readonly links?: (own: number) => number;
}

const none: Marks = {};

/** `U-1` is one link less than the inode has in the upper. `L` counts from the inode below. */
function toLinks(text: string): (own: number) => number {
  const difference = /^U[+-]\d+$/.test(text) ? Number(text.slice(1)) : Number.POSITIVE_INFINITY;
  return (own) => own + difference;
}

/** Reads the marks among an entry's attributes. */
export function readMarks(attributes: Attributes, space: MarkSpace): Marks {
  if (attributes.size === 0) return none;
  const marks: { -readonly [Name in keyof Marks]: Marks[Name] } = {};
  for (const [attribute, value] of attributes) {
    const name = markName(attribute, space);
    if (name === undefined || value === undefined) continue;
    const text = value.toString('latin1');
    if (name === 'opaque' && (text === 'y' || text === 'x')) marks.opaque = marks.opaque === 'y' ? 'y' : text;
    else if (name === 'whiteout') marks.whiteout = true;
    else if (name === 'redirect' && text !== '') marks.redirect = text;
    else if (name === 'impure') marks.impure = true;
    else if (name === 'metacopy') marks.metacopy = true;
    else if (name === 'origin') marks.origin = value;
    else if (name === 'nlink') marks.links = toLinks(text);
  }
  return marks;
}

/**
 * True for a path that the kernel follows: one name, or a slash and names with one slash between two of them. A look-up of
 * a directory with another redirect fails there, with EINVAL or, for `.` and `..`, EACCES.
 */
export const isValidRedirect = (redirect: string): boolean =>
  /^(\/[^/]+)+$|^[^/]+$/s.test(redirect) && !/(^|\/)\.\.?(\/|$)/s.test(redirect);

type Node = Pick<Records, 'type' | 'rdevMajor' | 'rdevMinor'>;

/** True for a character device 0:0. */
export const isWhiteoutDevice = (entry: Node): boolean =>
  entry.type === k.S_IFCHR && entry.rdevMajor === 0 && entry.rdevMinor === 0;

/**
 * True if the entry is a whiteout of either kind. The kernel finds nothing at a whiteout by attribute (6.7), but shows
 * its name unless the directory is marked with `'x'`.
 */
export const isWhiteoutEntry = (entry: Node & Pick<Records, 'size'>, marks: Marks): boolean =>
  isWhiteoutDevice(entry) || (entry.type === k.S_IFREG && entry.size === 0 && marks.whiteout === true);

/**
 * Returns the namespace of the marks on a layer's root, such as `uuid` or `impure`, which the kernel sets on an upper.
 * Returns `'either'` if the root has none, or has marks of both namespaces.
 */
export function spaceOf(rootAttributes: Attributes): MarkSpace {
  const has = (space: 'trusted' | 'user'): boolean =>
    [...rootAttributes.keys()].some((name) => markName(name, space) !== undefined);
  const [trusted, user] = [has('trusted'), has('user')];
  if (trusted === user) return 'either';
  return trusted ? 'trusted' : 'user';
}
