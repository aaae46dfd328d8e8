/** A range of an id map: user_namespaces(7), in the words of the OCI specification. */

/** A range of ids, and the ids that stand for them on the other side of a map. */
export interface IdRange {
  /** The first id in the container: on disk below an idmapped mount, in an archive, in a user namespace. */
  readonly container: number;
  /** The first id on the host: the one that the mount shows, that the file gets, that the namespace stands for. */
  readonly host: number;
  /** The number of ids in the range. */
  readonly size: number;
}
