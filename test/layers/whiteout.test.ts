/** Whiteouts. Imports internals: it explains failures that no test can cause. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { isWhiteout, isWhiteoutSync, mountOverlaySync, OverlayError, type WhiteoutOptions, whiteout } from 'overlayfs';
import { StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';
import { NOT_FOUND } from '#lib/kernel/stat.js';
import { explainWhiteout } from '#lib/layers/whiteout.js';
import {
  countDescriptors,
  type Expected,
  evaluateIn,
  failsAndLeaves,
  forms,
  isLong,
  kernelTest,
  layers,
  MS_RDONLY,
  MS_REMOUNT,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
  setAttribute,
  withoutCapabilities,
} from '../support/index.js';

const EXT4_SUPER_MAGIC = 0xef53;
const EXT4_LINK_MAX = 65000;

/** Returns true if the kernel shows a character device 0:0 there. */
function isDevice00(path: string | Buffer): boolean {
  const found = lstatSync(path);
  return found.isCharacterDevice() && found.rdev === 0;
}

/** All names below a directory, sorted; mounts and links are not entered by their targets. */
function namesBelow(dir: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: 'utf8' }).sort();
}

/** The call fails as expected, and the tree is what it was. */
const failsCleanly = (t: ExecutionContext, dir: string, run: () => Promise<unknown>, expected: Expected) =>
  failsAndLeaves(t, () => namesBelow(dir), run, expected);

function inDirectory(t: ExecutionContext, dir: string): void {
  const before = process.cwd();
  process.chdir(dir);
  t.teardown(() => process.chdir(before));
}

