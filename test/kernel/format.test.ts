/** Prints plans. The internals are imported, because no export prints a plan with these calls. */
import test from 'ava';
import { calls } from '#lib/kernel/calls.js';
import * as k from '#lib/kernel/constants.js';
import { formatPlan } from '#lib/kernel/format.js';
import { addMountGuard } from '#lib/kernel/guards.js';
import { Plan } from '#lib/kernel/plan.js';

test('each call that makes a file descriptor names it', (t) => {
  const plan = new Plan();
  const root = plan.add(calls.open_tree, [k.AT_FDCWD, '/', k.OPEN_TREE_CLOEXEC]);
  const file = plan.add(calls.open_by_handle_at, [root, 1, Buffer.alloc(8), k.O_PATH]);
  plan.add(calls.fanotify_mark, [plan.add(calls.fanotify_init, [k.FAN_CLOEXEC, 0]), k.FAN_MARK_ADD, 0, file]);
  plan.add(calls.close, [file]);
  t.is(
    formatPlan(plan),
    `open_tree(AT_FDCWD, "/", OPEN_TREE_CLOEXEC) = fd0
open_by_handle_at(fd0, 1, O_PATH) = fd1
fanotify_init(FAN_CLOEXEC, 0) = fd2
fanotify_mark(fd2, FAN_MARK_ADD, 0, fd1)
close(fd1)
`,
  );
});

test('the file descriptor by which mount(2) is undone is not printed', (t) => {
  const plan = new Plan();
  const root = plan.following(1);
  plan.add(calls.mount, ['none', '/m', 'tmpfs', 0, null, root], { undo: true });
  plan.add(calls.openat2, [k.AT_FDCWD, '/m', k.O_PATH, 0]);
  t.is(
    formatPlan(plan),
    `mount("none", "/m", "tmpfs", 0, NULL)  # undone on failure
openat2(AT_FDCWD, "/m", O_PATH, 0) = fd0
`,
  );
});

test('the names of guards are printed', (t) => {
  const plan = new Plan();
  plan.add(calls.news, [], { tolerate: [1] });
  plan.add(calls.statx, [k.AT_FDCWD, '/m', 0, k.STATX_MNT_ID_UNIQUE]);
  addMountGuard(plan, 2 ** 32 + 1);
  plan.add(calls.getxattr, ['/u', 'user.overlay.opaque', 0], { guard: 'upperdir-has-no-xattrs' });
  t.is(
    formatPlan(plan),
    `news()  # guard: mounts-are-unknown; EPERM will do
statx(AT_FDCWD, "/m", 0, STATX_MNT_ID_UNIQUE)
guard(mount-is-another)
getxattr("/u", "user.overlay.opaque", 0)  # guard: upperdir-has-no-xattrs
`,
  );
});
