/**
 * containerd on top: serves a snapshotter as a proxy plugin.
 *
 * @packageDocumentation
 */
export type { LogLevel } from './log.js';
export type { ServeOptions } from './options.js';
export { type SnapshotServer, serve } from './serve.js';
