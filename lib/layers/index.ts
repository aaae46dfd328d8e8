/**
 * Layer directories: their contents, changes and conversions.
 *
 * @packageDocumentation
 */

export { applyLayer, type LayerSummary } from '../archives/apply.js';
export type { ApplyOptions, ApplyProgress } from '../archives/apply-options.js';
export {
  type ArchiveSummary,
  type CreateOptions,
  type CreateProgress,
  createLayer,
  type DirectoryStates,
  type LayerArchive,
} from '../archives/create.js';
export type { IdRange, OwnerMaps } from '../archives/owner-maps.js';
export type { ArchiveSource } from '../archives/source.js';
export type { SkippedEntries } from '../archives/unpacking.js';
export type { Conflict } from '../errors.js';
export { type Baseline, baseline, baselineSync } from '../merge/baseline.js';
export {
  type FlattenOptions,
  type FoldProgress,
  type FoldSummary,
  flattenLayers,
  flattenLayersSync,
  type SquashOptions,
  squashLayers,
  squashLayersSync,
} from '../merge/fold.js';
export { type MergeOptions, mergeLayer, mergeLayerSync } from '../merge/merge.js';
export type { MergeProgress, MergeSummary } from '../merge/write.js';
export type { PathEncoding } from '../trees/encodings.js';
export type { LayersLike, MountedLayers } from '../trees/given.js';
export {
  type Change,
  type ChangedProperty,
  type ChangeKind,
  type ChangesOptions,
  changes,
  changesSync,
  type EntryType,
  formatChanges,
} from './changes.js';
export {
  type Hider,
  type LayerLookup,
  type LayerRole,
  type Lookup,
  type LookupOptions,
  lookup,
  lookupSync,
} from './lookup.js';
export { isOpaque, isOpaqueSync, makeOpaque, makeOpaqueSync, type OpaqueOptions } from './opaque.js';
export { removeLayer, removeLayerSync } from './remove.js';
export { type DiskUsage, diskUsage, diskUsageSync } from './usage.js';
export { type LayerFault, type LayerFinding, type VerifyLayerOptions, verifyLayer, verifyLayerSync } from './verify.js';
export { isWhiteout, isWhiteoutSync, type WhiteoutOptions, whiteout, whiteoutSync } from './whiteout.js';
