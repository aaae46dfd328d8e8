/** The device nodes of a container. */
import type { StdioOptions } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, runSync } from '../kernel/task.js';

/** Devices that every program may need. */
const devices = ['null', 'zero', 'full', 'random', 'urandom', 'tty'];

const NULL = '/dev/null';

/**
 * Makes device nodes with the numbers of the host's: mknod(2). Returns false if this process may not, or if device nodes
 * do not work in this directory; then it has made none.
 */
function makeNodes(directory: string, names: readonly string[]): boolean {
  const plan = new Plan();
  const nodes = names.map((name) => ({ path: `${directory}/${name}`, ...statSync(`/dev/${name}`) }));
  for (const { path, mode, rdev } of nodes) plan.add(calls.mknodat, [k.AT_FDCWD, path, mode, rdev], { undo: true });
  if (runSync(ask(plan)) instanceof StepFailure) return false;
  try {
    // mknod(2) obeys the umask.
    for (const { path, mode } of nodes) chmodSync(path, mode & 0o7777);
    closeSync(openSync(`${directory}/${names[0]}`, 'r+'));
    return true;
  } catch {
    for (const { path } of nodes) rmSync(path);
    return false;
  }
}

/**
 * Makes a /dev with the devices that a container may use. The nodes are its own, so that root in the container changes
 * no mode or owner of the host's. A process that cannot make nodes shows those of the host.
 */
export function makeDevices(directory: string): { mount: string; at: string }[] {
  const dev = `${directory}/dev`;
  for (const [path, mode] of [
    [dev, 0o755],
    [`${dev}/shm`, 0o1777],
  ] as const) {
    mkdirSync(path);
    chmodSync(path, mode);
  }
  for (const [name, to] of [
    ['fd', '/proc/self/fd'],
    ['stdin', '/proc/self/fd/0'],
    ['stdout', '/proc/self/fd/1'],
    ['stderr', '/proc/self/fd/2'],
  ] as const) {
    symlinkSync(to, `${dev}/${name}`);
  }
  const whole = { mount: dev, at: '/dev' };
  if (makeNodes(dev, devices)) return [whole];
  for (const name of devices) writeFileSync(`${dev}/${name}`, '');
  return [whole, ...devices.map((name) => ({ mount: `/dev/${name}`, at: `/dev/${name}` }))];
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
  if (!given.some(isNull) || !makeNodes(directory, ['null'])) return start(stdio);
  const own = openSync(`${directory}/null`, 'r+');
  try {
    return start(given.map((stream, i) => (isNull(stream, i) ? own : stream)) as StdioOptions);
  } finally {
    closeSync(own);
  }
}
