/** `mount -o remount` of an overlay: it changes the flags, never the overlay's own options. */
import { statSync } from 'node:fs';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { performSync, StepFailure } from '../kernel/perform.js';
import { runSync } from '../kernel/task.js';
import { type RawOption, splitShown } from '../mount-strings.js';
import { readMountinfo } from '../mount-table/mountinfo.js';
import { explainUnreached } from '../mounts/covered.js';
import type { Words } from '../options/mount-words.js';
import { type Choose, type NamedOptions, readGiven, readShown } from '../options/text.js';
import { type Path, pathString, quotePath, toBytes } from '../paths.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import type { Request } from './arguments.js';
import { explainNamespace, isAboutNamespace, remountPlan } from './raw.js';

const look = (path: Path) => statSync(Buffer.from(toBytes(path)), { bigint: true, throwIfNoEntry: false });

function isSame(a: Path, b: Path): boolean {
  if (Buffer.from(toBytes(a)).equals(toBytes(b))) return true;
  const [first, second] = [look(a), look(b)];
  return first !== undefined && second !== undefined && first.dev === second.dev && first.ino === second.ino;
}

/** Values that the table may not show, since they are the kernel's defaults. */
const quiet: ReadonlySet<unknown> = new Set([false, 'off', 'auto', 'nofollow', 'null']);

/** True if the mount has the option as given; mount(8) may pass on only a part of a list. */
function isUnchanged(given: unknown, shown: unknown): boolean {
  if (shown === undefined) return quiet.has(given);
  const [wanted, there] = [given, shown].map((value) => [value].flat() as (Path | boolean)[]) as [Path[], Path[]];
  const isPath = (value: unknown): value is Path => typeof value === 'string' || value instanceof Uint8Array;
  return wanted.every((one) =>
    there.some((other) => one === other || (isPath(one) && isPath(other) && isSame(one, other))),
  );
}

/** Returns the shown options of the last mount at the target. */
function shownAt(target: Path): NamedOptions | undefined {
  const entry = readMountinfo().findLast((candidate) => candidate.target.equals(toBytes(target)));
  if (entry?.type !== 'overlay') return undefined;
  const existing: Choose = (readings) => readings.find(look) ?? readings[0];
  return readShown(splitShown(entry.superOptions), existing).options;
}

/** Returns the options that a remount would have to change, by the kernel's names. */
export function ignoredOptions(target: Path, rest: readonly RawOption[]): string[] {
  const shown = shownAt(target);
  if (shown === undefined) return [];
  return rest
    .filter((option) => {
      const { options, others } = readGiven([option]);
      if (others.length > 0) return true;
      return !Object.entries(options).every(([name, value]) => isUnchanged(value, shown[name as keyof NamedOptions]));
    })
    .map(({ name }) => name);
}

function explain({ shownErrno, errno, step }: StepFailure, { target, namespace }: Request): Verdict {
  const name = quotePath(target);
  if (namespace !== undefined && isAboutNamespace(step)) return explainNamespace(errno, namespace);
  if (shownErrno === e.EINVAL || shownErrno === e.ENOENT) {
    const covered = runSync(explainUnreached({ path: target, namespace }, false, 'overlay'));
    if (covered !== undefined) return covered;
  }
  switch (shownErrno) {
    case e.EINVAL:
      return { reason: 'not-mounted', what: `${name} is not the mount point of an overlay` };
    case e.EBUSY:
      return {
        reason: 'mount-busy',
        what: `a file in ${name} is open for writing, so the mount cannot become read-only`,
        hint: 'end the program that has it open (fuser -vm)',
      };
    case e.EROFS:
      return shownAt(target)?.upperdir === undefined
        ? {
            reason: 'read-only',
            what: `the overlay at ${name} has no upperdir, so it cannot become writable`,
            hint: 'mount it again with an upperdir and a workdir',
          }
        : {
            reason: 'mounted-read-only',
            what: `the overlay at ${name} was mounted read-only, because the kernel could not create its directory in the workdir`,
            hint: 'unmount it, empty the workdir, make it writable for the mounting user, and mount again',
          };
    default:
      return explainErrno(errno, { name, purpose: `change the mount at ${name}`, missing: 'target-missing' });
  }
}

export function remount(request: Request, words: Words, isView = false): void {
  const outcome = performSync(remountPlan(request, words, isView));
  if (!(outcome instanceof StepFailure)) return;
  const { shownErrno: errno, guard, step } = outcome;
  throw new OverlayError({
    errno,
    path: pathString(request.target),
    ...explain(outcome, request),
    syscall: guard === undefined ? step?.call.name : undefined,
  });
}
