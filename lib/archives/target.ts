/** The directory that a layer is unpacked into: one that exists, or one that gets its name when it is complete. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { joinPath, type Path, pathString, quotePath, splitPath } from '../paths.js';
import { explainErrno, type Verdict } from '../verdicts.js';

export interface Target {
  readonly path: Path;
  readonly parent: Descriptor;
  readonly root: Descriptor;
  /** The name that the directory has until it is complete; undefined if it existed before. */
  readonly temporary: Path | undefined;
}

const O_PATH_DIRECTORY = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;

/** Opens the directory, or makes one beside its place. */
export async function openTarget(path: Path): Promise<Target> {
  const existing = new Plan();
  const root = existing.add(calls.openat2, [k.AT_FDCWD, path, O_PATH_DIRECTORY, 0], { keep: true, output: 0 });
  const found = await perform(existing);
  if (!(found instanceof StepFailure)) {
    return { path, parent: -1, root: found.result(existing.stepOf(root)), temporary: undefined };
  }
  if (found.errno !== e.ENOENT) throw explainTarget(path, found.errno);
  await refuseDangling(path);
  const [above, name] = splitPath(path);
  const { randomBytes } = process.getBuiltinModule('node:crypto');
  const temporary = `.overlayfs-${randomBytes(6).toString('hex')}`;
  const plan = new Plan();
  const parent = plan.add(calls.openat2, [k.AT_FDCWD, above, O_PATH_DIRECTORY, 0], { keep: true, output: 0 });
  plan.add(calls.mkdirat, [parent, temporary, 0o755], { undo: true });
  const made = plan.add(calls.openat2, [parent, temporary, O_PATH_DIRECTORY | k.O_NOFOLLOW, 0], {
    keep: true,
    output: 0,
  });
  const outcome = await perform(plan);
  if (outcome instanceof StepFailure) throw explainTarget(above, outcome.errno, name);
  return {
    path,
    parent: outcome.result(plan.stepOf(parent)),
    root: outcome.result(plan.stepOf(made)),
    temporary,
  };
}

/** Refuses a symbolic link in the place of a directory that is to be made. */
async function refuseDangling(path: Path): Promise<void> {
  const plan = new Plan();
  plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_NOFOLLOW | k.O_CLOEXEC, 0]);
  if ((await perform(plan)) instanceof StepFailure) return;
  const what = `${quotePath(path)} is a symbolic link that leads to nothing`;
  const hint = 'make the directory that it leads to, or remove it';
  throw new OverlayError({ errno: e.EEXIST, reason: 'path-exists', what, path: pathString(path), hint });
}

function explainTarget(path: Path, errno: number, name?: Path): OverlayError {
  const shown = quotePath(path);
  const own: Readonly<Record<number, Verdict>> = {
    [e.ENOTDIR]: { reason: 'path-not-directory', what: `${shown} is not a directory` },
    [e.EACCES]: { reason: 'permission-denied', what: `this process may not write to ${shown}` },
    [e.EPERM]: { reason: 'permission-denied', what: `this process may not write to ${shown}` },
  };
  const verdict = own[errno] ?? explainErrno(errno, { name: `the directory ${shown}`, purpose: `write to ${shown}` });
  return new OverlayError({ errno, path: pathString(name === undefined ? path : joinPath(path, name)), ...verdict });
}

/** Gives the complete directory its name. Until it is on the disk, `dropTarget` of what is returned removes it. */
export async function finishTarget(target: Target): Promise<Target> {
  const { path, parent, temporary } = target;
  if (temporary === undefined) return target;
  const [, name] = splitPath(path);
  const plan = new Plan();
  plan.add(calls.renameat2, [parent, temporary, parent, name, k.RENAME_NOREPLACE]);
  let outcome = await perform(plan);
  if (outcome instanceof StepFailure && outcome.errno === e.EINVAL) {
    // The file system knows no flags. An empty directory in its place is the only one that this replaces.
    const again = new Plan();
    again.add(calls.renameat2, [parent, temporary, parent, name, 0]);
    outcome = await perform(again);
  }
  if (!(outcome instanceof StepFailure)) return { ...target, temporary: name };
  if (outcome.errno !== e.EEXIST && outcome.errno !== e.ENOTEMPTY && outcome.errno !== e.ENOTDIR) {
    throw explainTarget(splitPath(path)[0], outcome.errno, name);
  }
  const what = `${quotePath(path)} was made by another program meanwhile`;
  throw new OverlayError({
    errno: outcome.errno,
    reason: 'path-exists',
    what,
    path: pathString(path),
    hint: 'remove it, or apply the layer again',
  });
}

/** Removes a directory that has not become complete. */
export async function dropTarget({ parent, temporary }: Target): Promise<void> {
  if (temporary === undefined) return;
  const plan = new Plan();
  plan.add(calls.remove, [parent, temporary, 0, 0, 0, 0], { tolerate: 'any' });
  await perform(plan);
}
