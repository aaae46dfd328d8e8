/**
 * The executor by itself: each call that a plan may hold, on the real kernel. Imports internals: no public call makes
 * such plans.
 */
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import * as e from '#lib/errnos.js';
import { calls } from '#lib/kernel/calls.js';
import * as k from '#lib/kernel/constants.js';
import { askedNames } from '#lib/kernel/filtered.js';
import type { CheckedGuard } from '#lib/kernel/guard-names.js';
import { addGuard } from '#lib/kernel/guards.js';
import { Outputs, perform, performSync, StepFailure } from '#lib/kernel/perform.js';
import { Plan, type Step, type StepOptions } from '#lib/kernel/plan.js';
import { addStat, readStat } from '#lib/kernel/stat.js';
import { countDescriptors, makeTree, mountsBelow, mountTest, scratch } from '../support/index.js';

const S_IFIFO = 0o010000;
const RENAME_NOREPLACE = 1;
const EDEADLK = 35;
const OPEN_TREE_CLONE = 1;
const OPEN_TREE_CLOEXEC = k.O_CLOEXEC;

/** Performs a plan in both forms, each from the same start. */
async function both(
  t: ExecutionContext,
  build: (plan: Plan, dir: string) => void,
  look: (outcome: Outputs | StepFailure, dir: string, plan: Plan) => void,
): Promise<void> {
  for (const run of [performSync, perform]) {
    const dir = scratch(t);
    const descriptors = countDescriptors();
    const plan = new Plan();
    build(plan, dir);
    look(await run(plan), dir, plan);
    t.is(countDescriptors(), descriptors);
  }
}

const open = (plan: Plan, path: string) =>
  plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC]);

mountTest('directories, nodes, links and names are made in a directory that a step has opened', async (t) => {
  await both(
    t,
    (plan, dir) => {
      const at = open(plan, dir);
      plan.add(calls.mkdirat, [at, 'directory', 0o700]);
      plan.add(calls.mknodat, [at, 'pipe', S_IFIFO | 0o600, 0]);
      plan.add(calls.linkat, [at, 'pipe', at, 'directory/link', 0]);
      plan.add(calls.renameat2, [at, 'pipe', at, 'renamed', RENAME_NOREPLACE]);
      plan.add(calls.close, [at]);
    },
    (outcome, dir) => {
      t.true(outcome instanceof Outputs);
      t.deepEqual(readdirSync(dir).sort(), ['directory', 'renamed']);
      t.true(lstatSync(join(dir, 'renamed')).isFIFO());
      t.is(lstatSync(join(dir, 'directory/link')).nlink, 2);
    },
  );
});

mountTest('a step that fails has all before it undone, last first', async (t) => {
  await both(
    t,
    (plan, dir) => {
      makeTree(dir, { file: '' });
      const undo: StepOptions = { undo: true };
      const at = open(plan, dir);
      plan.add(calls.mkdirat, [at, 'directory', 0o700], undo);
      plan.add(calls.mknodat, [at, 'pipe', S_IFIFO | 0o600, 0], undo);
      plan.add(calls.linkat, [at, 'pipe', at, 'directory/link', 0], undo);
      plan.add(calls.renameat2, [at, 'file', at, 'directory/moved', RENAME_NOREPLACE], undo);
      plan.add(calls.unlinkat, [at, 'pipe', 0], { later: true });
      plan.add(calls.whiteout, [at, 'gone'], undo);
      plan.add(calls.unlinkat, [at, 'not-there', 0]);
      plan.add(calls.mkdirat, [at, 'never', 0o700]);
    },
    (outcome, dir, plan) => {
      if (!(outcome instanceof StepFailure)) return t.fail();
      t.is(outcome.step, plan.steps[7]);
      t.is(outcome.errno, e.ENOENT);
      t.is(outcome.undoErrno, e.ENOENT, 'the pipe had been removed by the later step');
      t.deepEqual(readdirSync(dir), ['file']);
    },
  );
});

mountTest('a closed descriptor is not to be used again', async (t) => {
  await both(
    t,
    (plan, dir) => {
      const at = open(plan, dir);
      plan.add(calls.close, [at]);
      plan.add(calls.mkdirat, [at, 'directory', 0o700]);
    },
    (outcome) => t.like(outcome, { errno: e.EBADF }),
  );
});

mountTest('tolerated errnos count as done, others do not', async (t) => {
  await both(
    t,
    (plan, dir) => {
      makeTree(dir, { 'there/': '' });
      plan.add(calls.mkdirat, [k.AT_FDCWD, join(dir, 'there'), 0o700], { tolerate: [e.EPERM, e.EEXIST], undo: true });
      plan.add(calls.mkdirat, [k.AT_FDCWD, join(dir, 'there'), 0o700], { tolerate: [e.ENOENT] });
    },
    (outcome, dir, plan) => {
      if (!(outcome instanceof StepFailure)) return t.fail();
      t.is(outcome.step, plan.steps[1]);
      t.true(existsSync(join(dir, 'there')), 'what it did not make is not undone');
    },
  );
});

