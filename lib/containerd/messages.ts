/** Snapshots as containerd's messages have them, and back. Pure. */
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { SnapshotInfo } from '../snapshots/index.js';
import type { SnapshotKind } from '../snapshots/records.js';
import type { InfoSchema } from './snapshots_pb.js';

const kinds: Readonly<Record<SnapshotKind, number>> = { view: 1, active: 2, committed: 3 };

const SECOND = 1_000_000_000n;

const toTimestamp = (nanoseconds: bigint) => ({
  seconds: nanoseconds / SECOND,
  nanos: Number(nanoseconds % SECOND),
});

export const toInfo = ({
  name,
  parent,
  kind,
  createdNs,
  updatedNs,
  labels,
}: SnapshotInfo): MessageInitShape<typeof InfoSchema> => ({
  name,
  parent,
  kind: kinds[kind],
  createdAt: toTimestamp(BigInt(createdNs)),
  updatedAt: toTimestamp(BigInt(updatedNs)),
  labels,
});
