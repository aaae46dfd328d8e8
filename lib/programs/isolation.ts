/** The namespaces and ids of a program: the options that ask for them, and the maps of uid 0. */
import { readFileSync } from 'node:fs';
import { checkBoolean, checkList, checkText, checkWord } from '../arguments.js';
import { conflictingOptions, explainProc, invalidArgumentType, invalidArgumentValue, outOfRange } from '../errors.js';
import type { IdRange } from '../id-range.js';
import { type Ids, ownIds, parseIdMap } from '../namespaces/user-namespace.js';
import { type SubIds, toRootMap } from '../rootless/sub-ids.js';
import { option, text } from '../text.js';
import { type Maps, namespaceFlags, type ProgramIds, type Unshared } from './launch.js';

export interface IsolationOptions {
  /**
   * The namespaces that the program has for itself, in the words of unshare(1):
   * - `'net'`: a network whose only interface is loopback (network_namespaces(7)). Sockets in the file system still
   *   connect.
   * - `'pid'`: processes and a new /proc (pid_namespaces(7)). A small init is process 1 there: it reaps, and hands on the
   *   signals that the ChildProcess gets. When the program ends, the kernel kills all that it has started.
   * - `'ipc'`: System V IPC and POSIX message queues (ipc_namespaces(7)).
   * - `'uts'`: a host name (uts_namespaces(7)).
   *
   * It always has mounts of its own. Default: none of these.
   */
  unshare?: readonly Unshared[];
  /** The host name of the program, which has a UTS namespace of its own for it: sethostname(2). At most 64 bytes. */
  hostname?: string;
  /**
   * True: the program has uid 0, in a user namespace of its own, with all capabilities there and none outside. It cannot
   * undo `readonly`, `hidden` and `writable`. Its uid 0 is the calling user outside; ids 1 and up are the subordinate ids
   * of a mount with `subIds`. For a privileged caller of uid 0, all ids are the same inside. Default: false.
   */
  mapRoot?: boolean;
  /**
   * The user id and the group id of the program. Needs a privileged caller, or `mapRoot`, whose namespace has to contain
   * them. Default: 0 with `mapRoot`, else those of this process.
   */
  uid?: number;
  gid?: number;
  /** The supplementary groups of the program. Default: none if `uid` or `gid` is set, else those of this process. */
  groups?: readonly number[];
}

export const isolationNames = ['unshare', 'hostname', 'mapRoot', 'uid', 'gid', 'groups'] as const;

export interface Isolation {
  readonly unshared: ReadonlySet<Unshared>;
  readonly hostname: string | undefined;
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
  const given = checkList(value, 'groups');
  if (given.length > MOST_GROUPS) throw outOfRange('groups', `at most ${MOST_GROUPS} groups`, String(given.length));
  return given.map((group, i) => {
    const name = `groups[${i}]`;
    const id = checkId(group, name);
    if (id === undefined) throw invalidArgumentType(name, 'a number', group);
    return id;
  });
}

function checkHostname(value: unknown): string | undefined {
  if (value === undefined) return undefined;
  const name = checkText(value, 'hostname');
  const size = Buffer.byteLength(name);
  if (size >= 1 && size <= 64) return name;
  throw invalidArgumentValue('hostname', name, 'must have 1 to 64 bytes');
}

/** Returns what the program has for itself. */
export function checkIsolation(options: IsolationOptions): Isolation {
  const kinds = Object.keys(namespaceFlags);
  const unshared = new Set(
    checkList(options.unshare, 'unshare').map((kind, i) => checkWord(kind ?? null, `unshare[${i}]`, kinds) as Unshared),
  );
  const hasRoot = checkBoolean(options.mapRoot, 'mapRoot') ?? false;
  const [uid, gid, groups] = [checkId(options.uid, 'uid'), checkId(options.gid, 'gid'), checkGroups(options.groups)];
  const isSame = uid === undefined && gid === undefined && groups === undefined;
  const usual = hasRoot ? 0 : undefined;
  const hostname = checkHostname(options.hostname);
  if (hostname !== undefined) unshared.add('uts');
  return {
    unshared,
    hostname,
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
    text`pass ${option('mapRoot', true)} too, or leave them out`,
  );
}

const mapText = (ranges: readonly IdRange[]): string =>
  ranges.map(({ container, host, size }) => `${container} ${host} ${size}`).join('\n');

function readProc(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch (error) {
    throw explainProc(error, path);
  }
}

/** Reads the ids that this process has in its own user namespace: user_namespaces(7). */
function allIds(file: string): string {
  const ranges = parseIdMap(readProc(`/proc/self/${file}`));
  return mapText(ranges.map(({ container, size }) => ({ container, host: container, size })));
}

/** The ids that a namespace without privilege contains. */
export interface ContainedIds extends SubIds {
  readonly own: Ids;
}

/** Returns the maps of a program's user namespace in which all ids are the same as outside. */
export const sameMaps = (): Maps => ({ uids: allIds('uid_map'), gids: allIds('gid_map') });

/** Returns the maps of a program's user namespace, in which it has uid 0. */
export function rootMaps(contained: ContainedIds | undefined): Maps {
  const { own, uids, gids } = contained ?? { own: ownIds(), uids: [], gids: [] };
  const hasAll = contained === undefined && own.uid === 0 && own.gid === 0;
  if (hasAll) return sameMaps();
  return { uids: mapText(toRootMap(own.uid, uids)), gids: mapText(toRootMap(own.gid, gids)) };
}

/** Returns the ids of a program. A namespace of one group has no others, and the kernel lets no process drop groups there. */
export function toIds({ ids }: Isolation, contained: ContainedIds | undefined): ProgramIds | undefined {
  return ids?.groups?.length === 0 && contained?.gids.length === 0 ? { ...ids, groups: undefined } : ids;
}
