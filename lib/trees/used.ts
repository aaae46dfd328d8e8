/** Refusals of directories that overlays use, before a call takes something away from them. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { isUsed } from '../in-use/probe.js';
import type { Task } from '../kernel/task.js';
import { layersOf } from '../mount-table/layers-of.js';
import { listRaw } from '../mount-table/table.js';
import { isAtOrBelow, type Path, pathString, quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';

export const inUse = (path: Path, what: string, reason: Reason = 'layer-in-use'): OverlayError =>
  new OverlayError({ errno: e.EBUSY, reason, what, path: pathString(path) });

export const usedUnseen = (path: Path, left = ''): OverlayError =>
  inUse(path, `an overlay that this process mounted uses ${quotePath(path)}${left}`);

/** It is locked. */
export const usedByOther = (path: Path): OverlayError =>
  inUse(path, `the overlay of an 'overlayfs run', or a merge by move, uses ${quotePath(path)}`);

/** Throws where something is mounted inside the directory, or where an overlay is known to use it. */
export function* refuseUsed({ path, real }: { readonly path: Path; readonly real: Path }): Task<void> {
  const shown = quotePath(path);
  const itself = Buffer.from(real);
  const isHere = (raw: string): boolean => isAtOrBelow(Buffer.from(raw, 'latin1'), real);
  const isInside = (raw: string): boolean => isHere(raw) && !itself.equals(Buffer.from(raw, 'latin1'));
  const mounts = yield* listRaw({ select: ({ type, target }) => type === 'overlay' || isInside(target) });
  for (const { type, target, options } of mounts) {
    const place = quotePath(Buffer.from(target, 'latin1'));
    if (isInside(target)) throw inUse(path, `something is mounted inside ${shown}, at ${place}`, 'mount-inside');
    if (type === 'overlay' && layersOf(options).some(isHere)) {
      throw inUse(path, `the overlay at ${place} has a layer or its workdir in ${shown}`);
    }
  }
  if (yield* isUsed(path)) throw usedUnseen(path);
}
