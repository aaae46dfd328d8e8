import { execFileSync } from 'node:child_process';
import test from 'ava';
import { packageRoot } from '../support/index.js';

test('elsewhere than on Linux, importing works and each call says why not', (t) => {
  const script = `
    Object.defineProperty(process, 'platform', { value: 'darwin' });
    const library = await import('overlayfs');
    const overlay = { lowerdir: '/l', upperdir: '/u', workdir: '/w', target: '/m' };
    const calls = {
      mountOverlay: [overlay], mountOverlaySync: [overlay], unmount: ['/m'], unmountSync: ['/m'],
      whiteout: ['/w/x'], whiteoutSync: ['/w/x'], isWhiteout: ['/w'], isWhiteoutSync: ['/w'],
      explain: [overlay], features: [], featuresSync: [], spawn: ['true'], run: ['true'],
      makeOpaque: ['/w'], makeOpaqueSync: ['/w'], isOpaque: ['/w'], isOpaqueSync: ['/w'],
      bind: ['/a', '/b'], bindSync: ['/a', '/b'],
      findHolders: ['/m'],
      listMounts: [], listMountsSync: [], findMount: ['/m'], findMountSync: ['/m'], watchMounts: [],
    };
    const functions = Object.keys(library).filter((name) => /^[a-z]/.test(name)).sort();
    if (functions.join() !== Object.keys(calls).sort().join()) throw new Error(functions.join());
    const codes = new Set();
    for (const [name, args] of Object.entries(calls)) {
      try {
        await library[name](...args);
        codes.add(name + ' did not fail');
      } catch (error) {
        codes.add([error.name, error.code, error.reason, error.message].join(' | '));
      }
    }
    const layers = await import('overlayfs/layers');
    const reads = /^(?:changes|pack|baseline|check|apply|merge|squash)/;
    for (const [name, call] of Object.entries(layers).filter(([name]) => reads.test(name))) {
      try {
        const result = await call(name === "squash" ? { upperdir: ["/tmp", "/usr"] } : "/tmp", name === "apply" ? "/y" : /^(?:merge|squash)/.test(name) ? { into: "/y" } : undefined);
        if (typeof result?.next === 'function') await result.next();
        for await (const _ of result?.[Symbol.asyncIterator] ? result : []) break;
        codes.add(name + ' did not fail');
      } catch (error) {
        codes.add([error.name, error.code, error.reason, error.message].join(' | '));
      }
    }
    const { Snapshotter } = await import('overlayfs/snapshots');
    await Snapshotter.open('/tmp/none/none').catch((error) => codes.add([error.name, error.code, error.reason, error.message].join(' | ')));
    console.log([...codes].join('\\n'));`;
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: packageRoot,
    encoding: 'utf8',
  });
  t.is(
    output,
    'OverlayError | ENOSYS | platform-unsupported | ENOSYS: overlayfs works on Linux only: OverlayFS is a file system of the Linux kernel, and this is darwin. Run it on Linux: on a machine, in a virtual machine, in WSL 2, or in a container.\n',
  );
});
