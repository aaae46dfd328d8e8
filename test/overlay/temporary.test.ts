/** Overlays whose changes are in memory and end with the mount. */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { findMount, mountOverlay, mountOverlaySync, OverlayError, type OverlayOptions } from 'overlayfs';
import { changes, merge } from 'overlayfs/layers';
import {
  countDescriptors,
  eventually,
  generator,
  hasFeature,
  makeTree,
  mountsBelow,
  mountTest,
  packageRoot,
  scaled,
  scratch,
} from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

const trees = { 'lower/file': 'lower', 'lower/gone': '', 'lower/dir/deep': 'deep', 'target/': '' } as const;

async function listChanges(from: Parameters<typeof changes>[0]): Promise<string[]> {
  const list: string[] = [];
  for await (const { kind, path } of changes(from)) list.push(`${kind} ${path}`);
  return list;
}

const changed = ['modified .', 'modified file', 'deleted gone', 'added new'];

function change(path: string): void {
  writeFileSync(join(path, 'file'), 'changed');
  writeFileSync(join(path, 'new'), 'new');
}

for (const isAttached of [false, true]) {
  mountTest(`the changes end with the mount, ${isAttached ? 'at a target' : 'detached'}`, async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, trees);
    const [descriptors, mounts] = [countDescriptors(), mountsBelow(dir).length];
    const place = isAttached ? { target: join(dir, 'target') } : {};
    const mount = await mountOverlay({ lowerdir: join(dir, 'lower'), temporary: true, ...place });
    change(mount.path);
    rmSync(join(mount.path, 'gone'));
    t.deepEqual(await listChanges(mount), changed);
    t.is(mountsBelow(dir).length, mounts + (isAttached ? 1 : 0), 'the tmpfs is in no mount table');
    // To others, the layers in the mount table lead nowhere.
    const shown = isAttached ? (await findMount(join(dir, 'target')))?.overlay?.upperdir : undefined;
    if (isAttached) t.true(String(shown).startsWith('/proc/self/fd/') || !existsSync(String(shown)), String(shown));
    const clone = isAttached || hasFeature('detached mounts that can be cloned') ? await mount.clone() : undefined;
    if (!isAttached) await mount.attach(join(dir, 'target'));
    t.deepEqual(await listChanges(mount), changed);
    await mount.unmount();
    if (clone !== undefined) t.deepEqual(await listChanges(clone), changed, 'a clone has the same layers');
    clone?.unmountSync();
    t.is(countDescriptors(), descriptors);
    t.is(readFileSync(join(dir, 'lower/file'), 'utf8'), 'lower');
    t.deepEqual(readdirSync(dir), ['lower', 'target']);
  });
}

mountTest('the changes of a mount in memory are merged', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, trees);
  for (const mode of ['copy', 'move'] as const) {
    await using mount = await mountOverlay({ lowerdir: join(dir, 'lower'), temporary: true });
    writeFileSync(join(mount.path, mode), mode);
    writeFileSync(join(mount.path, 'dir/deep'), mode);
    await merge(mount, { into: join(dir, 'lower'), move: mode === 'move' });
    t.is(readFileSync(join(dir, 'lower', mode), 'utf8'), mode);
    t.is(readFileSync(join(dir, 'lower/dir/deep'), 'utf8'), mode);
  }
});

mountTest('size and inodes are hard limits', (t) => {
  const dir = scratch(t);
  makeTree(dir, trees);
  const mount = mountOverlaySync({ lowerdir: join(dir, 'lower'), temporary: { size: 2 ** 20, inodes: 20 } });
  const full = { code: 'ENOSPC' };
  writeFileSync(join(mount.path, 'big'), Buffer.alloc(900_000));
  t.throws(() => writeFileSync(join(mount.path, 'bigger'), Buffer.alloc(900_000)), full);
  let made = 2;
  const fill = (): void => {
    for (; made < 100; made++) writeFileSync(join(mount.path, String(made)), '');
  };
  t.throws(fill, full);
  t.true(made >= 20 && made <= 22, String(made));
  mount.unmountSync();
  const tiny = mountOverlaySync({ lowerdir: join(dir, 'lower'), temporary: { size: 1, inodes: 2 } });
  t.is(readFileSync(join(tiny.path, 'file'), 'utf8'), 'lower', 'what is read takes no room');
  tiny.unmountSync();
});

test('what cannot go with `temporary` is refused', async (t) => {
  const refused = (options: object, code: string, message: RegExp) =>
    t.throwsAsync(mountOverlay({ lowerdir: '/usr', ...options } as OverlayOptions), { code, message });
  await refused({ temporary: true, upperdir: '/u' }, 'ERR_INVALID_ARG_VALUE', /`temporary` and `upperdir`/);
  await refused({ temporary: true, upperdir: '/u', workdir: '/w' }, 'ERR_INVALID_ARG_VALUE', /`upperdir`/);
  const idmap = [{ container: 0, host: 1, size: 1 }];
  await refused({ temporary: true, idmap }, 'ERR_INVALID_ARG_VALUE', /`temporary` and `idmap`/);
  await refused({ temporary: 5 }, 'ERR_INVALID_ARG_TYPE', /"temporary".*5/);
  await refused({ temporary: { bytes: 5 } }, 'ERR_INVALID_ARG_VALUE', /"bytes"/);
  for (const size of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    await refused({ temporary: { size } }, 'ERR_OUT_OF_RANGE', /"temporary.size"/);
  }
  await refused({ temporary: { inodes: 1 } }, 'ERR_OUT_OF_RANGE', /"temporary.inodes".*2 or more.*1/);
  await refused({ temporary: { inodes: '5' } }, 'ERR_INVALID_ARG_TYPE', /"temporary.inodes".*'5'/);
});

