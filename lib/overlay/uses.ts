/**
 * Which directories are in use as upper or work: a record of the overlays that were mounted here and of those
 * that others have mounted in this namespace, which each mount brings up to date by asking for what is newer
 * than the last mount seen. The kernel itself takes one upper twice, and both mounts then go wrong.
 */
import { ENOSYS, EPERM, ESTALE } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import type { Held } from '../kernel/held.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { findOption, shownLayers } from '../mount-strings.js';
import { idHalves, isUniqueId } from '../mounts/mounted.js';
import { readMountinfo } from '../mounts/mountinfo.js';
import type { RawMount } from '../mounts/raw-mount.js';
import { MOUNT_BASICS, WHOLE_MOUNT } from '../mounts/statmount.js';
import { lookAtMounts } from '../mounts/table.js';
import { isAbsolute, type Path, toBytes, withoutTrailingSlashes } from '../paths.js';

/** What the guard reports, as native/plan.cc says: device and inode of both. */
const CLAIM_OUTPUT = 32;
const KEY_SIZE = 16;

/** A directory as native code compares it: device and inode, 8 bytes each. */
type Key = string;

/**
 * Where a mount is, and so how it is told whether it still is: in this namespace; attached in another one; out of
 * sight by `detach`, and perhaps still used; unmounted, but shown to programs that were started here, which are waited
 * for; gone by another hand, and most likely used no more; or what holds one that has no place, which ends with its
 * descriptor.
 */
export type Whereabouts = 'here' | 'elsewhere' | 'lost' | 'shown' | 'gone' | Held;

interface Use {
  readonly id: number;
  /** Where its files are. */
  readonly path: Path;
  readonly as: 'upperdir' | 'workdir';
  readonly where: Whereabouts;
}

/** A mount that was made here: what it uses, by name and, where that was looked at, by identity. */
export interface Claim {
  readonly id: number;
  readonly path: Path;
  readonly where: Whereabouts;
  readonly upperdir: Path;
  readonly workdir: Path;
  /** Of both, in this order; that of a directory which could not be looked at is empty. */
  readonly keys: readonly Key[] | undefined;
}

const roles = ['upperdir', 'workdir'] as const;

