import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { mountOverlaySync, type OverlayError, unmountTree } from 'overlayfs';
import {
  countDescriptors,
  failsAndLeaves,
  forms,
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

for (const { form, of } of forms) {
  const unmountTree = of('unmountTree');
  for (const bulk of [false, true]) {
    const title = `${form}${bulk ? ', bulk' : ''}`;

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

      t.is(await unmountTree(join(dir, 'tree'), { bulk }), 11);
      t.deepEqual(readdirSync(join(dir, 'tree')), []);
      t.is(mountsBelow(dir).length, outside + 1, 'the one beside it');
      t.is(readFileSync(join(dir, 'beside/keep'), 'latin1'), 'kept');
      t.is(await unmountTree(join(dir, 'tree'), { bulk }), 0);
    });

    mountTest(`of a directory that is no mount point (${title})`, async (t) => {
      const dir = scratch(t);
      for (const name of ['a', 'b', 'b/c', 'd']) {
        makeTree(join(dir, 'tree', name), { file: '' });
        tmpfs(t, join(dir, 'tree', name));
      }
      t.is(await unmountTree(`${dir}/tree//`, { bulk }), 4);
      t.deepEqual(readdirSync(join(dir, 'tree')), ['a', 'b', 'd']);
      t.true(existsSync(join(dir, 'tree/a/file')), 'nothing is deleted');
      t.is(await unmountTree(join(dir, 'tree/a/file')), 0);
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
        () => unmountTree(join(dir, 'way'), { bulk }),
        {
          code: 'EINVAL',
          reason: 'target-symlink',
          path: join(dir, 'way'),
        },
      );
      t.false('syscall' in error);
      t.is(await unmountTree(join(dir, 'way/file'), { bulk }), 1);
      t.is(await unmountTree(join(dir, 'tree'), { bulk }), 0);
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
      t.is(await unmountTree(join(dir, 'tree'), { bulk }), 4);
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
    t.is(await unmountTree(at('')), 2);
  });

  mountTest(`bulk takes busy ones too (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/': '' });
    tmpfs(t, join(dir, 'tree'), 'a');
    tmpfs(t, join(dir, 'tree/a'));
    const fd = openSync(join(dir, 'tree/a'), 'r');
    t.is(await unmountTree(join(dir, 'tree'), { bulk: true }), 2);
    t.is(mountsBelow(join(dir, 'tree')).length, 0);
    closeSync(fd);
  });

  mountTest(`a thousand mounts (${form})`, async (t) => {
    const dir = scratch(t);
    const count = scaled(1000);
    for (const bulk of [false, true]) {
      for (let i = 0; i < count; i++) {
        makeTree(join(dir, 'tree', String(i)), {});
        tmpfs(t, join(dir, 'tree', String(i)));
      }
      t.is(await unmountTree(join(dir, 'tree'), { bulk }), count);
      t.is(mountsBelow(join(dir, 'tree')).length, 0);
    }
  });

  mountTest(`mounts over each other, more than calls can be inside each other (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/': '' });
    const at = join(dir, 'tree');
    const count = scaled(5000);
    for (const bulk of [false, true]) {
      for (let i = 0; i < count; i++) native.mount(dir, at, '', MS_BIND, '');
      t.is(await unmountTree(at, { bulk }), count);
      t.is(mountsBelow(at).length, 0);
    }
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
      t.throwsAsync(unmountTree(target as never, options as never), { code, message, instanceOf: TypeError });
    await refused(5, undefined, 'ERR_INVALID_ARG_TYPE', /"target"/);
    for (const root of ['/', '//', '/tmp/..']) await refused(root, {}, 'ERR_INVALID_ARG_VALUE', /"target".*root/);
    await refused(dir, { bulc: true }, 'ERR_INVALID_ARG_VALUE', /did you mean "bulk"/);
    await refused(dir, { bulk: 1 }, 'ERR_INVALID_ARG_TYPE', /"bulk"/);
    await refused(dir, { timeout: '1' }, 'ERR_INVALID_ARG_TYPE', /"timeout"/);
    await refused(dir, { signal: {} }, 'ERR_INVALID_ARG_TYPE', /"signal"/);
    await t.throwsAsync(unmountTree(dir, { signal: AbortSignal.abort() }), { code: 'ABORT_ERR' });
    t.is(look().length, 1);
  });
}

test.serial('the promise form throws nothing, it rejects', async (t) => {
  let promise: Promise<unknown> | undefined;
  t.notThrows(() => {
    promise = unmountTree(5 as never);
  });
  await t.throwsAsync(promise as Promise<unknown>);
});
