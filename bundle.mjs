/**
 * Puts the compiled library together. For users that is `dist`, in which each entry is one file: at the start of a
 * program, files cost more than what is in them. For the tests it is `dist-test`, a package of the same name whose modules
 * are separate.
 *
 *   node bundle.mjs                 builds `dist` for development, with source maps, and `dist-test`
 *   node bundle.mjs --release DIR   makes DIR, a `dist` with its declarations, what a release has
 */
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { build } from 'esbuild';

const root = import.meta.dirname;
const read = (source) => readFileSync(join(root, source), 'utf8');
const toSource = (directory, imported) => relative(root, resolve(directory, imported)).replace(/\.js$/, '.ts');

const [flag, releaseDirectory] = process.argv.slice(2);
const isRelease = flag === '--release';
if (flag !== undefined && (!isRelease || releaseDirectory === undefined)) throw new Error('usage: --release DIR');
const dist = resolve(isRelease ? releaseDirectory : join(root, 'dist'));

/**
 * The public entries: the file in `dist`, and the module that it is made from. package.json has the list, in `exports`: its
 * `types` are next to where `tsc` puts the declarations of that module.
 */
const { exports: exported } = JSON.parse(read('package.json'));
const publicEntries = Object.values(exported)
  .filter((targets) => typeof targets === 'object')
  .map(({ types, default: file }) => [
    relative('dist', file),
    types.replace('./dist/', 'lib/').replace(/\.d\.ts$/, '.ts'),
  ]);

/** The other ones, by the names of their files. Those that load the addon are side by side: it is found relative to them. */
const programs = {
  'commands.js': 'lib/cli/commands.ts',
  'containerd-service.js': 'lib/containerd/service.ts',
  'cli/main.js': 'lib/cli/main.ts',
  'mount-helper.cjs': 'lib/mount-helper/main.ts',
};

const entries = { ...Object.fromEntries(publicEntries), ...programs };

/** The modules that most programs never need, or only when a call fails. index.js loads them together, from a file. */
const deferred = [
  'lib/archives/',
  'lib/diagnosis/',
  'lib/features/probe-before',
  'lib/holders/',
  'lib/in-use/probe',
  'lib/kernel/format',
  'lib/layers/',
  'lib/merge/',
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
  'lib/overlay/explain',
  'lib/overlay/find-markless',
  'lib/programs/',
  'lib/reasons',
  'lib/rootless/',
  'lib/trees/',
];
const isDeferred = (source) => deferred.some((start) => source.startsWith(start));

/** The one of them that the mount helper needs for each mount. */
const neededByHelper = 'lib/options/text.ts';
/** All modules of the library. */
const sources = readdirSync(join(root, 'lib'), { recursive: true })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => `lib/${name}`);
const toName = (source) => source.replace(/\W/g, '_');

/**
 * Modules of plain constants, which each file has for itself: the walk of a layer uses them for every entry, and a shared
 * module's exports are read through two functions.
 */
const constants = ['lib/kernel/constants.ts', 'lib/errnos.ts'];

/** The modules of index.js that other files get from it, so that each is there once. */
const shared = new Set();

/** The deferred modules as a function of what they share. */
const deferredOnes = {
  name: 'deferred',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^deferred$/ }, ({ path }) => ({ path, namespace: 'deferred' }));
    onResolve({ filter: /^\./ }, ({ path, resolveDir }) => {
      const source = toSource(resolveDir, path);
      const isOwn = isDeferred(source) || constants.includes(source);
      return isOwn ? undefined : { path: source, namespace: 'deferred' };
    });
    onLoad({ filter: /^deferred$/, namespace: 'deferred' }, () => {
      const lines = sources.filter(isDeferred).map((source) => `export * as ${toName(source)} from './${source}';`);
      return { contents: lines.join('\n'), resolveDir: root };
    });
    onLoad({ filter: /^lib/, namespace: 'deferred' }, ({ path }) => {
      shared.add(path);
      return { contents: `module.exports = shared.${toName(path)};` };
    });
  },
};

/** The functions that a module exports. Nothing else of a deferred module can be called later. */
function functionsOf(source) {
  const declarations = /^export (?:async )?(?:function\*? (\w+)|const (\w+) = (?:async )?\()/gm;
  const names = Array.from(read(source).matchAll(declarations), ([, declared, arrow]) => declared ?? arrow);
  return [...new Set(names)]; // one for all overloads
}

/** Returns true if a module takes nothing but functions and types from another. */
function takesFunctionsOnly(importer, path, source) {
  const statements = read(relative(root, importer)).matchAll(/^import (type )?(\{[^}]*\}|[^{}]*) from '(.*)';$/gm);
  const functions = functionsOf(source);
  return Array.from(statements)
    .filter(([, isType, , from]) => from === path && isType === undefined)
    .every(([, , names]) => {
      if (!names.startsWith('{')) return false;
      const values = names
        .slice(1, -1)
        .split(',')
        .map((name) => name.trim().replace(/ as .*/, ''));
      return values.every((name) => name === '' || name.startsWith('type ') || functions.includes(name));
    });
}

