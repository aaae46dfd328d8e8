/**
 * Makes the directory that is published, with what a release has and no more: `npm run build:release`, then
 * `npm publish ./release`. npm runs no script in it, so that what was built here is what is packed.
 *
 *   node release.mjs [DIR]          makes DIR, `release` by default, from `dist` and `prebuilds`
 */

import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const root = import.meta.dirname;
const release = resolve(process.argv[2] ?? join(root, 'release'));

/** Only the source needs these. npm warns of some where the package is installed, and tools read others. */
const ofSource = ['private', 'workspaces', 'gypfile', 'scripts', 'devDependencies', 'ava', 'c8'];

rmSync(release, { recursive: true, force: true });
mkdirSync(release, { recursive: true });
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
for (const name of ofSource) delete manifest[name];
for (const name of ['README.md', 'LICENSE', 'CHANGELOG.md', 'dist', 'prebuilds']) {
  if (name === 'prebuilds' && !existsSync(join(root, name))) continue; // a test adds the binaries of this machine
  cpSync(join(root, name), join(release, name), { recursive: true });
}
// npm puts them into share/man, where the package is installed globally.
execFileSync(process.execPath, ['dist-test/docs/write-man-pages.js', join(release, 'dist/man')], { cwd: root });
manifest.man = readdirSync(join(release, 'dist/man')).map((name) => `./dist/man/${name}`);
writeFileSync(join(release, 'package.json'), `${JSON.stringify(manifest, undefined, 2)}\n`);
execFileSync(process.execPath, ['bundle.mjs', '--release', join(release, 'dist')], { cwd: root, stdio: 'inherit' });
