/**
 * Puts the compiled library together. For users that is `dist`, in which each entry is one file: at the start of a
 * program, files cost more than what is in them. For the tests it is `dist-test`, a package of the same name whose modules
 * are separate.
 */
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { build } from 'esbuild';

const root = import.meta.dirname;
const read = (source) => readFileSync(join(root, source), 'utf8');
const toSource = (directory, imported) => relative(root, resolve(directory, imported)).replace(/\.js$/, '.ts');

/** The entries by the names of their files. Those that load the addon are side by side: it is found relative to them. */
const entries = {
  'index.js': 'lib/index.ts',
  'commands.js': 'lib/cli/commands.ts',
  'cli/main.js': 'lib/cli/main.ts',
  'mount-helper.cjs': 'lib/cli/mount-helper/main.ts',
};

/** The modules that most programs never need, or only when a call fails. index.js loads them together, from a file. */
const deferred = [
  'lib/diagnosis/',
  'lib/features/probe-before',
  'lib/holders/',
  'lib/in-use/probe',
  'lib/kernel/format',
  'lib/layers/',
  'lib/mount-table/entry',
  'lib/mount-table/events',
  'lib/mount-table/layers-of',
  'lib/mount-table/list',
  'lib/mount-table/watch',
  'lib/mounts/bind',
  'lib/mounts/change',
  'lib/mounts/find-holders',
  'lib/mounts/inherited',
  'lib/mounts/unmount-tree',
  'lib/mounts/work-removal',
  'lib/options/text',
  'lib/overlay/effective',
  'lib/programs/',
  'lib/reasons',
  'lib/rootless/',
];
const isDeferred = (source) => deferred.some((start) => source.startsWith(start));
const toName = (source) => source.replace(/\W/g, '_');

/** What the deferred modules share with the others, which is there once. */
const shared = new Set();

/** The deferred modules as a function of what they share. */
const deferredOnes = {
  name: 'deferred',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^deferred$/ }, ({ path }) => ({ path, namespace: 'deferred' }));
    onResolve({ filter: /^\./ }, ({ path, resolveDir }) => {
      const source = toSource(resolveDir, path);
      return isDeferred(source) ? undefined : { path: source, namespace: 'deferred' };
    });
    onLoad({ filter: /^deferred$/, namespace: 'deferred' }, () => {
      const sources = readdirSync(join(root, 'lib'), { recursive: true }).map((name) => `lib/${name}`);
      const modules = sources.filter((source) => source.endsWith('.ts') && isDeferred(source));
      const lines = modules.map((source) => `export * as ${toName(source)} from './${source}';`);
      return { contents: lines.join('\n'), resolveDir: root };
    });
    onLoad({ filter: /^lib/, namespace: 'deferred' }, ({ path }) => {
      shared.add(path);
      return { contents: `module.exports = shared.${toName(path)};` };
    });
  },
};

/** The functions that a module exports. Nothing else of a deferred module can be imported by others: esbuild complains. */
function functionsOf(source) {
  const exported = /^export (?:async )?(?:function\*? (\w+)|const (\w+) = (?:async )?\()/gm;
  const names = Array.from(read(source).matchAll(exported), ([, declared, arrow]) => declared ?? arrow);
  return [...new Set(names)]; // of overloads, one
}

/** The functions that an index exports from other modules. */
function reexportsOf(source) {
  const lists = Array.from(read(source).matchAll(/^export \{([^}]*)\} from/gm), ([, list]) => list.split(','));
  const names = lists.flat().map((name) => name.trim());
  return names.filter((name) => name !== '' && !name.startsWith('type '));
}

/** In the place of deferred modules, functions that load them by require(): the synchronous calls cannot await. */
const later = {
  name: 'later',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^load$/ }, ({ path }) => ({ path, namespace: 'later' }));
    onResolve({ filter: /^\./ }, ({ path, resolveDir }) => {
      const source = toSource(resolveDir, path);
      return isDeferred(source) ? { path: source, namespace: 'later' } : undefined;
    });
    onLoad({ filter: /^lib/, namespace: 'later' }, ({ path }) => {
      const lines = functionsOf(path).map(
        (name) => `export const ${name} = (...args) => load().${toName(path)}.${name}(...args);`,
      );
      return { contents: ["import { load } from 'load';", ...lines].join('\n') };
    });
    onLoad({ filter: /^load$/, namespace: 'later' }, () => {
      const names = Array.from(shared, toName);
      const imports = Array.from(shared, (source) => `import * as ${toName(source)} from './${source}';`);
      const load = `export const load = () => loaded ??= read()({ ${names} });
        function read() {
          try {
            return process.getBuiltinModule('node:module').createRequire(import.meta.url)('./deferred.cjs');
          } catch (error) {
            throw lib_errors_ts.explainUnloaded(error);
          }
        }`;
      return { contents: [...imports, 'let loaded;', load].join('\n'), resolveDir: root };
    });
  },
};

