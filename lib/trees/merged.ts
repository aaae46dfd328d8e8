/**
 * Walks the merged view of layers without a mount: parents first, the names of a directory in byte order. One walker
 * reads each layer. If a redirect leads elsewhere, more walkers start there.
 */

import * as k from '../kernel/constants.js';
import type { Task } from '../kernel/task.js';
import { below, comparePaths, toBytePath } from './encodings.js';
import { isWhiteoutEntry, readMarks } from './marks.js';
import { findChild, type LayerStack, type Places, placesOf, type Source } from './stack.js';
import { Walker, type WalkOptions } from './walk.js';

/** A walker of one layer that starts at the directory `base`, which is at `prefix` in the merged view. */
interface Stream {
  readonly layer: number;
  readonly base: string;
  readonly prefix: string;
  readonly walker: Walker;
  /** The path of the current entry in the merged view. */
  path: string;
  isUsed: boolean;
}

interface MergedOptions extends Pick<WalkOptions, 'targets' | 'attributes'> {
  /** Also the paths that a whiteout hides, as entries. */
  readonly whiteouts?: boolean;
}

interface Ancestor {
  readonly path: string;
  readonly places: Places;
}

/** A cursor over the merged view. The current entry is that of the topmost layer that has it. */
export class MergedWalker {
  readonly #stack: LayerStack;
  readonly #options: WalkOptions;
  readonly #hasWhiteouts: boolean;
  /** The streams, sorted by layer. */
  readonly #streams: Stream[] = [];
  readonly #ancestors: Ancestor[] = [];
  #current: Stream | undefined;
  #group: Stream[] = [];
  #isOver = false;

  /** `places` are the places of the directory to walk. Paths count from that directory. */
  constructor(stack: LayerStack, places: Places, { whiteouts = false, ...options }: MergedOptions = {}) {
    this.#stack = stack;
    this.#options = { attributes: 'directories', ...options };
    this.#hasWhiteouts = whiteouts;
    this.#ancestors.push({ path: '', places });
    this.#open(places, '', 0);
  }

