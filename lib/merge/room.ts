/** Refuses a copy for which the file system of the target has not enough room. */
import type { StatsFs } from 'node:fs';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import { inEitherForm, type Task } from '../kernel/task.js';
import { pathString, quotePath } from '../paths.js';
import type { Root } from '../trees/root.js';

/** File systems that neither clone files nor compress them. */
const plain: ReadonlySet<number> = new Set([k.EXT4_SUPER_MAGIC, k.TMPFS_MAGIC]);

const MIB = 2 ** 20;

/** `bytes` is the least that the merge adds. A quota is not seen. */
export function* refuseFull(dir: Root, bytes: number): Task<void> {
  if (bytes <= 0) return;
  const found = yield* statFileSystem(dir);
  if (found === undefined || !plain.has(found.type) || found.blocks === 0) return;
  const free = found.bsize * (process.geteuid?.() === 0 ? found.bfree : found.bavail);
  if (bytes <= free) return;
  const [needed, left] = [Math.ceil(bytes / MIB), Math.floor(free / MIB)];
  throw new OverlayError({
    errno: e.ENOSPC,
    reason: 'out-of-space',
    what: `the merge adds ${needed} MiB at least, and the file system of ${quotePath(dir.path)} has ${left} MiB left; nothing was merged`,
    hint: 'make room, or merge by move on one file system',
    path: pathString(dir.path),
  });
}

/** statfs(2), or undefined where that is denied. */
function* statFileSystem({ descriptor }: Root): Task<StatsFs | undefined> {
  const { statfsSync } = process.getBuiltinModule('node:fs');
  const { statfs } = process.getBuiltinModule('node:fs/promises');
  const path = `/proc/self/fd/${descriptor}`;
  try {
    return yield* inEitherForm(
      () => statfs(path),
      () => statfsSync(path),
    );
  } catch {
    return undefined;
  }
}
