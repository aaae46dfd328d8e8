/** The declarations, for the compilers and the ways of finding modules that programs use. */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { isLong, packageRoot } from '../../support/index.js';
import { directoryIn, packedPackage } from './package.js';

const compilers = {
  'TypeScript 5.4': 'test/package/consumers/node_modules/typescript',
  'TypeScript 5.9': 'docs/typedoc/node_modules/typescript',
  'TypeScript 7': 'node_modules/typescript',
};

const resolutions = {
  node16: { module: 'node16' },
  nodenext: { module: 'nodenext' },
  bundler: { module: 'esnext', moduleResolution: 'bundler' },
};

/** The compilers written in JavaScript take seconds: `npm run test:package` asks them. */
const isChosen = (compiler: string): boolean => isLong || compiler === 'TypeScript 7';

const program = `
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay, type OverlayMount, type Reason, watchMounts } from 'overlayfs';

export async function read(lower: URL): Promise<Buffer> {
  const overlay: OverlayMount = await mountOverlay({ lowerdir: [lower, '/usr'], rootless: 'auto' });
  const content = readFileSync(join(overlay.path, 'file'));
  for await (const { type, mount } of watchMounts()) console.log(type, mount?.target);
  await overlay.unmount();
  return content;
}
export const reason: Reason = 'lower-missing';
`;

for (const [compiler, path] of Object.entries(compilers)) {
  if (!isChosen(compiler)) continue;
  for (const [name, resolution] of Object.entries(resolutions)) {
    test(`${compiler}, ${name}: no errors in a program and in the declarations`, (t) => {
      const { project } = packedPackage();
      const dir = directoryIn(project, `types-${name}-${compiler.replace(' ', '-')}`);
      writeFileSync(join(dir, 'program.ts'), program);
      const compilerOptions = {
        ...resolution,
        target: 'es2022',
        strict: true,
        exactOptionalPropertyTypes: true,
        skipLibCheck: false,
        noEmit: true,
        types: ['node'],
      };
      writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['program.ts'] }));
      const tsc = join(packageRoot, path, 'bin/tsc');
      try {
        execFileSync(process.execPath, [tsc, '-p', dir], { encoding: 'utf8', stdio: 'pipe' });
        t.pass();
      } catch (error) {
        t.fail((error as { stdout: string }).stdout);
      }
    });
  }
}
