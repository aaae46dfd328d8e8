/** Programs in Deno, with the permissions that docs/environments.md names. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountTest, packageRoot, scratch } from '../../support/index.js';
import { inJavaScript, printed } from './mounting.js';
import { directoryIn, packedPackage, run } from './package.js';

const inSnapshots = `
import { mkdirSync, writeFileSync } from 'node:fs';
import { Snapshotter } from 'overlayfs/snapshots';

const snapshotter = await Snapshotter.open(process.argv[2] + '/root');
await snapshotter.prepare('key');
await snapshotter.commit('key', { name: 'name' });
const [mount] = await snapshotter.prepare('next', 'name');
console.log(mount.type, (await snapshotter.stat('name')).kind);
await snapshotter.close();
`;

const inDetachedMount = `
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { mountOverlay, spawn } from 'overlayfs';

const lowerdir = ['a', 'b'].map((name) => process.argv[2] + '/' + name);
for (const path of lowerdir) mkdirSync(path);
writeFileSync(lowerdir[0] + '/file', 'contents');
const mount = await mountOverlay({ lowerdir, rootless: true });
console.log(readFileSync(mount.path + '/file', 'utf8'));
const child = spawn('cat', [lowerdir[1] + '/file'], { mounts: [{ source: mount, target: lowerdir[1] }], unshare: ['pid'], stdio: 'inherit' });
await new Promise((ended) => child.on('close', ended));
await mount.unmount();
`;

const named = ['ffi', 'sys', 'read', 'write', 'env', 'run'].map((name) => `--allow-${name}`);

for (const [words, permissions, script, output] of [
  ['mounts and spawn', ['-A'], inJavaScript, printed],
  ['mounts and spawn, with few permissions', named, inJavaScript, printed],
  ['snapshots', ['-A'], inSnapshots, 'overlay committed\n'],
  ['snapshots, with few permissions', named, inSnapshots, 'overlay committed\n'],
  ['the path of a detached mount', ['-A'], inDetachedMount, 'contents\ncontents'],
] as const) {
  mountTest(`Deno: ${words}`, (t) => {
    const dir = directoryIn(packedPackage().project, `deno-${words.replaceAll(/\W+/g, '-')}`);
    writeFileSync(join(dir, 'program.mjs'), script);
    const deno = join(packageRoot, 'node_modules/.bin/deno');
    t.is(run(dir, deno, 'run', '--no-prompt', ...permissions, 'program.mjs', scratch(t, 'disk')), output);
  });
}
