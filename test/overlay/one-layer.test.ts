/** One lower directory without an upper: a read-only view. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findMountSync, mountOverlay, mountOverlaySync } from 'overlayfs';
import { changes } from 'overlayfs/layers';
import { countDescriptors, fromAsync, makeTree, mountTest, scratch } from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

mountTest('a read-only view of one directory', async (t) => {
  const before = countDescriptors();
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/d/file': 'file', 'target/': '' });
  execFileSync('chmod', ['751', join(dir, 'lower')]);
  execFileSync('mknod', [join(dir, 'lower/gone'), 'c', '0', '0']);
  const [lowerdir, target] = [join(dir, 'lower'), join(dir, 'target')];
  for (const make of [
    () => mountOverlay({ lowerdir, target }),
    () => mountOverlaySync({ lowerdir: [lowerdir], target }),
    () => mountOverlay({ lowerdir }),
    () => mountOverlay({ lowerdir, rootless: true }),
  ]) {
    const mount = await make();
    t.is(readFileSync(join(mount.path, 'd/file'), 'utf8'), 'file');
    t.is(statSync(`${mount.path}/`).mode & 0o7777, 0o751);
    t.deepEqual(readdirSync(mount.path), ['d'], 'a whiteout does not show');
    for (const write of [
      () => writeFileSync(join(mount.path, 'new'), ''),
      () => writeFileSync(join(mount.path, 'd/file'), ''),
      () => rmSync(join(mount.path, 'd'), { recursive: true }),
    ]) {
      t.throws(write, { code: 'EROFS' });
    }
    t.deepEqual(await fromAsync(changes(mount)), []);
    await mount.unmount();
  }
  t.is(findMountSync(target)?.target === target, false);
  t.is(countDescriptors(), before);
});

mountTest('a read-only view of one directory, for a plain user', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/file': 'file' });
  giveTo(dir);
  const code = `
    const view = await overlayfs.mountOverlay({ lowerdir: join(args[0], 'lower') });
    const text = fs.readFileSync(join(view.path, 'file'), 'utf8');
    const { exitCode, stderr } = await view.run('touch', ['new']);
    await view.unmount();
    return [text, exitCode, stderr.includes('Read-only file system')];`;
  t.deepEqual(evaluateAsNobody(code, dir), ['file', 1, true]);
});

mountTest('what does not go with one directory alone', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/': '', 'work/': '' });
  const lowerdir = join(dir, 'lower');
  const idmap = [{ container: 0, host: 1000, size: 1 }];
  t.throws(() => mountOverlaySync({ lowerdir, idmap }), { message: /needs at least 2 paths in `lowerdir`/ });
  t.throws(() => mountOverlaySync({ lowerdir, workdir: join(dir, 'work') }), {
    message: /no effect without `upperdir`/,
  });
  t.throws(() => mountOverlaySync({ lowerdir: join(dir, 'none') }), { code: 'ENOENT' });
});
