/** The snapshots of `--root`, which the commands of snapshots and images share. */
import { formatBytes, type Path } from '../paths.js';
import { defaultRoot } from '../snapshots/default-root.js';
import { Snapshotter, type SnapshotterOptions } from '../snapshots/index.js';
import { ownFlag } from './flags.js';
import { UsageError } from './usage-error.js';

export interface RootFlag {
  readonly root?: Path;
}

export const rootFlag = ownFlag('root', 'the directory with the snapshots; commands that make some make it', {
  kind: 'path',
  default: '/var/lib/overlayfs for root, else overlayfs in $XDG_DATA_HOME or ~/.local/share',
});

export const rootOf = ({ root = defaultRoot() }: RootFlag): Path => root;

/** Opens the snapshots for some work. */
export async function withSnapshots<T>(
  flags: RootFlag,
  options: SnapshotterOptions,
  work: (snapshotter: Snapshotter) => Promise<T>,
): Promise<T> {
  const snapshotter = await Snapshotter.open(rootOf(flags), options);
  try {
    return await work(snapshotter);
  } finally {
    await snapshotter.close();
  }
}

/** Returns operands that are names, not paths. */
export const toNames = (operands: readonly Path[]): string[] =>
  operands.map((operand) => {
    if (typeof operand === 'string') return operand;
    throw new UsageError(`a name is UTF-8, unlike '${formatBytes(operand)}'`);
  });
