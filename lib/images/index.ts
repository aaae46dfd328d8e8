/**
 * Images: OCI layouts unpacked into snapshots, run as containers, and committed.
 *
 * @packageDocumentation
 */
export { type CommitImageOptions, type CreateImageOptions, commitImage, createImage } from './commit.js';
export type { Descriptor, History, ImageConfig, ImageDocument, Manifest, Platform } from './documents.js';
export { ImageError, type ImageErrorCode } from './errors.js';
export {
  createLayout,
  type FindOptions,
  type Image,
  type ImageLayer,
  ImageLayout,
  type LayoutOptions,
  openLayout,
} from './layout.js';
export {
  Container,
  type ImageRunOptions,
  type ImageStartOptions,
  OpenImage,
  type OpenImageOptions,
  openImage,
} from './open.js';
export {
  type ContainerResult,
  type RunContainerOptions,
  type RunningContainer,
  runContainer,
  type Volume,
} from './run.js';
export { type Unpacked, type UnpackOptions, unpack } from './unpack.js';
