/**
 * Makes user namespaces with the subordinate ids of the user, subuid(5). An unprivileged user may map only its own ids;
 * newuidmap(1) and newgidmap(1) map the subordinate ones.
 */

import { readFileSync } from 'node:fs';
import { userInfo } from 'node:os';
import { EACCES, EINVAL, ENOENT, EPERM } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { findProgram } from '../find-program.js';
import type { IdRange } from '../id-range.js';
import { calls } from '../kernel/calls.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { type Ids, ownIds } from '../namespaces/user-namespace.js';
import { addon } from '../native.js';
import { quotePath } from '../paths.js';
import { either, option, text } from '../text.js';
import { explainShortage } from '../verdicts.js';
import { findHolder } from './held-namespace.js';
import { explainRefusal, forbiddenBy, readNamespaceSettings } from './refusal.js';

/** A range of ids that belong to the user. */
export interface SubIdRange {
  readonly first: number;
  readonly count: number;
}

/** Returns the ranges of a user in a subuid(5) file, which has lines of `name or id:first:count`. Pure. */
export function readRanges(text: string, users: ReadonlySet<string>): SubIdRange[] {
  return text.split('\n').flatMap((line) => {
    const [user = '', ...numbers] = line.trim().split(':');
    const [first = Number.NaN, count = Number.NaN] = numbers.map(Number);
    return users.has(user) && Number.isSafeInteger(first) && count > 0 ? [{ first, count }] : [];
  });
}

/** Removes ids from the ranges that the kernel refuses in a map: ids in two ranges, and the user's own id. Pure. */
export function toDisjoint(own: number, ranges: readonly SubIdRange[]): SubIdRange[] {
  const disjoint: SubIdRange[] = [];
  const add = (first: number, end: number) => {
    if (first < end) disjoint.push({ first, count: end - first });
  };
  let free = 0; // no range so far has this id or a higher one
  for (const { first, count } of ranges.toSorted((a, b) => a.first - b.first)) {
    const [from, end] = [Math.max(first, free), first + count];
    free = Math.max(free, end);
    if (own < from || own >= end) {
      add(from, end);
    } else {
      add(from, own);
      add(own + 1, end);
    }
  }
  return disjoint;
}

/** Returns the arguments after the process id: the own id and the ranges, each mapped to itself. Pure. */
export function toMapArguments(own: number, ranges: readonly SubIdRange[]): string[] {
  return [{ first: own, count: 1 }, ...ranges].flatMap(({ first, count }) => [first, first, count].map(String));
}

/** Returns the map of a namespace in which 0 is the own id, and the ids from 1 on are the subordinate ones. Pure. */
export function toRootMap(own: number, ranges: readonly SubIdRange[]): IdRange[] {
  let container = 0;
  return [{ first: own, count: 1 }, ...ranges].map(({ first, count }) => {
    const range = { container, host: first, size: count };
    container += count;
    return range;
  });
}

/** The file and the program that a map needs. */
interface Source {
  readonly file: string;
  readonly program: string;
  readonly id: (ids: Ids) => number;
}

const sources: readonly Source[] = [
  { file: '/etc/subuid', program: 'newuidmap', id: ({ uid }) => uid },
  { file: '/etc/subgid', program: 'newgidmap', id: ({ gid }) => gid },
];

function findMapper(name: string): string {
  const found = findProgram(name, '/usr/bin');
  if (found !== undefined) return found;
  throw new OverlayError({
    errno: ENOENT,
    reason: 'sub-ids-missing',
    what: text`${option('subIds')} needs the program ${name}, which is not in PATH`,
    hint: either('install it (uidmap on Debian, shadow-utils on Fedora)', text`leave ${option('subIds')} out`),
  });
}

/** Returns the names under which a subuid(5) file may list the user. */
function namesOfUser({ uid }: Ids): Set<string> {
  const names = new Set([String(uid)]);
  try {
    names.add(userInfo().username);
  } catch (error) {
    const shortage = explainShortage(errnoOf(error), 'look up the name of the user');
    if (shortage !== undefined) throw shortage;
    // the user has no name
  }
  return names;
}

const errnoOf = (error: unknown): number => -((error as NodeJS.ErrnoException).errno ?? 0);