/**
 * In the place of deferred modules, functions that load them by require(): the synchronous calls cannot await. A module
 * with something else that is needed at once is there twice.
 */
const laterExcept = (needed) => ({
  name: 'later',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^load$/ }, ({ path }) => ({ path, namespace: 'later' }));
    onResolve({ filter: /^\./ }, ({ kind, path, resolveDir, importer }) => {
      const source = toSource(resolveDir, path);
      const isLater =
        kind !== 'entry-point' && isDeferred(source) && source !== needed && takesFunctionsOnly(importer, path, source);
      return isLater ? { path: source, namespace: 'later' } : undefined;
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
      const load = `export const modules = () => ({ ${names} });
        export const load = () => loaded ??= lib_binding_ts.loadDeferred()(modules());`;
      return { contents: [...imports, 'let loaded;', load].join('\n'), resolveDir: root };
    });
  },
});
const later = laterExcept();

/** The modules that are in index.js. */
let core = new Set();

/** Takes modules that are in index.js from there, and the deferred ones by the functions that load them. */
const fromIndex = {
  name: 'from index.js',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^load$/ }, ({ path }) => ({ path, namespace: 'index' }));
    onResolve({ filter: /^\./ }, ({ kind, path, resolveDir }) => {
      const source = toSource(resolveDir, path);
      return kind !== 'dynamic-import' && core.has(source) ? { path: source, namespace: 'index' } : undefined;
    });
    onLoad({ filter: /^lib/, namespace: 'index' }, ({ path }) => {
      shared.add(path);
      return { contents: `module.exports = $internals.modules().${toName(path)};` };
    });
    onLoad({ filter: /^load$/, namespace: 'index' }, () => ({ contents: 'export const load = $internals.load;' }));
  },
};

/** A dynamic import leads from one entry to another. */
const otherEntries = {
  name: 'other entries',
  setup({ onResolve }) {
    const files = new Map(Object.entries(entries).map(([file, source]) => [source, file]));
    onResolve({ filter: /^\./ }, ({ kind, path: imported, resolveDir, importer }) => {
      if (kind !== 'dynamic-import') return undefined;
      const to = files.get(toSource(resolveDir, imported));
      if (to === undefined) return { errors: [{ text: `no entry: ${imported} in ${importer}` }] };
      // Modules that are no entry are in files beside index.js.
      const path = relative(dirname(files.get(relative(root, importer)) ?? 'index.js'), to);
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

/** Puts the parser of command lines into the file that needs it: users install nothing for it. */
const parserOfLines = {
  name: 'commander',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^commander$/ }, () => ({ path: join(root, 'node_modules/commander/index.js') }));
    // An ES module has no require().
    onResolve({ filter: /^node:/ }, ({ kind, path }) => (kind === 'require-call' ? { path, namespace: 'node' } : null));
    onLoad({ filter: /./, namespace: 'node' }, ({ path }) => ({
      contents: `module.exports = process.getBuiltinModule('${path}');`,
    }));
  },
};

const bundle = (file, source, plugins, more = {}) =>
  build({
    absWorkingDir: root,
    entryPoints: [source],
    outfile: join(dist, file),
    bundle: true,
    packages: 'external',
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    // V8 has less to read; names and short lines stay, for stack traces.
    minifySyntax: true,
    minifyWhitespace: true,
    lineLimit: 120,
    sourcemap: isRelease ? false : 'linked',
    sourcesContent: false,
    plugins: [...plugins, builtins],
    logLevel: 'warning',
    ...more,
  });

/** An ES module's URL, in CommonJS. */
const commonJs = {
  format: 'cjs',
  define: { 'import.meta.url': 'moduleUrl' },
  banner: { js: "'use strict'; const moduleUrl = require('node:url').pathToFileURL(__filename).href;" },
};

/** index.js, with an export for the other files of `dist`, which no declaration has. */
const index = {
  name: 'index',
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^index$/ }, ({ path }) => ({ path, namespace: 'index' }));
    onLoad({ filter: /^index$/, namespace: 'index' }, () => ({
      contents: "export * from './lib/index.ts'; export * as $internals from 'load';",
      resolveDir: root,
    }));
  },
};

