/**
 * Layer directories: their contents, changes and conversions.
 *
 * @packageDocumentation
 */
export {
  type ApplyOptions,
  type ApplyProgress,
  type ArchiveSource,
  applyLayer,
  type IdRange,
  type LayerSummary,
  type OwnerMaps,
  type SkippedEntries,
} from './apply.js';
export { isOpaque, isOpaqueSync, makeOpaque, makeOpaqueSync, type OpaqueOptions } from './opaque.js';
export { removeLayer, removeLayerSync } from './remove.js';
export { isWhiteout, isWhiteoutSync, type WhiteoutOptions, whiteout, whiteoutSync } from './whiteout.js';
