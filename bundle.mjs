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
/** The programs. */
const executables = ['cli/main', 'mount-helper'];

const names = new Map(Object.entries(entries).map(([name, source]) => [join(root, source), name]));

/** A dynamic import leads from one entry to another. */
const otherEntries = {
  name: 'other entries',
  setup({ onResolve }) {
    onResolve({ filter: /^\./ }, ({ kind, path, resolveDir, importer }) => {
      if (kind !== 'dynamic-import') return undefined;
      const source = resolve(resolveDir, path).replace(/\.js$/, '.ts');
      const [to, from] = [source, importer].map((file) => names.get(file));
      if (to === undefined || from === undefined) return { errors: [{ text: `no entry: ${path} in ${importer}` }] };
      return { path: `./${relative(dirname(from), to)}.js`, external: true };
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

await build({
  absWorkingDir: root,
  entryPoints: entries,
  outdir: 'dist',
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node20.19',
  // Not minified: a stack trace leads to lines that can be read, and V8 gains nothing by it.
  sourcemap: 'linked',
  sourcesContent: false,
  plugins: [otherEntries, builtins],
  logLevel: 'warning',
});
for (const name of executables) chmodSync(join(root, `dist/${name}.js`), 0o755);

const tests = join(root, 'dist-test');
mkdirSync(tests, { recursive: true });
const scope = { name: 'overlayfs', type: 'module', exports: './lib/index.js', imports: { '#lib/*': './lib/*' } };
writeFileSync(join(tests, 'package.json'), `${JSON.stringify(scope, undefined, 2)}\n`);
symlinkSync('../build', join(tests, 'build'));
