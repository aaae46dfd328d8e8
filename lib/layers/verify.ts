/** Checks layer directories for marks without effect or with an unintended one, and for leftovers. */

import { toOptions } from '../arguments.js';
import * as k from '../kernel/constants.js';
import { run, type Task } from '../kernel/task.js';
import { encodePath, type PathEncoding, toEncoding } from '../trees/encodings.js';
import { type GivenLayers, type Layers, layersOf, toLayers } from '../trees/given.js';
import { isWhiteoutDevice, isWhiteoutEntry, type MarkSpace, markName, readMarks } from '../trees/marks.js';
import type { Attributes } from '../trees/records.js';
import { findChild, type LayerStack, openLayers, type Places, placesOf, type Source } from '../trees/stack.js';
import { Walker } from '../trees/walk.js';

/** The faults of a layer, each with its remedy. */
const faults = {
  'whiteout-in-lowest': {
    what: 'a whiteout in the lowest layer hides nothing',
    remedy: 'remove it',
  },
  'whiteout-of-nothing': {
    what: 'a whiteout hides nothing: no layer below has this name',
    remedy: 'remove it',
  },
  'whiteout-in-opaque': {
    what: 'a whiteout in an opaque directory hides nothing, and its name shows in listings',
    remedy: 'remove it',
  },
  'whiteout-shows': {
    what: 'the name of a whiteout by attribute shows in listings, since its directory is not marked with overlay.opaque=x',
    remedy: 'set overlay.opaque to x on the directory, or make the whiteout a character device 0:0',
  },
  'redirect-to-nowhere': {
    what: 'the redirect of a directory leads to no directory below',
    remedy: 'restore the layer that has the directory, or remove the attribute overlay.redirect',
  },
  'metacopy-without-data': {
    what: 'no layer below has the data of this metacopy, so the file cannot be read',
    remedy: 'restore the layer that has the data; without that layer, the content is lost',
  },
  'stray-mark': {
    what: 'a mark has no effect here',
    remedy: 'remove the attribute',
  },
  'unknown-mark': {
    what: 'the kernel does not know this mark',
    remedy: 'remove the attribute; if it belongs to another overlay, begin its name with overlay.overlay. instead',
  },
  'whiteout-name': {
    what: 'a name that begins with .wh. means a whiteout in an archive, so no archive can hold this entry',
    remedy: 'make it a whiteout, or give it another name',
  },
  leftover: {
    what: "it belongs in an overlay's workdir",
    remedy: 'remove it while no overlay uses the layer',
  },
  unreadable: {
    what: 'this process may not read it',
    remedy: 'run the check as its owner or as root',
  },
  'other-mount': {
    what: 'something is mounted here, and an overlay does not show it',
    remedy: 'unmount it, or copy its contents into the layer',
  },
} as const satisfies Readonly<Record<string, { readonly what: string; readonly remedy: string }>>;

export type LayerFault = keyof typeof faults;

export interface LayerFinding<P extends string | Buffer = string> {
  /** The path below the layer's root; `'.'` for the root itself. */
  path: P;
  reason: LayerFault;
  /** A description of the fault. */
  what: string;
  remedy: string;
  /** The attribute that the finding is about. */
  attribute?: string;
}

export interface CheckOptions<E extends PathEncoding = PathEncoding> {
  /** `'buffer'` for paths as bytes. Default: text, in which bytes that are not UTF-8 are replaced, as in node:fs. */
  encoding?: E;
}

const names: ReadonlySet<string> = new Set(['encoding']);

/** The marks that the kernel sets, by the types of entry that may have them. */
const knownMarks: Readonly<Record<string, readonly number[]>> = {
  opaque: [k.S_IFDIR],
  whiteout: [k.S_IFREG],
  redirect: [k.S_IFDIR, k.S_IFREG],
  metacopy: [k.S_IFREG],
  origin: [k.S_IFDIR, k.S_IFREG, k.S_IFLNK, k.S_IFCHR, k.S_IFBLK, k.S_IFIFO, k.S_IFSOCK],
  impure: [k.S_IFDIR],
  nlink: [k.S_IFREG, k.S_IFLNK, k.S_IFCHR, k.S_IFBLK, k.S_IFIFO, k.S_IFSOCK],
  uuid: [k.S_IFDIR],
  protattr: [k.S_IFDIR, k.S_IFREG],
  // This mark belongs only in the index of a workdir.
  upper: [],
};

/** The name that overlayfs gives an entry until it moves it to its place. */
const temporaryName = /^#[0-9a-f]+$/;

interface Directory {
  readonly isOpaque: boolean;
  readonly marksWhiteouts: boolean;
  readonly places: Places;
}

class Check {
  readonly #stack: LayerStack;
  readonly #knowsLowers: boolean;
  readonly #encoding: PathEncoding;
  readonly findings: LayerFinding<string | Buffer>[] = [];

  constructor(stack: LayerStack, knowsLowers: boolean, encoding: PathEncoding) {
    this.#stack = stack;
    this.#knowsLowers = knowsLowers;
    this.#encoding = encoding;
  }

