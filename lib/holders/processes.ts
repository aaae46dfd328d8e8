/** Finds the processes that use mounts: proc_pid_fd(5), proc_pid_maps(5), proc_pid_root(5) and similar files. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import * as e from '../errnos.js';
import type { Holder, Holding } from '../holder.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { Outputs } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { addStat, readMountIds } from '../kernel/stat.js';
import type { Task } from '../kernel/task.js';
import { pathString } from '../paths.js';
import { attempt, type Patience } from './patience.js';

/**
 * The mount through which something is held: empty for the mount in question, else another mount of the same file
 * system.
 */
export interface Via {
  readonly copy?: string;
  readonly namespace?: number;
}

/** The mounts in question, by the ids that looks with this mask report. */
export interface Wanted {
  readonly mask: number;
  readonly ids: ReadonlyMap<number, Via>;
  /** Their file system. Other things on it are held through a mount without a place. */
  readonly device?: number | undefined;
}

const WITHOUT_PLACE: Via = { copy: '' };

/** The highest bit tells a file system from a mount. */
const deviceKey = (device: number): bigint => (1n << 63n) | BigInt(device);

/** The sockets that are bound in one of the mounts, by inode. */
export type Sockets = ReadonlyMap<number, Via & { readonly path: string }>;

export interface Users {
  readonly holders: Holder[];
  /** The processes that could not be inspected. */
  readonly hidden: ReadonlySet<number>;
}

/** Returns the command line of a process, or its name when it has no command line. */
export function commandOf(pid: number): string {
  const line = attempt(() => readFileSync(`/proc/${pid}/cmdline`));
  const command = line && pathString(line).replace(/\0+$/, '').replaceAll('\0', ' ');
  return command || (attempt(() => readFileSync(`/proc/${pid}/comm`, 'utf8'))?.trimEnd() ?? '');
}

/** A link in /proc that may lead into one of the mounts. */
interface Candidate {
  readonly pid: number;
  readonly what: Holding;
  readonly link: string;
  readonly descriptor?: number;
}

/** A directory of such links. */
interface Directory {
  readonly pid: number;
  readonly what: 'file' | 'mapping';
  readonly path: string;
  /** The thread whose directory it is, if that is not the first one: it may have a table of descriptors of its own. */
  readonly thread?: number;
}

/** The approximate number of steps in one native call. */
const MOST_STEPS = 250;
/** The room for names in the output of a scan, in bytes. */
const NAMES = 1024;

class Batch {
  readonly plan = new Plan();
  readonly #looks: [candidate: Candidate, wanted: Wanted, step: Step][] = [];
  readonly #scans: [directory: Directory, wanted: Wanted, step: Step][] = [];

  get isFull(): boolean {
    return this.plan.steps.length >= MOST_STEPS;
  }

  look(candidate: Candidate, wanted: Wanted): void {
    this.#looks.push([candidate, wanted, addStat(this.plan, candidate.link, { mask: wanted.mask })]);
  }

  scan(directory: Directory, wanted: Wanted): void {
    const keys = Array.from(wanted.ids.keys(), BigInt);
    if (wanted.device !== undefined) keys.push(deviceKey(wanted.device));
    const ids = new Uint8Array(BigUint64Array.from(keys).buffer);
    const { thread = 0, pid } = directory;
    const args = [k.AT_FDCWD, directory.path, wanted.mask, ids, NAMES, thread, pid] as const;
    const step = this.plan.stepOf(this.plan.add(calls.scan, args, { output: NAMES, tolerate: 'any' }));
    this.#scans.push([directory, wanted, step]);
  }

  /** Yields the holders that the looks have found in a mount. */
  *hits(outputs: Outputs): Generator<Holder> {
    for (const [{ link, ...rest }, { ids, device }, step] of this.#looks) {
      if (outputs.result(step) < 0) continue;
      const found = readMountIds(step, outputs);
      const via = ids.get(found.id) ?? (found.device === device ? WITHOUT_PLACE : undefined);
      if (via === undefined) continue;
      const path = attempt(() => readlinkSync(link, { encoding: 'buffer' }));
      if (path !== undefined) yield { ...rest, command: '', path: pathString(path), ...via };
    }
  }

  /** Returns a batch that looks at each link that the scans have found, to learn which mount it leads into. */
  finds(outputs: Outputs, onDenied: (directory: Directory) => void): Batch {
    const next = new Batch();
    for (const [directory, wanted, step] of this.#scans) {
      const size = outputs.result(step);
      if (size === -e.EACCES || size === -e.EPERM) onDenied(directory);
      if (size <= 0) continue;
      const { pid, what, path } = directory;
      for (const name of outputs.bytes(step, size).toString('latin1').split('\0').slice(0, -1)) {
        next.look({ pid, what, link: `${path}/${name}`, ...(what === 'file' && { descriptor: Number(name) }) }, wanted);
      }
    }
    return next;
  }
}

type Fill = (batch: Batch, pid: number, wanted: Wanted) => void;

