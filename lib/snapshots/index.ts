/**
 * Snapshots: containerd's overlay snapshotter as a library.
 *
 * @packageDocumentation
 */
export { SnapshotError, type SnapshotErrorCode } from './errors.js';
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
export type { CommitOptions, SnapshotOptions, SnapshotterOptions } from './options.js';
export type { Labels, SnapshotKind, SnapshotUsage } from './records.js';
export { type Cleanup, type SnapshotInfo, Snapshotter } from './snapshotter.js';
