/**
 * Finds the place of directories that `create` would make, or has made for a failed mount and removed again. Their file
 * system and their parent directories can explain a failure.
 */
import { ENOENT } from '../errnos.js';
import { S_IFDIR, STATX_INO, STATX_MNT_ID } from '../kernel/constants.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { type Path, toBytes } from '../paths.js';
import { identityOf } from './facts.js';

/** A directory that does not exist. */
export interface MissingDirectory {
  /** The facts that it would have. Its inode number is one that no directory has. */
  readonly found: StatResult;
  /** The nearest directory above it that exists. */
  readonly nearest: Path;
  readonly nearestFound: StatResult;
}

/** Cuts the path before each of its names, longest part first, and yields it with the names that were cut off. */
function* cuts(path: Path): Generator<[above: Buffer, names: string[]]> {
  const parts = Buffer.from(toBytes(path)).toString('latin1').split('/');
  for (let end = parts.length - 1; end > 0; end--) {
    if (parts[end] === '') continue;
    yield [Buffer.from(parts.slice(0, end).join('/') || '/', 'latin1'), parts.slice(end)];
  }
}

/** Resolves the names through directories that do not exist. Returns undefined if they lead out of them. */
function walk(names: readonly string[]): string[] | undefined {
  const down: string[] = [];
  for (const name of names) {
    if (name === '' || name === '.') continue;
    if (name !== '..') down.push(name);
    else if (down.pop() === undefined) return undefined;
  }
  return down;
}

/** Returns the missing directories of one mount by their paths, and adds their future parents to `parents`. */
export function* findMissingDirectory(
  paths: readonly Path[],
  parents: Map<string, string>,
): Task<Map<Path, MissingDirectory>> {
  const unmade = new Map<Path, MissingDirectory>();
  if (paths.length === 0) return unmade;
  const plan = new Plan();
  const looks = paths.flatMap((path) =>
    Array.from(cuts(path), ([above, names]) => ({ path, above, names, step: addStat(plan, above, lookOptions) })),
  );
  const outputs = yield* ask(plan);
  const inodes = new Map<string, bigint>();
  const done = new Set<Path>();
  for (const { path, above, names, step } of looks) {
    const nearestFound = readStat(step, outputs);
    if (done.has(path) || nearestFound.errno === ENOENT) continue;
    done.add(path);
    const down = nearestFound.type === S_IFDIR ? walk(names) : undefined;
    if (down === undefined) continue;
    let found = nearestFound;
    for (const name of down) {
      const at = identityOf(found) as string;
      const key = `${at}/${name}`;
      const inode = inodes.get(key) ?? -BigInt(inodes.size + 1);
      inodes.set(key, inode);
      found = { ...nearestFound, inode, isMountRoot: false, isImmutable: false };
      parents.set(identityOf(found) as string, at);
    }
    unmade.set(path, { found, nearest: above, nearestFound });
  }
  return unmade;
}

const lookOptions = { mask: STATX_INO | STATX_MNT_ID };
