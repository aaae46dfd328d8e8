/** Each public function where /proc is not mounted: it works, or says that /proc is missing. */
import { type Feature, makeTree, mountTest, scratch } from '../support/index.js';
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
    'proc-missing',
  ],
  'mountOverlay, idmap': [
    `const map = [{ container: 0, host: 1000, size: 1 }];
      await overlayfs.mountOverlay({ ...layers, target, idmap: { lowerdir: map } })`,
    'proc-missing',
  ],
  'bind, namespace': [`await overlayfs.bind(dir, target, { namespace: '/proc/self/ns/mnt' })`, 'proc-missing'],
  'mountOverlay, namespace elsewhere': [
    `await overlayfs.mountOverlay({ ...layers, target, namespace: join(dir, 'none') })`,
    'namespace-missing',
  ],
  'mountOverlay, rootless': [`await overlayfs.mountOverlay({ ...layers, rootless: true })`, 'rootless-forbidden'],
  'mountOverlay, with an option to be looked at': [
    `const error = await overlayfs.mountOverlay({ ...layers, target, index: true }).catch((error) => error);
      if (error.unmount) await error.unmount();
      else if (error.reason !== 'proc-missing') throw error;
      if (fs.readdirSync(target).length > 0) throw new Error('it is still mounted')`,
    'done',
  ],
  'mountOverlay, aborted': [
    `for (let i = 0; i < 40; i++) {
        const controller = new AbortController();
        const pending = overlayfs.mountOverlay({ ...layers, target, signal: controller.signal });
        const timer = setTimeout(() => controller.abort(), i % 4 / 2);
        if (i % 2) controller.abort();
        const mount = await pending.catch(() => undefined);
        clearTimeout(timer);
        if (mount) await mount.unmount();
        if (fs.readdirSync(target).length > 0) throw new Error('it is still mounted');
      }`,
    'done',
  ],
  replace: [
    `const mount = await overlayfs.mountOverlay({ ...layers, target });
      const error = await mount.replace({ lowerdir: [layers.lowerdir, join(dir, 'other')] }).catch((error) => error);
      if (error && !['option-unsupported', 'proc-missing'].includes(error.reason)) throw error;
      if (!error && !fs.existsSync(join(target, 'second'))) throw new Error('it is not the other one');
      await mount.unmount();
      if (fs.readdirSync(target).length > 0) throw new Error('one is left')`,
    'done',
  ],
  bind: ['await (await overlayfs.bind(dir, target)).unmount()', 'done'],
  'unmount recursive': ['await overlayfs.unmount(target, { recursive: true })', 'proc-missing'],
  'unmountSync recursive': ['overlayfs.unmountSync(target, { recursive: true })', 'proc-missing'],
  whiteout: [`await overlayfs.whiteout(join(dir, 'gone'))`, 'done'],
  makeOpaque: ['await overlayfs.makeOpaque(dir)', 'proc-missing'],
  isOpaque: ['await overlayfs.isOpaque(dir)', 'proc-missing'],
  'listMounts, namespace': [`await overlayfs.listMounts({ namespace: '/proc/1/ns/mnt' })`, 'proc-missing'],
  watchMounts: ['for await (const change of overlayfs.watchMounts()) break', 'proc-missing'],
  explain: [
    `const { findings } = await overlayfs.explain({ ...layers, target });
      if (findings.length > 0) throw new Error(findings[0].message)`,
    'done',
  ],
  features: ['await overlayfs.features()', 'done'],
  spawn: [
    `const mount = await overlayfs.mountOverlay({ ...layers, target });
      const child = overlayfs.spawn('cat', [join(dir, 'lower/file')], { mounts: [{ source: mount, target: join(dir, 'lower') }], stdio: 'ignore' });
      const code = await new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));
      await mount.unmount();
      if (code !== 0) throw new Error(code)`,
    'done',
  ],
} as const;

/** Some need this besides. */
const features: Readonly<Record<string, Feature>> = { 'mountOverlay, idmap': 'idmapped layers' };

for (const [title, [code, outcome]] of Object.entries(rows)) {
  const feature = features[title];
  const needs: Feature[] = ['programs without /proc', ...(feature === undefined ? [] : [feature])];
  mountTest(`without /proc: ${title}`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/file': 'file', 'other/second': '', 'upper/': '', 'work/': '', 'merged/': '' });
    const command = ['env', '-u', 'NODE_V8_COVERAGE', ...withoutProc];
    const body = `const [dir] = args;
      const layers = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
      const target = join(dir, 'merged');
      try { ${code}; return 'done'; } catch (error) { return error.reason ?? String(error); }`;
    t.is(evaluateAs(command, body, dir), outcome);
  });
}
