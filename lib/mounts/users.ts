/** The processes that use mounts: proc_pid_fd(5), proc_pid_maps(5), proc_pid_root(5) and their like. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { Holder, Holding } from '../holder.js';
import { S_IFSOCK } from '../kernel/constants.js';
import { addLook, readLook, readMountId } from '../kernel/look.js';
import type { Outputs } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { pathString } from '../paths.js';
import { attempt, type Patience, type Search } from './search.js';

/** Through which mount: nothing for the one that is asked about, else another one of the same file system. */
export interface Via {
  readonly copy?: string;
  readonly namespace?: number;
}

/** The mounts that count, by the ids that looks with this mask find. */
export interface Wanted {
  readonly mask: number;
  readonly ids: ReadonlyMap<number, Via>;
}

/** Sockets that are bound in one of the mounts, by inode. */
export type Sockets = ReadonlyMap<number, Via & { readonly path: string }>;

/** So many looks to a crossing, about. */
const MOST_LOOKS = 250;

/** Something that may be in one of the mounts. */
interface Candidate {
  readonly pid: number;
  readonly what: Holding;
  readonly link: string;
  readonly descriptor?: number;
  /** As the process's maps show it. */
  readonly text?: string;
  readonly device?: string;
}

export interface Users {
  readonly holders: Holder[];
  /** Processes that could not be looked at. */
  readonly hidden: ReadonlySet<number>;
}

/** Command line, or name where there is none. */
export function commandOf(pid: number): string {
  const line = attempt(() => readFileSync(`/proc/${pid}/cmdline`));
  const command = line && pathString(line).replace(/\0+$/, '').replaceAll('\0', ' ');
  return command || (attempt(() => readFileSync(`/proc/${pid}/comm`, 'utf8'))?.trimEnd() ?? '');
}

//   7f1c2a000000-7f1c2a021000 r--p 00001000 08:01 1234   /path
const mapping = /^(\S+) \S+ \S+ (?<device>\S+) (?!0 )(?<inode>\d+) +(?<path>.+)$/;

/** Each file that a process has mapped, once. */
function* mappings(pid: number, onDenied: () => void): Generator<Candidate> {
  const text = attempt(() => readFileSync(`/proc/${pid}/maps`, 'latin1'), onDenied);
  const seen = new Set<string>();
  for (const line of text?.split('\n') ?? []) {
    const [, range = '', device = '', inode = '', path = ''] = mapping.exec(line) ?? [];
    const key = `${device} ${inode} ${path}`;
    if (range === '' || seen.has(key)) continue;
    seen.add(key);
    yield { pid, what: 'mapping', link: `/proc/${pid}/map_files/${range}`, device, text: path };
  }
}

/** All that a process may hold a mount by. */
function* candidates(pid: number, onDenied: () => void): Generator<Candidate> {
  const at = (name: string) => `/proc/${pid}/${name}`;
  for (const name of attempt(() => readdirSync(at('fd')), onDenied) ?? []) {
    yield { pid, what: 'file', link: at(`fd/${name}`), descriptor: Number(name) };
  }
  yield { pid, what: 'cwd', link: at('cwd') };
  yield { pid, what: 'root', link: at('root') };
  yield { pid, what: 'executable', link: at('exe') };
  // A thread may have directories of its own.
  const threads = attempt(() => readdirSync(at('task'))) ?? [];
  for (const thread of threads.length > 1 ? threads : []) {
    yield { pid, what: 'cwd', link: at(`task/${thread}/cwd`) };
    yield { pid, what: 'root', link: at(`task/${thread}/root`) };
  }
  yield* mappings(pid, onDenied);
}

class Batch {
  readonly plan = new Plan();
  readonly #looks: [candidate: Candidate, wanted: Wanted, step: Step][] = [];

  add(candidate: Candidate, wanted: readonly Wanted[]): void {
    for (const one of wanted)
      this.#looks.push([candidate, one, addLook(this.plan, candidate.link, { mask: one.mask })]);
  }

  get isFull(): boolean {
    return this.#looks.length >= MOST_LOOKS;
  }

  *hits(outputs: Outputs, sockets: Sockets, devices: ReadonlyMap<string, Via>): Generator<Holder> {
    for (const [candidate, { ids }, step] of this.#looks) {
      const result = outputs.result(step);
      const { pid, what, link, descriptor, text, device } = candidate;
      const base = { pid, command: '', ...(descriptor !== undefined && { descriptor }) };
      if (result < 0) {
        // Only root of the machine may follow these links.
        const via = what === 'mapping' && device !== undefined ? devices.get(device) : undefined;
        if (via !== undefined) yield { ...base, what, path: Buffer.from(text ?? '', 'latin1').toString(), ...via };
        continue;
      }
      const via = ids.get(readMountId(step, outputs));
      if (via !== undefined) {
        const path = attempt(() => readlinkSync(link, { encoding: 'buffer' }));
        yield { ...base, what, path: path === undefined ? '' : pathString(path), ...via };
      } else if (sockets.size > 0 && descriptor !== undefined) {
        const { type, inode } = readLook(step, outputs);
        const socket = type === S_IFSOCK ? sockets.get(Number(inode)) : undefined;
        if (socket !== undefined) yield { ...base, what: 'socket', ...socket };
      }
    }
  }
}

/**
 * What the processes hold of the mounts. `devices` is for those that may not follow the links to what is mapped:
 * the file systems as maps show them.
 */
export function* findUsers(
  pids: readonly number[],
  wanted: readonly Wanted[],
  sockets: Sockets,
  devices: ReadonlyMap<string, Via>,
  patience: Patience,
): Search<Users> {
  const hidden = new Set<number>();
  const found = new Map<string, Holder>();
  let batch = new Batch();
  function* finish(): Search<void> {
    const done = batch;
    batch = new Batch();
    for (const holder of done.hits(yield* patience.look(done.plan), sockets, devices)) {
      const { pid, what, path, descriptor } = holder;
      found.set(`${pid} ${what} ${descriptor} ${path}`, holder);
    }
  }
  for (const pid of pids) {
    if (patience.isLate()) break;
    for (const candidate of candidates(pid, () => hidden.add(pid))) {
      batch.add(candidate, wanted);
      if (batch.isFull || patience.isSliceOver()) yield* finish();
    }
  }
  yield* finish();

  const commands = new Map<number, string>();
  const holders: Holder[] = [];
  for (const holder of found.values()) {
    const { pid = 0, what, path } = holder;
    // A program is mapped too.
    if (what === 'mapping' && found.has(`${pid} executable undefined ${path}`)) continue;
    const command = commands.get(pid) ?? commandOf(pid);
    commands.set(pid, command);
    holders.push({ ...holder, command });
  }
  return { holders, hidden };
}
