/** The namespaces and ids of a program: the options that ask for them, and the maps of uid 0. */
import { readFileSync } from 'node:fs';
import { checkBoolean, checkWord } from '../arguments.js';
import { conflictingOptions, invalidArgumentType, outOfRange } from '../errors.js';
import { type Ids, ownIds } from '../namespaces/user-namespace.js';
import { type MapRange, type SubIds, toRootMap } from '../rootless/sub-ids.js';
import { option, text } from '../text.js';
import type { Apart, Launch, ProgramIds } from './launch.js';

export interface IsolationOptions {
  /**
   * False: a network namespace of its own, whose only interface is loopback (network_namespaces(7)). Sockets in the file
   * system still connect. Default: true.
   */
  network?: boolean;
  /**
   * `'own'`: a process namespace and a new /proc (pid_namespaces(7)). A small init is process 1 there: it reaps, and
   * hands on the signals that the ChildProcess gets. When the program ends, the kernel kills all that it has started.
   */
  pids?: 'own';
  /** `'own'`: System V IPC and POSIX message queues of its own (ipc_namespaces(7)). */
  ipc?: 'own';
  /** `'own'`: a host name of its own (uts_namespaces(7)). */
  uts?: 'own';
  /**
   * True: the program has uid 0, in a user namespace of its own, with all capabilities there and none outside. It cannot
   * undo `readonly`, `hidden` and `writable`. Its uid 0 is the calling user outside; ids 1 and up are the subordinate ids
   * of a mount with `subIds`. For a privileged caller of uid 0, all ids are the same inside. Default: false.
   */
  root?: boolean;
  /**
   * The user id and the group id of the program. Needs a privileged caller, or `root`, whose namespace has to contain
   * them. Default: 0 with `root`, else those of this process.
   */
  uid?: number;
  gid?: number;
  /** The supplementary groups of the program. Default: none if `uid` or `gid` is set, else those of this process. */
  groups?: readonly number[];
}

export const isolationNames = ['network', 'pids', 'ipc', 'uts', 'root', 'uid', 'gid', 'groups'] as const;

export interface Isolation {
  readonly apart: readonly Apart[];
  readonly hasRoot: boolean;
  readonly ids: ProgramIds | undefined;
}

/** The launcher has room for this many. */
const MOST_GROUPS = 256;

function checkId(value: unknown, name: string): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'number') throw invalidArgumentType(name, 'a number', value);
  if (Number.isInteger(value) && value >= 0 && value < 2 ** 32 - 1) return value;
  throw outOfRange(name, 'an integer from 0 to 4294967294', String(value));
}

function checkGroups(value: unknown): number[] | undefined {
  if (value === undefined) return undefined;
  if (!Array.isArray(value)) throw invalidArgumentType('groups', 'a list of numbers', value);
  if (value.length > MOST_GROUPS) throw outOfRange('groups', `at most ${MOST_GROUPS} groups`, String(value.length));
  return Array.from(value, (group, i) => {
    const name = `groups[${i}]`;
    const id = checkId(group, name);
    if (id === undefined) throw invalidArgumentType(name, 'a number', group);
    return id;
  });
}

/** Returns what the program has for itself. */
export function checkIsolation(options: IsolationOptions): Isolation {
  const own = (name: 'pids' | 'ipc' | 'uts'): Apart[] =>
    checkWord(options[name], name, ['own']) === undefined ? [] : [name];
  const network: Apart[] = checkBoolean(options.network, 'network') === false ? ['network'] : [];
  const hasRoot = checkBoolean(options.root, 'root') ?? false;
  const [uid, gid, groups] = [checkId(options.uid, 'uid'), checkId(options.gid, 'gid'), checkGroups(options.groups)];
  const isSame = uid === undefined && gid === undefined && groups === undefined;
  const usual = hasRoot ? 0 : undefined;
  return {
    apart: [...own('pids'), ...network, ...own('ipc'), ...own('uts')],
    hasRoot,
    ids:
      isSame && !hasRoot
        ? undefined
        : {
            uid: uid ?? usual ?? process.geteuid?.() ?? 0,
            gid: gid ?? usual ?? process.getegid?.() ?? 0,
            groups: groups ?? (isSame ? undefined : []),
          },
  };
}

/** Throws if a program without privilege asks for ids. */
export function refuseIds({ hasRoot, ids }: Isolation, isRootless: boolean): void {
  if (!isRootless || hasRoot || ids === undefined) return;
  throw conflictingOptions(
    text`${option('uid')}, ${option('gid')} and ${option('groups')} need privilege, which this program does not get`,
    text`pass ${option('root', true)} too, or leave them out`,
  );
}

const mapText = (ranges: readonly MapRange[]): string =>
  ranges.map(({ inside, outside, size }) => `${inside} ${outside} ${size}`).join('\n');

/** Reads the ids that this process has in its own user namespace: user_namespaces(7). */
function allIds(file: string): string {
  const ranges = readFileSync(`/proc/self/${file}`, 'latin1')
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number));
  return mapText(ranges.map(([first = 0, , size = 0]) => ({ inside: first, outside: first, size })));
}

/** The ids that a namespace without privilege contains. */
export interface ContainedIds extends SubIds {
  readonly own: Ids;
}

/** Returns the maps of a program's user namespace, in which it has uid 0. */
export function rootMaps(contained: ContainedIds | undefined): NonNullable<Launch['root']> {
  const { own, uids, gids } = contained ?? { own: ownIds(), uids: [], gids: [] };
  const hasAll = contained === undefined && own.uid === 0 && own.gid === 0;
  if (hasAll) return { uids: allIds('uid_map'), gids: allIds('gid_map') };
  return { uids: mapText(toRootMap(own.uid, uids)), gids: mapText(toRootMap(own.gid, gids)) };
}

/** Returns the ids of a program. A namespace of one group has no others, and the kernel lets no process drop groups there. */
export function toIds({ ids }: Isolation, contained: ContainedIds | undefined): ProgramIds | undefined {
  return ids?.groups?.length === 0 && contained?.gids.length === 0 ? { ...ids, groups: undefined } : ids;
}
