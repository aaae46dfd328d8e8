/** remove, and what an unmount and a disposal remove of a workdir. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, OverlayError } from 'overlayfs';
import { remove } from 'overlayfs/layers';
import {
  countDescriptors,
  failsAndLeaves,
  kernelTest,
  layers,
  MS_BIND,
  makeTree,
  mountTest,
  native,
  scaled,
  scratch,
} from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

const FIRST = 100_000;

kernelTest(`a tree of every kind of file goes; what its links lead to stays`, async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'layer/a/b/c': 'c', 'layer/empty/': '', 'outside/file': 'kept' });
  symlinkSync('../outside', join(dir, 'layer/link'));
  symlinkSync('nowhere', join(dir, 'layer/a/b/dangling'));
  execFileSync('mkfifo', [join(dir, 'layer/a/fifo')]);
  writeFileSync(Buffer.concat([Buffer.from(join(dir, 'layer/a/')), Buffer.from([0xff])]), '');
  const descriptors = countDescriptors();
  await remove(`${join(dir, 'layer')}//`);
  t.deepEqual(readdirSync(dir), ['outside']);
  t.deepEqual(readdirSync(join(dir, 'outside')), ['file']);
  t.is(countDescriptors(), descriptors);
});

for (const kind of ['tmpfs', 'disk'] as const) {
  kernelTest(`trees that are deep and wide, on ${kind}`, async (t) => {
    const dir = scratch(t, kind);
    const layer = join(dir, 'layer');
    // Deeper than a path can be long, and with files and directories on each side of the way down.
    const depth = scaled(3000, 100);
    const [around, inner] = [join(dir, 'around'), join(layer, 'a_directory')];
    mkdirSync(layer);
    for (let i = 0; i < depth; i++) {
      for (const name of ['', 'b', 'z']) mkdirSync(join(around, name));
      for (const name of ['b/file', 'file']) writeFileSync(join(around, name), '');
      if (i > 0) renameSync(inner, join(around, 'a_directory'));
      renameSync(around, inner);
    }
    // More than one read of a directory returns, where files cost little.
    const count = scaled(20_000, kind === 'tmpfs' ? 6000 : 1000);
    mkdirSync(join(layer, 'wide'));
    for (let i = 0; i < count; i++) {
      mkdirSync(join(layer, `wide/${i}`));
      writeFileSync(join(layer, `wide/${i}/file`), '');
    }
    await remove(layer);
    t.false(existsSync(layer));
  });
}

mountTest(`what is mounted at or in a directory, or used by an overlay, is refused whole`, async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const look = () => readdirSync(dir, { recursive: true });
  makeTree(dir, { 'job/a': '', 'job/inside/': '', 'job/z': '' });
  const job = join(dir, 'job');
  native.mount(options.lowerdir, join(job, 'inside'), '', MS_BIND, '');
  const inside = { code: 'EBUSY', reason: 'mount-inside', path: job };
  await failsAndLeaves(t, look, () => remove(job), inside);
  await failsAndLeaves(t, look, () => remove(join(job, 'inside')), { ...inside, path: join(job, 'inside') });
  native.umount(join(job, 'inside'), 0);

  const refused = { code: 'EBUSY', reason: 'layer-in-use' };
  symlinkSync(dir, join(dir, 'way'));
  const mounted = mountOverlaySync(options);
  for (const name of ['lower', 'upper', 'work', 'way/upper']) {
    const path = join(dir, name);
    await failsAndLeaves(
      t,
      () => readdirSync(dir),
      () => remove(path),
      { ...refused, path },
    );
    await t.throwsAsync(remove(path, { dryRun: true }), { instanceOf: OverlayError, message: /layer|upper|work/ });
  }
  mounted.unmountSync();

  const { target: _, ...without } = options;
  const detached = mountOverlaySync(without);
  for (const name of ['upper', 'work']) {
    const path = join(dir, name);
    await failsAndLeaves(
      t,
      () => readdirSync(dir),
      () => remove(path),
      { ...refused, path },
    );
    await t.throwsAsync(remove(path, { dryRun: true }), { instanceOf: OverlayError, message: /layer|upper|work/ });
  }
  detached.unmountSync();
  unlinkSync(join(dir, 'way')); // readdirSync would follow it, round and round
  const before = look();
  for (const name of ['lower', 'upper', 'work', 'job']) await remove(join(dir, name), { dryRun: true });
  t.deepEqual(look(), before, 'a dry run removes nothing');
  await t.throwsAsync(remove(join(dir, 'none'), { dryRun: true }), { message: /none/ });
  await t.throwsAsync(remove(job, { dryrun: true } as never), { message: /did you mean "dryRun"/ });
  for (const name of ['lower', 'upper', 'work', 'job']) await remove(join(dir, name));
  t.deepEqual(readdirSync(dir), ['merged']);
});

for (const kind of ['tmpfs', 'disk'] as const) {
  mountTest(`a tree that holds upper or work of a detached mount keeps these, on ${kind}`, async (t) => {
    const dir = scratch(t, kind);
    makeTree(dir, { 'lower/': '', 'job/a/u/': '', 'job/a/w/': '', 'job/z': '', 'alone/u/': '', 'w/': '' });
    const at = (name: string) => join(dir, name);
    const mount = (upperdir: string, workdir: string) =>
      mountOverlaySync({ lowerdir: at('lower'), upperdir: at(upperdir), workdir: at(workdir) });
    const mounts = [mount('job/a/u', 'job/a/w'), mount('alone/u', 'w')];
    // Deeper than the removal keeps descriptors, and full.
    const deep = `deep/${'d/'.repeat(40)}`;
    makeTree(dir, { [`${deep}u/`]: '', [`${deep}w/`]: '' });
    mounts.push(mount(`${deep}u`, `${deep}w`));
    writeFileSync(at(`${deep}u/file`), '');
    const descriptors = countDescriptors();
    const message = /an overlay that this process mounted uses '.*'; other files in '.*' may be gone/;
    for (const [name, inside] of [
      ['job', 'job/a/'],
      ['job/a', 'job/a/'],
      ['alone', 'alone/u'],
      ['deep', deep],
    ] as const) {
      const error = await t.throwsAsync<OverlayError>(() => remove(at(name)), { instanceOf: OverlayError, message });
      t.like(error, { code: 'EBUSY', reason: 'layer-in-use' });
      t.true(error?.path?.startsWith(at(inside)), error?.path);
    }
    for (const name of ['job/a/u', 'job/a/w/work', 'alone/u', `${deep}u/file`, `${deep}w/work`]) {
      t.true(existsSync(at(name)), name);
    }
    t.is(countDescriptors(), descriptors);
    for (const mounted of mounts) mounted.unmountSync();
    for (const name of ['job', 'alone', 'deep']) await remove(at(name));
    t.deepEqual(readdirSync(dir).sort(), ['lower', 'w']);
  });
}

kernelTest(`what is no directory, or is not there, is refused`, async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { file: '', 'directory/': '' });
  symlinkSync('directory', join(dir, 'link'));
  const look = () => readdirSync(dir);
  const fails = (name: string, code: string, reason: string) =>
    failsAndLeaves(t, look, () => remove(join(dir, name)), { code, reason, path: join(dir, name) });
  await fails('missing', 'ENOENT', 'path-missing');
  await fails('missing/inside', 'ENOENT', 'path-missing');
  await fails('file', 'ENOTDIR', 'path-not-directory');
  await fails('link', 'ENOTDIR', 'path-not-directory');
  for (const path of ['/', '.', `${dir}/..`, `${dir}/.`]) {
    await t.throwsAsync(() => remove(path), { code: 'ERR_INVALID_ARG_VALUE', message: /"dir" must end in the name/ });
  }
  await t.throwsAsync(() => remove(7 as never), { code: 'ERR_INVALID_ARG_TYPE' });
});

mountTest(`an entry that cannot be removed is named`, { needs: 'chattr on tmpfs' }, async (t) => {
  const dir = scratch(t);
  const file = join(dir, 'layer/a/b/file');
  makeTree(dir, { 'layer/a/b/file': '' });
  execFileSync('chattr', ['+i', file]);
  const error = await t.throwsAsync(() => remove(join(dir, 'layer')), { instanceOf: OverlayError });
  t.like(error, { code: 'EPERM', reason: 'permission-denied', path: file, syscall: 'unlink' });
  t.regex(
    error?.message ?? '',
    /b\/file' is immutable or append-only; other files .* may be gone\. Remove the attribute/,
  );
  execFileSync('chattr', ['-i', file]);
  await remove(join(dir, 'layer'));
});

/** Deletions, copies and a second name leave this in a workdir. */
const use = (target: string): void => {
  rmSync(join(target, 'from-lower'));
  rmSync(join(target, 'd'), { recursive: true });
  execFileSync('sh', ['-c', 'ln linked second && echo more >> second && mv moved elsewhere'], { cwd: target });
};