mountTest('clones of a tree: detached, with attributes, attached, and undone', { needs: 'mountSetattr' }, async (t) => {
  for (const fails of [false, true]) {
    await both(
      t,
      (plan, dir) => {
        makeTree(dir, { 'tree/file': 'content', 'at/': '' });
        const tree = plan.add(calls.open_tree, [k.AT_FDCWD, join(dir, 'tree'), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC]);
        plan.add(calls.mount_setattr, [tree, '', k.AT_EMPTY_PATH, k.MOUNT_ATTR_RDONLY, 0, k.MS_PRIVATE]);
        plan.add(calls.move_mount, [tree, '', k.AT_FDCWD, join(dir, 'at'), k.MOVE_MOUNT_F_EMPTY_PATH], { undo: true });
        if (fails) plan.add(calls.chdir, [join(dir, 'not-there')]);
      },
      (outcome, dir) => {
        t.is(outcome instanceof StepFailure, fails);
        t.is(mountsBelow(join(dir, 'at')).length, fails ? 0 : 1);
        if (fails) return;
        t.is(readFileSync(join(dir, 'at/file'), 'latin1'), 'content');
        t.throws(() => writeFileSync(join(dir, 'at/new'), ''), { code: 'EROFS' });
        const plan = new Plan();
        plan.add(calls.umount2, [join(dir, 'at'), 0]);
        t.true(performSync(plan) instanceof Outputs);
      },
    );
  }
});

mountTest('attributes are written and read', async (t) => {
  await both(
    t,
    (plan, dir) => {
      makeTree(dir, { file: '' });
      const path = join(dir, 'file');
      plan.add(calls.setxattr, [path, 'trusted.test', Buffer.from([0, 1, 0xff]), 0]);
      plan.add(calls.lgetxattr, [path, 'trusted.test', 16], { output: 16 });
      plan.add(calls.lgetxattr, [path, 'trusted.none', 16], { output: 16, tolerate: [e.ENODATA] });
    },
    (outcome, _, plan) => {
      if (!(outcome instanceof Outputs)) return t.fail();
      const [, found, none] = plan.steps;
      if (found === undefined || none === undefined) return t.fail();
      t.is(outcome.result(found), 3);
      t.deepEqual(outcome.bytes(found, 3), Buffer.from([0, 1, 0xff]));
      t.is(outcome.result(none), -e.ENODATA);
    },
  );
});

mountTest('the failure names the guard', async (t) => {
  const fails = (guard: CheckedGuard, look: (plan: Plan, dir: string) => void, errno: number) =>
    both(
      t,
      (plan, dir) => {
        look(plan, dir);
        addGuard(plan, guard);
      },
      (outcome) => t.like(outcome, { guard, errno: 0, shownErrno: errno }),
    );
  const statfs = (plan: Plan, dir: string) => plan.add(calls.statfs, [dir]);
  const statx = (path: string) => (plan: Plan, dir: string) =>
    plan.add(calls.statx, [k.AT_FDCWD, join(dir, path), k.AT_SYMLINK_NOFOLLOW, k.STATX_TYPE | k.STATX_MNT_ID]);
  await fails('file-system-is-no-overlay', statfs, e.EINVAL);
  await fails('target-was-replaced', statfs, e.ESTALE);
  await fails('target-is-mount-point', statx('.'), e.EBUSY);
  await fails('mount-is-another', statx('.'), e.EINVAL);
  const link = (plan: Plan, dir: string) => {
    symlinkSync('nowhere', join(dir, 'link'));
    statx('link')(plan, dir);
  };
  await fails('target-is-symlink', link, e.ELOOP);
  const removed = (plan: Plan, dir: string) => {
    mkdirSync(join(dir, 'removed'));
    const at = plan.add(calls.openat2, [k.AT_FDCWD, join(dir, 'removed'), k.O_PATH, 0]);
    plan.add(calls.unlinkat, [k.AT_FDCWD, join(dir, 'removed'), k.AT_REMOVEDIR]);
    plan.add(calls.statx, [at, '', k.AT_EMPTY_PATH, k.STATX_TYPE | k.STATX_NLINK]);
  };
  await fails('directory-is-removed', removed, e.ENOENT);
});

mountTest('a guard holds where there is no fault, and its failure can be tolerated', async (t) => {
  const holding = [
    'file-system-is-overlay',
    'superblock-is-read-only',
    'target-is-mount-point',
    'target-is-symlink',
    'directory-is-removed',
    'upperdir-is-immutable',
  ] as const;
  const guards: Step[] = [];
  await both(
    t,
    (plan, dir) => {
      makeTree(dir, { 'a/': '' });
      plan.add(calls.statfs, [dir]);
      plan.add(calls.statx, [k.AT_FDCWD, join(dir, 'a'), 0, k.STATX_TYPE | k.STATX_NLINK]);
      for (const guard of holding) addGuard(plan, guard);
      guards.push(addGuard(plan, 'file-system-is-no-overlay', { tolerate: 'any', output: 0 }));
      guards.push(addGuard(plan, 'file-system-is-overlay', { tolerate: 'any', output: 0 }));
    },
    (outcome) => {
      if (!(outcome instanceof Outputs)) return t.fail();
      const [fails, holds] = guards.splice(0);
      if (fails === undefined || holds === undefined) return t.fail();
      t.is(outcome.guard(fails), 'file-system-is-no-overlay');
      t.is(outcome.guard(holds), undefined);
    },
  );
});

