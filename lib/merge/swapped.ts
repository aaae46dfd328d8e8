/** A merge whose arguments are swapped: the directory is an upper of the layer that is to be merged into it. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import type { Task } from '../kernel/task.js';
import { pathString, quotePath } from '../paths.js';
import { toBytePath } from '../trees/encodings.js';
import { isWhiteoutEntry, type MarkSpace, readMarks } from '../trees/marks.js';
import type { Root } from '../trees/root.js';
import { examine, Walker } from '../trees/walk.js';

/**
 * Refuses an upper without marks if the directory deletes or changes one of its entries, as an upper of it would. The
 * kernel marks all that it copies up, and each such entry lies in a marked one at the top.
 */
export function* refuseSwapped(upper: Root, dir: Root, space: MarkSpace): Task<void> {
  const names: string[] = [];
  const walker = new Walker('', { at: dir.descriptor, atPath: dir.path, attributes: 'all', oneLevel: true });
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.depth === 0 || walker.error !== 0) continue;
        const marks = readMarks(walker.attributes, space);
        if (isWhiteoutEntry(walker, marks) || marks.origin !== undefined) names.push(walker.name);
      }
    }
  } finally {
    walker.close();
  }
  if (names.length === 0) return;
  const records = yield* examine(upper.descriptor, names);
  const found = names.find(() => records.advance() && records.error === 0);
  if (found === undefined) return;
  const [a, b] = [quotePath(upper.path), quotePath(dir.path)];
  throw new OverlayError({
    errno: e.EINVAL,
    reason: 'layers-swapped',
    what: `${a} has no overlay marks, and ${b} looks like an upper of it: it has a mark at ${quotePath(toBytePath(found))}`,
    path: pathString(dir.path),
  });
}