  get #space(): MarkSpace {
    return this.#stack.space;
  }

  #find(path: string, reason: LayerFault, attribute?: string): void {
    const found = { path: encodePath(path === '' ? '.' : path, this.#encoding), reason, ...faults[reason] };
    this.findings.push(attribute === undefined ? found : { ...found, attribute });
  }

  *run(): Task<void> {
    const walker = new Walker('', { at: this.#stack.at(0).root, attributes: 'all' });
    const parents: Directory[] = [];
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          const { depth, path } = walker;
          if (walker.isOtherMount) this.#find(path, 'other-mount');
          else if (walker.error !== 0) this.#find(path, 'unreadable');
          const checked = yield* this.#check(walker, parents[depth - 1]);
          if (checked !== undefined) parents[depth] = checked;
        }
      }
    } finally {
      walker.close();
    }
  }

  /** Checks an entry. For a directory, returns the facts that the checks of its contents need. */
  *#check(walker: Walker, parent: Directory | undefined): Task<Directory | undefined> {
    const { path, type, size, attributes } = walker;
    const marks = readMarks(attributes, this.#space);
    const name = path.slice(path.lastIndexOf('/') + 1);
    this.#checkMarks(path, type, size, attributes, parent === undefined);
    if (parent === undefined) {
      return { isOpaque: false, marksWhiteouts: marks.opaque === 'x', places: this.#stack.roots(1) };
    }
    if (name.startsWith('.wh.')) this.#find(path, 'whiteout-name');
    if (temporaryName.test(name) && isWhiteoutDevice(walker)) this.#find(path, 'leftover');
    else if (isWhiteoutEntry(walker, marks)) {
      if (!isWhiteoutDevice(walker) && !parent.marksWhiteouts) this.#find(path, 'whiteout-shows');
      yield* this.#checkWhiteout(path, name, parent);
      return undefined;
    }
    if (type === k.S_IFREG && marks.metacopy && this.#knowsLowers) {
      const found = yield* this.#below(parent, name, { redirect: marks.redirect, isMetacopy: true });
      const data = found.at(-1);
      if (data?.type !== k.S_IFREG || data.marks.metacopy) this.#find(path, 'metacopy-without-data');
    }
    if (type !== k.S_IFDIR) return undefined;
    const isOpaque = marks.opaque === 'y';
    const sources =
      isOpaque || !this.#knowsLowers ? [] : yield* this.#below(parent, name, { redirect: marks.redirect });
    if (!isOpaque && marks.redirect !== undefined && this.#knowsLowers && sources[0]?.type !== k.S_IFDIR) {
      this.#find(path, 'redirect-to-nowhere');
    }
    return { isOpaque, marksWhiteouts: marks.opaque === 'x', places: placesOf(this.#stack, sources) };
  }

  *#below(
    { places }: Directory,
    name: string,
    options: { redirect?: string | undefined; isMetacopy?: boolean },
  ): Task<Source[]> {
    return yield* findChild(this.#stack, places, name, { ...options, first: 1 });
  }

  *#checkWhiteout(path: string, name: string, parent: Directory): Task<void> {
    if (parent.isOpaque) this.#find(path, 'whiteout-in-opaque');
    else if (!this.#knowsLowers) return;
    else if (this.#stack.layers.length === 1) this.#find(path, 'whiteout-in-lowest');
    else if ((yield* this.#below(parent, name, {})).length === 0) this.#find(path, 'whiteout-of-nothing');
  }

  #checkMarks(path: string, type: number, size: number, attributes: Attributes, isRoot: boolean): void {
    for (const [attribute, value] of attributes) {
      const name = markName(attribute, this.#space);
      if (name === undefined) continue;
      const known = knownMarks[name];
      const text = value?.toString('latin1');
      if (known === undefined) this.#find(path, 'unknown-mark', attribute);
      else if (name === 'upper') this.#find(path, 'leftover', attribute);
      else if (
        !known.includes(type) ||
        (name === 'opaque' && (text === 'y' ? isRoot : text !== 'x')) ||
        (name === 'whiteout' && size > 0) ||
        (name === 'redirect' && (isRoot || text === '')) ||
        (name === 'uuid' && !isRoot)
      ) {
        this.#find(path, 'stray-mark', attribute);
      }
    }
  }
}

interface Asked {
  readonly layers: GivenLayers;
  readonly encoding: PathEncoding;
}

function toAsked(from: Layers, given: CheckOptions | undefined): Asked {
  const { encoding } = toOptions(given, names);
  return { layers: toLayers(from), encoding: toEncoding(encoding) };
}

function* verify({ layers, encoding }: Asked): Task<LayerFinding<string | Buffer>[]> {
  const stack = yield* openLayers(layersOf(layers), { ...layers, isTopLayer: true });
  try {
    const running = new Check(stack, layers.hasLowers || layers.uppers.length > 1, encoding);
    yield* running.run();
    return running.findings;
  } finally {
    stack.close();
  }
}

/**
 * Checks the topmost of the layers, like a file system check. It finds marks and whiteouts without effect, redirects and
 * metacopies whose target is missing, names that no archive can hold, and leftovers of overlayfs itself. It changes
 * nothing. Returns an empty list if nothing is wrong. statx(2), listxattr(2).
 *
 * The checks that need the layers below are left out for a directory alone, and for an upper without `lowerdir`.
 * `{ lowerdir: [dir, ...below] }` checks a lower layer, and `{ lowerdir: dir }` one that has none below.
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'` or `'path-inaccessible'`, of a layer
 */
export async function check<E extends PathEncoding = 'utf8'>(
  layers: Layers,
  options?: CheckOptions<E>,
): Promise<LayerFinding<E extends 'buffer' ? Buffer : string>[]> {
  return run(verify(toAsked(layers, options))) as never;
}