for (const { form, of, suffix } of forms) {
  const make = of('whiteout');
  const is = of('isWhiteout');

  kernelTest(`one whiteout is one device 0:0 (${form})`, async (t) => {
    const dir = scratch(t);
    await make(join(dir, 'gone'));
    t.true(isDevice00(join(dir, 'gone')));
    t.is(lstatSync(join(dir, 'gone')).nlink, 1);
    t.true(await is(join(dir, 'gone')));
    t.deepEqual(readdirSync(dir), ['gone']);
  });

  kernelTest(`an empty list makes nothing (${form})`, async (t) => {
    const dir = scratch(t);
    inDirectory(t, dir);
    t.is(await make([]), undefined);
    t.is(await make([], { replace: true }), undefined);
    t.deepEqual(readdirSync(dir), []);
  });

  kernelTest(`those of one call share an inode, across directories too (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/c/': '' });
    const paths = ['one', 'a/two', 'b/three', 'a/four', 'b/c/five'].map((name) => join(dir, name));
    await make(paths);
    t.true(paths.every(isDevice00));
    t.deepEqual(new Set(paths.map((path) => lstatSync(path).ino)).size, 1);
    t.is(lstatSync(join(dir, 'one')).nlink, 5);

    await make(join(dir, 'six'));
    t.is(lstatSync(join(dir, 'six')).nlink, 1, 'but not with those of another call');
  });

  mountTest(`on two file systems they share an inode on each (${form})`, async (t) => {
    const [memory, disk] = [scratch(t), scratch(t, 'disk')];
    t.not(lstatSync(memory).dev, lstatSync(disk).dev);
    await make(['a', 'b'].flatMap((name) => join(memory, name)).concat(['c', 'd', 'e'].map((n) => join(disk, n))));
    t.deepEqual(
      [join(memory, 'a'), join(memory, 'b'), join(disk, 'c'), join(disk, 'd'), join(disk, 'e')].map(
        (path) => isDevice00(path) && lstatSync(path).nlink,
      ),
      [2, 2, 3, 3, 3],
    );
  });

  mountTest(`on two file systems in turn, all the same (${form})`, async (t) => {
    const [memory, disk] = [scratch(t), scratch(t, 'disk')];
    const paths = Array.from({ length: 10 }, (_, i) => join(i % 2 ? memory : disk, String(i)));
    await make(paths);
    t.true(paths.every(isDevice00));
    await t.throwsAsync(make([...paths.map((path) => `${path}+`), join(disk, '0')]), { code: 'EEXIST' });
    t.is(readdirSync(memory).length, 5);
    t.is(readdirSync(disk).length, 5);
  });

  // It makes 66,500 of them, and the synchronous form performs the same calls.
  if (isLong || form === 'promise') {
    kernelTest(`more than one inode can have links get a second one (${form})`, async (t) => {
      const dir = scratch(t, 'disk');
      // Fewer than one inode can have say nothing here.
      const each = scaled(10_000, 9_500);
      const paths = Array.from({ length: 7 * each }, (_, i) => join(dir, String(i % 7), String(i)));
      for (let i = 0; i < 7; i++) mkdirSync(join(dir, String(i)));
      await make(paths);
      for (let i = 0; i < 7; i++) t.is(readdirSync(join(dir, String(i))).length, each);
      const [first, last] = [lstatSync(paths[0] as string), lstatSync(paths.at(-1) as string)];
      t.true(isDevice00(paths.at(-1) as string));
      if (statfsSync(dir).type === EXT4_SUPER_MAGIC) {
        t.is(first.nlink, EXT4_LINK_MAX);
        t.is(last.nlink, paths.length - EXT4_LINK_MAX);
      } else {
        t.true(last.nlink > 1, 'this file system has another limit');
      }
    });
  }

  kernelTest(`names are bytes (${form})`, async (t) => {
    const dir = scratch(t);
    const at = (name: Buffer | string) => Buffer.concat([Buffer.from(`${dir}/`), Buffer.from(name)]);
    const names = [
      Buffer.from([0xff]),
      Buffer.from([0xc3]),
      Buffer.from('new\nline, comma:colon\\ "quote"'),
      Buffer.from(' '),
      Buffer.from('...'),
      Buffer.from('-'),
      Buffer.from('ö'),
      Buffer.from('x'.repeat(255)),
      Buffer.concat([Buffer.from('y'.repeat(254)), Buffer.from([0x80])]),
      Buffer.from([0x01, 0x7f]),
    ];
    await make(names.map(at));
    const sorted = (list: Buffer[]) => list.map((name) => name.toString('hex')).sort();
    t.deepEqual(sorted(readdirSync(dir, { encoding: 'buffer' })), sorted(names));
    for (const name of names) t.true(isDevice00(at(name)) && (await is(at(name))), name.toString('latin1'));

    await make(names.map(at), { replace: true });
    t.deepEqual(sorted(readdirSync(dir, { encoding: 'buffer' })), sorted(names));
    for (const name of names) t.is(lstatSync(at(name)).nlink, 1, 'each was replaced');
  });

  kernelTest(`two directories whose names are no UTF-8 are not taken for one (${form})`, async (t) => {
    const dir = scratch(t);
    const at = (...bytes: number[]) => Buffer.concat([Buffer.from(`${dir}/`), Buffer.from(bytes)]);
    const parents = [at(0xff), at(0xfe), at(0xef, 0xbf, 0xbd)];
    for (const parent of parents) mkdirSync(parent);
    await make(parents.map((parent, i) => Buffer.concat([parent, Buffer.from(`/${i}`)])));
    t.deepEqual(
      parents.map((parent) => readdirSync(parent)),
      [['0'], ['1'], ['2']],
    );
    // The same directory as a string and as bytes.
    await make([`${dir}/\ufffd/s`, Buffer.from(`${dir}/\ufffd/b`), Buffer.concat([at(0xff), Buffer.from('/s')])]);
    t.deepEqual(readdirSync(at(0xef, 0xbf, 0xbd)).sort(), ['2', 'b', 's']);
    t.deepEqual(readdirSync(at(0xff)).sort(), ['0', 's']);
  });

  kernelTest(`Uint8Arrays that are a view, and are written to afterwards (${form})`, async (t) => {
    const dir = scratch(t);
    const whole = Buffer.from(`??${dir}/name??`);
    const view = new Uint8Array(whole.buffer, whole.byteOffset + 2, whole.length - 4);
    const pending = make(view);
    whole.fill('?');
    await pending;
    t.deepEqual(readdirSync(dir), ['name']);
  });

  kernelTest(`file URLs, relative paths, trailing slashes, .. on the way (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/b/': '' });
    await make(pathToFileURL(join(dir, 'with space%')));
    inDirectory(t, join(dir, 'a'));
    const pending = make(['relative', './dotted', '../up', 'b/../b/down', 'slashed///', Buffer.from('bytes')]);
    process.chdir('/');
    await pending;
    t.deepEqual(namesBelow(dir), [
      'a',
      'a/b',
      'a/b/down',
      'a/bytes',
      'a/dotted',
      'a/relative',
      'a/slashed',
      'up',
      'with space%',
    ]);
    t.is(lstatSync(join(dir, 'a/b/down')).nlink, 6);
  });

  kernelTest(`relative to a working directory whose name is no UTF-8 (${form})`, async (t) => {
    const dir = scratch(t);
    const odd = Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xff, 0xfe])]);
    mkdirSync(odd);
    symlinkSync(odd, join(dir, 'link'));
    inDirectory(t, join(dir, 'link'));
    await make('name');
    t.deepEqual(readdirSync(odd), ['name']);
    t.true(await is('name'));
  });

  kernelTest(`a working directory that was removed is not mistaken for another (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'cwd/': '', 'cwd (deleted)/': '' });
    inDirectory(t, join(dir, 'cwd'));
    rmdirSync(join(dir, 'cwd'));
    await t.throwsAsync(make('name'), { code: 'ENOENT' });
    t.deepEqual(namesBelow(dir), ['cwd (deleted)']);
    process.chdir(join(dir, 'cwd (deleted)'));
    await make('name');
    t.deepEqual(readdirSync(join(dir, 'cwd (deleted)')), ['name'], 'a name that only looks like it');
  });

  kernelTest(`what cannot be a whiteout's path is refused before anything is made (${form})`, async (t) => {
    const dir = scratch(t);
    inDirectory(t, dir);
    const good = join(dir, 'good');
    for (const bad of ['', '.', '..', '/', '//', 'x/.', 'x/..', './', '../..//', 'a\0b', `${dir}/.`]) {
      for (const path of [bad, Buffer.from(bad), [good, bad]]) {
        await t.throwsAsync(make(path), { code: 'ERR_INVALID_ARG_VALUE', instanceOf: TypeError }, String(path));
      }
      await t.throwsAsync(make([good, bad]), { message: /"paths\[1\]"/ });
      await t.throwsAsync(make(bad, { replace: true, recursive: true }), { code: 'ERR_INVALID_ARG_VALUE' });
    }
    for (const bad of [0, 1, null, undefined, true, {}, { path: good }, Symbol('s'), new Set([good]), new Date()]) {
      await t.throwsAsync(make(bad as never), { code: 'ERR_INVALID_ARG_TYPE', message: /"path"/ });
      await t.throwsAsync(make([good, bad as never]), { code: 'ERR_INVALID_ARG_TYPE', message: /"paths\[1\]"/ });
    }
    await t.throwsAsync(make([good, [good]] as never), { code: 'ERR_INVALID_ARG_TYPE' });
    await t.throwsAsync(make(new URL('http://example.org/x')), { code: 'ERR_INVALID_URL_SCHEME' });
    t.deepEqual(readdirSync(dir), []);
  });

  kernelTest(`a list with a hole is refused (${form})`, async (t) => {
    const dir = scratch(t);
    const paths = [join(dir, 'a'), '', join(dir, 'c')];
    delete paths[1];
    await t.throwsAsync(make(paths), { code: 'ERR_INVALID_ARG_TYPE', message: /"paths\[1\]"/ });
    t.deepEqual(readdirSync(dir), []);
  });

  kernelTest(`options are checked (${form})`, async (t) => {
    const dir = scratch(t);
    const path = join(dir, 'name');
    const refused = async (options: unknown, expected: { code: string; message: RegExp }) =>
      t.throwsAsync(make(path, options as WhiteoutOptions), { ...expected, instanceOf: TypeError });
    await refused({ replce: true }, { code: 'ERR_INVALID_ARG_VALUE', message: /did you mean "replace"\?/ });
    await refused({ Recursive: true }, { code: 'ERR_INVALID_ARG_VALUE', message: /did you mean "recursive"\?/ });
    await refused({ zzz: undefined }, { code: 'ERR_INVALID_ARG_VALUE', message: /one of replace, recursive/ });
    await refused({ replace: 1 }, { code: 'ERR_INVALID_ARG_TYPE', message: /"replace"/ });
    await refused({ replace: true, recursive: 'yes' }, { code: 'ERR_INVALID_ARG_TYPE', message: /"recursive"/ });
    await refused(null, { code: 'ERR_INVALID_ARG_TYPE', message: /"options"/ });
    await refused([], { code: 'ERR_INVALID_ARG_TYPE', message: /"options"/ });
    await refused(true, { code: 'ERR_INVALID_ARG_TYPE', message: /"options"/ });
    await refused({ recursive: true }, { code: 'ERR_INVALID_ARG_VALUE', message: /`recursive`/ });
    const error = await t.throwsAsync(make(path, { recursive: true, replace: false }));
    t.like(error, { reason: 'conflicting-options' });
    t.deepEqual(readdirSync(dir), []);
    await make(path, Object.freeze({ recursive: false }));
    t.deepEqual(readdirSync(dir), ['name']);
  });

  kernelTest(`a taken name is left alone (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: 'content', 'directory/inner': 'inner' });
    symlinkSync('nowhere', join(dir, 'link'));
    await make(join(dir, 'whiteout'));
    for (const name of ['file', 'directory', 'link', 'whiteout', 'directory/']) {
      const path = `${dir}/${name}`;
      const before = lstatSync(path);
      const expected = { code: 'EEXIST', reason: 'path-exists', path, syscall: 'mknod' };
      const error = await failsCleanly(t, dir, () => make(path), expected);
      t.is(/is already a whiteout/.test(error.message), name === 'whiteout', error.message);
      t.is(lstatSync(path).ino, before.ino);
      t.is(lstatSync(path).nlink, before.nlink);
    }
    t.is(readFileSync(join(dir, 'file'), 'latin1'), 'content');
  });

  kernelTest(`a call that fails midway removes what it made (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/taken': 'mine', 'c/': '' });
    await make(join(dir, 'a/before'));
    const list = ['a/1', 'a/2', 'c/3', 'b/4', 'b/taken', 'c/5'].map((name) => join(dir, name));
    const expected = { code: 'EEXIST', reason: 'path-exists', path: join(dir, 'b/taken'), syscall: 'mknod' };
    await failsCleanly(t, dir, () => make(list), expected);
    t.is(readFileSync(join(dir, 'b/taken'), 'latin1'), 'mine');
    t.is(lstatSync(join(dir, 'a/before')).nlink, 1);

    const twice = [join(dir, 'a/x'), `${dir}//a/x`];
    await failsCleanly(t, dir, () => make(twice), { ...expected, path: `${dir}//a/x` });

    const missing = [join(dir, 'a/1'), join(dir, 'nowhere/2')];
    await failsCleanly(t, dir, () => make(missing), { code: 'ENOENT', reason: 'path-missing' });
  });

  mountTest(`a file system that is full midway is left as it was (${form})`, async (t) => {
    const dir = scratch(t);
    mkdirSync(join(dir, 'small'));
    t.is(native.mount('small', join(dir, 'small'), 'tmpfs', 0, 'nr_inodes=20'), 0);
    const paths = Array.from({ length: 40 }, (_, i) => join(dir, 'small', String(i)));
    const error = await failsCleanly(t, dir, () => make(paths), {
      code: 'ENOSPC',
      reason: 'out-of-space',
      syscall: 'mknod',
    });
    t.true(paths.includes(error.path ?? '') && error.path !== paths[0]);
    await make(paths.slice(0, 10));
    t.is(readdirSync(join(dir, 'small')).length, 10);

    // Full: nothing can be made aside.
    writeFileSync(join(dir, 'small/file'), 'content');
    for (let i = 0; ; i++) {
      try {
        mkdirSync(join(dir, 'small', `fill${i}`));
      } catch {
        break;
      }
    }
    await failsCleanly(t, dir, () => make(join(dir, 'small/file'), { replace: true }), {
      code: 'ENOSPC',
      reason: 'out-of-space',
      path: join(dir, 'small/file'),
    });
    t.is(readFileSync(join(dir, 'small/file'), 'latin1'), 'content');
  });

  kernelTest(`a parent that is missing, or no directory (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: '' });
    symlinkSync('nowhere', join(dir, 'dangling'));
    symlinkSync('loop', join(dir, 'loop'));
    await make(join(dir, 'whiteout'));
    for (const options of [{}, { replace: true }, { replace: true, recursive: true }]) {
      const fails = (path: string, expected: Expected) =>
        failsCleanly(t, dir, () => make(join(dir, path), options), { syscall: 'open', ...expected });
      const missing = await fails('no/name', { code: 'ENOENT', reason: 'path-missing', path: join(dir, 'no') });
      t.regex(missing.message, /\/no' does not exist/);
      const deeper = await fails('no/where/name', {
        code: 'ENOENT',
        reason: 'path-missing',
        path: join(dir, 'no/where'),
      });
      t.regex(deeper.message, /\/no\/where' does not exist/);
      await fails('dangling/name', { code: 'ENOENT', reason: 'path-missing', path: join(dir, 'dangling') });
      for (const parent of ['file', 'whiteout']) {
        const error = await fails(`${parent}/name`, {
          code: 'ENOTDIR',
          reason: 'path-not-directory',
          path: join(dir, parent),
        });
        t.regex(error.message, new RegExp(`ENOTDIR: '[^']*/${parent}' is not a directory`));
      }
      await fails('loop/name', { code: 'ELOOP', reason: 'path-inaccessible', path: join(dir, 'loop') });
      await fails(`${'x'.repeat(256)}/name`, { code: 'ENAMETOOLONG', reason: 'path-inaccessible' });
      await fails('x'.repeat(256), {
        code: 'ENAMETOOLONG',
        reason: 'path-inaccessible',
        path: join(dir, 'x'.repeat(256)),
        syscall: options.replace ? 'rename' : 'mknod',
      });
    }
  });

  kernelTest(`a parent that is a link is followed (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'real/': '' });
    symlinkSync('real', join(dir, 'link'));
    await make([join(dir, 'link/a'), join(dir, 'real/b')]);
    t.deepEqual(readdirSync(join(dir, 'real')).sort(), ['a', 'b']);
    t.is(lstatSync(join(dir, 'real/a')).ino, lstatSync(join(dir, 'real/b')).ino);
  });

  mountTest(`a read-only mount (${form})`, async (t) => {
    const dir = scratch(t);
    const path = join(dir, 'sub/new');
    makeTree(dir, { 'sub/': '' });
    t.is(native.mount('sub', join(dir, 'sub'), 'tmpfs', 0, ''), 0);
    makeTree(dir, { 'sub/file': 'content' });
    t.is(native.mount('', join(dir, 'sub'), '', MS_REMOUNT | MS_RDONLY, ''), 0);
    await failsCleanly(t, dir, () => make(path), { code: 'EROFS', reason: 'read-only', path, syscall: 'mknod' });
    const file = join(dir, 'sub/file');
    await failsCleanly(t, dir, () => make(file), { code: 'EEXIST', reason: 'path-exists', path: file });
    await failsCleanly(t, dir, () => make(file, { replace: true }), { code: 'EROFS', reason: 'read-only', path: file });
    t.is(readFileSync(file, 'latin1'), 'content');
  });

  mountTest(`the call that an error names is the one that failed (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'sub/': '' });
    t.is(native.mount('sub', join(dir, 'sub'), 'tmpfs', MS_RDONLY, ''), 0);
    const path = join(dir, 'sub/new');
    await failsCleanly(t, dir, () => make(path, { replace: true }), {
      code: 'EROFS',
      reason: 'read-only',
      path,
      syscall: 'mknod',
    });
  });

  mountTest(`through a mounted overlay there are none (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/directory/file': 'lower' });
    const mounted = mountOverlaySync(options);
    const at = (name: string) => join(options.target, name);
    const expected = { code: 'EPERM', reason: 'merged-mount' };
    const upper = namesBelow(options.upperdir);
    for (const list of [false, true]) {
      const call = (name: string, more?: WhiteoutOptions) => () => make(list ? [at(name)] : at(name), more);
      await failsCleanly(t, options.target, call('new'), { ...expected, path: at('new'), syscall: 'mknod' });
      for (const name of ['new', 'from-lower', 'directory/file', 'directory']) {
        const replace = { ...expected, path: at(name) };
        await failsCleanly(t, options.target, call(name, { replace: true }), replace);
        await failsCleanly(t, options.target, call(name, { replace: true, recursive: true }), replace);
      }
    }
    const some = [join(dir, 'upper/first'), at('second')];
    await failsCleanly(t, dir, () => make(some), { ...expected, path: at('second') });
    t.deepEqual(namesBelow(options.upperdir), upper);
    t.is(readFileSync(at('directory/file'), 'latin1'), 'lower');
    await mounted.unmount();
  });

  mountTest(`an overlay hides what is below a whiteout (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, {
      'lower/directory/file': '',
      'lower/kept/file': '',
      'lower/kept/other': '',
      'upper/kept/': '',
      'upper/mine': '',
    });
    await make([join(dir, 'upper/from-lower'), join(dir, 'upper/directory'), join(dir, 'upper/kept/file')]);
    await make(join(dir, 'upper/mine'), { replace: true });
    const mounted = mountOverlaySync(options);
    t.deepEqual(namesBelow(options.target), ['kept', 'kept/other']);
    for (const name of ['from-lower', 'directory', 'kept/file', 'mine']) {
      t.throws(() => lstatSync(join(options.target, name)), { code: 'ENOENT' });
    }
    writeFileSync(join(options.target, 'from-lower'), 'again');
    t.is(readFileSync(join(options.target, 'from-lower'), 'latin1'), 'again');
    await mounted.unmount();
    t.false(await is(join(dir, 'upper/from-lower')));
    t.true(await is(join(dir, 'upper/directory')));
  });

  kernelTest(`replaces whatever is there (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: 'content', 'empty/': '', 'full/a/b/c': '', 'full/d': '', outside: 'outside', 'other/x': '' });
    symlinkSync('outside', join(dir, 'link'));
    symlinkSync('other', join(dir, 'link-to-directory'));
    linkSync(join(dir, 'file'), join(dir, 'file-too'));
    await make([join(dir, 'whiteout'), join(dir, 'whiteout-too')]);

    const names = ['file', 'link', 'link-to-directory', 'whiteout', 'missing'];
    await make(
      names.map((name) => join(dir, name)),
      { replace: true },
    );
    await make([join(dir, 'empty'), `${dir}/full/`, join(dir, 'missing-too')], { replace: true, recursive: true });
    for (const name of [...names, 'empty', 'full', 'missing-too']) t.true(isDevice00(join(dir, name)), name);
    t.deepEqual(
      namesBelow(dir),
      [...names, 'empty', 'full', 'missing-too', 'file-too', 'whiteout-too', 'outside', 'other', 'other/x'].sort(),
    );
    t.is(lstatSync(join(dir, 'file-too')).nlink, 1);
    t.is(readFileSync(join(dir, 'file-too'), 'latin1'), 'content');
    t.is(lstatSync(join(dir, 'whiteout-too')).nlink, 1);
  });

  kernelTest(`one name twice is told from what was there (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'sub/': '', there: '' });
    for (const again of ['a', 'sub/../a']) {
      const path = `${dir}/${again}`;
      const error = await failsCleanly(t, dir, () => make([join(dir, 'a'), path]), {
        code: 'EEXIST',
        reason: 'path-exists',
        path,
      });
      t.regex(error.message, /a' is named twice\. Name each path once\.$/);
    }
    const there = await t.throwsAsync(make([join(dir, 'sub/there'), join(dir, 'there')]));
    t.regex(there.message, /\/there' exists\./);
  });

  kernelTest(`one name twice, replaced twice (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { a: '' });
    await make([join(dir, 'a'), join(dir, 'a')], { replace: true });
    t.true(isDevice00(join(dir, 'a')));
    t.deepEqual(readdirSync(dir), ['a']);
  });

  kernelTest(`a directory is replaced with recursive only (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'empty/': '', 'full/a/b': 'b' });
    for (const name of ['empty', 'full']) {
      const path = join(dir, name);
      const before = lstatSync(path);
      await failsCleanly(t, dir, () => make(path, { replace: true }), {
        code: 'EISDIR',
        reason: 'path-is-directory',
        path,
      });
      const after = lstatSync(path);
      t.deepEqual([after.ino, after.mode, after.mtimeMs], [before.ino, before.mode, before.mtimeMs]);
    }
    t.is(readFileSync(join(dir, 'full/a/b'), 'latin1'), 'b');
  });

  kernelTest(`a list that fails midway with replace says how far it came (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { a: 'a', b: 'b', 'directory/x': 'x', d: 'd' });
    const list = ['a', 'b', 'directory', 'd'].map((name) => join(dir, name));
    const error = await t.throwsAsync(make(list, { replace: true }), { instanceOf: OverlayError });
    t.like(error, { code: 'EISDIR', reason: 'path-is-directory', path: list[2] });
    t.regex(error?.message ?? '', /2 of the 4 paths/);
    t.deepEqual(namesBelow(dir), ['a', 'b', 'd', 'directory', 'directory/x']);
    t.deepEqual(
      list.map((path) => isDevice00(path)),
      [true, true, false, false],
    );
    const none = await t.throwsAsync(make([list[2] as string, list[3] as string], { replace: true }));
    t.notRegex(none?.message ?? '', /of the \d paths/, 'nothing was done');
    t.is(readFileSync(join(dir, 'd'), 'latin1'), 'd');
  });

  kernelTest(`with replace and a missing directory midway, what was done is said too (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { a: 'a' });
    const list = [join(dir, 'a'), join(dir, 'no/b')];
    const error = await t.throwsAsync(make(list, { replace: true }), { code: 'ENOENT', instanceOf: OverlayError });
    const isDone = isDevice00(join(dir, 'a'));
    t.is(/1 of the 2 paths/.test(error?.message ?? ''), isDone, error?.message);
    t.deepEqual(namesBelow(dir), ['a']);
  });

  kernelTest(`a deep tree (${form})`, async (t) => {
    const dir = scratch(t);
    const descriptors = countDescriptors();
    inDirectory(t, dir);
    mkdirSync('deep');
    process.chdir('deep');
    for (let i = 0; i < scaled(2000); i++) {
      writeFileSync('file', '');
      mkdirSync('d');
      process.chdir('d');
    }
    process.chdir(dir);
    await make(join(dir, 'deep'), { replace: true, recursive: true });
    t.true(isDevice00(join(dir, 'deep')));
    t.deepEqual(readdirSync(dir), ['deep']);
    t.is(countDescriptors(), descriptors);
  });

  kernelTest(`a wide tree, of names of all lengths (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    mkdirSync(join(dir, 'wide'));
    for (let i = 0; i < scaled(3000); i++) {
      const path = join(dir, 'wide', String(i).padEnd(1 + (i % 255), '-'));
      if (i % 3) writeFileSync(path, '');
      else makeTree(path, { 'a/b': '', c: '' });
    }
    await make(join(dir, 'wide'), { replace: true, recursive: true });
    t.true(isDevice00(join(dir, 'wide')));
    t.deepEqual(readdirSync(dir), ['wide']);
  });

  kernelTest(`links in a removed tree are removed, not what they lead to (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'outside/a/file': 'content', 'outside/b': 'b', 'tree/sub/': '' });
    symlinkSync(join(dir, 'outside'), join(dir, 'tree/absolute'));
    symlinkSync('../../outside/a', join(dir, 'tree/sub/relative'));
    symlinkSync('..', join(dir, 'tree/sub/up'));
    symlinkSync('../../outside/b', join(dir, 'tree/sub/to-file'));
    symlinkSync(dir, join(dir, 'link'));
    linkSync(join(dir, 'outside/b'), join(dir, 'tree/hard'));
    await make([join(dir, 'tree'), join(dir, 'link')], { replace: true, recursive: true });
    t.deepEqual(namesBelow(dir), ['link', 'outside', 'outside/a', 'outside/a/file', 'outside/b', 'tree']);
    t.is(readFileSync(join(dir, 'outside/a/file'), 'latin1'), 'content');
    t.is(readFileSync(join(dir, 'outside/b'), 'latin1'), 'b');
    t.is(lstatSync(join(dir, 'outside/b')).nlink, 1);
  });

  mountTest(`what is mounted in a tree survives (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/mount/hidden': '', 'tree/a/b': '' });
    t.is(native.mount('inner', join(dir, 'tree/mount'), 'tmpfs', 0, ''), 0);
    makeTree(dir, { 'tree/mount/precious/file': 'content' });
    const path = join(dir, 'tree');
    const descriptors = countDescriptors();
    const error = await t.throwsAsync(make(path, { replace: true, recursive: true }), { instanceOf: OverlayError });
    t.true(['EBUSY', 'EXDEV'].includes(error?.code ?? ''), error?.message);
    t.is(error?.path, path);
    const mount = mountsBelow(dir).at(-1)?.target ?? '';
    t.is(readFileSync(join(mount, 'precious/file'), 'latin1'), 'content');
    t.is(countDescriptors(), descriptors);
    t.deepEqual(readdirSync(dir), ['tree'], 'no name is left that the caller did not choose');
    t.is(mount, join(dir, 'tree/mount'), 'what could not be removed is where it was');
  });

  mountTest(
    `what is immutable is not replaced, and the error says so (${form})`,
    { needs: 'chattr on tmpfs' },
    async (t) => {
      const dir = scratch(t);
      makeTree(dir, { 'tree/a': '', 'tree/b/frozen': '', 'tree/c': '', file: '', 'frozen/file': '' });
      for (const path of ['tree/b/frozen', 'file', 'frozen']) execFileSync('chattr', ['+i', join(dir, path)]);
      const denied = { code: 'EPERM', reason: 'permission-denied', hint: 'Remove the attribute: chattr -ia.' };
      for (const path of ['file', 'frozen', 'frozen/file', 'frozen/new'].map((name) => join(dir, name))) {
        const error = await t.throwsAsync(make(path, { replace: true, recursive: true }));
        t.like(error, { ...denied, path });
        t.regex(error.message, /' is immutable or append-only\./);
        t.notRegex(error.message, /gone/);
      }
      const error = await t.throwsAsync(make(join(dir, 'tree'), { replace: true, recursive: true }));
      t.like(error, { code: 'EPERM', reason: 'permission-denied', path: join(dir, 'tree') });
      t.regex(error.message, /a file inside '.*tree' may not be removed; other files inside may be gone\. .*lsattr/);
      t.true(existsSync(join(dir, 'tree/b/frozen')));
      t.deepEqual(readdirSync(dir).sort(), ['file', 'frozen', 'tree']);
    },
  );

  mountTest(`a mount point itself is not replaced (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'mount/': '', file: 'below' });
    t.is(native.mount('inner', join(dir, 'mount'), 'tmpfs', 0, ''), 0);
    makeTree(dir, { 'mount/file': 'content' });
    const MS_BIND = 4096;
    t.is(native.mount(join(dir, 'mount/file'), join(dir, 'file'), '', MS_BIND, ''), 0);
    for (const name of ['mount', 'file']) {
      for (const options of [{ replace: true }, { replace: true, recursive: true }]) {
        const path = join(dir, name);
        // A directory is refused before it shows that it is a mount point.
        const isRefused = name === 'mount' && !('recursive' in options);
        const code = isRefused ? 'EISDIR' : 'EBUSY';
        const error = await t.throwsAsync(make(path, options), { code, instanceOf: OverlayError });
        t.like(error, { path, syscall: isRefused ? undefined : 'rename' });
        t.deepEqual(readdirSync(dir).sort(), ['file', 'mount']);
      }
    }
    t.is(readFileSync(join(dir, 'file'), 'latin1'), 'content');
    t.is(mountsBelow(dir).length, 3);
  });

  mountTest(`what may not be removed of a tree is where it was (${form})`, (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'tree/locked/file': 'content', 'tree/a/b': '' });
    chmodSync(join(dir, 'tree/locked'), 0o555);
    const call = `whiteout${suffix}`;
    const error = evaluateIn(
      withoutCapabilities,
      `overlayfs.${call}(args[0], { replace: true, recursive: true })`,
      join(dir, 'tree'),
    );
    t.like(error, { code: 'EACCES', reason: 'permission-denied', path: join(dir, 'tree') });
    t.deepEqual(readdirSync(dir), ['tree'], 'no name is left that the caller did not choose');
    t.is(readFileSync(join(dir, 'tree/locked/file'), 'latin1'), 'content');
  });

  mountTest(`without a capability, and without permission (${form})`, (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'own/file': '', 'locked/file': 'content', 'closed/inner/': '' });
    chmodSync(join(dir, 'locked'), 0o555);
    chmodSync(join(dir, 'closed'), 0);
    const run = (name: string, args: string, ...paths: string[]) =>
      evaluateIn(withoutCapabilities, `overlayfs.${name}${suffix}(${args})`, ...paths);
    t.is(run('whiteout', 'args', join(dir, 'own/new'), join(dir, 'own/other')), null, 'needs no capability');
    t.is(run('whiteout', 'args, { replace: true }', join(dir, 'own/file')), null);
    t.true(['new', 'other', 'file'].every((name) => isDevice00(join(dir, 'own', name))));
    t.is(lstatSync(join(dir, 'own/new')).nlink, 2);
    t.is(run('isWhiteout', 'args[0]', join(dir, 'own/new')), true);

    const denied = { code: 'EACCES', reason: 'permission-denied' };
    const path = join(dir, 'locked/new');
    t.like(run('whiteout', 'args[0]', path), { ...denied, path, syscall: 'mknod' });
    const file = join(dir, 'locked/file');
    t.like(run('whiteout', 'args[0], { replace: true }', file), { ...denied, path: file });
    t.deepEqual(readdirSync(join(dir, 'locked')), ['file']);
    t.is(readFileSync(file, 'latin1'), 'content');
    const inner = join(dir, 'closed/inner');
    t.like(run('whiteout', 'args[0]', join(inner, 'x')), {
      code: 'EACCES',
      reason: 'path-inaccessible',
      path: inner,
      syscall: 'open',
    });
    t.like(run('isWhiteout', 'args[0]', inner), {
      code: 'EACCES',
      reason: 'path-inaccessible',
      path: inner,
      syscall: 'statx',
    });

    writeFileSync(join(dir, 'own/marked'), '');
    setAttribute(join(dir, 'own/marked'), 'trusted.overlay.whiteout', '');
    t.is(run('isWhiteout', 'args[0]', join(dir, 'own/marked')), false, 'cannot be read without');
    t.true(isWhiteoutSync(join(dir, 'own/marked')));
  });

  mountTest(`with too few descriptors nothing is left (${form})`, (t) => {
    const dir = scratch(t);
    const paths = Array.from({ length: 100 }, (_, i) => join(dir, String(i), 'x'));
    for (const path of paths) makeTree(join(path, '..'), {});
    const error = evaluateIn(['prlimit', '--nofile=64'], `overlayfs.whiteout${suffix}(args)`, ...paths);
    t.like(error, { code: 'EMFILE', reason: 'out-of-descriptors', syscall: 'open' });
    t.is(namesBelow(dir).length, 100);
  });

  kernelTest(`a thousand failures leave nothing (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: '', 'directory/x': '' });
    const names = namesBelow(dir);
    const descriptors = countDescriptors();
    let failures = 0;
    const failing: (() => Promise<unknown>)[] = [
      () => make([join(dir, 'a'), join(dir, 'directory/b'), join(dir, 'file')]),
      () => make([join(dir, 'a'), join(dir, 'directory/b'), join(dir, 'no/where')]),
      () => make(join(dir, 'directory'), { replace: true }),
      () => make(join(dir, 'file/x'), { replace: true }),
      () => is(join(dir, 'missing')),
    ];
    const rounds = scaled(200);
    for (let i = 0; i < rounds; i++) {
      for (const run of failing) await run().catch(() => failures++);
    }
    t.is(failures, rounds * failing.length);
    t.is(countDescriptors(), descriptors);
    t.deepEqual(namesBelow(dir), names);
  });

  kernelTest(`what is a whiteout and what is not (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, {
      empty: '',
      full: 'content',
      'directory/': '',
      trusted: '',
      user: '',
      other: '',
      marked: 'content',
    });
    setAttribute(join(dir, 'user'), 'user.overlay.whiteout', 'y');
    setAttribute(join(dir, 'other'), 'user.overlay.white', 'y');
    setAttribute(join(dir, 'marked'), 'user.overlay.whiteout', 'y');
    setAttribute(join(dir, 'directory'), 'user.overlay.whiteout', 'y');
    await make(join(dir, 'device'));
    symlinkSync('device', join(dir, 'link'));
    symlinkSync('nowhere', join(dir, 'dangling'));
    const answers: Record<string, boolean> = {};
    const names = ['empty', 'full', 'directory', 'directory/', 'user', 'other', 'marked', 'device', 'link', 'dangling'];
    for (const name of names) answers[name] = await is(`${dir}/${name}`);
    t.deepEqual(answers, {
      empty: false,
      full: false,
      directory: false,
      'directory/': false,
      user: true,
      other: false,
      marked: false,
      device: true,
      link: false,
      dangling: false,
    });
    for (const path of ['/dev/null', '/dev/zero', '/', '/proc/self/exe', '/proc/self/status']) t.false(await is(path));
    t.true(await is(pathToFileURL(join(dir, 'device'))));
    t.true(await is(Buffer.from(join(dir, 'device'))));
    inDirectory(t, dir);
    t.true(await is('device'));
  });

  mountTest(`trusted.overlay.whiteout counts, with any value (${form})`, async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { none: '', value: '', long: '', full: 'content' });
    setAttribute(join(dir, 'none'), 'trusted.overlay.whiteout', '');
    setAttribute(join(dir, 'value'), 'trusted.overlay.whiteout', 'y');
    setAttribute(join(dir, 'long'), 'trusted.overlay.whiteout', 'n'.repeat(200));
    setAttribute(join(dir, 'full'), 'trusted.overlay.whiteout', 'y');
    const answers = [];
    for (const name of ['none', 'value', 'long', 'full']) answers.push(await is(join(dir, name)));
    t.deepEqual(answers, [true, true, true, false]);
  });

  kernelTest(`asking of what is not there (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { file: '' });
    symlinkSync('loop', join(dir, 'loop'));
    const fails = (path: string, expected: Expected) =>
      failsCleanly(t, dir, () => is(path), { path, syscall: 'statx', ...expected });
    await fails(join(dir, 'missing'), { code: 'ENOENT', reason: 'path-missing' });
    await fails(join(dir, 'no/where'), { code: 'ENOENT', reason: 'path-missing' });
    await fails(join(dir, 'file/x'), { code: 'ENOTDIR', reason: 'path-missing' });
    await fails(join(dir, 'loop/x'), { code: 'ELOOP', reason: 'path-inaccessible' });
    await fails(join(dir, 'x'.repeat(256)), { code: 'ENAMETOOLONG', reason: 'path-inaccessible' });
    for (const bad of [0, null, undefined, [], [join(dir, 'file')], {}]) {
      await t.throwsAsync(is(bad as never), { code: 'ERR_INVALID_ARG_TYPE', message: /"path"/ });
    }
    await t.throwsAsync(is(''), { code: 'ERR_INVALID_ARG_VALUE' });
    await t.throwsAsync(is('a\0'), { code: 'ERR_INVALID_ARG_VALUE' });
  });

  kernelTest(`a path with a slash at its end names the same for making and asking (${form})`, async (t) => {
    const path = `${scratch(t)}/name/`;
    await make(path);
    t.true(await is(path));
  });

  mountTest(`while names come and go, a replaced one is never free (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const path = join(dir, 'upper/name');
    for (let i = 0; i < scaled(200); i++) {
      writeFileSync(join(dir, 'upper/aside'), String(i));
      renameSync(join(dir, 'upper/aside'), path);
      await Promise.all([make(path, { replace: true }), make(path, { replace: true })]);
      t.true(isDevice00(path));
    }
    t.deepEqual(readdirSync(options.upperdir), ['name']);
  });
}

