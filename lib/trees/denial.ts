/** Finds the cause of EPERM and EACCES: an attribute of a file, or the owner of an entry or directory. */
import type { Stats } from 'node:fs';
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat } from '../kernel/stat.js';
import { ask, inEitherForm, type Task } from '../kernel/task.js';
import { type Path, quotePath, splitPath, toBytes } from '../paths.js';
import type { Verdict } from '../verdicts.js';

function* lookAt(path: Path): Task<Stats | undefined> {
  const fs = process.getBuiltinModule('node:fs');
  const { lstat } = process.getBuiltinModule('node:fs/promises');
  const bytes = Buffer.from(toBytes(path));
  try {
    return yield* inEitherForm(
      () => lstat(bytes),
      () => fs.lstatSync(bytes),
    );
  } catch {
    return undefined;
  }
}

/** Finds the attribute, or the owner, that forbids a process to change, move or remove one of the entries. */
export function* findDenial(
  entries: readonly Path[],
  needsOwner = 'run as that user or as root, then call it again',
): Task<Verdict | undefined> {
  for (const entry of entries) {
    const found = yield* findOne(entry, splitPath(entry)[0]);
    if (found !== undefined) return { reason: 'permission-denied', hint: needsOwner, ...found };
  }
  return undefined;
}

const frozen = (path: Path) => ({
  what: `${quotePath(path)} is immutable or append-only`,
  hint: `remove the attribute: chattr -ia ${quotePath(path)}, then call it again`,
});

function* findOne(entry: Path, parent: Path): Task<{ readonly what: string; readonly hint?: string } | undefined> {
  const plan = new Plan();
  const [itself, above] = [entry, parent].map((path) => addStat(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW }));
  const args = [k.AT_FDCWD, parent, k.W_OK | k.X_OK, k.AT_EACCESS] as const;
  const access = plan.stepOf(plan.add(calls.faccessat2, args, { output: 0, tolerate: 'any' }));
  const outcome = yield* ask(plan);
  if (readStat(itself, outcome).isImmutable) return frozen(entry);
  if (readStat(above, outcome).isImmutable) return frozen(parent);
  const uid = process.geteuid?.() ?? 0;
  const directory = yield* lookAt(parent);
  if (directory === undefined || uid === 0 || directory.uid === uid) return undefined;
  if (!(outcome instanceof StepFailure) && outcome.result(access) === -e.EACCES) {
    return { what: `this process may not write ${quotePath(parent)}, which belongs to the user ${directory.uid}` };
  }
  const there = yield* lookAt(entry);
  if ((directory.mode & k.S_ISVTX) === 0 || there === undefined || there.uid === uid) return undefined;
  return { what: `${quotePath(parent)} is sticky, and ${quotePath(entry)} belongs to the user ${there.uid}` };
}
