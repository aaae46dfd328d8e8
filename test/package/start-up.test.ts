/** A start loads no more than the call at hand needs. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { layers, mountTest, packageRoot, scratch } from '../support/index.js';

const evaluate = (script: string) =>
  execFileSync(process.execPath, ['--input-type=module', '-e', script], { cwd: packageRoot, encoding: 'utf8' });

test('an import loads one file, and none of the modules of Node that few calls need', (t) => {
  const output = evaluate(`
    import { createRequire } from 'node:module';
    const before = new Set(process.moduleLoadList);
    const overlayfs = await import('overlayfs');
    const loaded = () => Object.keys(createRequire(import.meta.url).cache).map((path) => path.split('/').at(-1));
    const modules = process.moduleLoadList.filter((name) => !before.has(name));
    const atImport = loaded();
    try { overlayfs.mountOverlaySync({ lowerdir: '/none', upperdir: '/u', workdir: '/w', target: '/none' }); } catch {}
    console.log(JSON.stringify({ modules, atImport, afterFailure: loaded() }));`);
  const { modules, atImport, afterFailure } = JSON.parse(output);
  t.deepEqual(
    modules.filter((name: string) => /child_process|crypto|worker|timers|net$|stream/.test(name)),
    [],
  );
  t.deepEqual(atImport, []);
  t.true(afterFailure.includes('deferred.cjs'));
});

mountTest('a mount and its unmount load no more', (t) => {
  const set = layers(scratch(t));
  const script = `
    import { createRequire } from 'node:module';
    import { mountOverlay, mountOverlaySync, unmount } from 'overlayfs';
    const set = ${JSON.stringify(set)};
    mountOverlaySync(set).unmountSync();
    await mountOverlay(set);
    await unmount(set.target);
    console.log(Object.keys(createRequire(import.meta.url).cache).filter((path) => path.endsWith('deferred.cjs')).length);`;
  // A program that searches the machine for holders can make the mount busy for a moment, which takes more modules.
  t.true([1, 2, 3].some(() => evaluate(script) === '0\n'));
});

test('overlayfs/layers loads the rest when it is imported, and shares its errors with overlayfs', (t) => {
  const output = evaluate(`
    import { createRequire } from 'node:module';
    import { OverlayError } from 'overlayfs';
    import * as layers from 'overlayfs/layers';
    const isLoaded = () => Object.keys(createRequire(import.meta.url).cache).some((path) => path.endsWith('deferred.cjs'));
    const before = isLoaded();
    try { [...layers.changesSync('/none')]; } catch (error) {
      console.log(JSON.stringify([before, error instanceof OverlayError, error.reason]));
    }`);
  t.deepEqual(JSON.parse(output), [true, true, 'path-missing']);
});

test('a stack trace names the functions, in lines that can be read', (t) => {
  const [, ...frames] = evaluate(`
    import { mountOverlaySync } from 'overlayfs';
    try { mountOverlaySync({ lowerdir: 3 }); } catch (error) { console.log(error.stack); }`).split('\n');
  t.true(
    frames.some((frame) => /mountOverlaySync \(file:.*\/dist\/index\.js:\d+:\d{1,3}\)/.test(frame)),
    frames.join('\n'),
  );
  const map = JSON.parse(readFileSync(join(packageRoot, 'dist/index.js.map'), 'utf8'));
  t.true(map.sources.includes('../lib/overlay/mount.ts'));
});
