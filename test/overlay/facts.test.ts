/**
 * Facts to reason for failures that few machines can have: each with its reason. Imports internals: the facts are its
 * input.
 */
import test from 'ava';
import type { OverlayOptions } from 'overlayfs';
import { explainMount } from '#lib/diagnosis/explain.js';
import { emptyFacts, type Facts, type PathFacts, type ProcessFacts } from '#lib/diagnosis/facts.js';
import { subjectsOf } from '#lib/diagnosis/gather.js';
import * as e from '#lib/errnos.js';
import type { KernelFeatures } from '#lib/features/record.js';
import { type Call, calls } from '#lib/kernel/calls.js';
import * as k from '#lib/kernel/constants.js';
import type { GuardName } from '#lib/kernel/guard-names.js';
import { StepFailure } from '#lib/kernel/perform.js';
import type { Subject } from '#lib/kernel/plan.js';
import { NOT_FOUND } from '#lib/kernel/stat.js';
import { checkOptions } from '#lib/options/check.js';
import { plan } from '#lib/overlay/plan.js';
import type { Reason } from '#lib/reasons.js';
import { linux61, newest } from '../support/features.js';

interface FactsRow {
  readonly title: string;
  readonly record?: KernelFeatures;
  readonly options?: Partial<OverlayOptions>;
  /** The guard that failed. */
  readonly guard?: GuardName;
  /** The call that failed, the last one of its kind; of fsconfig(2) with a key that of the key. */
  readonly call?: Call;
  readonly key?: string;
  readonly errno?: number;
  readonly says?: string;
  /** The facts about paths, by role. */
  readonly found?: Partial<Record<Subject['role'], Partial<PathFacts>>>;
  readonly process?: Partial<ProcessFacts>;
  readonly facts?: Partial<Facts>;
  readonly reason: Reason;
  readonly path?: string;
  readonly text: RegExp;
}

const given = { lowerdir: '/l', upperdir: '/u', workdir: '/w', target: '/m' } as const;

const on = (magic: number, type: string): Partial<PathFacts> => ({
  fileSystem: { magic, isReadOnly: false, freeBlocks: 9, blocks: 9, freeInodes: 9, inodes: 9 },
  mount: { type, target: '/', isUnbindable: false, isIdmapped: false, inside: undefined },
});

const remote = (
  [
    [k.NFS_SUPER_MAGIC, 'nfs4'],
    [k.SMB2_SUPER_MAGIC, 'cifs'],
    [k.CIFS_SUPER_MAGIC, 'cifs'],
    [k.V9FS_MAGIC, '9p'],
    [k.CEPH_SUPER_MAGIC, 'ceph'],
    [k.AFS_SUPER_MAGIC, 'afs'],
    [k.FUSE_SUPER_MAGIC, 'fuse.sshfs'],
  ] as const
).map(
  ([magic, type]): FactsRow => ({
    title: `an upper on ${type} (0x${magic.toString(16)})`,
    call: calls.fsconfig,
    errno: e.EINVAL,
    found: { upperdir: on(magic, type), workdir: on(magic, type) },
    reason: 'upper-remote',
    path: '/u',
    text: new RegExp(`is on ${type}, which lacks something`),
  }),
);

const caseless = (
  [
    [k.MSDOS_SUPER_MAGIC, 'vfat'],
    [k.EXFAT_SUPER_MAGIC, 'exfat'],
    [k.NTFS3_SUPER_MAGIC, 'ntfs3'],
  ] as const
).map(
  ([magic, type]): FactsRow => ({
    title: `a lower on ${type}`,
    call: calls.fsconfig,
    errno: e.EINVAL,
    found: { lowerdir: on(magic, type) },
    reason: 'layer-unsupported',
    path: '/l',
    text: new RegExp(`is on ${type}, whose names are case-insensitive`),
  }),
);

const confined = ['docker-default (enforce)', 'system_u:system_r:container_t:s0:c1,c2'].flatMap((label): FactsRow[] => [
  {
    title: `a process with the label ${label}`,
    call: calls.move_mount,
    errno: e.EACCES,
    process: { label },
    reason: 'lsm-denied',
    path: '/m',
    text: /runs as '/,
  },
  {
    title: `a process with the label ${label}, by mount(2)`,
    record: { ...linux61, mountApi: false },
    call: calls.mount,
    errno: e.EACCES,
    process: { label },
    reason: 'lsm-denied',
    path: '/m',
    text: /runs as '/,
  },
]);

/** A mount that plans the layers one by one. */
const oneByOne = { ...newest, lowerdirAppend: 'unknown' } as const;