/** Reads a subuid(5) file. A missing file counts as empty. */
function readTable(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === ENOENT) return '';
    throw (
      explainShortage(errno, `read ${file}`) ??
      new OverlayError({
        errno,
        reason: 'sub-ids-missing',
        what: `this process may not read ${file}, which lists the subordinate ids of the user`,
        hint: `have root make it readable for every user: chmod a+r ${file}`,
        path: file,
      })
    );
  }
}

function findRanges(file: string, users: ReadonlySet<string>): SubIdRange[] {
  const ranges = readRanges(readTable(file), users);
  if (ranges.length > 0) return ranges;
  const name = [...users].at(-1);
  throw new OverlayError({
    errno: ENOENT,
    reason: 'sub-ids-missing',
    what: `the user ${name} has no subordinate ids: ${file} has no line for it`,
    hint: `have root add one: usermod --add-sub${file.slice(-3)}s 100000-165535 ${name}`,
    path: file,
  });
}

/** The kernel's limit of lines in a map: user_namespaces(7). */
const MOST_LINES = 340;

/** Returns the program's arguments. It writes a line for each range; the kernel takes less than a page of text. */
function toMap(file: string, own: number, disjoint: readonly SubIdRange[]): string[] {
  const words = toMapArguments(own, disjoint);
  if (disjoint.length < MOST_LINES && words.join(' ').length + 1 < addon().pageSize) return words;
  throw new OverlayError({
    errno: EINVAL,
    reason: 'sub-ids-refused',
    what: `the user has ${disjoint.length} ranges of subordinate ids in ${file}, but a map holds ${MOST_LINES - 1} ranges besides the user's own id, in less than ${addon().pageSize} characters`,
    hint: `have root give the user fewer and larger ranges in ${file}`,
    path: file,
  });
}

/** Returns the error for a namespace that could not be made. Pure, except that it reads the settings of the machine. */
function explainSubIds({ errno, kernel, plan, step }: StepFailure): OverlayError {
  const shortage = explainShortage(errno, 'make a user namespace with subordinate ids');
  if (shortage !== undefined) return shortage;
  const [said] = kernel;
  if (said === undefined) {
    const refusal = explainRefusal({ errno, plan, step }, readNamespaceSettings());
    const verdict = refusal && forbiddenBy(refusal);
    return new OverlayError({
      errno,
      syscall: 'clone',
      ...(verdict ?? { reason: 'unexplained', what: 'the kernel refused to create a user namespace' }),
    });
  }
  const words = said.trim().replace(/\s*\n\s*/g, '; ');
  return new OverlayError({
    errno,
    reason: 'sub-ids-refused',
    what:
      errno === EPERM
        ? `newuidmap or newgidmap did not map the subordinate ids${words === '' ? '' : `: ${quotePath(words)}`}`
        : 'newuidmap or newgidmap cannot be executed',
  });
}

/** The subordinate ids of the user, without its own id. */
export interface SubIds {
  readonly uids: readonly SubIdRange[];
  readonly gids: readonly SubIdRange[];
}

/** Reads the subordinate ids of the user from the files of subuid(5). */
export function findSubIds(): SubIds {
  const ids = ownIds();
  const users = namesOfUser(ids);
  const [uids = [], gids = []] = sources.map(({ file, id }) => toDisjoint(id(ids), findRanges(file, users)));
  return { uids, gids };
}

/** Makes a user namespace with the user's own ids and the subordinate ones. The caller owns the descriptor. */
export function* makeSubIdNamespace({ uids, gids }: SubIds = findSubIds()): Task<Descriptor> {
  const ids = ownIds();
  const commands = sources.map(({ file, program, id }, i) => {
    const words = [findMapper(program), ...toMap(file, id(ids), i === 0 ? uids : gids)];
    return words.join('\0');
  });
  const holder = findHolder();
  if (holder === undefined) {
    throw new OverlayError({
      errno: EACCES,
      reason: 'rootless-forbidden',
      what: text`this process may not execute the launcher of this package, which makes the namespaces for ${option('subIds')}`,
      hint: 'let the user of this process read and execute the files of the package',
    });
  }
  const plan = new Plan();
  const made = plan.stepOf(plan.add(calls.userns_by, [holder, ...commands], { keep: true, output: 0 }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainSubIds(outcome);
  return outcome.result(made);
}
