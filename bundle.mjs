/**
 * Puts the compiled library together: for users `dist`, in which each entry is one file, since a file costs a start more
 * than what is in it; for the tests `dist-test`, a package of the same name whose modules are separate.
 */
import { chmodSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { build } from 'esbuild';

const root = import.meta.dirname;

/** The entries by the names of their files. Those that load the addon are side by side: it is found relative to them. */
const entries = {
  index: 'lib/index.ts',
  'cli/main': 'lib/cli/main.ts',
  commands: 'lib/cli/commands.ts',
  'mount-helper': 'lib/cli/mount-helper/main.ts',
};
const helper = 'mount-helper';

const names = new Map(Object.entries(entries).map(([name, source]) => [join(root, source), name]));

/** A dynamic import leads from one entry to another. */
const otherEntries = {
  name: 'other entries',
  setup({ onResolve }) {
    onResolve({ filter: /^\./ }, ({ kind, path: imported, resolveDir, importer }) => {
      if (kind !== 'dynamic-import') return undefined;
      const source = resolve(resolveDir, imported).replace(/\.js$/, '.ts');
      const [to, from] = [source, importer].map((file) => names.get(file));
      if (to === undefined || from === undefined) return { errors: [{ text: `no entry: ${imported} in ${importer}` }] };
      const path = relative(dirname(from), to) + (to === helper ? '.cjs' : '.js');
      return { path: path.startsWith('.') ? path : `./${path}`, external: true };
    });
  },
};

for (const name of ['dist', 'dist-test', 'dist-bench']) rmSync(join(root, name), { recursive: true, force: true });
/**
 * Takes Node's modules as they are: an import statement would evaluate the parts that they load when needed, such as the
 * streams and promises of node:fs.
 */
const builtins = {
  name: 'builtins',
  setup({ onLoad, onResolve }) {
    onLoad({ filter: /\.ts$/ }, ({ path }) => {
      const contents = readFileSync(path, 'utf8').replace(
        /^import \{([^}]*)\} from ('node:[\w/]+');$/gm,
        (_, names, module) => {
          const values = names.replace(/\btype \w+( as \w+)?,?/g, '').replaceAll(' as ', ': ');
          return `const {${values}} = process.getBuiltinModule(${module});`;
        },
      );
      return { contents, loader: 'ts' };
    });
    onResolve({ filter: /^node:/ }, ({ path, importer }) => ({
      errors: [{ text: `${path} has to be imported by its names in ${importer}` }],
    }));
  },
};

/** @type {import('esbuild').BuildOptions} */
const common = {
  absWorkingDir: root,
  outdir: 'dist',
  bundle: true,
  platform: 'node',
  target: 'node20.19',
  // V8 has less to read; names and short lines stay, for stack traces.
  minifySyntax: true,
  minifyWhitespace: true,
  lineLimit: 120,
  sourcemap: 'linked',
  sourcesContent: false,
  plugins: [otherEntries, builtins],
  logLevel: 'warning',
};
const { [helper]: helperSource, ...modules } = entries;
await build({ ...common, entryPoints: modules, format: 'esm' });
// Node starts a CommonJS program faster, and this one is started for each mount.
await build({
  ...common,
  entryPoints: { [helper]: helperSource },
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
  define: { 'import.meta.url': 'moduleUrl' },
  banner: { js: "'use strict'; const moduleUrl = require('node:url').pathToFileURL(__filename).href;" },
});
for (const program of ['cli/main.js', `${helper}.cjs`]) chmodSync(join(root, 'dist', program), 0o755);

const tests = join(root, 'dist-test');
mkdirSync(tests, { recursive: true });
const scope = { name: 'overlayfs', type: 'module', exports: './lib/index.js', imports: { '#lib/*': './lib/*' } };
writeFileSync(join(tests, 'package.json'), `${JSON.stringify(scope, undefined, 2)}\n`);
symlinkSync('../build', join(tests, 'build'));