const rows: readonly FactsRow[] = [
  ...remote,
  ...caseless,
  ...confined,
  {
    title: 'a lower with case folding, before 6.18',
    record: oneByOne,
    call: calls.fsconfig,
    key: 'lowerdir+',
    errno: e.EINVAL,
    says: 'case-insensitive capable filesystem on /l not supported',
    reason: 'layer-casefolded',
    path: '/l',
    text: /the lowerdir '\/l' is on a file system with case folding/,
  },
  {
    title: 'a lower without case folding beside one that has it, from 6.18 on',
    record: oneByOne,
    call: calls.fsconfig,
    key: 'lowerdir+',
    errno: e.EINVAL,
    says: 'case-sensitive directory on /l is inconsistent',
    reason: 'layer-casefolded',
    path: '/l',
    text: /the lowerdir '\/l' and another layer differ in case folding/,
  },
  {
    title: 'an upper with case folding, before 6.18',
    call: calls.fsconfig,
    key: 'upperdir',
    errno: e.EINVAL,
    says: 'case-insensitive capable filesystem on /u not supported',
    reason: 'layer-casefolded',
    path: '/u',
    text: /the upperdir '\/u' is on a file system with case folding/,
  },
  {
    title: 'a lower by autofs',
    record: oneByOne,
    call: calls.fsconfig,
    key: 'lowerdir+',
    errno: e.EINVAL,
    says: 'filesystem on /l not supported',
    found: { lowerdir: on(k.AUTOFS_SUPER_MAGIC, 'autofs') },
    reason: 'layer-unsupported',
    path: '/l',
    text: /autofs/,
  },
  {
    title: 'a quota that is used up, of a user',
    guard: 'superblock-is-read-only',
    facts: { work: { ...emptyFacts().work, attempt: e.EDQUOT } },
    reason: 'out-of-space',
    path: '/w',
    text: /no directory can be created in the workdir '\/w': a quota is used up/,
  },
  {
    title: 'room that is reserved for others',
    guard: 'superblock-is-read-only',
    facts: { work: { ...emptyFacts().work, attempt: e.ENOSPC } },
    reason: 'out-of-space',
    path: '/w',
    text: /has no space for it/,
  },
  {
    title: 'a workdir in which a security module lets nothing be made',
    guard: 'superblock-is-read-only',
    facts: { work: { ...emptyFacts().work, attempt: e.EACCES } },
    reason: 'mounted-read-only',
    path: '/w',
    text: /neither can this process \(permission denied\)/,
  },
  {
    title: 'an upper with an error that nobody has seen yet, volatile',
    options: { volatile: true },
    call: calls.fsconfig,
    errno: e.EIO,
    reason: 'io-error',
    text: /or the upperdir has an earlier one that was not yet reported/,
  },
  {
    title: 'a file system that is damaged',
    call: calls.fsconfig,
    errno: e.EUCLEAN,
    reason: 'io-error',
    text: /reports that it is damaged/,
  },
  {
    title: 'a file system that is damaged, when the workdir is to be made',
    options: { create: true },
    call: calls.mkdirat,
    errno: e.EIO,
    reason: 'io-error',
    text: /reports an I\/O error/,
  },
  {
    title: 'a workdir that cannot be made for no known cause',
    options: { create: true },
    call: calls.mkdirat,
    errno: e.ERANGE,
    reason: 'unexplained',
    text: /mkdirat\(.*"\/w".*\) failed/,
  },
  {
    title: 'a kernel without overlayfs',
    call: calls.fsopen,
    errno: e.ENODEV,
    reason: 'overlay-unavailable',
    text: /has no overlay file system/,
  },
  {
    title: 'no memory',
    call: calls.fsconfig,
    errno: e.ENOMEM,
    reason: 'out-of-memory',
    text: /no memory/,
  },
  {
    title: 'no descriptor left on the machine',
    call: calls.openat2,
    errno: e.ENFILE,
    reason: 'out-of-descriptors',
    text: /no file descriptor is left on the machine/,
  },
  {
    title: 'a target that is removed meanwhile',
    call: calls.move_mount,
    errno: e.ENOENT,
    reason: 'target-missing',
    path: '/m',
    text: /was removed during the mount/,
  },
];

for (const row of rows) {
  test(`facts: ${row.title}`, (t) => {
    const options = checkOptions({ ...given, ...row.options });
    const { plan: planned } = plan(options, row.record ?? newest);
    const step = planned.steps.findLastIndex(
      ({ call, args, options: { guard } }) =>
        (guard !== undefined && guard === row.guard) ||
        (call === row.call && (row.key === undefined || args[2] === row.key)),
    );
    t.true(step >= 0);
    const log = row.says === undefined ? [] : [Buffer.from(`e overlay: ${row.says}`)];
    const failure = new StepFailure(planned, { step, errno: row.errno ?? 0, undoErrno: 0, cancelled: false, log });
    const plain = emptyFacts();
    const paths = subjectsOf(options).map(
      (subject, i): PathFacts => ({
        subject,
        found: { ...NOT_FOUND, type: k.S_IFDIR, device: 1, inode: BigInt(i + 1), mountId: 1 },
        isMissing: false,
        isSymlink: false,
        fileSystem: undefined,
        mount: undefined,
        writeErrno: 0,
        ...row.found?.[subject.role],
      }),
    );
    const process = { ...plain.process, ...row.process };
    const error = explainMount(options, failure, { ...plain, paths, process, ...row.facts });
    t.is(error.reason, row.reason, error.message);
    t.regex(error.message, row.text);
    if (row.path !== undefined) t.is(error.path, row.path);
  });
}
