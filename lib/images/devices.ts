/** The /dev/null of a container. */
import type { StdioOptions } from 'node:child_process';
import { chmodSync, closeSync, fstatSync, openSync, rmSync, statSync } from 'node:fs';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, runSync } from '../kernel/task.js';

const NULL = '/dev/null';

/** Makes a device node as the host's /dev/null: mknod(2). Returns false if this process may not, or if it does not work. */
function makeNull(path: string): boolean {
  const { mode, rdev } = statSync(NULL);
  const plan = new Plan();
  plan.add(calls.mknodat, [k.AT_FDCWD, path, mode, rdev], { undo: true });
  if (runSync(ask(plan)) instanceof StepFailure) return false;
  try {
    // mknod(2) obeys the umask.
    chmodSync(path, mode & 0o7777);
    closeSync(openSync(path, 'r+'));
    return true;
  } catch {
    rmSync(path);
    return false;
  }
}

/**
 * Calls `start` with standard streams in which a device node of this container takes the place of the host's /dev/null.
 * A runtime may give its streams to the user of the container: fchown(2).
 */
export function withOwnNull<T>(directory: string, stdio: StdioOptions, start: (stdio: StdioOptions) => T): T {
  const { rdev } = statSync(NULL);
  const given = Array.isArray(stdio) ? stdio : [stdio, stdio, stdio];
  const isNull = (stream: unknown, i: number): boolean => {
    if (stream === 'ignore') return true;
    const descriptor = stream === 'inherit' ? i : stream;
    return typeof descriptor === 'number' && fstatSync(descriptor).rdev === rdev;
  };
  if (!given.some(isNull) || !makeNull(`${directory}/null`)) return start(stdio);
  const own = openSync(`${directory}/null`, 'r+');
  try {
    return start(given.map((stream, i) => (isNull(stream, i) ? own : stream)) as StdioOptions);
  } finally {
    closeSync(own);
  }
}
