import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { mountOverlaySync, type OverlayError, type UnmountOptions, unmount } from 'overlayfs';
import {
  countDescriptors,
  failsAndLeaves,
  forms,
  generator,
  layers,
  MS_BIND,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
} from '../support/index.js';

/** Mounts a tmpfs with the directories in it. */
function tmpfs(t: ExecutionContext, at: string, ...directories: string[]): void {
  t.is(native.mount('tree', at, 'tmpfs', 0, ''), 0);
  for (const directory of directories) makeTree(join(at, directory), {});
}

/** Returns the id of the mount that a path leads to, as the kernel sees it. */
function mountAt(path: string): string | undefined {
  if (!existsSync(path)) return undefined;
  const fd = openSync(path, 'r');
  const id = /mnt_id:\s*(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
  closeSync(fd);
  return id;
}

for (const { form, of } of forms) {
  const unmountTree = (target: string, options?: UnmountOptions) =>
    of('unmount')(target, { ...options, recursive: true });
  for (const detach of [false, true]) {
    const title = `${form}${detach ? ', detach' : ''}`;

    mountTest(`a tree of mounts: inside each other, over each other, beside each other (${title})`, async (t) => {
      const dir = scratch(t);
      const outside = mountsBelow(dir).length;
      makeTree(dir, { 'tree/': '', 'beside/keep': 'kept', 'tree-not/': '', file: 'content' });
      const at = (path: string) => join(dir, 'tree', path);
      tmpfs(t, at(''), 'a', 'b/c', 'o d\\d,e:\n');
      tmpfs(t, at('a'), 'x');
      tmpfs(t, at('a/x'), 'hidden');
      tmpfs(t, at('a/x/hidden'));
      tmpfs(t, at('a'), 'over'); // hides the two before
      tmpfs(t, at('b/c'));
      tmpfs(t, at('o d\\d,e:\n'));
      tmpfs(t, at(''), 'again', 'layers'); // hides all
      tmpfs(t, at('again'));
      t.is(native.mount(join(dir, 'beside'), at('again'), '', MS_BIND, ''), 0);
      mountOverlaySync(layers(at('layers')));
      tmpfs(t, join(dir, 'tree-not'));
      t.is(mountsBelow(join(dir, 'tree')).length, 11);

      await unmountTree(join(dir, 'tree'), { detach });
      t.deepEqual(readdirSync(join(dir, 'tree')), []);
      t.is(mountsBelow(dir).length, outside + 1, 'the one beside it');
      t.is(readFileSync(join(dir, 'beside/keep'), 'latin1'), 'kept');
      await unmountTree(join(dir, 'tree'), { detach });
    });

    mountTest(`of a directory that is no mount point (${title})`, async (t) => {
      const dir = scratch(t);
      for (const name of ['a', 'b', 'b/c', 'd']) {
        makeTree(join(dir, 'tree', name), { file: '' });
        tmpfs(t, join(dir, 'tree', name));
      }
      await unmountTree(`${dir}/tree//`, { detach });
      t.deepEqual(readdirSync(join(dir, 'tree')), ['a', 'b', 'd']);
      t.true(existsSync(join(dir, 'tree/a/file')), 'nothing is deleted');
      await unmountTree(join(dir, 'tree/a/file'));
    });

    mountTest(`what is mounted on a file, and links on the way (${title})`, async (t) => {
      const dir = scratch(t);
      makeTree(dir, { 'tree/file': 'below', other: 'above', 'elsewhere/mount/': '' });
      t.is(native.mount(join(dir, 'other'), join(dir, 'tree/file'), '', MS_BIND, ''), 0);
      tmpfs(t, join(dir, 'elsewhere/mount'));
      symlinkSync('../elsewhere', join(dir, 'tree/link'));
      symlinkSync('tree', join(dir, 'way'));
      const before = mountsBelow(dir).length;
      const error = await failsAndLeaves(
        t,
        () => mountsBelow(dir),
        () => unmountTree(join(dir, 'way'), { detach }),
        {
          code: 'EINVAL',
          reason: 'target-symlink',
          path: join(dir, 'way'),
        },
      );
      t.false('syscall' in error);
      await unmountTree(join(dir, 'way/file'), { detach });
      await unmountTree(join(dir, 'tree'), { detach });
      t.is(mountsBelow(dir).length, before - 1);
    });

    mountTest(`on shared mounts, where one unmount takes its copies along (${title})`, async (t) => {
      const dir = scratch(t);
      makeTree(dir, { 'tree/': '' });
      tmpfs(t, join(dir, 'tree'), 'a/x', 'b');
      execFileSync('mount', ['--make-shared', join(dir, 'tree')]);
      t.is(native.mount(join(dir, 'tree/a'), join(dir, 'tree/b'), '', MS_BIND, ''), 0);
      tmpfs(t, join(dir, 'tree/a/x'));
      t.is(mountsBelow(join(dir, 'tree')).length, 4, 'in b too');
      await unmountTree(join(dir, 'tree'), { detach });
      t.is(mountsBelow(join(dir, 'tree')).length, 0);
    });
  }

  mountTest(`one that is busy is named, with how far it went; and waited for (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/': '' });
    const at = (path: string) => join(dir, 'tree', path);
    tmpfs(t, at(''), 'a', 'b');
    tmpfs(t, at('a'));
    tmpfs(t, at('b'));
    const fd = openSync(at('a'), 'r');
    const descriptors = countDescriptors();
    const run = () => unmountTree(at(''), { timeout: 50 });
    const error = await t.throwsAsync<OverlayError>(run, { code: 'EBUSY' });
    t.like(error, { reason: 'mount-busy', path: at('a'), syscall: 'umount2' });
    t.like(error?.holders?.[0], { what: 'file', pid: process.pid, path: at('a'), descriptor: fd });
    t.regex(error?.message ?? '', /Of 3 mounts, 1 is unmounted\./);
    t.is(mountsBelow(at('')).length, 2);
    t.is(countDescriptors(), descriptors);
    closeSync(fd);
    await unmountTree(at(''));
  });

  mountTest(`detach takes busy ones too (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/': '' });
    tmpfs(t, join(dir, 'tree'), 'a');
    tmpfs(t, join(dir, 'tree/a'));
    const fd = openSync(join(dir, 'tree/a'), 'r');
    await unmountTree(join(dir, 'tree'), { detach: true });
    t.is(mountsBelow(join(dir, 'tree')).length, 0);
    closeSync(fd);
  });

  mountTest(`a thousand mounts (${form})`, async (t) => {
    const dir = scratch(t);
    const count = scaled(1000);
    for (const detach of [false, true]) {
      for (let i = 0; i < count; i++) {
        makeTree(join(dir, 'tree', String(i)), {});
        tmpfs(t, join(dir, 'tree', String(i)));
      }
      await unmountTree(join(dir, 'tree'), { detach });
      t.is(mountsBelow(join(dir, 'tree')).length, 0);
    }
  });

  mountTest(`mounts over each other, more than calls can be inside each other (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/': '' });
    const at = join(dir, 'tree');
    const count = scaled(5000);
    for (const detach of [false, true]) {
      for (let i = 0; i < count; i++) native.mount(dir, at, '', MS_BIND, '');
      await unmountTree(at, { detach });
      t.is(mountsBelow(at).length, 0);
    }
  });

  mountTest(`a mount that another one above hides: the call names that one (${form})`, async (t) => {
    for (const isThere of [false, true]) {
      const dir = scratch(t);
      makeTree(dir, { 'tree/a/b/c/': '' });
      const at = (path: string) => join(dir, 'tree', path);
      tmpfs(t, at('a/b/c'));
      tmpfs(t, at('a'), ...(isThere ? ['b/c', 'b/d'] : []));
      if (isThere) tmpfs(t, at('a/b/d'));
      for (const detach of [false, true]) {
        const error = await t.throwsAsync<OverlayError>(unmountTree(at('a/b'), { detach }));
        t.is(error?.reason, 'mount-covered');
        t.true(error?.message.includes(`'${at('a')}' covers the mount at '${at('a/b/c')}'`), error?.message);
        t.is(error?.hint, `Unmount the one at '${at('a')}' first.`);
      }
      t.is(mountsBelow(at('')).length, 2, 'the one that the path leads to is unmounted');
      await unmountTree(at(''));
    }
  });

  mountTest(`random mounts, some put above earlier ones: what a path leads to is unmounted (${form})`, async (t) => {
    const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() & 0xffffff);
    t.log(`seed ${seed}`);
    const random = generator(seed);
    const names = ['a', 'a/a', 'a/b', 'a/a/a', 'a/a/b', 'b', 'b/a'];
    const dir = scratch(t);
    const at = (path: string) => join(dir, 'tree', path);
    makeTree(at(''), Object.fromEntries(names.map((name) => [`${name}/`, ''])));
    let covered = 0;
    for (let round = 0; round < scaled(1000); round++) {
      // Those that are attached later than they are made stand in the table before what they hide.
      const early = Array.from({ length: random(4) }, () => mountOverlaySync({ lowerdir: [at('a'), at('b')] }));
      for (let i = 0; i < 8; i++) {
        const place = at(names[random(names.length)] as string);
        if (!existsSync(place)) continue;
        if (random(3) === 0) early.pop()?.attachSync(place, { stack: true });
        else tmpfs(t, place, ...(random(2) ? ['a/a', 'b'] : []));
      }
      for (const mount of early) mount.unmountSync();
      const chosen = at(names[random(names.length)] as string);
      const isThere = existsSync(chosen);
      const error = await unmountTree(chosen, { detach: random(2) === 0 }).then(
        () => undefined,
        (error: OverlayError) => error,
      );
      const left = mountsBelow(chosen);
      for (const { target, line } of left) {
        t.not(mountAt(target), line.split(' ')[0], `round ${round}: ${line} is still mounted`);
      }
      if (left.length > 0) covered++;
      const expected = left.length > 0 ? 'mount-covered' : isThere ? undefined : 'target-missing';
      t.is(error?.reason, expected, `round ${round}: ${error?.message}`);
      await unmountTree(at(''));
      t.is(mountsBelow(at('')).length, 0);
    }
    t.log(`${covered} with covered mounts`);
  });

  mountTest(`what is wrong with the target or the options (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: '' });
    const look = () => mountsBelow(dir);
    await failsAndLeaves(t, look, () => unmountTree(join(dir, 'missing')), {
      code: 'ENOENT',
      reason: 'target-missing',
      path: join(dir, 'missing'),
    });
    await failsAndLeaves(t, look, () => unmountTree(join(dir, 'file/more')), {
      code: 'ENOTDIR',
      reason: 'path-inaccessible',
    });
    const refused = (target: unknown, options: unknown, code: string, message: RegExp) =>
      t.throwsAsync(of('unmount')(target as never, { recursive: true, ...(options as object) }), {
        code,
        message,
        instanceOf: TypeError,
      });
    await refused(5, undefined, 'ERR_INVALID_ARG_TYPE', /"target"/);
    for (const root of ['/', '//', '/tmp/..']) await refused(root, {}, 'ERR_INVALID_ARG_VALUE', /"target".*root/);
    await refused(dir, { recursiv: true }, 'ERR_INVALID_ARG_VALUE', /did you mean "recursive"/);
    await refused(dir, { recursive: 1 }, 'ERR_INVALID_ARG_TYPE', /"recursive"/);
    await refused(
      dir,
      { namespace: '/proc/self/ns/mnt' },
      'ERR_INVALID_ARG_VALUE',
      /`recursive` and `namespace` exclude each other/,
    );
    await refused(dir, { timeout: '1' }, 'ERR_INVALID_ARG_TYPE', /"timeout"/);
    await refused(dir, { signal: {} }, 'ERR_INVALID_ARG_TYPE', /"signal"/);
    await t.throwsAsync(unmountTree(dir, { signal: AbortSignal.abort() }), { code: 'ABORT_ERR' });
    t.is(look().length, 1);
  });
}

test.serial('the promise form throws nothing, it rejects', async (t) => {
  let promise: Promise<unknown> | undefined;
  t.notThrows(() => {
    promise = unmount(5 as never, { recursive: true });
  });
  await t.throwsAsync(promise as Promise<unknown>);
});
