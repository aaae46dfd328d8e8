/**
 * OverlayFS for Node: mount, unmount and inspect overlay file systems by system call.
 *
 * @packageDocumentation
 */
export { OverlayError, ProgramError, type Role } from './errors.js';
export type { FeatureState, KernelFeatures } from './features/record.js';
export type { Holder, Holders, Holding } from './holder.js';
export type { IdRange } from './id-range.js';
export { isOpaque, isOpaqueSync, makeOpaque, makeOpaqueSync, type OpaqueOptions } from './layers/opaque.js';
export {
  isWhiteout,
  isWhiteoutSync,
  type WhiteoutOptions,
  whiteout,
  whiteoutSync,
} from './layers/whiteout.js';
export type { MountEntry, MountFlags, MountPropagation } from './mount-table/entry.js';
export type { MountFilter } from './mount-table/filter.js';
export { type FindMountOptions, findMount, findMountSync, listMounts, listMountsSync } from './mount-table/list.js';
export { type MountEvent, type WatchMountsOptions, watchMounts } from './mount-table/watch.js';
export { type BindOptions, bind, bindSync } from './mounts/bind.js';
export type { AttachOptions, RemountOptions } from './mounts/change.js';
export { type FoundHolders, findHolders, type HoldersOptions } from './mounts/find-holders.js';
export { Mount } from './mounts/mount.js';
export type { MountUnmountOptions, UnmountOptions } from './mounts/unmount.js';
export { unmount, unmountSync } from './mounts/unmount-path.js';
export type { OverlayOptionName, OverlayOptions } from './options/check.js';
export type { IdMap, IdMapOption, IdMapping } from './options/idmap.js';
export type { NamedOptions } from './options/text.js';
export type { TmpfsLimits } from './options/tmpfs-limits.js';
export type { EffectiveOptions } from './overlay/effective.js';
export { type Explanation, explain, type Finding } from './overlay/explain.js';
export { mountOverlay, mountOverlaySync, OverlayMount, type ReplaceOptions } from './overlay/mount.js';
export type { PathLike } from './paths.js';
export { type OverlayRunOptions, type RunOptions, type RunResult, run } from './programs/run.js';
export { type ProgramMount, type SpawnOptions, spawn } from './programs/spawn.js';
export type { Reason } from './reasons.js';
export { type Features, features, featuresSync } from './rootless/lease.js';