class Uses {
  readonly #byKey = new Map<Key, Use>();
  /**
   * Mounts whose directories have not been looked at: while there is no other overlay, whoever mounts and
   * unmounts one needs no look.
   */
  readonly #unseen = new Map<number, Claim>();
  /** Mounts of which there are, or were, copies. */
  readonly #cloned = new Set<number>();
  /** Mounts that programs see which were started here: how many. */
  readonly #shown = new Map<number, { programs: number }>();
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
    const { id, path, where, keys } = claim;
    if (keys === undefined) {
      this.#unseen.set(id, claim);
      return true;
    }
    this.#unseen.delete(id);
    if (keys.some((key) => (this.#byKey.get(key)?.id ?? id) !== id)) return false;
    keys.forEach((key, i) => {
      if (key !== '') this.#add(key, { id, path, as: roles[i] ?? 'workdir', where });
    });
    return true;
  }

  seen(id: number): void {
    if (isUniqueId(id) && id > this.#last) this.#last = id;
  }

  /** Puts down what the mount table shows, unless a newer mount is known to have the directory. */
  learn(key: Key, use: Use): void {
    if ((this.#byKey.get(key)?.id ?? 0) < use.id) this.#add(key, use);
  }

  #add(key: Key, use: Use): void {
    this.#byKey.set(key, use);
    this.#list = undefined;
  }

  /** The mount was unmounted here: it is gone, or out of sight only. */
  release(id: number, isDetached: boolean): void {
    const left = this.#copiesOf(id);
    this.#cloned.delete(id);
    // What is held ends with its descriptor, `detach` or not.
    const next = (where: Whereabouts) => (isDetached && typeof where === 'string' ? 'lost' : left);
    this.#change(id, ({ where }) => (where === 'lost' ? where : next(where)));
  }

  /** The mount is not where it was. */
  miss(id: number): void {
    const where = this.#copiesOf(id) ?? 'gone';
    this.#change(id, () => where);
  }

  /** Where copies of a mount are that may outlive it. */
  #copiesOf(id: number): Whereabouts | undefined {
    return this.#cloned.has(id) ? 'lost' : this.#shown.has(id) ? 'shown' : undefined;
  }

  #has(id: number): boolean {
    return this.#unseen.has(id) || this.all().some((use) => use.id === id);
  }

  /** There is a copy of the mount: when the mount itself is gone, only the kernel knows about that one. */
  addClone(id: number): void {
    if (this.#has(id)) this.#cloned.add(id);
  }

  /**
   * A program was started that sees copies of the mounts. What is to be called when it has ended. The kernel is not
   * asked: whoever starts programs without privilege would get no answer.
   */
  addProgram(ids: readonly number[]): () => void {
    const seen = ids.filter((id) => this.#has(id)).map((id) => [id, this.#shown.get(id) ?? { programs: 0 }] as const);
    for (const [id, shown] of seen) {
      shown.programs += 1;
      this.#shown.set(id, shown);
    }
    return () => {
      for (const [id, shown] of seen) {
        shown.programs -= 1;
        // Before unique ids another mount may have the number by now.
        if (shown.programs > 0 || this.#shown.get(id) !== shown) continue;
        this.#shown.delete(id);
        this.#change(id, ({ where }) => (where === 'shown' ? undefined : where));
      }
    };
  }

  /** A mount without a place has got one. */
  settle(id: number, path: Path, where: Whereabouts): void {
    this.#change(id, () => where, path);
  }

  #change(id: number, change: (of: Use | Claim) => Whereabouts | undefined, path?: Path): void {
    const changed = <T extends Use | Claim>(of: T, where: Whereabouts): T => ({ ...of, where, path: path ?? of.path });
    const unseen = this.#unseen.get(id);
    if (unseen !== undefined) {
      const where = change(unseen);
      if (where === undefined) this.#unseen.delete(id);
      else this.#unseen.set(id, changed(unseen, where));
    }
    for (const [key, use] of this.#byKey) {
      if (use.id !== id) continue;
      const where = change(use);
      if (where === undefined) this.#byKey.delete(key);
      else this.#byKey.set(key, changed(use, where));
      this.#list = undefined;
    }
  }

  forget(id: number): void {
    this.#cloned.delete(id);
    this.#shown.delete(id);
    this.#change(id, () => undefined);
  }

  /** The mount that uses a directory. */
  find(key: Key): Use | undefined {
    return this.#byKey.get(key);
  }

  /** The mounts, each once. */
  all(): readonly Use[] {
    return [...new Map([...this.#byKey.values()].map((use) => [use.id, use])).values()];
  }
}

/** The record of this thread's JavaScript: what other workers mount is to it what others mount. */
export const uses = new Uses();

/** Asks whether there are mounts in this namespace that are newer than what is known. */
export function addNews(plan: Plan): void {
  plan.add(calls.listmount, [...idHalves(uses.last), 0, 1], { output: 8, tolerate: [ENOSYS, EPERM] });
}

/** The guard of a plan against directories that are in use. They have to be open unless nothing is. */
export function addClaim(plan: Plan, upper: Descriptor | undefined, work: Descriptor | undefined): void {
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
  const claims = [...uses.unseen, ...last];
  if (claims.length === 0) return [];
  const keys = yield* findKeys(claims.flatMap(({ upperdir, workdir }) => [upperdir, workdir]));
  return claims.flatMap((claim, i) => {
    return uses.take({ ...claim, keys: keys.slice(2 * i, 2 * i + 2) }) ? [] : [claim.id];
  });
}

/** What is at the paths; empty where nothing could be looked at. */
function* findKeys(paths: readonly Path[]): Dialogue<Key[]> {
  const plan = new Plan();
  const looks = paths.map((path) => addLook(plan, path));
  const outputs = yield* ask(plan);
  return looks.map((step) => toKey(readLook(step, outputs)));
}

function toKey({ errno, device, inode }: Pick<Found, 'errno' | 'device' | 'inode'>): Key {
  // What is yet to be made has a number below zero, and nobody uses it.
  if (errno !== 0 || inode < 0n) return '';
  const key = Buffer.alloc(KEY_SIZE);
  key.writeBigUInt64LE(BigInt(device), 0);
  key.writeBigUInt64LE(inode, 8);
  return key.toString('latin1');
}

/** The mount that uses what a look has found, if it is known where that is. */
export function findUse(found: Found): Pick<Use, 'path' | 'as' | 'where'> | undefined {
  const use = uses.find(toKey(found));
  return use?.where === 'lost' || use?.where === 'gone' ? undefined : use;
}

const LISTED_AT_ONCE = 512;

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
  const basics = yield* lookAtMounts(ids, MOUNT_BASICS);
  const overlays = basics.flatMap(({ type, uniqueId }) => (type === 'overlay' ? [uniqueId as number] : []));
  for (const mount of yield* lookAtMounts(overlays, WHOLE_MOUNT)) yield* learnOne(mount);
}

function* learnOne({ uniqueId, target, options }: RawMount): Dialogue<void> {
  const shown = Buffer.from(options, 'latin1');
  const found = roles.flatMap((as) => {
    const text = findOption(shown, as);
    const paths = text === undefined ? [] : shownLayers(text);
    return paths.filter(isAbsolute).map((path) => ({ as, path }));
  });
  const keys = yield* findKeys(found.map(({ path }) => path));
  found.forEach(({ as }, i) => {
    const use: Use = { id: uniqueId as number, path: Buffer.from(target, 'latin1'), as, where: 'here' };
    if (keys[i]) uses.learn(keys[i], use);
  });
}

/** Before unique ids a mount that is gone leaves its number to another one. */
const nameOf = (id: number, target: Path): string =>
  `${id} ${Buffer.from(toBytes(withoutTrailingSlashes(target))).toString('latin1')}`;

const overlaysShown = (): ReadonlySet<string> =>
  new Set(readMountinfo().flatMap(({ id, type, target }) => (type === 'overlay' ? [nameOf(id, target)] : [])));

/**
 * After the guard has found one of the directories in use: forgets what is gone. Whether there was any of that, so that
 * it is worth another try. A mount that is not where it was may have been detached, by whichever program, and still be
 * used: `areUsed` has the kernel say of each directory whether it is, undefined where it does not. Without directories,
 * what is gone counts as used no more.
 */
export function* forgetGone(
  directories: readonly (Path | undefined)[],
  areUsed: () => Dialogue<readonly (boolean | undefined)[]>,
): Dialogue<boolean> {
  const gone = yield* findGone();
  const keys = yield* findKeys(directories.map((path) => path ?? ''));
  const found = keys.map((key) => uses.find(key));
  for (const use of gone) {
    if (found.some((one) => one?.id === use.id)) uses.miss(use.id);
    else uses.release(use.id, false);
  }
  const hidden = keys.map((key) => uses.find(key)).map((use) => (isOutOfSight(use?.where) ? use : undefined));
  // A directory that the plan had made, and that is no more, was no other mount's.
  if (hidden.every((use) => use === undefined)) return gone.length > 0;
  const answers = yield* areUsed();
  const free = hidden.flatMap((use, i) => (use && !(answers[i] ?? use.where !== 'gone') ? [use.id] : []));
  for (const id of free) uses.forget(id);
  return free.length > 0;
}

const isOutOfSight = (where: Whereabouts | undefined): boolean =>
  where === 'lost' || where === 'elsewhere' || where === 'gone';

function* findGone(): Dialogue<Use[]> {
  const gone: Use[] = [];
  const here: Use[] = [];
  for (const use of uses.all()) {
    if (use.where === 'here') here.push(use);
    // By garbage collection.
    else if (typeof use.where === 'object' && use.where.descriptor < 0) gone.push(use);
  }
  const unique = here.map(({ id }) => id).filter(isUniqueId);
  const there = new Set((yield* lookAtMounts(unique, k.STATMOUNT_MNT_BASIC)).map(({ uniqueId }) => uniqueId));
  const shown = unique.length < here.length ? overlaysShown() : undefined;
  const isGone = ({ id, path }: Use): boolean =>
    isUniqueId(id) ? !there.has(id) : shown?.has(nameOf(id, path)) === false;
  return [...gone, ...here.filter(isGone)];
}

/** Whether the guard asks to look at newer mounts first. */
export const isBehind = ({ step, errno }: StepFailure): boolean => step?.call === calls.listmount && errno === ESTALE;
