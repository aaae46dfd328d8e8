/**
 * Layer directories: their contents, changes and conversions.
 *
 * @packageDocumentation
 */
export { isOpaque, isOpaqueSync, makeOpaque, makeOpaqueSync, type OpaqueOptions } from './opaque.js';
export { removeLayer, removeLayerSync } from './remove.js';
export { isWhiteout, isWhiteoutSync, type WhiteoutOptions, whiteout, whiteoutSync } from './whiteout.js';