  #open(places: Places, prefix: string, first: number): Stream[] {
    const opened: Stream[] = [];
    places.forEach((base, layer) => {
      if (base === undefined || layer < first) return;
      const { root: at, path: atPath } = this.#stack.at(layer);
      const walker = new Walker(toBytePath(base), { ...this.#options, at, atPath });
      opened.push({ layer, base, prefix, walker, path: prefix, isUsed: true });
    });
    this.#streams.push(...opened);
    this.#streams.sort((a, b) => a.layer - b.layer);
    return opened;
  }

  /** The entry of the topmost layer that has it. Valid until the next entry. */
  get entry(): Walker {
    return (this.#current as Stream).walker;
  }

  get path(): string {
    return (this.#current as Stream).path;
  }

  /** The index of the layer that the entry is from. */
  get layer(): number {
    return (this.#current as Stream).layer;
  }

  /** The path of the entry in that layer. */
  get layerPath(): string {
    const { base, walker } = this.#current as Stream;
    return base === '' ? walker.path : walker.path === '' ? base : below(base, walker.path);
  }

  /** The current directory hides what layers below these have there. */
  get isOpaque(): boolean {
    return this.#isOver;
  }

  /** Returns the entries of the layers at the current path, from the current layer down. */
  *sources(): Task<Source[]> {
    const { path, layer } = this;
    const isDirectory = (this.#current as Stream).walker.type === k.S_IFDIR;
    const { places } = this.#ancestors.at(isDirectory ? -2 : -1) as Ancestor;
    return yield* findChild(this.#stack, places, path.slice(path.lastIndexOf('/') + 1), { first: layer });
  }

  /** Leaves out what the current entry, a directory, holds. */
  skip(): void {
    for (const { walker } of this.#group) if (walker.type === k.S_IFDIR) walker.skip();
  }

  /** Moves to the next entry. Returns false at the end. */
  *next(): Task<boolean> {
    for (;;) {
      yield* this.#advance();
      const group = this.#nextGroup();
      if (group === undefined) return false;
      this.#group = group;
      for (const one of group) one.isUsed = true;
      const top = yield* this.#merge(group);
      if (top === undefined) continue;
      this.#current = top;
      return true;
    }
  }

  *#advance(): Task<void> {
    for (let i = 0; i < this.#streams.length; ) {
      const one = this.#streams[i] as Stream;
      if (!one.isUsed || (yield* this.#step(one))) i++;
      else this.#streams.splice(i, 1);
    }
  }

  *#step(one: Stream): Task<boolean> {
    const { walker, prefix } = one;
    while (!walker.advance()) if (!(yield* walker.more())) return false;
    one.path = walker.path === '' ? prefix : below(prefix, walker.path);
    one.isUsed = false;
    return true;
  }

  /** Returns the streams that are at the next path. */
  #nextGroup(): Stream[] | undefined {
    const [first, ...others] = this.#streams;
    if (first === undefined) return undefined;
    let group = [first];
    for (const one of others) {
      const order = comparePaths(one.path, (group[0] as Stream).path);
      if (order < 0) group = [one];
      else if (order === 0) group.push(one);
    }
    return group;
  }

  /** Decides which layers have a part in one path, and skips the directories of the others. Returns the topmost. */
  *#merge(group: readonly Stream[]): Task<Stream | undefined> {
    const [first] = group as [Stream];
    const { path } = first;
    while (!isBelow(path, (this.#ancestors.at(-1) as Ancestor).path)) this.#ancestors.pop();
    this.#isOver = false;
    if (path === '' || first.walker.path === '') {
      for (const { walker } of group) refuseUnread(walker);
      return first; // the start of each walker
    }
    let top: Stream | undefined;
    const places: (string | undefined)[] = [];
    let isOver = false;
    for (const one of group) {
      const { walker, layer } = one;
      if (!isOver) refuseUnread(walker);
      const marks = readMarks(walker.attributes, this.#stack.space);
      const isDirectory = walker.type === k.S_IFDIR;
      if (isOver || isWhiteoutEntry(walker, marks) || (top !== undefined && !isDirectory)) {
        isOver = true;
        if (isDirectory) walker.skip();
        continue;
      }
      top ??= one;
      if (!isDirectory) {
        isOver = true;
        continue;
      }
      places[layer] = one.base === '' ? walker.path : below(one.base, walker.path);
      if (marks.opaque === 'y') isOver = true;
      else if (marks.redirect !== undefined) {
        isOver = true;
        yield* this.#follow(path, top.layer, layer, places);
      }
    }
    this.#isOver = isOver;
    if (top?.walker.type === k.S_IFDIR) this.#ancestors.push({ path, places });
    return this.#hasWhiteouts ? (top ?? first) : top;
  }

  /** Opens walkers for the directories that a redirect in a layer leads to. */
  *#follow(path: string, top: number, layer: number, places: (string | undefined)[]): Task<void> {
    const parent = (this.#ancestors.at(-1) as Ancestor).places;
    const name = path.slice(path.lastIndexOf('/') + 1);
    const found = placesOf(this.#stack, yield* findChild(this.#stack, parent, name, { first: top }));
    for (const one of this.#open(found, path, layer + 1)) {
      places[one.layer] = one.base;
      // The walk has already returned the directory itself.
      while (!one.walker.advance()) if (!(yield* one.walker.more())) break;
      refuseUnread(one.walker);
    }
  }

  close(): void {
    for (const { walker } of this.#streams) walker.close();
  }
}

/** The view would lack what a layer further down has in a directory that cannot be read. */
function refuseUnread(walker: Walker): void {
  if (walker.error !== 0) throw walker.failure();
}

const isBelow = (path: string, directory: string): boolean => directory === '' || path.startsWith(`${directory}/`);