/** A dynamic import leads from one entry to another. */
const otherEntries = {
  name: 'other entries',
  setup({ onResolve }) {
    const files = new Map(Object.entries(entries).map(([file, source]) => [source, file]));
    onResolve({ filter: /^\./ }, ({ kind, path: imported, resolveDir, importer }) => {
      if (kind !== 'dynamic-import') return undefined;
      const [to, from] = [toSource(resolveDir, imported), relative(root, importer)].map((source) => files.get(source));
      if (to === undefined || from === undefined) return { errors: [{ text: `no entry: ${imported} in ${importer}` }] };
      const path = relative(dirname(from), to);
      return { path: path.startsWith('.') ? path : `./${path}`, external: true };
    });
  },
};

/**
 * Takes Node's modules as they are: an import statement would evaluate the parts that they load when needed, such as the
 * streams and promises of node:fs.
 */
const builtins = {
  name: 'builtins',
  setup({ onLoad, onResolve }) {
    onLoad({ filter: /\.ts$/, namespace: 'file' }, ({ path }) => {
      const statement = /^import \{([^}]*)\} from ('node:[\w/]+');$/gm;
      const contents = readFileSync(path, 'utf8').replace(statement, (_, names, module) => {
        const values = names.replace(/\btype \w+( as \w+)?,?/g, '').replaceAll(' as ', ': ');
        return `const {${values}} = process.getBuiltinModule(${module});`;
      });
      return { contents, loader: 'ts' };
    });
    onResolve({ filter: /^node:/ }, ({ path, importer }) => ({
      errors: [{ text: `${path} has to be imported by its names in ${importer}` }],
    }));
  },
};

const bundle = (file, source, plugins, more = {}) =>
  build({
    absWorkingDir: root,
    entryPoints: [source],
    outfile: `dist/${file}`,
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    // V8 has less to read; names and short lines stay, for stack traces.
    minifySyntax: true,
    minifyWhitespace: true,
    lineLimit: 120,
    sourcemap: 'linked',
    sourcesContent: false,
    plugins: [...plugins, builtins],
    logLevel: 'warning',
    ...more,
  });

for (const name of ['dist', 'dist-test', 'dist-bench']) rmSync(join(root, name), { recursive: true, force: true });

/** index.js also exports the function that loads the deferred modules, by a name that no program uses, for layers.js. */
const withLoader = {
  name: 'with loader',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^index$/ }, ({ path }) => ({ path, namespace: 'index' }));
    onLoad({ filter: /./, namespace: 'index' }, () => ({
      contents: "export * from './lib/index.ts'; export { load as '#deferred' } from 'load';",
      resolveDir: root,
    }));
  },
};

/** The entry `overlayfs/layers`: its modules are deferred ones, which share the others with index.js. */
function writeLayers() {
  const index = 'lib/layers/index.ts';
  const lines = reexportsOf(index).map(
    (name) => `export const ${name} = (...args) => loadDeferred().${toName(index)}.${name}(...args);`,
  );
  writeFileSync(
    join(root, 'dist/layers.js'),
    `${["import { '#deferred' as loadDeferred } from './index.js';", ...lines].join('\n')}\n`,
  );
}

await bundle('deferred.cjs', 'deferred', [deferredOnes], {
  format: 'cjs',
  banner: { js: "'use strict'; module.exports = (shared) => { const module = {};" },
  footer: { js: 'return module.exports; };' },
});
for (const [file, source] of Object.entries(entries)) {
  if (file === 'index.js') await bundle(file, 'index', [withLoader, later]);
  else if (file.endsWith('.js')) await bundle(file, source, [otherEntries]);
  else {
    // Node starts a CommonJS program faster, and this one is started for each mount.
    await bundle(file, source, [], {
      format: 'cjs',
      define: { 'import.meta.url': 'moduleUrl' },
      banner: { js: "'use strict'; const moduleUrl = require('node:url').pathToFileURL(__filename).href;" },
    });
  }
}
writeLayers();
for (const program of ['cli/main.js', 'mount-helper.cjs']) chmodSync(join(root, 'dist', program), 0o755);

const tests = join(root, 'dist-test');
mkdirSync(tests, { recursive: true });
const scope = {
  name: 'overlayfs',
  type: 'module',
  exports: {
    '.': { types: './types.d.ts', default: './lib/index.js' },
    './layers': { types: './layers.d.ts', default: './lib/layers/index.js' },
  },
  imports: { '#lib/*': './lib/*' },
};
writeFileSync(join(tests, 'package.json'), `${JSON.stringify(scope, undefined, 2)}\n`);
writeFileSync(join(tests, 'types.d.ts'), "export * from '../dist/index.js';\n");
writeFileSync(join(tests, 'layers.d.ts'), "export * from '../dist/layers/index.js';\n");
symlinkSync('../build', join(tests, 'build'));
