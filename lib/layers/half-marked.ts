/**
 * Finds directories that are opaque for some mounts only. Only root can find them, since other users cannot read
 * `trusted.*`.
 */
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, list, type Task } from '../kernel/task.js';
import { joinPath, type Path } from '../paths.js';
import { opaqueName } from '../trees/xattrs.js';
import { addMark, isMarked } from './opaque.js';

export interface HalfMarked {
  /** Directories that have only the mark for the other kind of mount. */
  readonly paths: readonly Path[];
  /** True if the whole layer was examined. */
  readonly isComplete: boolean;
}

const MOST_DIRECTORIES = 100_000;
const AT_ONCE = 256;

/**
 * Searches a layer for directories that are opaque only for the other kind of mount: they lack the mark that counts for
 * mounts with `userxattr`, or without it.
 */
export function* findHalfMarked(layer: Path, userxattr: boolean): Task<HalfMarked> {
  const paths: Path[] = [];
  const left: Path[] = [layer];
  let seen = 0;
  for (let directory = left.pop(); directory !== undefined; directory = left.pop()) {
    const at = directory;
    const inside = (yield* list(at)).filter(({ isDirectory }) => isDirectory).map(({ name }) => joinPath(at, name));
    seen += inside.length;
    if (seen > MOST_DIRECTORIES) return { paths, isComplete: false };
    for (let i = 0; i < inside.length; i += AT_ONCE) {
      paths.push(...(yield* halfMarkedOf(inside.slice(i, i + AT_ONCE), userxattr)));
    }
    left.push(...inside);
  }
  return { paths, isComplete: true };
}

function* halfMarkedOf(paths: readonly Path[], userxattr: boolean): Task<Path[]> {
  const plan = new Plan();
  const marks = paths.map((path) =>
    [userxattr, !userxattr].map((space) => addMark(plan, path, opaqueName(space), 'any')),
  );
  const outputs = yield* ask(plan);
  if (outputs instanceof StepFailure) return [];
  return paths.filter((_, i) => {
    const [wanted, other] = (marks[i] ?? []).map((mark) => isMarked(outputs, mark));
    return other && !wanted;
  });
}
