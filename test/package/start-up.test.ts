/** A start loads no more than the call at hand needs. */
import { execFileSync, spawnSync } from 'node:child_process';
import { symlinkSync, writeFileSync } from 'node:fs';
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
    try { await layers.check('/none'); } catch (error) {
      console.log(JSON.stringify([before, error instanceof OverlayError, error.reason]));
    }`);
  t.deepEqual(JSON.parse(output), [true, true, 'path-missing']);
});

test('the stack of an error begins at the caller, and shows no line of the library', (t) => {
  const directory = scratch(t);
  const file = join(directory, 'caller.mjs');
  const calls = [
    'mountOverlaySync({ lowerdir: 3 })',
    'await mountOverlay({ lowerdir: 3 })',
    "mountOverlaySync({ lowerdir: '/none', target: '/none' })",
    "await mountOverlay({ lowerdir: '/none', target: '/none' })",
    "await mountOverlay({ lowerdir: '/none', target: '/none' }).then((mount) => mount)",
    "unmountSync('/none')",
    "await unmount('/none')",
    "await check('/none')",
    "for await (const _ of changes('/none'));",
  ];
  const release = join(directory, 'release');
  execFileSync(process.execPath, ['release.mjs', release], { cwd: packageRoot });
  symlinkSync(join(packageRoot, 'build'), join(release, 'build'));
  for (const [root, call] of [packageRoot, release].flatMap((root) => calls.map((call) => [root, call]))) {
    const imports = `import { mountOverlay, mountOverlaySync, unmount, unmountSync } from '${root}/dist/index.js';
    import { changes, check } from '${root}/dist/layers.js';`;
    writeFileSync(file, `${imports}\nasync function caller() {\n  ${call};\n}\nawait caller();\n`);
    const { stderr, status } = spawnSync(process.execPath, [file], { encoding: 'utf8' });
    t.is(status, 1, call);
    const [first] = stderr.split('\n').filter((line) => line.startsWith('    at '));
    t.regex(first ?? '', /^ {4}at (async )?caller \(file:.*caller\.mjs:4:\d+\)$/, `${call}: ${stderr}`);
    t.false(
      stderr.split('\n').some((line) => /^ {4}at .*\/(dist|lib)\//.test(line)),
      `${call}: ${stderr}`,
    );
  }
});

test('each public class has its name', (t) => {
  const names = evaluate(`
    const entries = ['overlayfs', 'overlayfs/layers', 'overlayfs/snapshots', 'overlayfs/images', 'overlayfs/containerd'];
    for (const entry of entries) {
      for (const [name, value] of Object.entries(await import(entry))) {
        if (/^class/.test(value)) console.log(name, value.name);
      }
    }`)
    .trim()
    .split('\n');
  t.true(names.includes('Mount Mount') && names.includes('Snapshotter Snapshotter'), names.join('\n'));
  t.deepEqual(
    names.filter((line) => !/^(\w+) \1$/.test(line)),
    [],
  );
});
