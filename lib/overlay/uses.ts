/**
 * Which directories are in use as upper or work: a record of the overlays that were mounted here and of those
 * that others have mounted in this namespace, which each mount brings up to date by asking for what is newer
 * than the last mount seen. The kernel itself takes one upper twice, and both mounts then go wrong.
 */
import { ENOSYS, EPERM, ESTALE } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { findOption, unescapeLayer } from '../mount-strings.js';
import { idHalves, isUniqueId } from '../mounts/mounted.js';
import { readMountinfo } from '../mounts/mountinfo.js';
import { isAbsolute, type Path, toBytes, withoutTrailingSlashes } from '../paths.js';
import type { KernelFeatures } from './features.js';

/** What the guard reports, as native/plan.cc says: device and inode of both. */
const CLAIM_OUTPUT = 32;
const KEY_SIZE = 16;

/** A directory as native code compares it: device and inode, 8 bytes each. */
type Key = string;

interface Use {
  readonly id: number;
  readonly target: Path;
  /** Out of sight, by `detach`, and perhaps still used. */
  readonly isDetached: boolean;
}

/** A mount that was made here: what it uses, by name and, where that was looked at, by identity. */
export interface Claim {
  readonly id: number;
  readonly target: Path;
  readonly upperdir: Path;
  readonly workdir: Path;
  readonly keys: readonly Key[] | undefined;
  readonly isDetached?: boolean;
}

class Uses {
  readonly #byKey = new Map<Key, Use>();
  /**
   * Mounts whose directories have not been looked at: while there is no other overlay, whoever mounts and
   * unmounts one needs no look.
   */
  readonly #unseen = new Map<number, Claim>();
  #last = 0;
  #list: Buffer | undefined;

  /** The newest mount seen. */
  get last(): number {
    return this.#last;
  }

  /** The directories in use, as the guard compares them. */
  get list(): Uint8Array {
    this.#list ??= Buffer.from([...this.#byKey.keys()].join(''), 'latin1');
    return this.#list;
  }

  /** Whether nothing is known to be in use. */
  get isEmpty(): boolean {
    return this.#byKey.size === 0 && this.#unseen.size === 0;
  }

