/**
 * Finds and removes the temporary directories of processes that have ended without removing them, with the containers and
 * mounts in them. A directory whose lock somebody holds is left alone.
 */
import { execFile } from 'node:child_process';
import { closeSync, existsSync, lstatSync, openSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { ENOENT } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { close, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, pause, run, type Task } from '../kernel/task.js';
import { removeDirectory } from '../layers/remove.js';
import { readTable } from '../mount-table/mountinfo.js';
import { unmount } from '../mounts/unmount-path.js';
import { quotePath } from '../paths.js';
import { tryLock } from '../trees/lock.js';
import { explainErrno, explainSystemError } from '../verdicts.js';
import { SnapshotError } from './errors.js';
import { bootId, type Maker, parseMaker, read } from './maker.js';
import { LABEL_FILE, PID_FILE, RUNNING_FILE, TEMPORARY, type TemporaryLabel } from './temporary.js';

/** Something that a process has left because it was killed. */
export interface Leftover {
  /** The temporary directory, or the directory of the snapshot. */
  readonly path: string;
  /** The key of the snapshot. */
  readonly key?: string | undefined;
  /** The process; undefined if it was killed before it could write this down. */
  readonly maker: Maker | undefined;
}

export interface Kept {
  readonly path: string;
  readonly error: Error;
}

/** How often, and after how many milliseconds, a runtime is asked again while it still starts its container. */
const [TRIES, INTERVAL] = [100, 50];

/** How long a mount may be busy, in milliseconds. */
const PATIENCE = 500;

/** Returns true if a directory of this name is one of this user's, whose contents nobody else can have made. */
function isOwn(path: string): boolean {
  const found = lstatSync(path, { throwIfNoEntry: false });
  return found?.isDirectory() === true && found.uid === process.geteuid?.() && (found.mode & 0o022) === 0;
}

/** Returns true if the runtime process has ended: it has inherited the lock of this file. */
async function hasEnded(path: string): Promise<boolean> {
  let descriptor: number;
  try {
    descriptor = openSync(`${path}/${RUNNING_FILE}`, 'r');
  } catch {
    return true;
  }
  try {
    const plan = new Plan();
    plan.add(calls.flock, [descriptor, k.LOCK_EX | k.LOCK_NB]);
    return !((await run(ask(plan))) instanceof StepFailure);
  } finally {
    closeSync(descriptor);
  }
}

/** Asks a runtime to end a container. Returns what it says if it refuses. */
function askToEnd([program = '', ...args]: readonly string[], name: string): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile(program, [...args, 'delete', '--force', name], (error, _, text) => {
      resolve(error === null ? undefined : text.trim() || error.message);
    });
  });
}

/** Ends a container with all its processes. */
async function endContainer(runtime: readonly string[], path: string, name: string): Promise<void> {
  for (let left = TRIES; ; left--) {
    const hasBegun = existsSync(`${path}/${PID_FILE}`);
    let said: string | undefined = 'it still makes the container';
    // crun fails for ever if what it makes is deleted meanwhile.
    if (hasBegun || (await hasEnded(path))) {
      said = await askToEnd(runtime, name);
      if ((said === undefined || !hasBegun) && (await hasEnded(path))) return;
    }
    if (left === 0) {
      const [program = ''] = runtime;
      throw new SnapshotError({
        code: 'ERR_SNAPSHOT_FAILED_PRECONDITION',
        what: `the runtime ${quotePath(program)} did not end the container ${quotePath(name)}${said === undefined ? '' : `: ${said}`}`,
        hint: `end it with ${runtime.join(' ')} delete --force ${name}, then clean up again`,
        path,
      });
    }
    await run(pause(INTERVAL));
  }
}

/** Removes the control groups that a runtime was killed in the midst of making. The kernel keeps those with processes. */
async function removeControlGroups(cgroups: string, name: string): Promise<void> {
  const own = cgroups.split('\n').map((line) => line.split(':').slice(2).join(':'));
  // In version 2 a runtime makes it beside its own group, which has processes.
  const above = new Set(['/', ...own, ...own.map(dirname)]);
  const places = await run(readTable(({ type, target }) => (type.startsWith('cgroup') ? target : undefined)));
  for (const place of places)
    for (const path of above) {
      try {
        rmdirSync(join(Buffer.from(place, 'latin1').toString(), path, name));
      } catch {
        // Most are not there.
      }
    }
}

/** Locks a directory. Returns undefined if somebody holds it, or it is gone. */
export function* lockDead(path: string): Task<Held | undefined> {
  const lock = yield* tryLock(path);
  if (!(lock instanceof StepFailure)) return lock === 'taken' ? undefined : lock;
  const { errno, step } = lock;
  if (errno === ENOENT) return undefined;
  const failed = {
    name: quotePath(path),
    purpose: `see if somebody holds ${quotePath(path)}`,
    syscall: step?.call.name,
  };
  throw new OverlayError({
    errno,
    path,
    syscall: failed.syscall,
    ...(explainFiltered(lock) ?? explainErrno(errno, failed)),
  });
}

/** Removes a directory that nobody holds. Returns undefined for any other. */
async function removeDead(path: string, name: string): Promise<Leftover | undefined> {
  if (!isOwn(path)) return undefined;
  const lock = await run(lockDead(path));
  if (lock === undefined) return undefined;
  const text = read(`${path}/${LABEL_FILE}`) ?? '';
  const maker = parseMaker(text);
  try {
    if (maker !== undefined) {
      const { runtime, cgroups = '' } = JSON.parse(text) as TemporaryLabel;
      // No container outlives its machine.
      if (runtime !== undefined && maker.bootId === bootId()) {
        await endContainer(runtime, path, name);
        await removeControlGroups(cgroups, name);
      }
    }
    await unmount(path, { recursive: true, timeout: PATIENCE });
    await run(removeDirectory(path, { isLocked: true }));
    return { path, maker };
  } finally {
    close(lock);
  }
}

/** Removes the temporary directories of this user that nobody holds, in the directory for temporary files. */
export async function removeLeftovers(): Promise<{ readonly left: Leftover[]; readonly kept: Kept[] }> {
  const directory = tmpdir();
  const left: Leftover[] = [];
  const kept: Kept[] = [];
  let names: string[] = [];
  try {
    const { readdir } = process.getBuiltinModule('node:fs/promises');
    names = (await readdir(directory)).filter((name) => TEMPORARY.test(name));
  } catch (error) {
    const hint = 'set TMPDIR to the directory for temporary files, and let this process read it';
    kept.push({ path: directory, error: explainSystemError(error, 'find temporary directories', hint) as Error });
  }
  for (const name of names) {
    const path = `${directory}/${name}`;
    try {
      const found = await removeDead(path, name);
      if (found !== undefined) left.push(found);
    } catch (error) {
      // Its owner, or another clean-up, may have removed it.
      if (isOwn(path)) kept.push({ path, error: error as Error });
    }
  }
  return { left, kept };
}