async function bundleAll() {
  for (const start of [...deferred, neededByHelper]) {
    if (!sources.some((source) => source.startsWith(start))) throw new Error(`no module begins with ${start}`);
  }
  const deferredFile = () =>
    bundle('deferred.cjs', 'deferred', [deferredOnes], {
      format: 'cjs',
      minifyIdentifiers: isRelease,
      // V8 parses a function in parentheses once, others when they are loaded and again when they are called.
      banner: { js: "'use strict'; module.exports = (function (shared) { const module = {};" },
      footer: { js: 'return module.exports; });' },
    });
  const fromIndexOf = (file) => {
    const path = relative(dirname(join(dist, file)), join(dist, 'index.js'));
    // Its functions are all deferred. The first call of one would hold up the event loop while it loads them.
    const load = file === 'layers.js' ? ' $internals.load();' : '';
    // A release keeps the names in index.js for stack traces. All names together would take a third more space.
    const keepNames = publicEntries.some(([entry]) => entry === file); // those of its classes
    return {
      minifyIdentifiers: isRelease,
      keepNames,
      banner: { js: `import { $internals } from './${path}';${load}` },
    };
  };
  shared.add('lib/binding.ts');
  await deferredFile();
  const { metafile } = await bundle('index.js', 'index', [index, later], { metafile: true });
  core = new Set(Object.keys(metafile.inputs).filter((input) => input.startsWith('lib/') && input !== 'lib/index.ts'));
  const others = Object.entries(entries).filter(([file]) => file !== 'index.js');
  for (const [file, source] of others) {
    if (file === 'cli/main.js') await bundle(file, source, [otherEntries]);
    else if (file.endsWith('.js'))
      await bundle(file, source, [parserOfLines, fromIndex, later, otherEntries], fromIndexOf(file));
  }
  // Once more, with all that the others take from it.
  await bundle('index.js', 'index', [index, later]);
  // Node starts a CommonJS program faster, and this one is started for each mount.
  await bundle('mount-helper.cjs', entries['mount-helper.cjs'], [laterExcept(neededByHelper)], {
    ...commonJs,
    minifyIdentifiers: true, // a third of its size; it prints no stack traces
  });
  copyFileSync(join(root, 'node_modules/commander/LICENSE'), join(dist, 'cli/LICENSE.commander'));
  for (const program of ['cli/main.js', 'mount-helper.cjs']) chmodSync(join(dist, program), 0o755);
}

/** Leaves out the declarations that no public entry leads to. */
function pruneDeclarations() {
  const kept = new Set();
  const keep = (file) => {
    if (kept.has(file)) return;
    kept.add(file);
    for (const [, path] of readFileSync(file, 'utf8').matchAll(/(?:from|import\() ?'(\..*?)\.js'/g)) {
      keep(`${resolve(dirname(file), path)}.d.ts`);
    }
  };
  for (const { types } of Object.values(exported)) {
    if (types !== undefined) keep(join(dist, relative('dist', types)));
  }
  for (const name of readdirSync(dist, { recursive: true })) {
    const file = join(dist, name);
    if (name.endsWith('.map') || (name.endsWith('.d.ts') && !kept.has(file))) rmSync(file);
  }
}

if (isRelease) {
  await bundleAll();
  pruneDeclarations();
} else {
  for (const name of ['dist', 'dist-test', 'dist-bench']) rmSync(join(root, name), { recursive: true, force: true });
  await bundleAll();

  const tests = join(root, 'dist-test');
  mkdirSync(tests, { recursive: true });
  const toTests = ([name, targets]) => {
    if (typeof targets === 'string') return [];
    const path = targets.types.replace('./dist/', '').replace(/\.d\.ts$/, '');
    const types = `./types/${path}.d.ts`;
    mkdirSync(dirname(join(tests, types)), { recursive: true });
    const toDeclarations = relative(dirname(join(tests, types)), join(root, 'dist', path));
    writeFileSync(join(tests, types), `export * from '${toDeclarations}.js';\n`);
    return [[name, { types, default: `./lib/${path}.js` }]];
  };
  const scope = {
    name: 'overlayfs',
    type: 'module',
    exports: Object.fromEntries(Object.entries(exported).flatMap(toTests)),
    imports: { '#lib/*': './lib/*' },
  };
  writeFileSync(join(tests, 'package.json'), `${JSON.stringify(scope, undefined, 2)}\n`);
  symlinkSync('../build', join(tests, 'build'));
}
