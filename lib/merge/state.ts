/** The state of a merge, which it keeps in the staging directory until its end, so that a later call can resume it. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { DATA_OUTPUT, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { toBytePath } from '../trees/encodings.js';
import type { Root } from '../trees/root.js';
import { examine, Walker } from '../trees/walk.js';
import { type EarlierCheck, STAGING } from './check.js';

export const STATE = `${STAGING}/state`;
/** The names of entries in STAGING that a killed merge leaves without STATE; numbers are inodes. */
const ownInStaging = /^(clones(\.new)?|new|\d+)$/;
/**
 * Attributes of the target directory while STAGING is removed: everything is copied. A process may set one of them or
 * both. Their value names the upper and its state.
 */
export const COMPLETE = ['trusted.overlayfs.merged', 'user.overlayfs.merged'];

/** Stored in STATE from the first change until the end. */
export interface State extends EarlierCheck {
  readonly upper: string;
  /** The upper's path, for errors. */
  readonly path: string;
  /** Every entry is copied, and the upper remains to be emptied. */
  readonly isCopied?: boolean;
  /** The mode of the directory itself, before the merge. */
  readonly dirMode: number;
  /** A merge by move has begun. */
  readonly isMove?: boolean;
}

/** Returns the state that an earlier merge of this upper has left in the directory. */
export function* readState(dir: Root, upperId: string): Task<State | undefined> {
  const plan = new Plan();
  const text = plan.stepOf(
    plan.add(calls.read_file, [dir.descriptor, STATE], { output: DATA_OUTPUT, tolerate: 'any' }),
  );
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure || outcome.result(text) < 0) {
    yield* refuseForeign(dir);
    return undefined;
  }
  const state = toState(outcome.data(text));
  if (state?.upper === upperId) return state;
  throw unfinished(dir.path, state && toBytePath(state.path));
}

/** Refuses a staging directory with entries of others: the merge would remove them. */
function* refuseForeign(dir: Root): Task<void> {
  const records = yield* examine(dir.descriptor, [STAGING]);
  if (!records.advance() || records.error === e.ENOENT) return;
  if (records.type !== k.S_IFDIR) throw foreignStaging(dir.path);
  const walker = new Walker(STAGING, { at: dir.descriptor, atPath: dir.path, followRoot: false });
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.depth === 0) continue;
        if (!ownInStaging.test(walker.name)) throw foreignStaging(dir.path);
        if (walker.type === k.S_IFDIR) walker.skip();
      }
    }
  } finally {
    walker.close();
  }
}

/** True if a merge by copy has written everything, and was killed before its last step. */
export function* isMarkedComplete(dir: Root, identity: string): Task<boolean> {
  const root = yield* examine(dir.descriptor, [''], { attributes: 'all' });
  return root.advance() && COMPLETE.some((name) => root.attributes.get(name)?.toString() === identity);
}

function toState(data: Buffer): State | undefined {
  try {
    const state = JSON.parse(data.toString('latin1')) as State;
    const isWhole = typeof state.path === 'string' && Array.isArray(state.theirs) && Array.isArray(state.redirects);
    return isWhole ? state : undefined;
  } catch {
    return undefined;
  }
}

const foreignStaging = (dir: Path): OverlayError =>
  new OverlayError({
    errno: e.EEXIST,
    reason: 'path-exists',
    what: `${quotePath(dir)} has an entry ${STAGING} that no merge has made; the merge needs that name`,
    hint: 'rename or remove it',
    path: pathString(dir),
  });

/** The staging directory of another upper may hold its entries, so it must not be removed. */
function unfinished(dir: Path, upper: Path | undefined): OverlayError {
  const staging = quotePath(joinPath(dir, STAGING));
  return new OverlayError({
    errno: e.EBUSY,
    reason: 'layer-in-use',
    what: `an earlier merge ${upper === undefined ? '' : `of ${quotePath(upper)} `}into ${quotePath(dir)} has not ended`,
    hint: `merge ${upper === undefined ? 'that upper' : quotePath(upper)} again first; if it is gone, remove ${staging}, which may hold some of its entries`,
    path: pathString(dir),
  });
}
