import { chmodSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { ExecutionContext } from 'ava';
import {
  isOpaque,
  makeOpaque,
  makeOpaqueSync,
  mountOverlaySync,
  type OpaqueOptions,
  OverlayError,
  type OverlayOptions,
  whiteoutSync,
} from 'overlayfs';
import {
  countDescriptors,
  evaluateIn,
  forms,
  getAttribute,
  kernelTest,
  layers,
  MS_RDONLY,
  MS_REMOUNT,
  makeTree,
  mountTest,
  native,
  scaled,
  scratch,
  setAttribute,
  withoutCapabilities,
  withUserAttributes,
} from '../support/index.js';

const TRUSTED = 'trusted.overlay.opaque';
const USER = 'user.overlay.opaque';

interface Expected {
  code: string;
  reason: string;
  path: string;
  syscall: string | undefined;
}

async function fails(t: ExecutionContext, run: () => Promise<unknown>, expected: Expected): Promise<OverlayError> {
  const descriptors = countDescriptors();
  const error = await t.throwsAsync(run, { instanceOf: OverlayError });
  t.like(error, { ...expected });
  t.is(countDescriptors(), descriptors);
  return error as OverlayError;
}

/** The entries that a mounted overlay of these layers shows in a directory. */
function shown(options: OverlayOptions, name: string): string[] {
  const mounted = mountOverlaySync(options);
  try {
    return readdirSync(join(String(options.target), name)).sort();
  } finally {
    mounted.unmountSync();
  }
}

for (const { form, of, suffix } of forms) {
  const make = of('makeOpaque');
  const is = of('isOpaque');

  mountTest(`both marks hide from every mount, and a directory with only one is told (${form})`, async (t) => {
    const dir = scratch(t, withUserAttributes());
    const options = layers(dir);
    makeTree(dir, { 'lower/d/hidden': '', 'over/d/': '' });
    const layer = join(dir, 'over/d');
    const both = { marks: 'both' } as const;
    t.false(await is(layer, both));
    for (const userxattr of [true, false]) {
      await make(layer, { userxattr });
      t.is(await is(layer, both), !userxattr);
    }
    rmdirSync(layer);
    mkdirSync(layer);
    await make(layer, both);
    t.deepEqual([getAttribute(layer, TRUSTED), getAttribute(layer, USER)], ['y', 'y']);
    t.true(await is(layer, both));
    for (const userxattr of [true, false]) {
      t.deepEqual(shown({ ...options, lowerdir: [join(dir, 'over'), options.lowerdir], userxattr }, 'd'), []);
    }
    await t.throwsAsync(() => make(layer, { marks: 'both', userxattr: true }), { code: 'ERR_INVALID_ARG_VALUE' });
    await t.throwsAsync(() => make(layer, { marks: 'all' as 'both' }), {
      code: 'ERR_INVALID_ARG_VALUE',
      message: /"marks" must be one of 'both'/,
    });
  });

  mountTest(`both marks need privilege, and without it none is made (${form})`, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'd/': '' });
    const expression = `overlayfs.makeOpaque${suffix}(args[0], { marks: 'both' })`;
    const error = evaluateIn(withoutCapabilities, expression, join(dir, 'd'));
    t.like(error, { code: 'EPERM', reason: 'xattr-denied', path: join(dir, 'd'), syscall: 'setxattr' });
    t.deepEqual([getAttribute(join(dir, 'd'), TRUSTED), getAttribute(join(dir, 'd'), USER)], [undefined, undefined]);
  });

  mountTest(`the mark is trusted.overlay.opaque, or that of user with userxattr (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    t.false(await is(dir));
    await make(dir);
    t.is(getAttribute(dir, TRUSTED), 'y');
    t.is(getAttribute(dir, USER), undefined);
    t.deepEqual([await is(dir), await is(dir, { userxattr: true })], [true, false]);

    const other = scratch(t, 'disk');
    await make(other, { userxattr: true });
    t.is(getAttribute(other, USER), 'y');
    t.is(getAttribute(other, TRUSTED), undefined);
    t.deepEqual([await is(other), await is(other, { userxattr: true })], [false, true]);
    await make(other, { userxattr: false });
    t.true(await is(other, {}));
  });

  mountTest(`made twice it is the same (${form})`, async (t) => {
    const dir = scratch(t);
    await make(dir);
    await make(dir);
    t.true(await is(dir));
    setAttribute(dir, TRUSTED, 'x');
    t.false(await is(dir), 'x says that there may be whiteouts in attributes');
    await make(dir);
    t.is(getAttribute(dir, TRUSTED), 'y');
  });

  mountTest(`only the value y counts (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    for (const value of ['', 'Y', 'n', 'x', '1', 'yes', 'yy', 'y\0', 'y'.repeat(255)]) {
      setAttribute(dir, TRUSTED, value);
      setAttribute(dir, USER, value);
      t.false(await is(dir), value);
      t.false(await is(dir, { userxattr: true }), value);
    }
    setAttribute(dir, USER, 'y');
    t.true(await is(dir, { userxattr: true }));
  });

  mountTest(`an opaque directory hides what is below it (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/d/below': '', 'upper/d/mine': '', 'lower/e/below': '', 'upper/e/mine': '' });
    await make(join(dir, 'upper/d'));
    t.deepEqual(shown(options, 'd'), ['mine']);
    t.deepEqual(shown(options, 'e'), ['below', 'mine']);
  });

  mountTest(`user.overlay.opaque counts with userxattr only (${form})`, { needs: 'userxattr' }, async (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    makeTree(dir, { 'lower/t/below': '', 'upper/t/mine': '', 'lower/u/below': '', 'upper/u/mine': '' });
    await make(join(dir, 'upper/t'));
    await make(join(dir, 'upper/u'), { userxattr: true });
    t.deepEqual(shown(options, 't'), ['mine']);
    t.deepEqual(shown(options, 'u'), ['below', 'mine']);
    t.deepEqual(shown({ ...options, userxattr: true }, 't'), ['below', 'mine']);
    t.deepEqual(shown({ ...options, userxattr: true }, 'u'), ['mine']);
  });

  mountTest(`a lower layer's mark hides the layers below it; on its root it does nothing (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'top/d/1': '', 'middle/d/2': '', 'bottom/d/3': '', 'm/': '', 'bottom/root': '' });
    const lowerdir = ['top', 'middle', 'bottom'].map((name) => join(dir, name));
    const options = { lowerdir, target: join(dir, 'm') };
    await make(join(dir, 'middle/d'));
    t.deepEqual(shown(options, 'd'), ['1', '2']);
    await make(join(dir, 'top'));
    t.deepEqual(shown(options, '.'), ['d', 'root']);
  });

  mountTest(`the kernel's own mark is seen (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/d/below': '' });
    whiteoutSync(join(dir, 'upper/d'));
    const mounted = mountOverlaySync(options);
    mkdirSync(join(options.target, 'd'));
    mkdirSync(join(options.target, 'plain'));
    await mounted.unmount();
    t.true(await is(join(dir, 'upper/d')));
    // Linux 5.10 marks every new directory.
    t.is(await is(join(dir, 'upper/plain')), getAttribute(join(dir, 'upper/plain'), TRUSTED) === 'y');
  });

  mountTest(`not through a mounted overlay (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    const options = layers(dir);
    makeTree(dir, { 'lower/d/below': '', 'upper/d/mine': '' });
    const mounted = mountOverlaySync(options);
    for (const name of ['d', '', 'd/']) {
      const path = join(options.target, name);
      for (const userxattr of [false, true]) {
        await fails(t, () => make(path, { userxattr }), {
          code: 'EPERM',
          reason: 'merged-mount',
          path: path.replace(/\/$/, ''),
          syscall: undefined,
        });
      }
    }
    t.deepEqual(readdirSync(join(options.target, 'd')).sort(), ['below', 'mine']);
    for (const layer of ['upper/d', 'lower/d', 'upper', 'lower']) {
      for (const name of [TRUSTED, USER, 'trusted.overlay.overlay.opaque', 'user.overlay.overlay.opaque']) {
        t.is(getAttribute(join(dir, layer), name), undefined, `${name} on ${layer}`);
      }
    }
    await mounted.unmount();
  });

  mountTest(`a file, a link, nothing (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { file: '', 'directory/': '' });
    symlinkSync('directory', join(dir, 'link'));
    symlinkSync('nowhere', join(dir, 'dangling'));
    symlinkSync('loop', join(dir, 'loop'));
    whiteoutSync(join(dir, 'whiteout'));
    for (const call of [make, is]) {
      for (const options of [undefined, { userxattr: true }]) {
        const refused = (name: string, code: string, reason: string) =>
          fails(t, () => call(join(dir, name), options), { code, reason, path: join(dir, name), syscall: 'open' });
        for (const name of ['file', 'link', 'dangling', 'whiteout', 'loop']) {
          await refused(name, 'ENOTDIR', 'path-not-directory');
        }
        await refused('missing', 'ENOENT', 'path-missing');
        await refused('missing/more', 'ENOENT', 'path-missing');
        await refused('x'.repeat(256), 'ENAMETOOLONG', 'path-inaccessible');
        await refused('loop/more', 'ELOOP', 'path-inaccessible');
      }
    }
    t.is(getAttribute(join(dir, 'directory'), TRUSTED), undefined);
    t.is(getAttribute(join(dir, 'directory'), USER), undefined);
  });

  mountTest(`paths may be bytes, URLs, relative, and end in slashes (${form})`, async (t) => {
    const dir = scratch(t);
    const bytes = Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xff, 0x0a])]);
    mkdirSync(bytes);
    makeTree(dir, { 'url%/': '', 'relative/sub/': '', 'a/': '' });
    await make(bytes);
    t.true(await is(bytes));
    await make(pathToFileURL(join(dir, 'url%')));
    t.is(getAttribute(join(dir, 'url%'), TRUSTED), 'y');

    const before = process.cwd();
    t.teardown(() => process.chdir(before));
    process.chdir(join(dir, 'relative'));
    const pending = [make('sub//'), make('.'), make('../a/.')];
    process.chdir('/');
    await Promise.all(pending);
    for (const name of ['relative/sub', 'relative', 'a']) t.is(getAttribute(join(dir, name), TRUSTED), 'y', name);
    t.is(getAttribute(dir, TRUSTED), undefined);
    process.chdir(join(dir, 'relative'));
    t.true(await is('sub/'));
    t.false(await is('..'));
  });

  mountTest(`a mount point is marked itself, not what it covers (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'mount/': '' });
    const path = join(dir, 'mount');
    t.is(native.mount('inner', path, 'tmpfs', 0, ''), 0);
    await make(path);
    t.true(await is(path));
    t.is(native.umount(path, 0), 0);
    t.false(await is(path));
  });

  mountTest(`a read-only mount can be asked, not marked (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'sub/': '' });
    const path = join(dir, 'sub');
    t.is(native.mount('sub', path, 'tmpfs', 0, ''), 0);
    makeTree(dir, { 'sub/marked/': '', 'sub/plain/': '' });
    await make(join(path, 'marked'));
    t.is(native.mount('', path, '', MS_REMOUNT | MS_RDONLY, ''), 0);
    t.true(await is(join(path, 'marked')));
    t.false(await is(join(path, 'plain')));
    for (const name of ['marked', 'plain']) {
      await fails(t, () => make(join(path, name)), {
        code: 'EROFS',
        reason: 'read-only',
        path: join(path, name),
        syscall: 'setxattr',
      });
    }
  });

  mountTest(`a file system without attributes (${form})`, async (t) => {
    const path = '/proc/sys';
    t.false(await is(path));
    await fails(t, () => make(path), { code: 'ENOTSUP', reason: 'xattr-denied', path, syscall: 'setxattr' });
    const dir = scratch(t);
    makeTree(dir, { 'ram/': '' });
    const ram = join(dir, 'ram');
    t.is(native.mount('ram', ram, 'ramfs', 0, ''), 0);
    for (const userxattr of [false, true]) {
      const error = await t.throwsAsync(make(ram, { userxattr }));
      t.like(error, { code: 'ENOTSUP', reason: 'xattr-denied', path: ram });
      t.regex(error.message, /ram' does not support the attribute \w+\.overlay\.opaque\. Use a layer on ext4/);
      t.notRegex(error.message, /CAP_SYS_ADMIN/);
    }
  });

  mountTest(`without a capability (${form})`, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'own/': '', 'closed/inner/': '', 'locked/': '' });
    makeOpaqueSync(join(dir, 'locked'));
    chmodSync(join(dir, 'closed'), 0);
    chmodSync(join(dir, 'locked'), 0o555);
    const run = (name: string, args: string, path: string) =>
      evaluateIn(withoutCapabilities, `overlayfs.${name}${suffix}(args[0]${args})`, path);
    const own = join(dir, 'own');
    const denied = run('makeOpaque', '', own);
    t.like(denied, { code: 'EPERM', reason: 'xattr-denied', path: own, syscall: 'setxattr' });
    t.regex((denied as Error).message, /userxattr: true/);
    t.is(getAttribute(own, TRUSTED), undefined);
    t.is(run('makeOpaque', ', { userxattr: true }', own), null);
    t.is(getAttribute(own, USER), 'y');
    t.is(run('isOpaque', ', { userxattr: true }', own), true);
    t.is(run('isOpaque', '', join(dir, 'locked')), false, 'cannot be read without');

    const locked = join(dir, 'locked');
    t.like(run('makeOpaque', ', { userxattr: true }', locked), {
      code: 'EACCES',
      reason: 'permission-denied',
      path: locked,
      syscall: 'setxattr',
    });
    const inner = join(dir, 'closed/inner');
    for (const name of ['makeOpaque', 'isOpaque']) {
      t.like(run(name, '', inner), { code: 'EACCES', reason: 'path-inaccessible', path: inner, syscall: 'open' });
    }
  });

  kernelTest(`arguments are checked (${form})`, async (t) => {
    const dir = scratch(t);
    for (const call of [make, is]) {
      for (const bad of [0, null, undefined, true, {}, [dir], Symbol('s')]) {
        await t.throwsAsync(call(bad as never), { code: 'ERR_INVALID_ARG_TYPE', message: /"dir"/ });
      }
      for (const bad of ['', 'a\0b', Buffer.alloc(0), Buffer.from(`${dir}\0`)]) {
        await t.throwsAsync(call(bad), { code: 'ERR_INVALID_ARG_VALUE', message: /"dir"/ });
      }
      const refused = (options: unknown, expected: { code: string; message: RegExp }) =>
        t.throwsAsync(call(dir, options as OpaqueOptions), { ...expected, instanceOf: TypeError });
      await refused({ userXattr: true }, { code: 'ERR_INVALID_ARG_VALUE', message: /did you mean "userxattr"\?/ });
      await refused({ recursive: true }, { code: 'ERR_INVALID_ARG_VALUE', message: /one of userxattr/ });
      await refused({ userxattr: 'on' }, { code: 'ERR_INVALID_ARG_TYPE', message: /"userxattr"/ });
      await refused({ userxattr: null }, { code: 'ERR_INVALID_ARG_TYPE', message: /"userxattr"/ });
      await refused(null, { code: 'ERR_INVALID_ARG_TYPE', message: /"options"/ });
      await refused('userxattr', { code: 'ERR_INVALID_ARG_TYPE', message: /"options"/ });
    }
    t.is(getAttribute(dir, TRUSTED), undefined);
    t.is(getAttribute(dir, USER), undefined);
  });

  mountTest(`a directory that was removed while it was the working directory (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'cwd/': '', 'cwd (deleted)/': '' });
    const before = process.cwd();
    t.teardown(() => process.chdir(before));
    process.chdir(join(dir, 'cwd'));
    rmdirSync(join(dir, 'cwd'));
    await t.throwsAsync(make('.'), { code: 'ENOENT' });
    t.is(getAttribute(join(dir, 'cwd (deleted)'), TRUSTED), undefined);
  });

  mountTest(`a thousand failures leave nothing (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mounted = mountOverlaySync(options);
    const descriptors = countDescriptors();
    const failing = [
      () => make(options.target),
      () => make(join(dir, 'missing')),
      () => make(join(dir, 'lower/from-lower')),
      () => is(join(dir, 'missing')),
      () => is(join(dir, 'lower/from-lower')),
    ];
    let failures = 0;
    const rounds = scaled(200);
    for (let i = 0; i < rounds; i++) {
      for (const run of failing) await run().catch(() => failures++);
    }
    t.is(failures, rounds * failing.length);
    for (let i = 0; i < scaled(500); i++) await is(options.lowerdir);
    t.is(countDescriptors(), descriptors);
    await mounted.unmount();
  });
}

mountTest('marking changes nothing else about the directory', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'd/file': 'content' });
  chmodSync(join(dir, 'd'), 0o2751);
  const before = lstatSync(join(dir, 'd'));
  makeOpaqueSync(join(dir, 'd'));
  const after = lstatSync(join(dir, 'd'));
  t.deepEqual([after.mode, after.ino, after.mtimeMs, after.uid], [before.mode, before.ino, before.mtimeMs, before.uid]);
  t.is(readFileSync(join(dir, 'd/file'), 'latin1'), 'content');
});

kernelTest('the promise forms throw nothing, they reject', async (t) => {
  for (const call of [
    () => makeOpaque(5 as never),
    () => isOpaque(5 as never),
    () => isOpaque('/', { no: 1 } as never),
    () => makeOpaque('/no/where'),
  ]) {
    let promise: Promise<unknown> | undefined;
    t.notThrows(() => {
      promise = call();
    });
    await t.throwsAsync(promise as Promise<unknown>);
  }
});
