/**
 * Layer directories: their contents, changes and conversions.
 *
 * @packageDocumentation
 */

export { type ApplySummary, apply } from '../archives/apply.js';
export type { ApplyOptions } from '../archives/apply-options.js';
export {
  type DirectoryStates,
  type LayerArchive,
  type PackOptions,
  type PackSummary,
  pack,
} from '../archives/create.js';
export type { OwnerMaps } from '../archives/owner-maps.js';
export type { ArchiveSource } from '../archives/source.js';
export type { SkippedEntries } from '../archives/unpacking.js';
export type { Conflict } from '../errors.js';
export { type Baseline, type BaselineOptions, baseline } from '../merge/baseline.js';
export {
  type SquashOptions,
  type SquashSummary,
  squash,
} from '../merge/fold.js';
export { type MergeOptions, merge } from '../merge/merge.js';
export type { MergeSummary } from '../merge/write.js';
export type { Progress } from '../progress.js';
export type { PathEncoding } from '../trees/encodings.js';
export type { LayerPaths, Layers, ListedLayers, MountedLayers } from '../trees/given.js';
export {
  type Change,
  type ChangedProperty,
  type ChangeKind,
  type ChangesOptions,
  changes,
  type EntryType,
  formatChange,
} from './changes.js';
export {
  type Hider,
  type LayerLookup,
  type LayerRole,
  type Lookup,
  type LookupOptions,
  lookup,
} from './lookup.js';
export { type RemoveOptions, remove } from './remove.js';
export { type CheckOptions, check, type LayerFault, type LayerFinding } from './verify.js';
