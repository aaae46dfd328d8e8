/** The errors of images. */
import { RemediableError, type RemediableFields } from '../errors.js';

export type ImageErrorCode =
  /** The directory is no image layout, or has no image of that tag. */
  | 'ERR_IMAGE_NOT_FOUND'
  /** A blob that another one names is not there. */
  | 'ERR_IMAGE_BLOB_MISSING'
  /** A blob has other bytes than its digest and its size say. */
  | 'ERR_IMAGE_DIGEST_MISMATCH'
  /** No image of an index is for the platform. */
  | 'ERR_IMAGE_PLATFORM_MISSING'
  /** A blob is of a type that this library does not read. */
  | 'ERR_IMAGE_MEDIA_TYPE'
  /** A document of the image has not the form that it should have. */
  | 'ERR_IMAGE_INVALID'
  /** The image has no such user or group. */
  | 'ERR_IMAGE_USER_MISSING'
  /** The image says nothing to run, or the program did not start. */
  | 'ERR_IMAGE_COMMAND';

export interface ImageErrorFields extends RemediableFields<ImageErrorCode> {
  readonly digest?: string | undefined;
}

/** An image that cannot be read, unpacked or run. */
export class ImageError extends RemediableError<ImageErrorCode> {
  /** The digest of the blob that the error is about. */
  declare readonly digest?: string;

  constructor({ digest, ...fields }: ImageErrorFields, options?: ErrorOptions) {
    super(fields, options);
    if (digest !== undefined) this.digest = digest;
  }

  override get name(): string {
    return 'ImageError';
  }
}
