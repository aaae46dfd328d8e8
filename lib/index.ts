/**
 * OverlayFS for Node: mount, unmount and inspect overlay file systems by system call.
 *
 * @packageDocumentation
 */
export { OverlayError } from './errors.js';
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
export { type BindOptions, bind, bindSync } from './mounts/bind.js';
export type { AttachOptions, RemountOptions } from './mounts/change.js';
export { findHolders, findHoldersSync, type HoldersOptions } from './mounts/holders.js';
export { Mount } from './mounts/mount.js';
export { createNamespace, createNamespaceSync, MountNamespace, type NamespaceLike } from './mounts/mount-namespace.js';
export { type MountUnmountOptions, type UnmountOptions, unmount, unmountSync } from './mounts/unmount.js';
export { type UnmountTreeOptions, unmountTree, unmountTreeSync } from './mounts/unmount-tree.js';
export type { EffectiveOptions } from './overlay/effective.js';
export type { Answer, KernelFeatures } from './overlay/features.js';
export type { IdMap, IdMapOption, IdMapping } from './overlay/idmap.js';
export { mountOverlay, mountOverlaySync, OverlayMount, type ReplaceOptions } from './overlay/mount.js';
export type { MountEntry, MountFlags, MountPropagation } from './overlay/mount-entry.js';
export {
  type FindMountOptions,
  findMount,
  findMountSync,
  listMounts,
  listMountsSync,
  type MountFilter,
} from './overlay/mount-table.js';
export type { NamedOptions } from './overlay/option-strings.js';
export type { OverlayOptionName, OverlayOptions } from './overlay/options.js';
export { type Features, features, featuresSync } from './overlay/rootless.js';
export { type MountEvent, type WatchMountsOptions, watchMounts } from './overlay/watch-mounts.js';
export type { PathLike } from './paths.js';
export { type PlacedMount, type SpawnOptions, spawn } from './programs/spawn.js';
export type { Reason } from './reasons.js';