mountTest('two guards of one target: the mount point, and the other plan', async (t) => {
  await both(
    t,
    (plan, dir) => plan.add(calls.reserve_target, [open(plan, dir)]),
    (outcome) => t.like(outcome, { guard: 'target-is-mount-point' }),
  );
});

mountTest('what the file system context says comes with the failure', { needs: 'fsContext' }, async (t) => {
  await both(
    t,
    (plan) => {
      const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC]);
      plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_STRING, 'index', 'perhaps']);
    },
    (outcome) => t.like(outcome, { errno: e.EINVAL, kernel: ["overlay: Bad value for 'index'"] }),
  );
});

mountTest('a text that names descriptors is put together when its step comes', async (t) => {
  await both(
    t,
    (plan, dir) => {
      makeTree(dir, { 'a/': '' });
      const at = open(plan, join(dir, 'a'));
      plan.add(calls.mkdirat, [k.AT_FDCWD, ['/proc/self/fd/', at, Buffer.from('/ö'), 'b'], 0o700]);
    },
    (_, dir) => t.deepEqual(readdirSync(join(dir, 'a')), ['öb']),
  );
});

mountTest('a working directory that a plan changes is its own', async (t) => {
  const before = process.cwd();
  await both(
    t,
    (plan, dir) => {
      plan.isOnOwnThread = true;
      plan.add(calls.unshare, [k.CLONE_FS]);
      plan.add(calls.chdir, [dir]);
      plan.add(calls.mkdirat, [k.AT_FDCWD, 'relative', 0o700]);
    },
    (outcome, dir) => {
      t.true(outcome instanceof Outputs);
      t.deepEqual(readdirSync(dir), ['relative']);
      t.is(process.cwd(), before);
    },
  );
});

mountTest('a plan on a shared thread changes no namespace', async (t) => {
  for (const add of [
    (plan: Plan) => plan.add(calls.unshare, [k.CLONE_FS]),
    (plan: Plan) =>
      plan.add(calls.setns, [plan.add(calls.openat2, [k.AT_FDCWD, '/proc/self/ns/mnt', k.O_CLOEXEC]), k.CLONE_NEWNS]),
  ]) {
    await both(
      t,
      (plan) => void add(plan),
      (outcome) => t.like(outcome, { errno: EDEADLK }),
    );
  }
});

mountTest('a block of steps that is larger than the room for it', async (t) => {
  await both(
    t,
    (plan, dir) => {
      const at = open(plan, dir);
      for (let i = 0; i < 3000; i++) plan.add(calls.mkdirat, [at, `${i}-${'é'.repeat(100)}`, 0o700]);
    },
    (_, dir) => t.is(readdirSync(dir).length, 3000),
  );
});

mountTest('outputs that wait to be read, since other callbacks throw, are not overwritten', async (t) => {
  const dir = scratch(t);
  const count = 40;
  makeTree(dir, Object.fromEntries(Array.from({ length: count }, (_, i) => [`${i}/`, ''])));
  let thrown = 0;
  let isOver = false;
  // ava's own would fail the test; the ticks that are left wait for the next turn, and promises with them.
  const others = process.listeners('uncaughtException');
  process.removeAllListeners('uncaughtException');
  process.on('uncaughtException', () => thrown++);
  const disturb = () => {
    if (isOver) return;
    for (let i = 0; i < 50; i++) {
      process.nextTick(() => {
        throw new Error('on purpose');
      });
    }
    setImmediate(disturb);
  };
  disturb();
  const wrong: number[] = [];
  const look = async (i: number) => {
    const expected = lstatSync(join(dir, String(i)), { bigint: true }).ino;
    for (let round = 0; round < 200; round++) {
      const plan = new Plan();
      // So that they end one by one.
      for (let others = 0; others < 30 + i; others++) plan.add(calls.statx, [k.AT_FDCWD, dir, 0, k.STATX_TYPE]);
      const step = addStat(plan, join(dir, String(i)));
      if (readStat(step, await perform(plan)).inode !== expected) wrong.push(i);
    }
  };
  await Promise.all(Array.from({ length: count }, (_, i) => look(i)));
  isOver = true;
  await new Promise((resolve) => setTimeout(resolve, 50));
  process.removeAllListeners('uncaughtException');
  for (const listener of others) process.on('uncaughtException', listener);
  t.true(thrown > 0);
  t.deepEqual(wrong, []);
});

test('the addon knows each call of which a filter may be suspected', (t) => {
  const unknown = askedNames.filter((name) => {
    const plan = new Plan();
    plan.add(calls.probe, [name]);
    const outcome = performSync(plan);
    return outcome instanceof StepFailure && outcome.errno === e.ENODATA;
  });
  t.deepEqual(unknown, []);
});
