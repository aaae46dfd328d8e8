/** The contents of the tarball, and the links of its README. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot } from '../../support/index.js';
import { packedPackage } from './package.js';

test('the tarball has no sources and no source maps, and takes less than 2 MB', (t) => {
  const { files, unpackedSize } = packedPackage();
  const paths = files.map(({ path }) => path);
  const known = /^((dist|prebuilds)\/.*|package\.json|README\.md|LICENSE|CHANGELOG\.md)$/;
  t.deepEqual(
    paths.filter((path) => !known.test(path) || /\.(map|cc|h|gyp)$|(?<!\.d)\.ts$/.test(path)),
    [],
  );
  t.true(unpackedSize < 2_000_000, `${unpackedSize}`);
  for (const { path } of files.filter(({ path }) => path.endsWith('.js') || path.endsWith('.cjs'))) {
    t.false(readFileSync(join(packedPackage().overlayfs, path), 'utf8').includes('sourceMappingURL'), path);
  }
});

test('the published package.json has nothing that only the source needs', (t) => {
  const manifest = JSON.parse(readFileSync(join(packedPackage().overlayfs, 'package.json'), 'utf8'));
  const known =
    /^(name|version|description|keywords|homepage|bugs|repository|license|author|type|engines|files|exports|bin|man|types|peerDependencies(Meta)?)$/;
  t.deepEqual(
    Object.keys(manifest).filter((name) => !known.test(name)),
    [],
  );
});

test('npm does not publish the source', (t) => {
  t.true(JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')).private);
});

test('the addon and the launcher are there, and the launcher can be run', (t) => {
  const prebuilds = join(packedPackage().overlayfs, 'prebuilds');
  for (const name of readdirSync(prebuilds)) {
    t.deepEqual(readdirSync(join(prebuilds, name)).sort(), ['overlayfs-launch', 'overlayfs.node']);
    t.is(statSync(join(prebuilds, name, 'overlayfs-launch')).mode & 0o111, 0o111);
  }
});

test('each declaration that a declaration imports is there', (t) => {
  const { overlayfs, files } = packedPackage();
  const declarations = files.map(({ path }) => path).filter((path) => path.endsWith('.d.ts'));
  t.true(declarations.length > 10);
  for (const path of declarations) {
    const text = readFileSync(join(overlayfs, path), 'utf8');
    for (const [, imported = ''] of text.matchAll(/(?:from|import\() ?["'](\..*?)\.js["']/g)) {
      t.true(existsSync(join(overlayfs, path, '..', `${imported}.d.ts`)), `${imported} in ${path}`);
    }
  }
});

test('links of the README lead to files of the repository, from anywhere', (t) => {
  const { repository, homepage, bugs } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
  const address = repository.url.replace(/^git\+|\.git$/g, '');
  t.true(homepage.startsWith(address) && bugs.startsWith(address));
  const links = Array.from(readFileSync(join(packageRoot, 'README.md'), 'utf8').matchAll(/\]\(([^)]*)\)/g));
  t.true(links.length > 3);
  for (const [, link = ''] of links) {
    const [, path = ''] = /^.*?\/(?:blob|tree)\/main\/([^#]*)/.exec(link) ?? [];
    t.true(link.startsWith(`${address}/`) && path !== '' && existsSync(join(packageRoot, path)), link);
  }
});