/** Adds the open files, the program and the directories of a process. */
const links: Fill = (batch, pid, wanted) => {
  const at = (name: string) => `/proc/${pid}/${name}`;
  batch.scan({ pid, what: 'file', path: at('fd') }, wanted);
  batch.look({ pid, what: 'cwd', link: at('cwd') }, wanted);
  batch.look({ pid, what: 'root', link: at('root') }, wanted);
  batch.look({ pid, what: 'executable', link: at('exe') }, wanted);
  // A thread may have a working directory and a root directory of its own.
  const threads = attempt(() => readdirSync(at('task'))) ?? [];
  for (const thread of threads.length > 1 ? threads : []) {
    if (Number(thread) === pid) continue;
    batch.scan({ pid, what: 'file', path: at(`task/${thread}/fd`), thread: Number(thread) }, wanted);
    batch.look({ pid, what: 'cwd', link: at(`task/${thread}/cwd`) }, wanted);
    batch.look({ pid, what: 'root', link: at(`task/${thread}/root`) }, wanted);
  }
};

const mappings: Fill = (batch, pid, wanted) =>
  batch.scan({ pid, what: 'mapping', path: `/proc/${pid}/map_files` }, wanted);

//   7f1c2a000000-7f1c2a021000 r--p 00001000 08:01 1234   /path
const mapping = /^\S+ \S+ \S+ (\S+) \d+ +(\/.*)$/;

/**
 * Yields mapped files by device number, as /proc/PID/maps writes it. This serves callers that may not follow the links
 * to mapped files.
 */
function* mappingsByDevice(pid: number, devices: ReadonlyMap<string, Via>): Generator<Holder> {
  const text = attempt(() => readFileSync(`/proc/${pid}/maps`, 'latin1'));
  for (const line of text?.split('\n') ?? []) {
    const [, device = '', path = ''] = mapping.exec(line) ?? [];
    const via = devices.get(device);
    if (via !== undefined) {
      yield { pid, command: '', what: 'mapping', path: Buffer.from(path, 'latin1').toString(), ...via };
    }
  }
}

/** Returns the processes that have one of the sockets open. */
function* findSocketUsers(pids: readonly number[], sockets: Sockets, patience: Patience): Task<Holder[]> {
  const holders: Holder[] = [];
  for (const pid of sockets.size === 0 ? [] : pids) {
    if (patience.isLate()) break;
    for (const name of attempt(() => readdirSync(`/proc/${pid}/fd`)) ?? []) {
      const link = attempt(() => readlinkSync(`/proc/${pid}/fd/${name}`)) ?? '';
      const socket = sockets.get(Number(/^socket:\[(\d+)\]$/.exec(link)?.[1]));
      if (socket !== undefined) {
        holders.push({ pid, command: '', what: 'socket', descriptor: Number(name), ...socket });
      }
    }
    yield* patience.pause();
  }
  return holders;
}

/**
 * Finds what the processes hold of the mounts. `devices` lists the file systems as /proc/PID/maps writes them, for
 * callers that may not follow the links to mapped files.
 */
export function* findUsers(
  pids: readonly number[],
  wanted: readonly Wanted[],
  sockets: Sockets,
  devices: ReadonlyMap<string, Via>,
  patience: Patience,
): Task<Users> {
  const hidden = new Set<number>();
  const found = new Map<string, Holder>();
  const note = (holders: Iterable<Holder>): void => {
    for (const holder of holders) {
      const { pid, what, path, descriptor } = holder;
      found.set(`${pid} ${what} ${descriptor} ${path}`, holder);
    }
  };
  function* finish(batch: Batch): Task<void> {
    if (batch.plan.steps.length === 0) return;
    const outputs = yield* patience.look(batch.plan);
    note(batch.hits(outputs));
    const next = batch.finds(outputs, ({ pid, what }) => {
      if (what === 'file') hidden.add(pid);
      else if (!hidden.has(pid)) note(mappingsByDevice(pid, devices));
    });
    yield* finish(next);
  }
  // Mappings come last: they take longest to search, and most mapped files are held in other ways too.
  for (const fill of [links, mappings]) {
    let batch = new Batch();
    for (const pid of pids) {
      if (patience.isLate()) break;
      for (const one of wanted) fill(batch, pid, one);
      if (!batch.isFull && !patience.isOver()) continue;
      yield* finish(batch);
      batch = new Batch();
    }
    yield* finish(batch);
  }
  note(yield* findSocketUsers(pids, sockets, patience));

  const commands = new Map<number, string>();
  const holders: Holder[] = [];
  for (const holder of found.values()) {
    const { pid = 0, what, path } = holder;
    // A running program is mapped too.
    if (what === 'mapping' && found.has(`${pid} executable undefined ${path}`)) continue;
    const command = commands.get(pid) ?? commandOf(pid);
    commands.set(pid, command);
    holders.push({ ...holder, command });
  }
  return { holders, hidden };
}
