/** Bundled programs: with the package outside of the bundle, and inside, with its files beside the bundle. */
import { cpSync, mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isLong, mountTest, packageRoot, scratch } from '../../support/index.js';
import { inJavaScript, printed } from './mounting.js';
import { directoryIn, packedPackage, run } from './package.js';

type Format = 'esm' | 'cjs';

interface Bundler {
  /** A program that makes out/program.mjs or out/program.cjs from program.js. */
  bundles(format: Format, isExternal: boolean): string;
}

const extension = (format: Format): string => (format === 'esm' ? 'mjs' : 'cjs');

/** The same as in docs/bundlers.md. */
const bundlers: Readonly<Record<string, Bundler>> = {
  esbuild: {
    bundles: (format, isExternal) => `
      import { build } from 'esbuild';
      await build({
        entryPoints: ['program.js'],
        outfile: 'out/program.${extension(format)}',
        bundle: true,
        platform: 'node',
        format: '${format}',
        logOverride: { 'empty-import-meta': 'silent' },
        external: ${isExternal ? "['overlayfs']" : '[]'},
      });`,
  },
  Vite: {
    bundles: (format, isExternal) => `
      import { build } from 'vite';
      await build({
        logLevel: 'warn',
        build: {
          ssr: 'program.js',
          outDir: 'out',
          rollupOptions: { output: { format: '${format}', entryFileNames: 'program.${extension(format)}' } },
        },
        ssr: ${isExternal ? "{ external: ['overlayfs'] }" : '{ noExternal: true }'},
      });`,
  },
  webpack: {
    bundles: (format, isExternal) => `
      import { promisify } from 'node:util';
      import webpack from 'webpack';
      const stats = await promisify(webpack)({
        mode: 'production',
        target: 'node20',
        context: import.meta.dirname,
        entry: './program.js',
        ${format === 'esm' ? "experiments: { outputModule: true }, externalsType: 'module'," : ''}
        output: {
          path: import.meta.dirname + '/out',
          filename: 'program.${extension(format)}',
          ${format === 'esm' ? "module: true, library: { type: 'module' }," : "library: { type: 'commonjs2' },"}
        },
        externals: ${isExternal ? `{ overlayfs: '${format === 'esm' ? 'module' : 'commonjs'} overlayfs' }` : '{}'},
      });
      if (stats.hasErrors()) throw new Error(stats.toString());`,
  },
  Rollup: {
    bundles: (format, isExternal) => `
      import { nodeResolve } from '@rollup/plugin-node-resolve';
      import { rollup } from 'rollup';
      const bundle = await rollup({
        input: 'program.js',
        plugins: [nodeResolve()],
        external: ${isExternal ? "[/^node:/, 'overlayfs']" : '[/^node:/]'},
      });
      await bundle.write({ file: 'out/program.${extension(format)}', format: '${format}' });`,
  },
};

/** The bundlers are dependencies of this repository, not of a project below the temporary directory. */
function linkModules(modules: string): void {
  mkdirSync(modules, { recursive: true });
  for (const name of ['esbuild', 'vite', 'webpack', 'rollup', '@rollup']) {
    symlinkSync(join(packageRoot, 'node_modules', name), join(modules, name));
  }
}

for (const [name, { bundles }] of isLong ? Object.entries(bundlers) : []) {
  for (const format of ['esm', 'cjs'] as const) {
    for (const isExternal of [true, false]) {
      const where = isExternal ? 'outside of the bundle' : 'in the bundle';
      mountTest(`${name}, ${format}: the package is ${where}`, (t) => {
        const { project, overlayfs } = packedPackage();
        const dir = directoryIn(project, `bundle-${name}-${format}-${isExternal}`);
        linkModules(join(dir, 'node_modules'));
        writeFileSync(join(dir, 'program.js'), inJavaScript);
        writeFileSync(join(dir, 'bundle.mjs'), bundles(format, isExternal));
        run(dir, process.execPath, 'bundle.mjs');

        // Elsewhere, so that it finds nothing where it was bundled.
        const moved = scratch(t, 'disk');
        const program = join(moved, 'app', `program.${extension(format)}`);
        cpSync(join(dir, 'out'), join(moved, 'app'), { recursive: true });
        const hidden = `${overlayfs}-hidden`;
        if (isExternal) {
          cpSync(overlayfs, join(moved, 'app/node_modules/overlayfs'), { recursive: true });
        } else {
          cpSync(join(overlayfs, 'prebuilds'), join(moved, 'app/prebuilds'), { recursive: true });
          cpSync(join(overlayfs, 'dist/deferred.cjs'), join(moved, 'app/deferred.cjs'));
        }
        writeFileSync(join(moved, 'package.json'), '{}'); // below no other package
        renameSync(overlayfs, hidden);
        try {
          t.is(run(moved, process.execPath, program, scratch(t)), printed);
        } finally {
          renameSync(hidden, overlayfs);
        }
      });
    }
  }
}
