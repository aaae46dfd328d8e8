/** The packed package in an empty directory: installed without scripts, used from JavaScript, TypeScript and a shell. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountTest, packageRoot, scratch } from '../support/index.js';

const program = `
import { mkdirSync, readdirSync } from 'node:fs';
import { mountOverlay, type OverlayOptions, spawn } from 'overlayfs';

const dir: string = process.argv[2] ?? '';
for (const name of ['lower/file', 'upper', 'work', 'merged']) mkdirSync(\`\${dir}/\${name}\`, { recursive: true });
const options: OverlayOptions = {
  lowerdir: \`\${dir}/lower\`,
  upperdir: \`\${dir}/upper\`,
  workdir: \`\${dir}/work\`,
  target: \`\${dir}/merged\`,
};
const mounted = await mountOverlay(options);
console.log(readdirSync(\`\${dir}/merged\`).join());
const child = spawn('ls', [\`\${dir}/lower/file/..\`], { mount: mounted, at: \`\${dir}/upper\`, stdio: 'inherit' });
await new Promise((ended) => child.on('close', ended));
await mounted.unmount();
`;

mountTest(
  'npm pack, npm install --ignore-scripts, then mounts from JavaScript and TypeScript, and the program',
  (t) => {
    const dir = scratch(t, 'disk');
    const run = (command: string, ...args: string[]) =>
      execFileSync(command, args, {
        cwd: dir,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { ...process.env, HOME: dir }, // npm writes to it
      });

    // Packed from a copy with the addon where a release has it, and no development build to shadow it.
    const source = join(dir, 'source');
    mkdirSync(source);
    for (const name of ['package.json', 'README.md', 'LICENSE', 'CHANGELOG.md', 'binding.gyp', 'native', 'dist']) {
      cpSync(join(packageRoot, name), join(source, name), { recursive: true });
    }
    const prebuilds = join(source, `prebuilds/linux-${process.arch}`);
    mkdirSync(prebuilds, { recursive: true });
    cpSync(join(packageRoot, 'build/Release/overlayfs.node'), join(prebuilds, 'overlayfs.node'));
    cpSync(join(packageRoot, 'build/Release/launch'), prebuilds, { recursive: true });
    const packed = run('npm', 'pack', '--ignore-scripts', '--silent', './source').trim();

    writeFileSync(join(dir, 'package.json'), '{ "private": true, "type": "module" }');
    run('npm', 'install', '--ignore-scripts', '--offline', '--no-audit', '--no-fund', '--silent', `./${packed}`);

    writeFileSync(
      join(dir, 'program.js'),
      program.replace(', type OverlayOptions', '').replaceAll(/: (string|OverlayOptions) =/g, ' ='),
    );
    t.is(run(process.execPath, 'program.js', join(dir, 'js')), 'file\nfile\n');

    writeFileSync(join(dir, 'program.ts'), program);
    const types = join(packageRoot, 'node_modules/@types');
    const strict = ['--strict', '--target', 'es2023', '--module', 'nodenext', '--types', 'node', '--typeRoots', types];
    run(
      process.execPath,
      join(packageRoot, 'node_modules/typescript/bin/tsc'),
      ...strict,
      '--outDir',
      'out',
      'program.ts',
    );
    writeFileSync(join(dir, 'out/package.json'), '{ "type": "module" }');
    t.is(run(process.execPath, 'out/program.js', join(dir, 'ts')), 'file\nfile\n');

    const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
    t.is(run('node_modules/.bin/overlayfs', '--version'), `overlayfs ${version}\n`);

    // From CommonJS without a flag.
    t.is(run(process.execPath, '-e', "console.log(typeof require('overlayfs').mountOverlay)"), 'function\n');
  },
);