const tree = { 'lower/d/file': '', 'lower/linked': '', 'lower/moved': '' };
const features = { plain: {}, index: { index: true }, volatile: { volatile: true } } as const;

for (const [feature, more] of Object.entries(features)) {
  for (const kind of ['tmpfs', 'disk'] as const) {
    mountTest(`root removes the workdir of a mount: ${feature}, ${kind}`, async (t) => {
      const dir = scratch(t, kind);
      const options = { ...layers(dir), ...more };
      makeTree(dir, tree);
      for (const end of ['unmount', 'unmountSync', 'remove', 'dispose'] as const) {
        if (end !== 'remove') rmSync(options.workdir, { recursive: true, force: true });
        const mounted = mountOverlaySync({ ...options, create: true });
        use(options.target);
        if (end.startsWith('unmount')) await mounted[end as 'unmount']();
        else if (end === 'dispose') mounted[Symbol.dispose]();
        else {
          mounted.unmountSync();
          await remove(options.workdir);
        }
        t.false(existsSync(options.workdir), end);
        await remove(options.upperdir);
        makeTree(dir, { 'upper/': '', 'work/': '' });
      }
    });

    if (feature === 'index') continue;
    mountTest(`a plain user does: ${feature}, ${kind}`, { needs: 'rootless' }, (t) => {
      const dir = scratch(t, kind);
      makeTree(dir, { 'lower/gone': '', 'lower/d/file': '', 'lower/more': '' });
      giveTo(dir, ...['lower', 'lower/gone', 'lower/d', 'lower/d/file', 'lower/more'].map((name) => join(dir, name)));
      const outcome = evaluateAsNobody(
        `const [dir, more] = args;
        const layer = (name) => join(dir, name);
        const outcomes = [];
        for (const end of ['unmount', 'unmountSync', 'remove', 'dispose', 'disposeSync']) {
          // A workdir that \`create\` did not make stays after the mount.
          if (end.startsWith('remove')) fs.mkdirSync(layer('upper.work'));
          const options = { lowerdir: layer('lower'), upperdir: layer('upper'), create: true, rootless: true };
          const mount = await overlayfs.mountOverlay({ ...options, ...JSON.parse(more) });
          fs.rmSync(join(mount.path, 'gone'));
          fs.rmSync(join(mount.path, 'd'), { recursive: true });
          if (end.startsWith('unmount')) await mount[end]();
          else if (end === 'dispose') await mount[Symbol.asyncDispose]();
          else if (end === 'disposeSync') mount[Symbol.dispose]();
          else {
            await mount.unmount();
            outcomes.push((fs.statSync(layer('upper.work/work')).mode & 0o777) === 0);
            await remove(layer('upper.work'));
          }
          outcomes.push(fs.existsSync(layer('upper.work')));
          await remove(layer('upper'));
        }
        return { outcomes, left: fs.readdirSync(dir) };`,
        dir,
        JSON.stringify(more),
      );
      const removed = [false];
      const kept = [true, false];
      t.deepEqual(outcome, {
        outcomes: [...removed, ...removed, ...kept, ...removed, ...removed],
        left: ['lower'],
      });
    });
  }
}

