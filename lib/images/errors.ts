/** The errors of images. */
import { type CodedFields, OverlayError, type Role } from '../errors.js';
import type { Reason } from '../reasons.js';

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
  | 'ERR_IMAGE_COMMAND'
  /** The OCI runtime ended before it had started the program. */
  | 'ERR_IMAGE_RUNTIME'
  /** The container has run, and its changes could not be committed. They are in the snapshot `key`. */
  | 'ERR_IMAGE_COMMIT';

const reasonOf: Readonly<Record<ImageErrorCode, readonly [Reason, Role?]>> = {
  ERR_IMAGE_NOT_FOUND: ['missing', 'image'],
  ERR_IMAGE_BLOB_MISSING: ['missing', 'blob'],
  ERR_IMAGE_DIGEST_MISMATCH: ['digest-mismatch', 'blob'],
  ERR_IMAGE_PLATFORM_MISSING: ['missing', 'platform'],
  ERR_IMAGE_MEDIA_TYPE: ['media-type', 'blob'],
  ERR_IMAGE_INVALID: ['image-invalid', 'image'],
  ERR_IMAGE_USER_MISSING: ['missing', 'user'],
  ERR_IMAGE_COMMAND: ['not-started', 'program'],
  ERR_IMAGE_RUNTIME: ['runtime-failed'],
  ERR_IMAGE_COMMIT: ['commit-failed', 'snapshot'],
};

export interface ImageErrorFields extends Omit<CodedFields<ImageErrorCode>, 'reason' | 'role'> {
  readonly digest?: string | undefined;
  readonly key?: string | undefined;
}

/** An image that cannot be read, unpacked or run. */
export class ImageError extends OverlayError {
  declare readonly code: ImageErrorCode;
  /** The digest of the blob that the error is about. */
  declare readonly digest?: string;
  /** The snapshot that holds the changes of a container. */
  declare readonly key?: string;

  /** @internal */
  constructor({ digest, key, ...fields }: ImageErrorFields, options?: ErrorOptions) {
    const [reason, role] = reasonOf[fields.code];
    super({ ...fields, reason, role }, options);
    if (key !== undefined) this.key = key;
    if (digest !== undefined) this.digest = digest;
  }

  override get name(): string {
    return 'ImageError';
  }
}
