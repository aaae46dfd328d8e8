/** Why a path does not lead to a mount that is in the table: another mount covers it, or it has another path now. */
import { OverlayError } from '../errors.js';
import type { Task } from '../kernel/task.js';
import { isUniqueId, type Mounted } from '../mount-table/identity.js';
import type { RawMount } from '../mount-table/raw-mount.js';
import { listRaw } from '../mount-table/table.js';
import { goesByDescriptors, isAtOrBelow, quotePath, toBytes, toReal, withoutTrailingSlashes } from '../paths.js';
import type { Verdict } from '../verdicts.js';

type Row = Pick<RawMount, 'id' | 'parent' | 'target'>;

const isBelow = (target: string, directory: string): boolean => target !== directory && isAtOrBelow(target, directory);

/** Returns the nearest mount that keeps a path from leading to this one. Pure. */
export function coverOf(mount: Row, table: readonly Row[]): Row | undefined {
  const seen = new Set<number>();
  for (let at: Row | undefined = mount; at !== undefined && !seen.has(at.id); ) {
    const { id, parent, target }: Row = at;
    seen.add(id);
    const cover = table.find(
      (other) =>
        !seen.has(other.id) &&
        ((other.parent === parent && isBelow(target, other.target)) ||
          (other.parent === id && other.target === target)),
    );
    if (cover !== undefined) return cover;
    at = table.find((other) => other.id === parent);
  }
  return undefined;
}

/**
 * Explains why an unmount, or another call, has not found a mount at its path. Without an id, any mount there is meant,
 * or in a tree any mount at the path or below it; of one file system, if `type` is given. Returns undefined when the mount
 * is in no table.
 */
export function* explainUnreached(mounted: Mounted, isTree = false, type?: string): Task<Verdict | undefined> {
  const { path, id, namespace, held } = mounted;
  if (held !== undefined || goesByDescriptors(path)) return undefined;
  let table: readonly RawMount[];
  try {
    table = yield* listRaw({ namespace });
  } catch (error) {
    if (error instanceof OverlayError) return undefined;
    throw error;
  }
  // As in the table, even if a mount above hides the last names.
  const plain = namespace === undefined ? toReal(path) : withoutTrailingSlashes(path);
  const shown = Buffer.from(toBytes(plain)).toString('latin1');
  const isMeant = ({ id: own, uniqueId, target, type: found }: RawMount): boolean =>
    id === undefined
      ? (type === undefined || type === found) && (target === shown || (isTree && isBelow(target, shown)))
      : (isUniqueId(id) ? uniqueId : own) === id;
  for (const mount of table.filter(isMeant)) {
    const place = quotePath(Buffer.from(mount.target, 'latin1'));
    const cover = coverOf(mount, table);
    if (cover !== undefined) {
      const by = quotePath(Buffer.from(cover.target, 'latin1'));
      return cover.target === mount.target
        ? { reason: 'mount-covered', what: `another mount at the same path covers the mount at ${place}` }
        : {
            reason: 'mount-covered',
            what: `the mount at ${by} covers the mount at ${place}`,
            hint: `unmount the one at ${by} first`,
          };
    }
    if (id !== undefined && mount.target !== shown) {
      return {
        reason: 'not-mounted',
        what: `the mount that was made at ${quotePath(path)} is at ${place} now`,
        hint: 'use that path',
      };
    }
  }
  return undefined;
}
