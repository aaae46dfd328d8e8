/** The records of the store. */

/** The kind of a snapshot: one that is being written, a read-only view, or one that is complete. */
export type SnapshotKind = 'active' | 'view' | 'committed';

export type Labels = Readonly<Record<string, string>>;

/** The space that a snapshot takes, without its parents. */
export interface SnapshotUsage {
  readonly bytes: number;
  readonly inodes: number;
}

export interface SnapshotRecord {
  readonly name: string;
  /** The number of its directory. */
  readonly id: number;
  readonly kind: SnapshotKind;
  /** The name of the parent, or `''`. */
  readonly parent: string;
  /** In nanoseconds since 1970, like `updated`. */
  readonly created: bigint;
  readonly updated: bigint;
  readonly labels: Labels;
  /** Set for a committed snapshot. */
  readonly usage?: SnapshotUsage;
  /** The project whose quota tells its usage, where it was made with one. */
  readonly project?: number;
}
