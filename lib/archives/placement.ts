/**
 * Decides what the entries of a layer archive do to a directory. Pure: it keeps a picture of the directory, and tells a
 * writer what to do. Paths are strings with one character for each byte, relative to the directory; none leads through
 * a symbolic link, because links are resolved in the picture, inside the root.
 */

import * as k from '../kernel/constants.js';
import type { FoundEntry, Moment } from '../tar/entry.js';
import { invalidArchive, quoteName } from '../tar/invalid.js';
import { option, type Text, text } from '../text.js';
import { below } from '../trees/encodings.js';
import type { Bytes, OperationFields } from '../trees/write.js';

/** The part of a writer that this needs. */
export interface Writer {
  add(
    kind: 'directory' | 'metadata' | 'link' | 'symlink' | 'node' | 'whiteout' | 'remove',
    path: string,
    fields?: OperationFields,
  ): void;
}

export type Layout = 'overlay' | 'plain';

export interface PlacementOptions {
  readonly layout: Layout;
  /** The attribute that makes a directory opaque. */
  readonly opaqueName: string;
  readonly maxPathDepth: number;
  readonly ownerOfMissing: { readonly uid?: number; readonly gid?: number };
  /** Owner, mode, times and attributes of an entry. */
  describe(entry: FoundEntry): OperationFields & { readonly mode: number };
}

const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';
/** The names that aufs keeps for itself. */
const OF_AUFS = '.wh..wh.';

/** The kernel's limit on a name (NAME_MAX), and on the target of a link (PATH_MAX, with a NUL). */
const MOST_NAME = 255;
const MOST_TARGET = 4095;
/** The most symbolic links on the way to an entry: the kernel's MAXSYMLINKS, path_resolution(7). */
const MAX_LINKS = 40;
/**
 * The most bytes of link targets that a whole archive may make the placement follow: so many, and so many more for each
 * entry. A chain of 40 long targets on the way to every entry costs 80,000 components each; real layers stay far below.
 */
const MAX_FOLLOWED_BYTES = 256 * 1024;
const MAX_FOLLOWED_BYTES_PER_ENTRY = 256;

const MODE_OF_MISSING = 0o755;
/** Without these, a directory's owner cannot write into it. They are taken away at the end. */
const MODE_TO_WRITE = 0o700;

/** The type in the mode of what mknod(2) makes. */
const nodeTypes = { fifo: k.S_IFIFO, character: k.S_IFCHR, block: k.S_IFBLK } as const;

/** A directory in the picture. */
export class Directory {
  readonly entries = new Map<string, Node>();
  /** False for a directory from before this layer until its entries are in the picture. */
  isSeen = true;
  /** It hides what is below, by itself or by a directory that it is in. */
  hides: boolean;
  isOpaque = false;
  /** This layer made it or has an entry for it. */
  isOurs: boolean;
  /** To be set at the end, when nothing in it changes any more. */
  mtime: Moment | undefined;
  /** Its time before this layer: it stays, unless the layer has an entry for it. */
  before: Moment | undefined;
  isChanged = false;
  /** The names of its attributes before this layer, marks of overlayfs left out. */
  xattrs: readonly string[] = [];
  /** To be set at the end: a mode that would keep its owner from writing into it. */
  mode: number | undefined;

  constructor(isOurs: boolean, hides: boolean) {
    this.isOurs = isOurs;
    this.hides = hides;
  }
}

/** Anything else in the picture. */
export class Leaf {
  readonly kind: 'whiteout' | 'symlink' | 'other';
  readonly isOurs: boolean;
  /** The target of a symbolic link. */
  readonly target: string;

  constructor(kind: Leaf['kind'], isOurs: boolean, target = '') {
    this.kind = kind;
    this.isOurs = isOurs;
    this.target = target;
  }
}

export type Node = Directory | Leaf;

const ourWhiteout = new Leaf('whiteout', true);
const ourOther = new Leaf('other', true);

/** The place of an entry. */
interface Place {
  readonly parent: Directory;
  readonly name: string;
  readonly path: string;
  readonly node: Node | undefined;
}

/** A directory, and its path. */
type Found = readonly [Directory, string];

/** Thrown if an entry needs directories that are not in the picture yet. `place` is called again when they are. */
export class Unseen {
  readonly directories: readonly Found[];
  /** True if all directories in them are needed too. */
  readonly isWhole: boolean;

