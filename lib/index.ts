/**
 * OverlayFS for Node: mount, unmount and inspect overlay file systems by system call.
 *
 * @packageDocumentation
 */
export { OverlayError } from './errors.js';
export type { FeatureState, KernelFeatures } from './features/record.js';
export type { Holder, Holders, Holding } from './holder.js';
export { isOpaque, isOpaqueSync, makeOpaque, makeOpaqueSync, type OpaqueOptions } from './layers/opaque.js';
export { removeLayer, removeLayerSync } from './layers/remove.js';
export {
  isWhiteout,
  isWhiteoutSync,
  type WhiteoutOptions,
  whiteout,
  whiteoutSync,
} from './layers/whiteout.js';
export type { MountEntry, MountFlags, MountPropagation } from './mount-table/entry.js';
export {
  type FindMountOptions,
  findMount,
  findMountSync,
  listMounts,
  listMountsSync,
  type MountFilter,
} from './mount-table/list.js';
export { type MountEvent, type WatchMountsOptions, watchMounts } from './mount-table/watch.js';
export { type BindOptions, bind, bindSync } from './mounts/bind.js';
export type { AttachOptions, RemountOptions } from './mounts/change.js';
export { findHolders, findHoldersSync, type HoldersOptions } from './mounts/find-holders.js';
export { Mount } from './mounts/mount.js';
export { type MountUnmountOptions, type UnmountOptions, unmount, unmountSync } from './mounts/unmount.js';
export { type UnmountTreeOptions, unmountTree, unmountTreeSync } from './mounts/unmount-tree.js';
export {
  createNamespace,
  createNamespaceSync,
  MountNamespace,
  type NamespaceLike,
} from './namespaces/mount-namespace.js';
export type { OverlayOptionName, OverlayOptions } from './options/check.js';
export type { IdMap, IdMapOption, IdMapping } from './options/idmap.js';
export type { NamedOptions } from './options/text.js';
export type { EffectiveOptions } from './overlay/effective.js';
export { mountOverlay, mountOverlaySync, OverlayMount, type ReplaceOptions } from './overlay/mount.js';
export type { PathLike } from './paths.js';
export { type PlacedMount, type SpawnOptions, spawn } from './programs/spawn.js';
export type { Reason } from './reasons.js';
export { type Features, features, featuresSync } from './rootless/lease.js';
