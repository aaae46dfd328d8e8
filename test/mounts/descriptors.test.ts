/** Calls for which no descriptor is left say so. */
import { join } from 'node:path';
import { evaluateIn, makeTree, mountTest, scratch } from '../support/index.js';

/** The outcome of each, when a process that has opened all it may calls them; `dir` has two layers and a place. */
const calls: Readonly<Record<string, string>> = {
  bind: 'overlayfs.bind(l, m)',
  bindSync: 'overlayfs.bindSync(l, m)',
  namespace: "overlayfs.unmount(m, { namespace: '/proc/self/ns/mnt' })",
  attach: 'detached.attach(m)',
  clone: 'detached.clone()',
  listMounts: 'overlayfs.listMounts({ namespace: "/proc/self/ns/mnt" })',
  mountOverlay: 'overlayfs.mountOverlay({ lowerdir: [l, m], target: m })',
  makeOpaque: 'overlayfs.makeOpaque(m)',
  spawn: `(async () => {
      const child = overlayfs.spawn('true', [], {});
      throw await new Promise((resolve) => child.on('error', resolve));
    })()`,
};

mountTest(
  'however few are left, what they are for is told by what the caller knows',
  { needs: ['idmapped layers', 'rootless'] },
  (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'l/f': '', 'm/': '', 't/': '' });
    const messages = evaluateIn(
      ['prlimit', '--nofile=80'],
      `{
      const [l, m, target] = args;
      const { openSync, closeSync } = await import('node:fs');
      const idmap = [{ container: 0, host: 1, size: 1 }];
      const mounts = [{ lowerdir: [l, m], target, idmap }, { lowerdir: [l, m], rootless: true }];
      for (const options of mounts) overlayfs.mountOverlaySync(options).unmountSync();
      const held = [];
      try { for (;;) held.push(openSync('/dev/null')); } catch {}
      const messages = [];
      while (held.length > 46) {
        for (const options of mounts) {
          try { overlayfs.mountOverlaySync(options).unmountSync(); } catch (error) { messages.push(error.message); }
        }
        closeSync(held.pop());
      }
      return messages;
    }`,
      ...['l', 'm', 't'].map((name) => join(dir, name)),
    ) as string[];
    t.true(messages.length > 4);
    for (const message of messages) {
      t.regex(
        message,
        /^EMFILE: no file descriptor is left in the process to (?:make the mount|open the \w+(?:\[\d\])? '.*')\. /,
      );
    }
  },
);

mountTest('without descriptors', { needs: 'pathDescriptors' }, (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'l/f': '', 'm/': '' });
  const outcomes = evaluateIn(
    ['prlimit', '--nofile=80'],
    `{
      const [l, m] = args;
      const { openSync, closeSync } = await import('node:fs');
      const detached = await overlayfs.mountOverlay({ lowerdir: [l, m] });
      await overlayfs.bind(l, m).then((mount) => mount.unmount());
      const held = [];
      try { for (;;) held.push(openSync('/dev/null')); } catch {}
      const outcomes = {};
      const calls = {${Object.entries(calls).map(([name, call]) => `${name}: async () => ${call}`)}};
      for (const [name, call] of Object.entries(calls)) {
        outcomes[name] = await call().then(() => 'done', (error) => error.reason ?? error.code);
      }
      for (const descriptor of held) closeSync(descriptor);
      await detached.unmount();
      return outcomes;
    }`,
    join(dir, 'l'),
    join(dir, 'm'),
  );
  const expected = Object.keys(calls).map((name) => [name, 'out-of-descriptors']);
  t.deepEqual(outcomes, Object.fromEntries(expected));
});

mountTest('the first call that needs the deferred part of the library, without descriptors', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'l/': '', 'm/': '' });
  // Each one is the first of its process.
  const firsts: Readonly<Record<string, string>> = {
    mountOverlay: "overlayfs.mountOverlay({ lowerdir: ['/none', m] })",
    mountOverlaySync: "overlayfs.mountOverlaySync({ lowerdir: ['/none', m] })",
    cloneSync: 'detached.cloneSync().unmountSync()',
    whiteoutSync: "overlayfs.whiteoutSync(m + '/gone')",
  };
  for (const [name, call] of Object.entries(firsts)) {
    const outcome = evaluateIn(
      ['prlimit', '--nofile=64'],
      `{
        const [l, m] = args;
        const { openSync, closeSync } = await import('node:fs');
        const detached = overlayfs.mountOverlaySync({ lowerdir: [l, m] });
        const held = [];
        try { for (;;) held.push(openSync('/dev/null')); } catch {}
        const error = await (async () => ${call})().catch((error) => error);
        for (const descriptor of held) closeSync(descriptor);
        // With descriptors the same call does what it is for.
        const later = await (async () => ${call})().then(() => 'done', (error) => error.reason);
        detached.unmountSync();
        return [error instanceof overlayfs.OverlayError, error.reason, error.code, error.hint, later];
      }`,
      join(dir, 'l'),
      join(dir, 'm'),
    );
    const less = name === 'whiteoutSync' ? 'name whiteouts in fewer directories' : 'do less';
    const hint = `Raise the limit (ulimit -n), or ${less} at once.`;
    const later = name.startsWith('mountOverlay') ? 'lower-missing' : 'done';
    t.deepEqual(outcome, [true, 'out-of-descriptors', 'EMFILE', hint, later], name);
  }
});
