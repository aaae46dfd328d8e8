/** The mounts of a snapshot, as containerd's overlay snapshotter gives them. Pure. */
import { GID_MAPPING, UID_MAPPING } from './labels.js';
import type { SnapshotRecord } from './records.js';

/** A mount as containerd describes it: the arguments of mount(8). */
export interface SnapshotMount {
  /** `'bind'` or `'overlay'`. */
  readonly type: string;
  /** The directory to bind, or `'overlay'`. */
  readonly source: string;
  /** A path below the place where the mounts go. Default: that place itself. */
  readonly target?: string;
  /** The options, each one literally: nothing is escaped. */
  readonly options: readonly string[];
}

/** The place of the directories, and the additions to the options. */
export interface MountSettings {
  /** The directory that holds the numbered ones. */
  readonly directory: string;
  readonly remapIds: boolean;
  /** The options of each overlay that come last. */
  readonly mountOptions: readonly string[];
}

export const upperPath = (directory: string, id: number): string => `${directory}/${id}/fs`;
const workPath = (directory: string, id: number): string => `${directory}/${id}/work`;

function mappingOptions({ labels }: SnapshotRecord): string[] {
  const uids = labels[UID_MAPPING];
  const gids = labels[GID_MAPPING];
  return [...(uids === undefined ? [] : [`uidmap=${uids}`]), ...(gids === undefined ? [] : [`gidmap=${gids}`])];
}

/** Returns the mounts of an active snapshot or a view; `parents` are the numbers, the immediate parent first. */
export function toMounts(record: SnapshotRecord, parents: readonly number[], settings: MountSettings): SnapshotMount[] {
  const { directory, remapIds, mountOptions } = settings;
  const { id, kind } = record;
  const mapping = remapIds ? mappingOptions(record) : [];
  const bind = (source: number, access: 'ro' | 'rw'): SnapshotMount[] => [
    { type: 'bind', source: upperPath(directory, source), options: [...mapping, access, 'rbind'] },
  ];
  const [parent] = parents;
  if (parent === undefined) return bind(id, kind === 'view' ? 'ro' : 'rw');
  if (kind === 'view' && parents.length === 1) return bind(parent, 'ro');
  const writable =
    kind === 'active' ? [`workdir=${workPath(directory, id)}`, `upperdir=${upperPath(directory, id)}`] : [];
  const lowerdir = `lowerdir=${parents.map((number) => upperPath(directory, number)).join(':')}`;
  return [{ type: 'overlay', source: 'overlay', options: [...mapping, ...writable, lowerdir, ...mountOptions] }];
}
