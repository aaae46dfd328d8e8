/** The code in README.md and docs/ is right: compiled as TypeScript, and run by root and a plain user; twice in a long run. */
import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import test from 'ava';
import { program } from '../cli/run.js';
import { isLong, makeTree, mountTest, packageRoot, scratch } from '../support/index.js';
import { asNobody, giveTo, readablePackage } from '../support/plain-user.js';

interface Block {
  readonly name: string;
  readonly code: string;
}

const pages = ['README.md', ...readdirSync(join(packageRoot, 'docs')).map((name) => join('docs', name))];

const blocksOf = (language: RegExp): Block[] =>
  pages
    .filter((page) => page.endsWith('.md'))
    .flatMap((page) => {
      const text = readFileSync(join(packageRoot, page), 'utf8');
      return Array.from(text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm))
        .filter(([, word = '']) => language.test(word))
        .map(([, , code = ''], i) => ({ name: `${basename(page, '.md')}-${i + 1}`, code }));
    });

const blocks = blocksOf(/^[jt]s$/);

/** The output that a block announces: the comments behind the calls that print. */
const told = (code: string): string[] =>
  Array.from(code.matchAll(/^.*(?:console\.log|stdio: 'inherit').*;\s+\/\/ (.*)$/gm), ([, printed = '']) => printed);

/** A long run shows that a second run finds no leftovers of the first in its way. */
const times = isLong ? ['first', 'second'] : ['first'];

const users = { root: [], 'a plain user': asNobody } as const;

/** Copies a package that is optional for the library, with those that it needs itself. */
function copyPackage(name: string, to: string): void {
  const from = join(packageRoot, 'node_modules', name);
  if (!existsSync(from) || existsSync(join(to, name))) return;
  cpSync(from, join(to, name), { recursive: true });
  const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(from, 'package.json'), 'utf8'));
  for (const dependency of Object.keys({ ...dependencies, ...optionalDependencies })) copyPackage(dependency, to);
}

/** Compiles all blocks; where their JavaScript is, in the copy of the package that each user can read. */
let compiled: string | undefined;
function compile(): string {
  if (compiled !== undefined) return compiled;
  const dir = join(packageRoot, 'dist-test/docs-examples');
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir, { recursive: true });
  // Others use /tmp at the same time.
  const inHome = (code: string): string => code.replaceAll("'/tmp/", "process.env['HOME'] + '/");
  for (const { name, code } of blocks) writeFileSync(join(dir, `${name}.ts`), inHome(code));
  const compilerOptions = {
    rootDir: '.',
    outDir: 'out',
    declaration: false,
    emitDeclarationOnly: false,
    sourceMap: false,
  };
  const config = { extends: join(packageRoot, 'tsconfig.json'), compilerOptions, include: ['*.ts'] };
  writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify(config));
  execFileSync(join(packageRoot, 'node_modules/.bin/tsc'), ['-p', dir], { encoding: 'utf8', stdio: 'pipe' });
  compiled = join(readablePackage(), 'examples');
  cpSync(join(dir, 'out'), compiled, { recursive: true });
  for (const name of ['@photostructure/sqlite', '@grpc/grpc-js', '@bufbuild/protobuf']) {
    copyPackage(name, join(readablePackage(), 'node_modules'));
  }
  return compiled;
}

test('each block of code is a program, and compiles', (t) => {
  t.true(blocks.length >= 5);
  t.notThrows(compile);
});

// The others are compiled, which takes `await using` away. `using` is a syntax error before Node 24.
mountTest('the first program of the README runs as it stands', { needs: 'rootless' }, (t) => {
  const [first] = blocksOf(/^[jt]s$/);
  const file = join(readablePackage(), 'first.mjs');
  writeFileSync(file, first?.code ?? '');
  t.is(execFileSync(process.execPath, [file], { encoding: 'utf8' }), `${told(first?.code ?? '').join('\n')}\n`);
});

for (const { name, code } of blocks) {
  mountTest(`${name}: prints what it says, for root and a plain user`, { needs: 'rootless' }, (t) => {
    const file = join(compile(), `${name}.js`);
    const home = scratch(t, 'disk');
    chmodSync(home, 0o1777);
    const env = { ...process.env, HOME: home, npm_config_offline: 'true', npm_config_update_notifier: 'false' };
    const expected = told(code).join(' ').replace(/\s+/g, ' ');
    t.not(expected, '');
    for (const [who, command] of Object.entries(users)) {
      // As the page says of what is mounted at a place.
      const own = command.length > 0 && /target: |withTempMount/.test(code) ? ['unshare', '-Urm'] : [];
      for (const time of times) {
        const [start = '', ...rest] = [...command, ...own, process.execPath, file];
        const printed = execFileSync(start, rest, { cwd: home, env, encoding: 'utf8' });
        t.is(printed.trim().replace(/\s+/g, ' '), expected, `${who}, ${time} time`);
      }
    }
    const left = readdirSync(home).filter((entry) => !entry.startsWith('.'));
    t.deepEqual(left, [], 'nothing is left');
  });
}

for (const [who, command] of Object.entries(users)) {
  mountTest(`the command lines of the README, as ${who}`, { needs: 'rootless' }, (t) => {
    // Nobody keeps the mount busy, which `holders` says by its exit code.
    const lines = blocksOf(/^sh$/)[0]?.code.replace(/^overlayfs holders \w+/m, '$& || [ $? = 1 ]') ?? '';
    t.regex(lines, /holders .* = 1/);
    const bin = scratch(t, 'disk');
    writeFileSync(join(bin, 'overlayfs'), `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`);
    for (const path of [bin, join(bin, 'overlayfs')]) chmodSync(path, 0o755);
    for (const time of times) {
      const dir = scratch(t, 'disk');
      const tree = { 'base/package.json': '{ "name": "base", "version": "1.0.0" }' };
      const names = ['base', 'base/package.json', 'upper', 'work', 'merged', 'layer', 'home'];
      makeTree(dir, { ...tree, 'upper/': '', 'work/': '', 'merged/': '', 'layer/': '', 'home/': '' });
      giveTo(dir, ...names.map((name) => join(dir, name)));
      const env = { PATH: `${bin}:${process.env['PATH']}`, HOME: join(dir, 'home'), npm_config_offline: 'true' };
      const own = command.length > 0 ? ['unshare', '-Urm'] : [];
      const [start = '', ...rest] = [...command, ...own, 'sh', '-e', '-c', lines];
      t.notThrows(() => execFileSync(start, rest, { cwd: dir, env, encoding: 'utf8', stdio: 'pipe' }), time);
      for (const name of ['base', 'upper']) t.true(readdirSync(join(dir, name)).includes('package-lock.json'), name);
      t.true(readdirSync(dir).includes('layer.tar.gz'));
      t.true(readdirSync(join(dir, 'base')).includes('package.json'), 'as --temporary says');
    }
  });
}
