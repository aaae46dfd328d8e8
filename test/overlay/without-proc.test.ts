/** Each public function where /proc is not mounted: it works, or says that /proc is missing. */
import { makeTree, mountTest, scratch } from '../support/index.js';
import { evaluateAs } from '../support/plain-user.js';
import { withoutProc } from '../support/without-proc.js';

const rows = {
  mountOverlay: ['await (await overlayfs.mountOverlay({ ...layers, target })).unmount()', 'done'],
  'mountOverlay, a relative path': [
    `process.chdir(dir); await (await overlayfs.mountOverlay({ ...layers, target: 'merged' })).unmount()`,
    'done',
  ],
  'mountOverlay, detached': ['await (await overlayfs.mountOverlay(layers)).unmount()', 'done'],
  'mountOverlay, namespace': [
    `await overlayfs.mountOverlay({ ...layers, target, namespace: '/proc/1/ns/mnt' })`,
    'namespace-missing',
  ],
  'mountOverlay, rootless': [`await overlayfs.mountOverlay({ ...layers, rootless: true })`, 'rootless-forbidden'],
  bind: ['await (await overlayfs.bind(dir, target)).unmount()', 'done'],
  unmountTree: ['await overlayfs.unmountTree(target)', 'proc-missing'],
  unmountTreeSync: ['overlayfs.unmountTreeSync(target)', 'proc-missing'],
  createNamespace: ['await overlayfs.createNamespace()', 'proc-missing'],
  whiteout: [`await overlayfs.whiteout(join(dir, 'gone'))`, 'done'],
  makeOpaque: ['await overlayfs.makeOpaque(dir)', 'proc-missing'],
  isOpaque: ['await overlayfs.isOpaque(dir)', 'proc-missing'],
  'listMounts, namespace': [`await overlayfs.listMounts({ namespace: '/proc/1/ns/mnt' })`, 'proc-missing'],
  watchMounts: ['for await (const change of overlayfs.watchMounts()) break', 'proc-missing'],
  features: ['await overlayfs.features()', 'done'],
  spawn: [
    `const mount = await overlayfs.mountOverlay({ ...layers, target });
      const child = overlayfs.spawn('cat', [join(dir, 'lower/file')], { mount, at: join(dir, 'lower'), stdio: 'ignore' });
      const code = await new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));
      await mount.unmount();
      if (code !== 0) throw new Error(code)`,
    'done',
  ],
} as const;

for (const [title, [code, outcome]] of Object.entries(rows)) {
  mountTest(`without /proc: ${title}`, { needs: ['programs without /proc'] }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '', 'merged/': '' });
    const command = ['env', '-u', 'NODE_V8_COVERAGE', ...withoutProc];
    const body = `const [dir] = args;
      const layers = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
      const target = join(dir, 'merged');
      try { ${code}; return 'done'; } catch (error) { return error.reason ?? String(error); }`;
    t.is(evaluateAs(command, body, dir), outcome);
  });
}
