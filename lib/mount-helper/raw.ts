/** Plans of mount(2) as mount(8) itself would call it: they refuse nothing that the kernel accepts. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { addGuard } from '../kernel/guards.js';
import { performSync, StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { joinGiven } from '../mount-strings.js';
import type { Words } from '../options/mount-words.js';
import { type Path, pathString, quotePath } from '../paths.js';
import { type Text, text } from '../text.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import type { Request } from './arguments.js';

/** Returns a plan whose further steps resolve paths in the namespace, from its root on. */
function planIn(namespace: Path | undefined): Plan {
  const plan = new Plan();
  if (namespace === undefined) return plan;
  plan.isOnOwnThread = true;
  const descriptor = plan.add(calls.openat2, [k.AT_FDCWD, namespace, k.O_CLOEXEC, 0]);
  plan.add(calls.unshare, [k.CLONE_FS]);
  plan.add(calls.setns, [descriptor, k.CLONE_NEWNS]);
  return plan;
}

/** Plans a mount. With `isGuarded`, a mount that comes out read-only is unmounted again. */
export function mountPlan(
  { source, target, namespace }: Request,
  { flags, propagation, rest }: Words,
  isGuarded = false,
): Plan {
  const plan = planIn(namespace);
  plan.add(calls.mount, [source, target, 'overlay', flags, joinGiven(rest)], { undo: true });
  if (isGuarded) {
    plan.add(calls.statfs, [target]);
    addGuard(plan, 'superblock-is-read-only');
  }
  if (propagation !== 0) plan.add(calls.mount, [null, target, null, propagation]);
  return plan;
}

/**
 * Plans a remount, of an overlay only: this is a helper for no other file system. A remount changes none of overlayfs'
 * own options. With `isView`, the superblock stays read-only, as the kernel has made that of an overlay without an
 * upper, but the mount does not become read-only.
 */
export function remountPlan({ target, namespace }: Request, { flags, propagation }: Words, isView = false): Plan {
  const plan = planIn(namespace);
  plan.add(calls.statfs, [target]);
  addGuard(plan, 'file-system-is-no-overlay');
  const kept = isView ? k.MS_RDONLY : 0;
  plan.add(calls.mount, [null, target, null, flags | k.MS_REMOUNT | kept]);
  if ((kept & ~flags) !== 0) plan.add(calls.mount, [null, target, null, flags | k.MS_REMOUNT | k.MS_BIND]);
  if (propagation !== 0) plan.add(calls.mount, [null, target, null, propagation]);
  return plan;
}

export const isAboutNamespace = (step: Step | undefined): boolean =>
  step?.call === calls.openat2 || step?.call === calls.unshare || step?.call === calls.setns;

export function explainNamespace(errno: number, namespace: Path): Verdict {
  const name = `the mount namespace ${quotePath(namespace)}`;
  const verdict = explainErrno(errno, { name, purpose: `join ${name}` });
  return verdict.reason === 'unexplained' ? { ...verdict, hint: 'name one of a process: /proc/PID/ns/mnt' } : verdict;
}

const READ_ONLY: Text = { before: ', so it would mount read-only', after: '' };

function explain({ shownErrno, errno, step }: StepFailure, { target, namespace }: Request): Verdict {
  if (namespace !== undefined && isAboutNamespace(step)) return explainNamespace(errno, namespace);
  const what = `the kernel refused the mount at ${quotePath(target)}`;
  // Linux 5.10 itself answers EROFS for an upperdir that is read-only.
  switch (shownErrno) {
    case e.ENOENT:
      return { reason: 'path-missing', what: `${what}: it, or a layer, does not exist` };
    case e.EROFS:
      return {
        reason: 'mounted-read-only',
        what: text`the kernel could not create its directory in the workdir of ${quotePath(target)}${READ_ONLY}`,
      };
    case e.E2BIG:
      return {
        reason: 'options-too-long',
        what: `${what}: the options are longer than the page that mount(2) accepts`,
      };
    case e.EINVAL:
      return { reason: 'option-refused', what: `${what} with these options` };
    default:
      return explainErrno(errno, { name: quotePath(target), purpose: `mount at ${quotePath(target)}` });
  }
}

/** Mounts. Returns what failed, if anything. */
export function mountRaw(request: Request, words: Words, isGuarded = false): StepFailure | undefined {
  const outcome = performSync(mountPlan(request, words, isGuarded));
  return outcome instanceof StepFailure ? outcome : undefined;
}

/** Explains the failure by its errno alone. */
export function explainRaw(failure: StepFailure, request: Request): OverlayError {
  const { shownErrno: errno, guard, step } = failure;
  const isJoin = request.namespace !== undefined && isAboutNamespace(step);
  const path = pathString(isJoin ? (request.namespace as Path) : request.target);
  return new OverlayError({
    errno,
    path,
    ...explain(failure, request),
    syscall: guard === undefined ? step?.call.name : undefined,
  });
}
