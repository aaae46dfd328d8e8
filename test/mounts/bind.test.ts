import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { type BindOptions, bind, bindSync, OverlayError } from 'overlayfs';
import {
  countDescriptors,
  evaluateIn,
  forms,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scratch,
  withoutCapabilities,
} from '../support/index.js';

for (const { form, of } of forms) {
  const make = of('bind');

  mountTest(`a directory and a file in a second place (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/file': 'x', 'b/': '', f: 'one', g: '' });
    const directory = await make(join(dir, 'a'), join(dir, 'b'));
    t.deepEqual(readdirSync(join(dir, 'b')), ['file']);
    writeFileSync(join(dir, 'b/file'), 'y');
    t.is(readFileSync(join(dir, 'a/file'), 'utf8'), 'y');
    const file = await make(join(dir, 'f'), join(dir, 'g'));
    t.is(readFileSync(join(dir, 'g'), 'utf8'), 'one');
    t.is(directory.target, join(dir, 'b'));
    t.is(file.path, join(dir, 'g'));
    t.true(directory.id > 0);
    await directory.unmount();
    file.unmountSync();
    await directory.unmount();
    t.is(mountsBelow(dir).length, 1);
  });

  mountTest(`what is mounted inside comes with recursive only (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/inner/': '', 'b/': '' });
    t.is(native.mount('inner', join(dir, 'a/inner'), 'tmpfs', 0, ''), 0);
    writeFileSync(join(dir, 'a/inner/file'), 'x');
    const flat = await make(join(dir, 'a'), join(dir, 'b'));
    t.deepEqual(readdirSync(join(dir, 'b/inner')), []);
    await flat.unmount();
    const deep = await make(join(dir, 'a'), join(dir, 'b'), { recursive: true });
    t.deepEqual(readdirSync(join(dir, 'b/inner')), ['file']);
    await t.throwsAsync(deep.unmount(), { instanceOf: OverlayError, code: 'EBUSY' });
    await deep.unmount({ detach: true });
  });

  mountTest(`attributes, for all that is bound (${form})`, { needs: 'mountSetattr' }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/inner/': '', 'b/': '' });
    t.is(native.mount('inner', join(dir, 'a/inner'), 'tmpfs', 0, ''), 0);
    const cases: readonly (readonly [BindOptions, readonly string[]])[] = [
      [{ readonly: true }, ['ro', 'relatime']],
      [
        { nosuid: true, nodev: true, noexec: true, nosymfollow: true },
        ['rw', 'nosuid', 'nodev', 'noexec', 'relatime', 'nosymfollow'],
      ],
      [{ atime: 'noatime', nodiratime: true }, ['rw', 'noatime', 'nodiratime']],
      [{ atime: 'strictatime' }, ['rw']],
    ];
    for (const [options, shown] of cases) {
      const mounted = await make(join(dir, 'a'), join(dir, 'b'), { ...options, recursive: true });
      for (const { target, line } of mountsBelow(join(dir, 'b')))
        t.deepEqual(line.split(' ')[5]?.split(',').sort(), [...shown].sort(), target);
      t.is(mountsBelow(join(dir, 'b')).length, 2);
      await mounted.unmount({ detach: true });
    }
    for (const { line } of mountsBelow(join(dir, 'a')))
      t.is(line.split(' ')[5], 'rw,relatime', 'the source is as it was');
    const shared = await make(join(dir, 'a'), join(dir, 'b'), { propagation: 'shared' });
    t.regex(mountsBelow(join(dir, 'b'))[0]?.line ?? '', / shared:\d+ /);
    await shared.unmount();
  });

  mountTest(`a bind that cannot be: each its own reason, and nothing is left (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/': '', 'mounted/': '', file: '', 'unbindable/': '' });
    symlinkSync(join(dir, 'b'), join(dir, 'link'));
    symlinkSync(join(dir, 'file'), join(dir, 'file-link'));
    t.is(native.mount('x', join(dir, 'mounted'), 'tmpfs', 0, ''), 0);
    t.is(native.mount('x', join(dir, 'unbindable'), 'tmpfs', 0, ''), 0);
    t.is(native.mount('', join(dir, 'unbindable'), '', 1 << 17, ''), 0);
    const before = mountsBelow(dir).length;
    const descriptors = countDescriptors();
    const cases = [
      ['none', 'b', 'path-missing', 'none'],
      ['a', 'none', 'target-missing', 'none'],
      ['a', 'file', 'target-mismatch', 'file'],
      ['file', 'b', 'target-mismatch', 'b'],
      ['a', 'mounted', 'target-mounted', 'mounted'],
      ['a', 'link', 'target-symlink', 'link'],
      ['file', 'file-link', 'target-symlink', 'file-link'],
      ['unbindable', 'b', 'source-unbindable', 'unbindable'],
      ['file/x', 'b', 'path-inaccessible', 'file/x'],
      ['a', 'file/x', 'path-inaccessible', 'file/x'],
    ] as const;
    for (const [source, target, reason, path] of cases) {
      const error = await t.throwsAsync(
        make(join(dir, source), join(dir, target)),
        { instanceOf: OverlayError },
        reason,
      );
      t.like(error, { reason, path: join(dir, path) }, error?.message);
      t.notRegex(error?.message ?? '', /`create/, 'an option of mounts');
      t.is(mountsBelow(dir).length, before);
    }
    t.is(countDescriptors(), descriptors);
    const stacked = await make(join(dir, 'a'), join(dir, 'mounted'), { stack: true });
    await stacked.unmount();
    const followed = await make(join(dir, 'link'), join(dir, 'a'));
    await followed.unmount();
    t.is(mountsBelow(dir).length, before);
  });
}