  get unseen(): readonly Claim[] {
    return [...this.#unseen.values()];
  }

  /** Records a mount; false where another one uses a directory of it, of which the guard has not known yet. */
  take(claim: Claim): boolean {
    const { id, target, keys, isDetached } = claim;
    if (keys === undefined) {
      this.#unseen.set(id, claim);
      return true;
    }
    this.#unseen.delete(id);
    if (keys.some((key) => (this.#byKey.get(key)?.id ?? id) !== id)) return false;
    for (const key of keys) this.add(key, id, target, isDetached);
    return true;
  }

  seen(id: number): void {
    if (isUniqueId(id) && id > this.#last) this.#last = id;
  }

  /** Puts down what the mount table shows, unless a newer mount is known to have the directory. */
  learn(key: Key, id: number, target: Path): void {
    if ((this.#byKey.get(key)?.id ?? 0) < id) this.add(key, id, target);
  }

  add(key: Key, id: number, target: Path, isDetached = false): void {
    this.#byKey.set(key, { id, target, isDetached });
    this.#list = undefined;
  }

  /** The mount was unmounted here: it is gone, or out of sight only. */
  release(id: number, isDetached: boolean): void {
    const unseen = this.#unseen.get(id);
    if (unseen !== undefined && !unseen.isDetached) {
      if (isDetached) this.#unseen.set(id, { ...unseen, isDetached });
      else this.#unseen.delete(id);
    }
    for (const [key, use] of this.#byKey) {
      if (use.id !== id || use.isDetached) continue;
      if (isDetached) this.#byKey.set(key, { ...use, isDetached });
      else this.#byKey.delete(key);
      this.#list = undefined;
    }
  }

  forget(id: number): void {
    this.#unseen.delete(id);
    for (const [key, use] of this.#byKey) {
      if (use.id === id) this.#byKey.delete(key);
    }
    this.#list = undefined;
  }

  all(): readonly Use[] {
    return [...new Map([...this.#byKey.values()].map((use) => [use.id, use])).values()];
  }
}

/** The record of this thread's JavaScript: what other workers mount is to it what others mount. */
export const uses = new Uses();

/**
 * The guards of a plan: whether there are newer mounts, and whether one of the two directories is in use. These have
 * to be open unless nothing is.
 */
export function addClaim(
  plan: Plan,
  upper: Descriptor | undefined,
  work: Descriptor | undefined,
  { statmount }: KernelFeatures,
): void {
  if (statmount !== false)
    plan.add(calls.listmount, [...idHalves(uses.last), 0, 1], { output: 8, tolerate: [ENOSYS, EPERM] });
  if (uses.isEmpty || upper === undefined || work === undefined) return;
  plan.add(calls.claim, [upper, work, uses.list], { output: CLAIM_OUTPUT });
}

/** What the guards have reported. */
export function readClaim(
  news: Step | undefined,
  claim: Step | undefined,
  outputs: Outputs,
): readonly Key[] | undefined {
  if (news !== undefined && outputs.result(news) >= 0) uses.seen(outputs.number(news, 0));
  if (claim === undefined) return undefined;
  const bytes = outputs.bytes(claim, CLAIM_OUTPUT);
  return [0, KEY_SIZE].map((at) => bytes.toString('latin1', at, at + KEY_SIZE));
}

/**
 * Looks at the directories that were not looked at when they were taken, and at those of a last claim. The ids of
 * the claims that come too late.
 */
export function* lookAtUnseen(...last: readonly Claim[]): Dialogue<readonly number[]> {
  const plan = new Plan();
  const looks = [...uses.unseen, ...last].map((claim) => ({
    claim,
    steps: [claim.upperdir, claim.workdir].map((path) => addLook(plan, path)),
  }));
  if (looks.length === 0) return [];
  const outputs = yield* ask(plan);
  return looks.flatMap(({ claim, steps }) => {
    const keys = steps.flatMap((step) => toKey(readLook(step, outputs)) ?? []);
    return uses.take({ ...claim, keys }) ? [] : [claim.id];
  });
}

function toKey({ errno, device, inode }: Found): Key | undefined {
  if (errno !== 0) return undefined;
  const key = Buffer.alloc(KEY_SIZE);
  key.writeBigUInt64LE(BigInt(device), 0);
  key.writeBigUInt64LE(inode, 8);
  return key.toString('latin1');
}

const LISTED_AT_ONCE = 512;
const SMALL_ROOM = 8192;
const LARGE_ROOM = 65536;

const addStatmount = (plan: Plan, id: number, mask: number, room: number): Step =>
  plan.stepOf(plan.add(calls.statmount, [...idHalves(id), mask, room], { output: room, tolerate: 'any' }));

/** A text of struct statmount; the mask says whether it is there. */
function readText(bytes: Buffer, mask: number, at: number): Buffer | undefined {
  const STRINGS = 512;
  if ((bytes.readUInt32LE(8) & mask) === 0) return undefined;
  const start = STRINGS + bytes.readUInt32LE(at);
  return bytes.subarray(start, bytes.indexOf(0, start));
}

/** Looks at what has been mounted since the last mount seen. */
export function* catchUp(): Dialogue<void> {
  for (;;) {
    const plan = new Plan();
    const room = 8 * LISTED_AT_ONCE;
    const step = plan.stepOf(
      plan.add(calls.listmount, [...idHalves(uses.last), LISTED_AT_ONCE, 0], { output: room, tolerate: 'any' }),
    );
    const outputs = yield* ask(plan);
    const count = outputs instanceof StepFailure ? 0 : Math.max(0, outputs.result(step));
    if (outputs instanceof StepFailure || count === 0) return;
    const ids = Array.from({ length: count }, (_, i) => outputs.number(step, i));
    const known = new Set([...uses.all(), ...uses.unseen].map(({ id }) => id));
    yield* learn(ids.filter((id) => !known.has(id)));
    for (const id of ids) uses.seen(id);
    if (count < LISTED_AT_ONCE) return;
  }
}

function* learn(ids: readonly number[]): Dialogue<void> {
  const kinds = new Plan();
  const steps = ids.map((id) => [id, addStatmount(kinds, id, k.STATMOUNT_FS_TYPE, 1024)] as const);
  const types = yield* ask(kinds);
  if (types instanceof StepFailure) return;
  const overlays = steps.filter(
    ([, step]) =>
      types.result(step) >= 0 &&
      readText(types.bytes(step, 1024), k.STATMOUNT_FS_TYPE, 36)?.toString('latin1') === 'overlay',
  );
  for (const [id] of overlays) yield* learnOne(id);
}

function* learnOne(id: number): Dialogue<void> {
  const shown = yield* readShown(id);
  if (shown === undefined) return;
  const looks = new Plan();
  const found = (['upperdir', 'workdir'] as const).flatMap((name) => {
    const text = findOption(shown.options, name);
    // It does not tell an escaped path from a plain one.
    const paths = text === undefined ? [] : [text, unescapeLayer(text)];
    return paths.filter(isAbsolute).map((path) => addLook(looks, path));
  });
  const answers = yield* ask(looks);
  for (const step of found) {
    const key = toKey(readLook(step, answers));
    if (key !== undefined) uses.learn(key, id, shown.target);
  }
}

/** What statmount(2) shows of a mount with a unique id; the options from Linux 6.11 on. */
export function* readShown(id: number): Dialogue<{ options: Buffer; target: Buffer } | undefined> {
  if (!isUniqueId(id)) return undefined;
  for (const room of [SMALL_ROOM, LARGE_ROOM]) {
    const plan = new Plan();
    const step = addStatmount(plan, id, k.STATMOUNT_MNT_POINT | k.STATMOUNT_MNT_OPTS, room);
    const outputs = yield* ask(plan);
    if (outputs instanceof StepFailure || outputs.result(step) < 0) continue;
    const bytes = outputs.bytes(step, room);
    const options = readText(bytes, k.STATMOUNT_MNT_OPTS, 4);
    const target = readText(bytes, k.STATMOUNT_MNT_POINT, 108);
    return options === undefined || target === undefined ? undefined : { options, target };
  }
  return undefined;
}

/** Before unique ids a mount that is gone leaves its number to another one. */
const nameOf = (id: number, target: Path): string =>
  `${id} ${Buffer.from(toBytes(withoutTrailingSlashes(target))).toString('latin1')}`;

const overlaysShown = (): ReadonlySet<string> =>
  new Set(readMountinfo().flatMap(({ id, type, target }) => (type === 'overlay' ? [nameOf(id, target)] : [])));

/**
 * After the guard has found a directory in use: forgets the mounts that are gone. Whether there were any, so
 * that it is worth another try. `isStillUsed` is asked where one was taken out of sight.
 */
export function* forgetGone(isStillUsed: () => Dialogue<boolean>): Dialogue<boolean> {
  const all = uses.all();
  const plan = new Plan();
  const steps = all.map((use) => [use, addStatmount(plan, use.id, 0, 512)] as const);
  const outputs = yield* ask(plan);
  if (outputs instanceof StepFailure) return false;
  const results = steps.map(([use, step]) => [use, outputs.result(step)] as const);
  let hasGone = false;
  let detached: Use[] = [];
  const shown = results.some(([{ id }]) => !isUniqueId(id)) ? overlaysShown() : undefined;
  for (const [use, result] of results) {
    if (use.isDetached) detached.push(use);
    else if (isUniqueId(use.id) ? result < 0 : shown?.has(nameOf(use.id, use.target)) === false) {
      uses.forget(use.id);
      hasGone = true;
    }
  }
  if (detached.length > 0 && !(yield* isStillUsed())) {
    for (const { id } of detached) uses.forget(id);
    detached = [];
    hasGone = true;
  }
  return hasGone;
}

/** Whether the guard asks to look at newer mounts first. */
export const isBehind = ({ step, errno }: StepFailure): boolean => step?.call === calls.listmount && errno === ESTALE;