kernelTest('the promise forms throw nothing, they reject', async (t) => {
  const calls = [
    () => whiteout(5 as never),
    () => whiteout(''),
    () => whiteout('x', { recursive: true }),
    () => whiteout('/no/where/x'),
    () => isWhiteout(5 as never),
    () => isWhiteout('/no/where/x'),
  ];
  for (const call of calls) {
    let promise: Promise<unknown> | undefined;
    t.notThrows(() => {
      promise = call();
    });
    await t.throwsAsync(promise as Promise<unknown>);
  }
});

kernelTest('many calls at once', async (t) => {
  const dir = scratch(t);
  const outcomes = await Promise.allSettled(
    Array.from({ length: 500 }, (_, i) => whiteout(join(dir, String(i % 250)))),
  );
  t.is(outcomes.filter(({ status }) => status === 'fulfilled').length, 250);
  for (const outcome of outcomes) {
    if (outcome.status === 'rejected') t.like(outcome.reason, { code: 'EEXIST', reason: 'path-exists' });
  }
  t.is(readdirSync(dir).length, 250);
});

test('a quota that is used up is want of space', (t) => {
  const EDQUOT = 122;
  const failure = new StepFailure(new Plan(), { step: 0, errno: EDQUOT, undoErrno: 0, cancelled: false, log: [] });
  const { reason } = explainWhiteout('/layer/name', failure, {
    found: NOT_FOUND,
    parent: NOT_FOUND,
    isOnOverlay: false,
    mayChange: true,
  });
  t.is(reason, 'out-of-space');
});
