/** Mounts without privilege by a process that was root, as a daemon begins: its files in /proc are root's for ever. */
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import { makeTree, mountTest, scratch } from '../../support/index.js';
import { NOBODY } from '../../support/nobody.js';
import { evaluateAs, giveTo, readablePackage } from '../../support/plain-user.js';

/** Nobody may write where coverage is collected. */
const asRoot = ['env', '-u', 'NODE_V8_COVERAGE'];

const changeUser = `
  overlayfs.listMountsSync(); // the addon is loaded by root
  if (process.getuid() === 0) {
    process.setgroups([]);
    process.setgid(${NOBODY});
    process.setuid(${NOBODY});
  }
  process.umask(0o022);`;

const prelude = `const [dir] = args;
  const options = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
  ${changeUser}`;

for (const rootless of [true, 'keep', 'auto'] as const) {
  mountTest(`a process that has changed its user mounts (rootless: ${rootless})`, { needs: 'rootless' }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '' });
    giveTo(dir, join(dir, 'lower'), join(dir, 'lower/file'), join(dir, 'upper'), join(dir, 'work'));
    const outcome = evaluateAs(
      asRoot,
      `${prelude}
      const rootless = ${JSON.stringify(rootless)};
      const children = () => fs.readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8');
      const read = (mount) => {
        fs.appendFileSync(join(mount.path, 'file'), '+');
        const text = fs.readFileSync(join(mount.path, 'file'), 'utf8');
        mount.unmountSync();
        return text;
      };
      const texts = [read(await overlayfs.mountOverlay({ ...options, rootless }))];
      const before = fs.readdirSync('/proc/self/fd').length;
      texts.push(read(overlayfs.mountOverlaySync({ ...options, rootless })));
      const left = fs.readdirSync('/proc/self/fd').length - before;
      const mount = await overlayfs.mountOverlay({ ...options, rootless });
      const at = join(dir, 'lower');
      const child = overlayfs.spawn('cat', ['file'], { mounts: [{ source: mount, target: at }], cwd: at, stdio: ['ignore', 'pipe', 'inherit'] });
      const ended = new Promise((resolve) => child.on('close', resolve));
      const seen = (await child.stdout.toArray()).join('');
      await ended;
      mount.unmountSync();
      const { rootless: isAllowed, rootlessForbidden } = await overlayfs.features();
      return { texts, left, seen, isAllowed, rootlessForbidden, children: children() };`,
      dir,
    );
    t.deepEqual(outcome, { texts: ['file+', 'file++'], left: 0, seen: 'file++', isAllowed: true, children: '' });
  });
}

mountTest(
  'where this user may not execute the launcher, the error and the features say so',
  { needs: 'rootless' },
  (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '' });
    giveTo(dir, join(dir, 'lower'), join(dir, 'upper'), join(dir, 'work'));
    const launch = join(readablePackage(), 'build/Release/launch');
    chmodSync(launch, 0o700);
    t.teardown(() => chmodSync(launch, 0o755));
    const outcome = evaluateAs(
      asRoot,
      `${prelude}
    const errors = [await overlayfs.mountOverlay({ ...options, rootless: true }).catch(fields)];
    try { overlayfs.mountOverlaySync({ ...options, rootless: 'keep' }); } catch (error) { errors.push(fields(error)); }
    const { rootless, rootlessForbidden } = await overlayfs.features();
    return { errors, rootless, rootlessForbidden };`,
      dir,
    ) as { readonly errors: readonly { readonly message: string }[]; rootless: boolean; rootlessForbidden: string };
    const what = /has changed its user since it started.*may not execute the launcher/;
    t.is(outcome.errors.length, 2);
    for (const error of outcome.errors) {
      t.like(error, { code: 'EACCES', reason: 'rootless-forbidden' });
      t.regex(error.message, what);
    }
    t.false(outcome.rootless);
    t.regex(outcome.rootlessForbidden, what);
  },
);
