/** The option `sync`, and names that have to be on the disk. */
import { checkWord } from '../arguments.js';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { type Path, pathString, quotePath, splitPath } from '../paths.js';
import { explainErrno } from '../verdicts.js';
import { TreeWriter } from './write.js';

/** `'end'`: what was written is on the disk before the promise is fulfilled. `'none'`: the kernel writes it when it likes. */
export type Sync = 'end' | 'none';

export const checkSync = (value: unknown): boolean => checkWord(value, 'sync', ['none', 'end']) !== 'none';

/** Writes the names in the directory of this path to the disk, fsync(2). */
export function* syncDirectory(descriptor: Descriptor, path: Path): Task<void> {
  const plan = new Plan();
  const opened = plan.add(calls.openat2, [descriptor, '.', k.O_DIRECTORY | k.O_CLOEXEC, 0]);
  plan.add(calls.fsync, [opened]);
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return;
  const { errno, step } = outcome;
  const syscall = step?.call.name ?? 'fsync';
  // A directory that its user may write to and not read. Some file systems sync no directory.
  if (errno === e.EACCES || errno === e.EINVAL) return yield* new TreeWriter(descriptor).sync();
  const name = `the directory ${quotePath(path)}`;
  const purpose = `write the names in ${quotePath(path)} to the disk`;
  throw new OverlayError({
    errno,
    syscall,
    path: pathString(path),
    ...explainErrno(errno, { name, purpose, syscall }),
  });
}

/** Makes a directory and those above it that are missing. With `syncs`, their names are on the disk. */
export function* makeDirectories(path: Path, mode: number, syncs: boolean, hasParent = false): Task<void> {
  const plan = new Plan();
  const tolerate = hasParent ? [e.EEXIST] : [e.EEXIST, e.ENOENT];
  const made = plan.stepOf(plan.add(calls.mkdirat, [k.AT_FDCWD, path, mode], { output: 0, tolerate }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) {
    const { errno } = outcome;
    const name = `the directory ${quotePath(path)}`;
    const verdict = explainErrno(errno, { name, purpose: `make ${quotePath(path)}`, syscall: 'mkdir' });
    throw new OverlayError({ errno, path: pathString(path), syscall: 'mkdir', ...verdict });
  }
  const [parent] = splitPath(path);
  const result = outcome.result(made);
  if (result === -e.ENOENT) {
    yield* makeDirectories(parent, mode, syncs);
    yield* makeDirectories(path, mode, syncs, true);
  } else if (result === 0 && syncs) yield* syncNames(parent);
}

/** Writes the names in the directory of this path to the disk. */
export function* syncNames(path: Path): Task<void> {
  const plan = new Plan();
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  const opened = plan.add(calls.openat2, [k.AT_FDCWD, path, flags, 0], { keep: true, output: 0 });
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) {
    const { errno } = outcome;
    const verdict = explainErrno(errno, { name: quotePath(path), purpose: `write the names in it to the disk` });
    throw new OverlayError({ errno, path: pathString(path), ...verdict });
  }
  const descriptor = outcome.result(plan.stepOf(opened));
  try {
    yield* syncDirectory(descriptor, path);
  } finally {
    close({ descriptor });
  }
}
