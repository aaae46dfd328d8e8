/** The tests in docs/testing.md pass in their runners: in node:test here, in Vitest and Jest where these are installed. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { makeTree, mountTest, packageRoot, scratch } from '../support/index.js';

const page = readFileSync(join(packageRoot, 'docs/testing.md'), 'utf8');
const sections = new Map(
  Array.from(page.matchAll(/^## (\S+)\n[^#]*?^```mjs\n([\s\S]*?)^```$/gm), ([, runner = '', code = '']) => [
    runner,
    code,
  ]),
);

const consumers = join(packageRoot, 'test/package/consumers/node_modules');
const installed = (name: string): string | undefined =>
  [join(packageRoot, 'node_modules'), consumers].find((modules) => existsSync(join(modules, name)));

const runners: Readonly<Record<string, { readonly name?: string; readonly words: readonly string[] }>> = {
  'node:test': { words: ['--test'] },
  Vitest: { name: 'vitest', words: ['node_modules/vitest/vitest.mjs', 'run'] },
  Jest: {
    name: 'jest',
    words: ['--experimental-vm-modules', 'node_modules/jest/bin/jest.js', '--testMatch', '**/*.mjs'],
  },
};

test('the page has a test for each runner', (t) => {
  t.deepEqual([...sections.keys()], Object.keys(runners));
});

for (const [runner, { name, words }] of Object.entries(runners)) {
  const modules = name === undefined ? packageRoot : installed(name);
  if (modules === undefined) continue;
  mountTest(`${runner}: the test of the page passes`, { needs: 'rootless' }, (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'fixture/settings': 'original', 'package.json': '{}', 'node_modules/': '' });
    symlinkSync(packageRoot, join(dir, 'node_modules/overlayfs'));
    if (name !== undefined) symlinkSync(join(modules, name), join(dir, 'node_modules', name));
    writeFileSync(join(dir, 'settings.test.mjs'), sections.get(runner) ?? '');
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    t.notThrows(() =>
      execFileSync(process.execPath, [...words, ...(runner === 'Jest' ? [] : ['settings.test.mjs'])], {
        cwd: dir,
        env,
        stdio: 'pipe',
      }),
    );
  });
}
