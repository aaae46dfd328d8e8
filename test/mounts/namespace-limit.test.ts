/** As many mount namespaces are in use as are allowed: a detached mount takes one, however short it is one. */
import { hasFeature, makeTree, mountTest, scratch } from '../support/index.js';
import { evaluateAs } from '../support/plain-user.js';

mountTest('each call that takes a mount namespace says that none is left', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/file': 'file', 'second/': '', 'target/': '' });
  const outcome = evaluateAs(
    ['env', '-u', 'NODE_V8_COVERAGE', 'unshare', '-Urm'],
    `const [dir, canClone] = args;
    const lowers = { lowerdir: [join(dir, 'lower'), join(dir, 'second')] };
    const target = join(dir, 'target');
    const held = await overlayfs.mountOverlay(lowers);
    // The first is the one that this process is in; the kernel counts those that it is about to free.
    fs.writeFileSync('/proc/sys/user/max_mnt_namespaces', '1');
    const attempts = {
      detached: () => overlayfs.mountOverlay(lowers),
      'synchronous form': () => overlayfs.mountOverlaySync(lowers),
      bind: () => overlayfs.bind(join(dir, 'lower'), target),
      ...(canClone === 'true' && { clone: () => held.clone() }),
    };
    const outcomes = {};
    for (const [name, attempt] of Object.entries(attempts)) {
      outcomes[name] = await (async () => { await attempt(); return 'done'; })().catch(({ code, reason }) => code + ' ' + reason);
    }
    return outcomes;`,
    dir,
    String(hasFeature('detached mounts that can be cloned')),
  ) as Record<string, string>;
  t.true(Object.keys(outcome).length >= 3, JSON.stringify(outcome));
  for (const [name, said] of Object.entries(outcome)) t.is(said, 'ENOSPC out-of-namespaces', name);
});
