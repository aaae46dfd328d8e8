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
      features: [], featuresSync: [], spawn: ['true'],
      removeLayer: ['/w'], removeLayerSync: ['/w'], makeOpaque: ['/w'], makeOpaqueSync: ['/w'], isOpaque: ['/w'], isOpaqueSync: ['/w'],
      bind: ['/a', '/b'], bindSync: ['/a', '/b'], createNamespace: [], createNamespaceSync: [],
      findHolders: ['/m'], findHoldersSync: ['/m'],
        unmountTree: ['/m'], unmountTreeSync: ['/m'],
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
        codes.add([error.name, error.code, error.message].join(' | '));
      }
    }
    console.log([...codes].join('\\n'));`;
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: packageRoot,
    encoding: 'utf8',
  });
  t.is(
    output,
    'TypeError | ERR_FEATURE_UNAVAILABLE_ON_PLATFORM | overlayfs works on Linux only: OverlayFS is a file system of the Linux kernel. This is darwin\n',
  );
});