mountTest('without privilege a bind says so', (t) => {
  const dir = scratch(t);
  mkdirSync(join(dir, 'a'));
  const denied = evaluateIn(withoutCapabilities, 'overlayfs.bind(args[0], args[0])', join(dir, 'a'));
  t.like(denied, { code: 'EPERM', reason: 'no-privilege' });
});

mountTest('an abort takes a bind back', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/': '', 'b/': '' });
  const aborted = AbortSignal.abort();
  await t.throwsAsync(bind(join(dir, 'a'), join(dir, 'b'), { signal: aborted }), { name: 'AbortError' });
  const controller = new AbortController();
  const promise = bind(join(dir, 'a'), join(dir, 'b'), { signal: controller.signal });
  controller.abort();
  await t.throwsAsync(promise, { name: 'AbortError' });
  t.is(mountsBelow(dir).length, 1);
});

mountTest('an abort takes a recursive bind back, with the mounts that it brought along', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/inside/': '', 'b/': '' });
  const source = await bind(dir, join(dir, 'a/inside'));
  const before = mountsBelow(dir).length;
  for (let i = 0; i < 40; i++) {
    const controller = new AbortController();
    const promise = bind(join(dir, 'a'), join(dir, 'b'), { recursive: true, signal: controller.signal });
    await new Promise((resolve) => (i % 2 === 0 ? setImmediate(resolve) : queueMicrotask(() => resolve(undefined))));
    controller.abort();
    const made = await promise.catch((error) => t.is(error.message, 'The operation was aborted'));
    if (typeof made === 'object') await made.unmount({ detach: true });
    t.is(mountsBelow(dir).length, before);
  }
  await source.unmount();
});

test('wrong arguments of bind are named', async (t) => {
  const cases: readonly (readonly [unknown[], RegExp])[] = [
    [[1, '/b'], /"source" must be a path/],
    [['/a', ''], /"target" must not be empty/],
    [['/a', '/b', { recursiv: true }], /did you mean "recursive"/],
    [['/a', '/b', { readonly: 'yes' }], /"readonly" must be true or false/],
    [['/a', '/b', { atime: 'never' }], /"atime" must be one of/],
    [['/a', '/b', { propagation: 'public' }], /"propagation" must be one of/],
  ];
  for (const [args, message] of cases) {
    await t.throwsAsync(bind(...(args as Parameters<typeof bind>)), { instanceOf: TypeError, message });
    t.throws(() => bindSync(...(args as Parameters<typeof bindSync>)), { instanceOf: TypeError, message });
  }
  t.false(existsSync('/b'));
});

test('a bind without a target is an argument error', async (t) => {
  for (const none of [undefined, null, 5]) {
    const wrong = { code: 'ERR_INVALID_ARG_TYPE', message: /"target"/ };
    await t.throwsAsync(bind('/', none as never), wrong);
    t.throws(() => bindSync('/', none as never), wrong);
  }
});
