/** Programs in JavaScript and TypeScript, as ES modules and in CommonJS. */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { mountTest, packageRoot, scratch } from '../../support/index.js';
import { inJavaScript, inTypeScript, printed } from './mounting.js';
import { directoryIn, packedPackage, run } from './package.js';

mountTest('npm pack, npm install --ignore-scripts, and mounts from ES modules and CommonJS', (t) => {
  const { project } = packedPackage();
  const dir = directoryIn(project, 'javascript');
  writeFileSync(join(dir, 'program.js'), inJavaScript);
  t.is(run(dir, process.execPath, 'program.js', scratch(t)), printed);

  const required = inJavaScript.replaceAll(/^import (.*) from (.*);$/gm, 'const $1 = require($2);');
  writeFileSync(join(dir, 'program.cjs'), required);
  t.is(run(dir, process.execPath, 'program.cjs', scratch(t)), printed);
});

mountTest('a program in TypeScript', (t) => {
  const { project } = packedPackage();
  const dir = directoryIn(project, 'typescript');
  writeFileSync(join(dir, 'program.ts'), inTypeScript);
  const types = join(packageRoot, 'node_modules/@types');
  const strict = ['--strict', '--target', 'es2023', '--module', 'nodenext', '--types', 'node', '--typeRoots', types];
  const tsc = join(packageRoot, 'node_modules/typescript/bin/tsc');
  run(dir, process.execPath, tsc, '--ignoreConfig', ...strict, 'program.ts');
  t.is(run(dir, process.execPath, 'program.js', scratch(t)), printed);
});

test('the program overlayfs', (t) => {
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
  t.is(run(packedPackage().project, 'node_modules/.bin/overlayfs', '--version'), `overlayfs ${version}\n`);
});

test('without a binary for the processor, the error leads to a page that says how to build one', (t) => {
  const { project, overlayfs } = packedPackage();
  const dir = directoryIn(project, 'no-binary');
  for (const name of readdirSync(overlayfs).filter((entry) => entry !== 'prebuilds')) {
    cpSync(join(overlayfs, name), join(dir, name), { recursive: true });
  }
  mkdirSync(join(dir, 'prebuilds'));
  const script = `import('./dist/index.js').then((library) => library.features()).catch(({ message }) => console.log(message));`;
  const message = run(dir, process.execPath, '-e', script);
  t.regex(
    message,
    /^overlayfs finds no addon for linux-\w+\. .* build the package from a clone .*docs\/bundlers\.md\n$/,
  );
  rmSync(dir, { recursive: true });
});