  constructor(directories: readonly Found[], isWhole: boolean) {
    this.directories = directories;
    this.isWhole = isWhole;
  }
}

function entriesOf(directory: Directory, path: string): Map<string, Node> {
  if (!directory.isSeen) throw new Unseen([[directory, path]], false);
  return directory.entries;
}

/** Returns the directories at and below one that are not in the picture yet. */
function unseenIn(top: Directory, path: string): Found[] {
  const unseen: Found[] = [];
  const waiting: Found[] = [[top, path]];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const [directory, at] = next;
    if (!directory.isSeen) unseen.push(next);
    for (const [name, node] of directory.entries) {
      if (node instanceof Directory) waiting.push([node, below(at, name)]);
    }
  }
  return unseen;
}

/** The outcome for an entry. A file is left to the caller: it is written at the path, with its data. */
export type Placed =
  | { readonly action: 'done' | 'ignored' | 'whiteout' | 'opaque-root' }
  | { readonly action: 'file'; readonly path: string; readonly replaces: boolean };

const done: Placed = { action: 'done' };

/** In the order in which a path is walked: the last component first. */
const reversed = (path: string): string[] => path.split('/').reverse();

export class Placement {
  readonly root = new Directory(false, false);
  /** Directories that were made without an entry of their own, for an entry in them; the root of a new layer, too. */
  readonly implied = new Map<Directory, string>();
  readonly #writer: Writer;
  readonly #options: PlacementOptions;
  #entry: FoundEntry | undefined;
  #followedBytes = 0;
  /** Directories that hold nothing but what this layer has written, in a plain layout. */
  readonly #cleared = new WeakSet<Directory>();
  #maxFollowedBytes = MAX_FOLLOWED_BYTES;

  constructor(writer: Writer, options: PlacementOptions) {
    this.#writer = writer;
    this.#options = options;
  }

