/** The contents of a directory before a layer is unpacked into it, as far as the archive leads there. */
import { abortError } from '../errors.js';
import * as k from '../kernel/constants.js';
import { run } from '../kernel/task.js';
import { toBytePath } from '../trees/encodings.js';
import { isWhiteoutDevice, isWhiteoutEntry, readMarks } from '../trees/marks.js';
import { Walker } from '../trees/walk.js';
import type { CheckedOptions } from './apply-options.js';
import { Directory, Leaf, type Unseen } from './placement.js';
import type { Target } from './target.js';

/** A mark that counts, not an escaped one. */
const isOverlays = (name: string): boolean => /^(trusted|user)\.overlay\.(?!overlay\.)/.test(name);
/** The kernel gives each file one. */
const SELINUX = 'security.selinux';

/** Adds the entries of a directory to the placement's tree; with `isWhole`, those of all directories in it. */
export async function readExisting(
  [top, inside]: Unseen['directories'][number],
  isWhole: boolean,
  { root, path }: Target,
  { userxattr, signal }: CheckedOptions,
): Promise<void> {
  const space = userxattr ? 'user' : 'trusted';
  const walker = new Walker(toBytePath(inside), {
    at: root,
    atPath: path,
    attributes: 'directories',
    targets: true,
    unsorted: true,
    oneLevel: !isWhole,
  });
  const above: Directory[] = [top];
  try {
    while (await run(walker.more())) {
      if (signal?.aborted) throw abortError(signal);
      while (walker.advance()) {
        const { depth, type, name } = walker;
        const parent = above[depth - 1];
        // A directory that cannot be read is an error where it is needed.
        if (walker.error !== 0 && (isWhole || parent === undefined || type !== k.S_IFDIR)) throw walker.failure();
        if (type === k.S_IFDIR) {
          const directory = parent === undefined ? top : new Directory(false, parent.hides);
          above[depth] = directory;
          // This layer may have changed it since it was found.
          if (parent === undefined && inside !== '') continue;
          const marks = readMarks(walker.attributes, space);
          if (marks.opaque === 'y') directory.isOpaque = directory.hides = true;
          directory.before = walker.mtime;
          if (walker.hasAttributes) {
            directory.xattrs = [...walker.attributes.keys()].filter((name) => !isOverlays(name) && name !== SELINUX);
          }
          directory.isSeen = isWhole || walker.isOtherMount;
          parent?.entries.set(name, directory);
        } else if (type === k.S_IFLNK) {
          parent?.entries.set(name, new Leaf('symlink', false, walker.target.toString('latin1')));
        } else {
          const isWhiteout = isWhiteoutDevice(walker) || isWhiteoutEntry(walker, readMarks(walker.attributes, space));
          parent?.entries.set(name, isWhiteout ? oldWhiteout : oldOther);
        }
      }
    }
    top.isSeen = true;
  } finally {
    walker.close();
  }
}

const oldWhiteout = new Leaf('whiteout', false);
const oldOther = new Leaf('other', false);
