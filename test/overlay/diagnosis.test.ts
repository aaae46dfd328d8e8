/**
 * Random facts to reason, without a kernel: each has a reason, and a text without a hole. Imports internals: few of
 * these facts can be made on one machine.
 */
import test from 'ava';
import type { OverlayOptions } from 'overlayfs';
import { explainMount, foresee } from '#lib/diagnosis/explain.js';
import { emptyFacts, type Facts, type PathFacts } from '#lib/diagnosis/facts.js';
import { subjectsOf } from '#lib/diagnosis/gather.js';
import * as errnos from '#lib/errnos.js';
import { calls } from '#lib/kernel/calls.js';
import * as k from '#lib/kernel/constants.js';
import { StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { NOT_FOUND } from '#lib/kernel/stat.js';
import { addon } from '#lib/native.js';
import { checkOptions } from '#lib/options/check.js';
import { plan } from '#lib/overlay/plan.js';
import { reasons } from '#lib/reasons.js';
import { linux61, linux612, newest } from '../support/features.js';
import { generator, scaled } from '../support/index.js';

const RECORDS = scaled(100_000, 1000);
const random = generator(20261);

const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
const maybe = <T>(value: T): T | undefined => (random(3) === 0 ? undefined : value);
const flip = (): boolean => random(2) === 0;
const rarely = (): boolean => random(6) === 0;

const codes = Object.values(errnos).filter((value): value is number => typeof value === 'number');
const magics = Object.entries(k).flatMap(([name, value]) => (/MAGIC/.test(name) ? [value as number] : []));
const paths = ['/a', '/b c', "/d'e", Buffer.from([0x2f, 0xff, 0x0a]), `/${'x'.repeat(300)}`, '/proc/self/fd/7'];
const said = [
  'filesystem on /a is read-only',
  'filesystem on /a not supported as upperdir',
  'case-insensitive capable filesystem on /a not supported',
  'case-sensitive directory on /a is inconsistent',
  "Unknown parameter 'x'",
  "Bad value for 'index'",
  '',
];

function randomOptions(): OverlayOptions {
  const some = () => Array.from({ length: 1 + random(3) }, () => pick(paths));
  const hasUpper = random(4) > 0;
  return {
    lowerdir: hasUpper ? some() : ['/l', ...some()],
    ...(flip() && { datadir: some() }),
    ...(hasUpper && { upperdir: pick(paths), workdir: pick(paths) }),
    target: pick(paths),
    create: flip(),
    exclusive: flip(),
    readonly: flip(),
    readonlySuperblock: rarely(),
    stack: flip(),
    ...(flip() && { index: flip() }),
    ...(flip() && { volatile: true }),
    ...(flip() && { userxattr: true }),
  };
}

const identity = () => BigInt(random(5));

function randomPath(subject: PathFacts['subject']): PathFacts {
  const found = {
    ...NOT_FOUND,
    errno: rarely() ? pick(codes) : 0,
    type: pick([k.S_IFDIR, k.S_IFDIR, k.S_IFDIR, k.S_IFREG, k.S_IFLNK, 0]),
    device: random(3),
    inode: identity(),
    mountId: random(3),
    isMountRoot: flip(),
    links: random(3),
    isImmutable: rarely(),
  };
  return {
    subject,
    found,
    isMissing: rarely(),
    isSymlink: rarely(),
    fileSystem: maybe({
      magic: pick(magics),
      isReadOnly: rarely(),
      freeBlocks: random(2),
      blocks: random(2),
      freeInodes: random(2),
      inodes: random(2),
    }),
    mount: maybe({
      type: pick(['ext4', 'proc', 'overlay', '']),
      target: pick(paths),
      isUnbindable: rarely(),
      isIdmapped: rarely(),
      inside: maybe(pick(paths)),
    }),
    writeErrno: flip() ? 0 : pick(codes),
  };
}

function randomFacts(options: ReturnType<typeof checkOptions>): Facts {
  const all = subjectsOf(options);
  // A look that was given up has not all of them, or none.
  const subjects = rarely() ? all.slice(0, random(all.length + 1)) : all;
  const key = () => `${random(3)}:${random(5)}`;
  return {
    ...emptyFacts(),
    paths: subjects.map(randomPath),
    parents: new Map(Array.from({ length: random(8) }, () => [key(), key()])),
    process: {
      capabilities: BigInt(random(4)) | (flip() ? 1n << 21n : 0n),
      isInUserNamespace: flip(),
      filteredCall: undefined,
      hasSeccompFilter: flip(),
      label: maybe("profile 'x' (enforce)"),
    },
    mountCount: random(3) * 50_000,
    mountMax: random(2) * 100_000,
    otherUses: Array.from({ length: random(3) }, () => ({
      target: pick(paths),
      as: pick(['upperdir', 'workdir'] as const),
      subject: pick(all),
    })),
    origin: {
      isOfLower: maybe(flip()),
      lower: maybe(pick(paths)),
      isIndexOfUpper: maybe(flip()),
      indexUpper: maybe(pick(paths)),
    },
    work: {
      leftover: maybe(pick(paths)),
      immutable: maybe(pick(paths)),
      strayIndex: maybe(pick(paths)),
      incompatible: pick([[], [], ['volatile'], ['volatile', 'new'], ['new']]),
      attempt: maybe(pick(codes)),
    },
    use: { upper: maybe(flip()), work: maybe(flip()) },
    isIncomplete: rarely(),
  };
}

const hole = /undefined|null|NaN|\[object|\(\)|''|: ?[,.]|, ?[,.]| {2}|\$\{/;

test(`${RECORDS} random records of facts each come to a reason and a text without a hole`, (t) => {
  const counts = new Map<string, number>();
  let wrong = 0;
  for (let i = 0; i < RECORDS && wrong < 5; i++) {
    const options = checkOptions(randomOptions());
    const { plan: planned } = plan(options, pick([newest, linux612, linux61]));
    const step = random(planned.steps.length + 1) - 1;
    const failure = new StepFailure(planned, {
      step,
      errno: planned.steps[step]?.call === calls.guard ? 0 : pick(codes),
      undoErrno: rarely() ? errnos.EBUSY : 0,
      cancelled: false,
      log: flip() ? [] : [Buffer.from(`e overlay: ${pick(said)}`)],
    });
    const { reason, hint, message, path } = explainMount(options, failure, randomFacts(options));
    counts.set(reason, (counts.get(reason) ?? 0) + 1);
    const isRight = reason in reasons && hint.length > 8 && !hole.test(message.replace(/(?<=\()[^)]*(?=\))/g, 'x'));
    if (!isRight) {
      wrong++;
      t.fail(`record ${i}: ${reason}: ${message}`);
    }
    if (path !== undefined && path.length === 0) t.fail(`record ${i}: ${reason} with an empty path`);
  }
  t.true(counts.size > 35, `${counts.size} reasons`);
  t.log(`${counts.size} different reasons; unexplained: ${counts.get('unexplained') ?? 0}`);
});

test('what is foreseen from random facts has no hole either', (t) => {
  let found = 0;
  for (let i = 0; i < RECORDS / 10; i++) {
    const options = checkOptions(randomOptions());
    for (const { reason, message } of foresee(options, randomFacts(options))) {
      found++;
      if (!(reason in reasons) || hole.test(message)) t.fail(`record ${i}: ${reason}: ${message}`);
    }
  }
  t.true(found > RECORDS / 100);
});

test('an upper that the guard has refused is named, though it is free by then', (t) => {
  const options = checkOptions({ lowerdir: '/l', upperdir: '/u', workdir: '/w', target: '/m' });
  const reserving = new Plan();
  reserving.add(calls.reserve, [0, 0, 1, 0]);
  const guard = addon().guards['directory_is_in_use'] ?? -1;
  const failure = new StepFailure(reserving, { step: 0, errno: 0, guard, undoErrno: 0, cancelled: false, log: [] });
  const facts = { ...emptyFacts(), use: { upper: false, work: false } };
  t.like(explainMount(options, failure, facts), { reason: 'upper-in-use', path: '/u' });
});
