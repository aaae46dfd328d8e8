/** The verbs of a snapshotter by their names, for tests that choose them. */
import { type Cleanup, type SnapshotInfo, Snapshotter, type SnapshotterOptions } from 'overlayfs/snapshots';

/** Opens a root as the server for containerd does, if clean-ups remove the files, and else as other programs do. */
export const openRoot = (root: string, options: SnapshotterOptions): Promise<Snapshotter> =>
  options.asyncRemove ? Snapshotter.openBlocking(root, options) : Snapshotter.open(root, options);

/** Performs a verb by its name. */
export async function perform(snapshotter: Snapshotter, verb: string, args: readonly unknown[]): Promise<unknown> {
  if (verb === 'list') {
    const infos: SnapshotInfo[] = [];
    for await (const info of snapshotter.list(...(args as [string[]]))) infos.push(info);
    return infos;
  }
  const verbs = snapshotter as unknown as Record<string, (...args: readonly unknown[]) => Promise<unknown>>;
  return verbs[verb]?.(...args);
}

export const codeOf = (error: unknown): string =>
  String((error as NodeJS.ErrnoException).code ?? (error as Error).message);

/** The result of a clean-up, in the root only. Programs beside may have left something elsewhere. */
export async function cleanUp(snapshotter: Snapshotter): Promise<Omit<Cleanup, 'left'>> {
  const { removed, kept } = await snapshotter.cleanup();
  return { removed, kept };
}
