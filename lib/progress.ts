/** How far a long call has come, for `onProgress`. */
export interface Progress {
  /** Entries so far, without the root. */
  readonly entries: number;
  /** All entries, where the call counts them first, as `merge` does. */
  readonly totalEntries?: number;
  /** Bytes so far: read from the source by `apply` and `unpack`, of the uncompressed archive by `pack`, and otherwise copied. */
  readonly bytes: number;
  /** The size of the source, where it is known. */
  readonly totalBytes?: number;
}
