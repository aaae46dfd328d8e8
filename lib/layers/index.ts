/**
 * Layer directories: their contents, changes and conversions.
 *
 * @packageDocumentation
 */
export { type Baseline, baseline, baselineSync } from './baseline.js';
export type { LayersLike, MountedLayers } from './given.js';
export { type MergeOptions, type MergeProgress, type MergeSummary, mergeLayer, mergeLayerSync } from './merge.js';
export { isOpaque, isOpaqueSync, makeOpaque, makeOpaqueSync, type OpaqueOptions } from './opaque.js';
export { removeLayer, removeLayerSync } from './remove.js';
export { isWhiteout, isWhiteoutSync, type WhiteoutOptions, whiteout, whiteoutSync } from './whiteout.js';