  /**
   * Decides on an entry, and tells the writer.
   *
   * @throws {OverlayError} `'archive-invalid'` or `'archive-limit'`
   * @throws {Unseen}
   */
  place(entry: FoundEntry): Placed {
    if (entry !== this.#entry) this.#maxFollowedBytes += MAX_FOLLOWED_BYTES_PER_ENTRY;
    this.#entry = entry;
    const components = this.#componentsOf(entry.name);
    if (components.length === 0) {
      if (entry.type !== 'directory') this.#fail('the root of a layer is a directory');
      this.#describeDirectory(this.root, '');
      return done;
    }
    const placed = entry.name.includes(WHITEOUT) ? this.#placeMark(entry, components) : undefined;
    if (placed !== undefined) return placed;
    const { type, major, minor } = entry;
    const isWhiteoutDevice = type === 'character' && major === 0 && minor === 0;
    if (isWhiteoutDevice && this.#options.layout === 'overlay') return this.#makeWhiteout(components);
    if (type === 'link') return this.#makeLink(components, entry.linkname);
    const place = this.#find(components);
    if (type === 'directory') return this.#makeDirectory(place);
    if (type === 'symlink' && entry.linkname.length > MOST_TARGET) {
      this.#fail(
        `the target of a symbolic link has ${entry.linkname.length} bytes; at most ${MOST_TARGET} are possible`,
      );
    }
    if (type === 'symlink' && entry.linkname === '') this.#fail('a symbolic link has no target');
    place.parent.isChanged = true;
    place.parent.entries.set(place.name, type === 'symlink' ? new Leaf('symlink', true, entry.linkname) : ourOther);
    const replaces = place.node !== undefined;
    if (type === 'file') return { action: 'file', path: place.path, replaces };
    const described = this.#options.describe(entry);
    const fields = { ...described, ...(replaces && { flags: ['replace'] as const }) };
    if (type === 'symlink') this.#writer.add('symlink', place.path, { ...fields, from: entry.linkname });
    else
      this.#writer.add('node', place.path, {
        ...fields,
        mode: nodeTypes[type] | described.mode,
        device: { major, minor },
      });
    return done;
  }

  /** Decides on a name that means something to layers; undefined for others. */
  #placeMark({ type }: FoundEntry, components: readonly string[]): Placed | undefined {
    if (components.some((name) => name.startsWith(OF_AUFS) && name !== OPAQUE)) return { action: 'ignored' };
    const [above, last = ''] = [components.slice(0, -1), components.at(-1)];
    const inside = above.find((name) => name.startsWith(WHITEOUT));
    if (inside !== undefined) this.#fail(`it is inside the whiteout ${quoteName(inside)}`);
    if (last === OPAQUE) return this.#makeOpaque(above);
    if (!last.startsWith(WHITEOUT)) return undefined;
    const hidden = last.slice(WHITEOUT.length);
    if (hidden === '' || hidden === '.' || hidden === '..') this.#fail('it is a whiteout of no name');
    if (type === 'directory') this.#fail('a whiteout is no directory');
    return this.#makeWhiteout([...above, hidden]);
  }

  /** Returns whether a directory is still at its path. */
  holds(directory: Directory, path: string): boolean {
    let at: Node | undefined = this.root;
    const names = path === '' ? [] : path.split('/');
    for (const name of names) at = at instanceof Directory ? at.entries.get(name) : undefined;
    return at === directory;
  }

  /** Yields what directories get at the end, parents first. */
  *directories(): Generator<readonly [path: string, metadata: { mtime?: Moment; mode?: number }]> {
    const waiting: [string, Directory][] = [['', this.root]];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const [path, directory] = next;
      const { mode, mtime = directory.isChanged ? directory.before : undefined } = directory;
      if (mtime !== undefined || mode !== undefined) {
        yield [path, { ...(mtime !== undefined && { mtime }), ...(mode !== undefined && { mode }) }];
      }
      for (const [name, node] of directory.entries) {
        if (node instanceof Directory) waiting.push([below(path, name), node]);
      }
    }
  }

  #fail(rule: string): never {
    const { offset, name } = this.#entry as FoundEntry;
    throw invalidArchive(offset, name, rule);
  }

  #componentsOf(name: string): string[] {
    const components = name.split('/').filter((component) => component !== '' && component !== '.');
    if (components.includes('..')) this.#fail("its name has a component '..'");
    const long = name.length > MOST_NAME ? components.find((component) => component.length > MOST_NAME) : undefined;
    if (long !== undefined) {
      this.#fail(`its name has a component of ${long.length} bytes; at most ${MOST_NAME} are possible`);
    }
    this.#checkDepth(components.length);
    return components;
  }

  #checkDepth(depth: number): void {
    const { maxPathDepth } = this.#options;
    if (depth <= maxPathDepth) return;
    this.#exceed(text`it is ${depth} directories deep; ${option('maxPathDepth')} allows ${maxPathDepth}`);
  }

  #exceed(rule: Text, hint?: string): never {
    const { offset, name } = this.#entry as FoundEntry;
    throw invalidArchive(offset, name, rule, 'archive-limit', hint);
  }

  /** Counts a symbolic link on the way to an entry, and the work that its target makes. */
  #follow(target: string, links: number): void {
    if (links > MAX_LINKS) this.#fail(`more than ${MAX_LINKS} symbolic links lead to it`);
    this.#followedBytes += target.length;
    if (this.#followedBytes <= this.#maxFollowedBytes) return;
    this.#exceed(
      `the targets of the symbolic links on the way to it and to the entries before it have ${this.#followedBytes} bytes; ` +
        `${MAX_FOLLOWED_BYTES} and ${MAX_FOLLOWED_BYTES_PER_ENTRY} for each entry are allowed`,
      'pack the layer again with paths that lead through no symbolic links',
    );
  }

  /** Finds where an entry goes. Makes the directories that lead there, if they are missing. */
  #find(components: readonly string[]): Place {
    return this.#placeIn(this.#resolve(components.slice(0, -1), 'make') as Found, components);
  }

  #placeIn([parent, path]: Found, components: readonly string[]): Place {
    const name = components.at(-1) as string;
    return { parent, name, path: below(path, name), node: entriesOf(parent, path).get(name) };
  }

  /**
   * Follows a path as the kernel does with RESOLVE_IN_ROOT: absolute links begin at the root, and `..` does not lead
   * out of it. Makes missing directories, or fails, or gives up where this layer says that nothing is there: a symbolic
   * link of this layer takes the place of a directory below, and what it leads to is elsewhere.
   */
  #resolve(components: readonly string[], missing: 'make' | 'fail' | 'give up'): Found | undefined {
    const stack: Directory[] = [this.root];
    const names: string[] = [];
    const waiting = [...components].reverse();
    let links = 0;
    for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
      if (name === '' || name === '.') continue;
      if (name === '..') {
        if (stack.length > 1) stack.pop();
        names.pop();
        continue;
      }
      const directory = stack.at(-1) as Directory;
      const node = (directory.isSeen ? directory.entries : entriesOf(directory, names.join('/'))).get(name);
      if (node instanceof Directory) {
        stack.push(node);
        names.push(name);
      } else if (node?.kind === 'symlink' && !(missing === 'give up' && node.isOurs)) {
        links++;
        this.#follow(node.target, links);
        waiting.push(...reversed(node.target));
        if (node.target.startsWith('/')) {
          stack.length = 1;
          names.length = 0;
        }
      } else if (missing === 'give up' && (node !== undefined || this.#options.layout === 'plain')) {
        return undefined;
      } else if (node?.kind === 'other') {
        this.#fail(`${quoteName([...names, name].join('/'))}, which leads to it, is no directory`);
      } else {
        if (missing === 'fail')
          this.#fail(`the target of a hard link, ${quoteName(this.#entry?.linkname ?? '')}, does not exist`);
        if (name.length > MOST_NAME) this.#fail(`a symbolic link leads to it by a name of ${name.length} bytes`);
        names.push(name);
        this.#checkDepth(names.length);
        stack.push(this.#imply(directory, name, names.join('/')));
      }
    }
    return [stack.at(-1) as Directory, names.join('/')];
  }

  #imply(parent: Directory, name: string, path: string): Directory {
    const made = this.#enter(parent, name, path, { mode: MODE_OF_MISSING, ...this.#options.ownerOfMissing });
    this.implied.set(made, path);
    return made;
  }

  /** Makes a directory where there is none. */
  #enter(parent: Directory, name: string, path: string, fields: OperationFields): Directory {
    const before = parent.entries.get(name);
    const made = new Directory(true, parent.hides);
    parent.entries.set(name, made);
    parent.isChanged = true;
    this.#writer.add('directory', path, { ...fields, ...(before !== undefined && { flags: ['replace'] }) });
    // The kernel, too, makes a directory opaque that takes the place of something.
    const hid = before instanceof Leaf && (before.kind === 'whiteout' || !before.isOurs);
    if (hid && this.#options.layout === 'overlay') this.#mark(made, path);
    return made;
  }

  #makeDirectory({ parent, name, path, node }: Place): Placed {
    if (node instanceof Directory) this.#describeDirectory(node, path);
    else {
      const fields = this.#options.describe(this.#entry as FoundEntry);
      const made = this.#enter(parent, name, path, { ...fields, mode: fields.mode | MODE_TO_WRITE, mtime: undefined });
      setLast(made, fields);
    }
    return done;
  }

  /** Gives an existing directory what its entry says. */
  #describeDirectory(directory: Directory, path: string): void {
    directory.isOurs = true;
    this.implied.delete(directory);
    const fields = this.#options.describe(this.#entry as FoundEntry);
    const { xattrs = [] } = fields;
    // An entry says all of a directory, so that other attributes go.
    const gone = directory.xattrs.filter((name) => !xattrs.some((xattr) => xattr.name === name));
    directory.xattrs = [];
    const all = [...xattrs, ...gone.map((name) => ({ name }))];
    const mode = fields.mode | MODE_TO_WRITE;
    this.#writer.add('metadata', path, { ...fields, xattrs: all, mode, mtime: undefined });
    setLast(directory, fields);
  }

  #makeWhiteout(components: readonly string[]): Placed {
    // Nothing is left to hide below a file, a symbolic link or a whiteout of this layer.
    const found = this.#resolve(components.slice(0, -1), 'give up');
    if (found === undefined) return { action: 'whiteout' };
    const { parent, name, path, node } = this.#placeIn(found, components);
    const isPlain = this.#options.layout === 'plain';
    parent.isChanged = true;
    if (isPlain || parent.hides) {
      if (node !== undefined) this.#writer.add('remove', path);
      parent.entries.delete(name);
    } else if (!(node instanceof Leaf && node.kind === 'whiteout')) {
      this.#writer.add('whiteout', path, node === undefined ? {} : { flags: ['replace'] });
      parent.entries.set(name, ourWhiteout);
    }
    return { action: 'whiteout' };
  }

  #makeOpaque(components: readonly string[]): Placed {
    let [directory, path] = [this.root, ''];
    if (components.length > 0) {
      const place = this.#find(components);
      const { parent, name, node } = place;
      if (node instanceof Directory) [directory, path] = [node, place.path];
      else if (node?.kind === 'symlink') [directory, path] = this.#resolve(components, 'make') as Found;
      else {
        directory = this.#imply(parent, name, place.path);
        path = place.path;
      }
    }
    if (this.#options.layout === 'plain') {
      this.#removeOthers(directory, path);
      return done;
    }
    this.#mark(directory, path);
    return path === '' ? { action: 'opaque-root' } : done;
  }

  /** Makes a directory opaque. Nothing in it hides anything then, so its whiteouts would only show their names. */
  #mark(directory: Directory, path: string): void {
    if (!directory.isOpaque) {
      const xattrs = [{ name: this.#options.opaqueName, value: Buffer.from('y') }];
      this.#writer.add('metadata', path, { xattrs });
    }
    directory.isOpaque = true;
    this.#hide(directory, path);
  }

  #hide(top: Directory, path: string): void {
    const unseen = top.hides ? [] : unseenIn(top, path);
    if (unseen.length > 0) throw new Unseen(unseen, true);
    const waiting: [Directory, string][] = [[top, path]];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const [directory, at] = next;
      if (directory.hides) continue;
      directory.hides = true;
      for (const [name, node] of directory.entries) {
        if (node instanceof Directory) waiting.push([node, below(at, name)]);
        else if (node.kind === 'whiteout') {
          this.#writer.add('remove', below(at, name));
          directory.isChanged = true;
          directory.entries.delete(name);
        }
      }
    }
  }

  /** Removes everything that this layer has not written. Nothing else gets into a directory later, so once is enough. */
  #removeOthers(top: Directory, path: string): void {
    const waiting: [Directory, string][] = [[top, path]];
    const walked: Directory[] = [];
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const [directory, at] = next;
      if (this.#cleared.has(directory)) continue;
      for (const [name, node] of entriesOf(directory, at)) {
        if (node.isOurs && node instanceof Leaf) continue;
        if (node instanceof Directory && holdsOurs(node)) {
          waiting.push([node, below(at, name)]);
          continue;
        }
        this.#writer.add('remove', below(at, name));
        directory.isChanged = true;
        directory.entries.delete(name);
      }
      walked.push(directory);
    }
    for (const directory of walked) this.#cleared.add(directory);
  }

  #makeLink(components: readonly string[], linkname: string): Placed {
    const from = this.#componentsOf(linkname);
    const last = from.at(-1);
    if (last === undefined) this.#fail('a hard link leads to the root');
    if (from.some((name) => name.startsWith(WHITEOUT))) this.#fail('a hard link leads to a whiteout');
    // The way to the link first: a directory that is made for it may be the target's too.
    const place = this.#find(components);
    const [directory, above] = this.#resolve(from.slice(0, -1), 'fail') as Found;
    const target = entriesOf(directory, above).get(last);
    const path = below(above, last);
    if (target === undefined || (target instanceof Leaf && target.kind === 'whiteout')) {
      this.#fail(`the target of a hard link, ${quoteName(linkname)}, does not exist`);
    }
    if (target instanceof Directory) this.#fail(`the target of a hard link, ${quoteName(linkname)}, is a directory`);
    if (path === place.path) return done;
    if (path.startsWith(`${place.path}/`)) this.#fail('a hard link takes the place of a directory with its target');
    const isReplaced = place.node !== undefined;
    place.parent.isChanged = true;
    this.#writer.add('link', place.path, { from: path as Bytes, ...(isReplaced && { flags: ['replace'] }) });
    place.parent.entries.set(place.name, new Leaf(target.kind, true, target.target));
    return done;
  }
}

function setLast(directory: Directory, { mode, mtime }: OperationFields & { readonly mode: number }): void {
  directory.mtime = mtime;
  directory.mode = (mode & MODE_TO_WRITE) === MODE_TO_WRITE ? undefined : mode;
}

function holdsOurs(top: Directory): boolean {
  const waiting = [top];
  for (let directory = waiting.pop(); directory !== undefined; directory = waiting.pop()) {
    if (directory.isOurs) return true;
    for (const node of directory.entries.values()) {
      if (node instanceof Directory) waiting.push(node);
      else if (node.isOurs) return true;
    }
  }
  return false;
}