kernelTest('a plain user removes directories of any mode', (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'layer/': '' });
  giveTo(dir, join(dir, 'layer'));
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const modes = [0, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600, 0o700, 0o077];
    for (const outer of modes) for (const inner of modes) {
      const at = join(dir, 'layer', 'm' + outer);
      fs.mkdirSync(join(at, 'm' + inner, 'deeper'), { recursive: true });
      fs.writeFileSync(join(at, 'm' + inner, 'deeper', 'file'), '');
      fs.writeFileSync(join(at, 'file'), '');
    }
    for (const outer of modes) {
      const at = join(dir, 'layer', 'm' + outer);
      for (const inner of modes) fs.chmodSync(join(at, 'm' + inner), inner);
      fs.chmodSync(at, outer);
    }
    fs.chmodSync(join(dir, 'layer'), 0);
    await remove(join(dir, 'layer'));
    return fs.readdirSync(dir);`,
    dir,
  );
  t.deepEqual(outcome, []);
});

kernelTest('a plain user who may not remove a directory is told before anything is gone', (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'of-root/layer/file': '' });
  for (const name of ['of-root/layer', 'of-root/layer/file']) chownSync(join(dir, name), NOBODY, NOBODY);
  chmodSync(dir, 0o755);
  const outcome = evaluateAsNobody('await remove(args[0]);', join(dir, 'of-root/layer'));
  t.like(outcome, { code: 'EACCES', reason: 'permission-denied', path: join(dir, 'of-root/layer') });
  t.deepEqual(readdirSync(join(dir, 'of-root/layer')), ['file']);
});

mountTest('files of subordinate ids go too', { needs: 'subordinate ids' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, {
    'upper/own/': '',
    'upper/theirs/deep/file': '',
    'upper/theirs/file': '',
    ids: `${NOBODY}:${FIRST}:1000\n`,
  });
  giveTo(dir, join(dir, 'upper'), join(dir, 'upper/own'));
  for (const name of ['theirs', 'theirs/deep', 'theirs/file', 'theirs/deep/file']) {
    chownSync(join(dir, 'upper', name), FIRST + 5, FIRST + 6);
  }
  chmodSync(join(dir, 'upper/theirs/deep'), 0);
  for (const name of ['/etc/subuid', '/etc/subgid']) {
    t.is(native.mount(join(dir, 'ids'), name, '', MS_BIND, ''), 0);
    t.teardown(() => native.umount(name, 0));
  }
  const outcome = evaluateAsNobody(
    `const before = fs.readdirSync('/proc/self/fd').length;
    await remove(args[0]);
    return { left: fs.existsSync(args[0]), descriptors: fs.readdirSync('/proc/self/fd').length - before };`,
    join(dir, 'upper'),
  );
  t.deepEqual(outcome, { left: false, descriptors: 0 });
});

mountTest('dispose leaves a workdir that was there before, and one that is in use', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const before = mountOverlaySync({ ...options, create: true });
  before[Symbol.dispose]();
  t.true(existsSync(options.workdir));
  rmSync(options.workdir, { recursive: true });
  const mounted = mountOverlaySync({ ...options, create: true });
  const clone = mounted.cloneSync();
  await mounted[Symbol.asyncDispose]();
  t.true(existsSync(options.workdir));
  clone.unmountSync();
  const { target: _, ...without } = options;
  const detached = mountOverlaySync({ ...without, workdir: join(dir, 'another'), create: true });
  const file = openSync(join(detached.path, 'from-lower'), 'r');
  detached[Symbol.dispose]();
  t.true(existsSync(join(dir, 'another')));
  closeSync(file);
});

mountTest('what is in the place of a made workdir stays', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  for (const end of ['unmount', 'unmountSync'] as const) {
    const workdir = join(dir, end);
    const mounted = mountOverlaySync({ ...options, workdir, create: true });
    renameSync(workdir, join(dir, 'moved'));
    symlinkSync('moved', workdir);
    await mounted[end]();
    t.deepEqual(readdirSync(join(dir, 'moved')), ['work']);
    await remove(join(dir, 'moved'));
  }
});
