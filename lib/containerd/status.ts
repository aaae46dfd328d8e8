/** The status of gRPC for each error of a verb. containerd knows its own errors by these. Pure. */
import type { SnapshotErrorCode } from '../snapshots/index.js';

/** Status codes of gRPC, by their names in logs and metrics. */
export const status = {
  OK: 0,
  CANCELLED: 1,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
} as const;

export type StatusName = keyof typeof status;

const ofSnapshots: Readonly<Record<SnapshotErrorCode, StatusName>> = {
  ERR_SNAPSHOT_NOT_FOUND: 'NOT_FOUND',
  ERR_SNAPSHOT_ALREADY_EXISTS: 'ALREADY_EXISTS',
  ERR_SNAPSHOT_INVALID_ARGUMENT: 'INVALID_ARGUMENT',
  ERR_SNAPSHOT_FAILED_PRECONDITION: 'FAILED_PRECONDITION',
  ERR_SNAPSHOT_STORE_DAMAGED: 'DATA_LOSS',
  ERR_SNAPSHOT_STORE_VERSION: 'FAILED_PRECONDITION',
  ERR_SNAPSHOT_STORE_FAILED: 'INTERNAL',
  ERR_SNAPSHOT_READ_ONLY: 'FAILED_PRECONDITION',
  ERR_SNAPSHOT_CLOSED: 'UNAVAILABLE',
  ERR_SNAPSHOT_SERVED: 'UNAVAILABLE',
  ERR_SNAPSHOT_DEPENDENCY_MISSING: 'INTERNAL',
};

const ofReasons: Readonly<Record<string, StatusName>> = {
  'out-of-space': 'RESOURCE_EXHAUSTED',
  'out-of-descriptors': 'RESOURCE_EXHAUSTED',
  'out-of-memory': 'RESOURCE_EXHAUSTED',
  'no-privilege': 'PERMISSION_DENIED',
  'permission-denied': 'PERMISSION_DENIED',
};

const isArgumentError = /^ERR_(INVALID_ARG|OUT_OF_RANGE)/;

/** A request that was refused before a verb began. */
export class RequestError extends Error {
  readonly statusName: StatusName;

  constructor(statusName: StatusName, message: string) {
    super(message);
    this.statusName = statusName;
  }
}

export function toStatus(error: unknown): StatusName {
  if (error instanceof RequestError) return error.statusName;
  const { code, reason } = error as { readonly code?: string; readonly reason?: string };
  if (reason !== undefined && Object.hasOwn(ofReasons, reason)) return ofReasons[reason] as StatusName;
  if (code !== undefined && Object.hasOwn(ofSnapshots, code)) return ofSnapshots[code as SnapshotErrorCode];
  return code !== undefined && isArgumentError.test(code) ? 'INVALID_ARGUMENT' : 'INTERNAL';
}

/** True for those that show a fault of this machine or of the server, not of the request. */
export const isFault = (name: StatusName): boolean =>
  ['RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'INTERNAL', 'DATA_LOSS'].includes(name);
