/**
 * Snapshots: containerd's overlay snapshotter as a library.
 *
 * @packageDocumentation
 */
export { SnapshotError, type SnapshotErrorCode } from './errors.js';
export type { Kept, Leftover } from './leftovers.js';
export type { Maker } from './maker.js';
export {
  type MountAllOptions,
  mountAll,
  mountAllSync,
  type UnmountAllOptions,
  unmountAll,
  unmountAllSync,
  withTempMount,
} from './mount-all.js';
export type { SnapshotMount } from './mounts.js';
export type { CommitOptions, EnsureOptions, SetLabelsOptions, SnapshotOptions, SnapshotterOptions } from './options.js';
export type { Labels, SnapshotKind, SnapshotUsage } from './records.js';
export { type Cleanup, type SnapshotInfo, type SnapshotMountOptions, Snapshotter } from './snapshotter.js';
