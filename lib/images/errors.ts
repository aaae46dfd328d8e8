/** The errors of images. */
import { withTexts } from '../errors.js';
import { sentence, type Text } from '../text.js';

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

export interface ImageErrorFields {
  readonly code: ImageErrorCode;
  /** One sentence without the full stop. */
  readonly what: string;
  /** The remedy, in the same form. */
  readonly hint: Text;
  readonly path?: string | undefined;
  readonly digest?: string | undefined;
}

/** An image that cannot be read, unpacked or run. */
export class ImageError extends Error {
  readonly code: ImageErrorCode;
  /** The file or directory that the error is about. */
  declare readonly path?: string;
  /** The digest of the blob that the error is about. */
  declare readonly digest?: string;
  /** The remedy, in one sentence. */
  readonly hint: string;

  constructor({ code, what, hint, path, digest }: ImageErrorFields, options?: ErrorOptions) {
    super(`${sentence(what)} ${sentence(hint)}`, options);
    withTexts(this, sentence(what), hint);
    this.code = code;
    this.hint = sentence(hint);
    if (path !== undefined) this.path = path;
    if (digest !== undefined) this.digest = digest;
  }

  override get name(): string {
    return 'ImageError';
  }
}