mountTest('a replacement lets the memory go, and cannot have its own', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { ...trees, 'upper/': '', 'work/': '' });
  const at = (name: string): string => join(dir, name);
  const descriptors = countDescriptors();
  const mount = await mountOverlay({ lowerdir: at('lower'), temporary: true, target: at('target') });
  await t.throwsAsync(mount.replace({ lowerdir: at('lower'), temporary: true } as never), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /"temporary"/,
  });
  const held = spawn('sleep', ['60'], { cwd: at('target'), stdio: 'ignore' });
  await t.throwsAsync(mount.unmount(), { instanceOf: OverlayError, code: 'EBUSY' });
  t.deepEqual(await listChanges(mount), [], 'a mount that stays keeps its layers');
  held.kill();
  await new Promise((resolve) => held.on('exit', resolve));
  await mount.replace({ lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') }).catch((error) => {
    if (error.reason !== 'option-unsupported') throw error;
  });
  await mount.unmount();
  t.is(countDescriptors(), descriptors);
});

mountTest('many at a time, and ends in any order', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, trees);
  const seed = Date.now() % 1e9;
  t.log(`seed ${seed}`);
  const random = generator(seed);
  const clones = hasFeature('detached mounts that can be cloned') ? 1 : 0;
  const descriptors = countDescriptors();
  for (let round = 0; round < scaled(50, 5); round++) {
    const made = await Promise.all(
      Array.from({ length: 8 }, () => mountOverlay({ lowerdir: join(dir, 'lower'), temporary: { size: 2 ** 20 } })),
    );
    made.forEach((mount, i) => {
      writeFileSync(join(mount.path, 'file'), `${round} ${i}`);
    });
    const all = [...made, ...(await Promise.all(made.slice(0, clones * random(4)).map((mount) => mount.clone())))];
    made.forEach((mount, i) => {
      t.is(readFileSync(join(mount.options.upperdir as string, 'file'), 'utf8'), `${round} ${i}`);
    });
    all.sort(() => random(3) - 1);
    await Promise.all(all.map((mount, i) => (i % 2 === 0 ? mount.unmount() : mount.unmountSync())));
  }
  t.is(countDescriptors(), descriptors);
});

mountTest('a plain user has it too, by default without a target', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, trees);
  giveTo(dir, ...['lower', 'lower/file', 'lower/gone'].map((name) => join(dir, name)));
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const { changes } = await import('overlayfs/layers');
    const count = () => fs.readdirSync('/proc/self/fd').length;
    const first = await overlayfs.mountOverlay({ lowerdir: join(dir, 'lower'), temporary: true });
    await first.run('true');
    await first.unmount();
    const before = count();
    const mount = await overlayfs.mountOverlay({ lowerdir: join(dir, 'lower'), temporary: { size: 2 ** 20 } });
    fs.writeFileSync(join(mount.path, 'new'), 'new');
    const { stdout } = await mount.run('sh', ['-c', 'rm gone; echo changed > file; head -c 2000000 /dev/zero > big 2>/dev/null || rm big; ls']);
    const list = [];
    for await (const { kind, path } of changes(mount)) list.push(kind + ' ' + path);
    await mount.unmount();
    return [stdout, list, mount.isRootless, count() - before];`,
    dir,
  ) as { reason?: string } | unknown[];
  // Before Linux 6.6, tmpfs has no attributes that begin with user.
  if (!Array.isArray(outcome)) t.is(outcome.reason, 'upper-without-xattrs');
  else t.deepEqual(outcome, ['dir\nfile\nnew\n', changed, true, 0]);
});

mountTest('SIGKILL of the process frees the memory', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, trees);
  const script = `import { mountOverlay } from 'overlayfs';
    import { writeFileSync } from 'node:fs';
    const mount = await mountOverlay({ lowerdir: process.argv[1], temporary: true });
    for (let i = 0; i < 8; i++) writeFileSync(mount.path + '/' + i, Buffer.alloc(2 ** 25));
    console.log('ready');
    setInterval(() => {}, 1000);`;
  const shared = (): number => Number(/^Shmem:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'latin1'))?.[1]);
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, join(dir, 'lower')], {
    cwd: packageRoot,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const before = shared();
  child.kill('SIGKILL');
  // In kB; other tests have a part of it.
  await eventually(t, () => shared() < before - 2 ** 17);
  t.pass();
});
