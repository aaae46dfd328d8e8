/** Mounts without privilege, by a user who has none. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import test from 'ava';
import { mountOverlaySync, spawn as spawnIn } from 'overlayfs';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import { mountOverlayWithSync } from '#lib/overlay/mount.js';
import {
  countDescriptors,
  type Feature,
  hasFeature,
  makeTree,
  mountTest,
  packageRoot,
  scaled,
  scratch,
} from '../../support/index.js';
import { NOBODY } from '../../support/nobody.js';
import { asNobody, evaluateAs, evaluateAsNobody, giveTo, readablePackage } from '../../support/plain-user.js';
import { makeLayers } from './layers.js';
import { can, cannot, type Row } from './rows.js';

const needs = 'rootless';

function makeDevice(path: string): boolean {
  try {
    execFileSync('mknod', ['-m', '666', path, 'c', '1', '3'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

const body = `
  const [dir, rootless, rows] = args.map((arg, i) => (i === 0 ? arg : JSON.parse(arg)));
  const mount = await overlayfs.mountOverlay({
    lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work'), rootless,
  });
  const { path } = mount;
  const outcomes = [];
  const AsyncFunction = (async () => {}).constructor;
  const names = ['path', 'dir', 'mount', 'fs', 'join', 'childProcess'];
  for (const code of rows) {
    const run = new AsyncFunction(...names, code.replace("await import('node:module')", 'process.getBuiltinModule("node:module")'));
    outcomes.push(await run(path, dir, mount, fs, join, childProcess).catch((error) => error.code));
  }
  await mount.unmount();
  return { outcomes, left: mount.fd };`;

for (const kind of ['tmpfs', 'disk'] as const) {
  for (const rootless of [true, 'keep', 'auto'] as const) {
    const features: Feature[] = kind === 'tmpfs' ? [needs, 'user xattrs on tmpfs'] : [needs];
    mountTest(`what a plain user can do, and cannot (rootless: ${rootless}, ${kind})`, { needs: features }, (t) => {
      const dir = scratch(t, kind);
      const { hasDevice } = makeLayers(dir, makeDevice);
      const has = { mknod: hasDevice, O_TMPFILE: hasFeature('O_TMPFILE') };
      const rows: Row[] = [...can, ...cannot].filter(({ needs }) => needs === undefined || has[needs]);
      const codes = JSON.stringify(rows.map(({ code }) => code));
      const answer = evaluateAsNobody(body, dir, JSON.stringify(rootless), codes) as {
        outcomes: unknown[];
        left: number;
      };
      t.truthy(answer.outcomes, JSON.stringify(answer));
      rows.forEach(({ title, outcome }, i) => {
        t.deepEqual(answer.outcomes[i] ?? null, outcome, title);
      });
      t.is(answer.left, -1);
      t.is(readFileSync(join(dir, 'lower/roots'), 'utf8'), 'roots');
      t.is(readFileSync(join(dir, 'lower/roots-gone'), 'utf8'), 'gone');
    });
  }
}

test('docs/rootless.md has these rows', (t) => {
  const page = readFileSync(join(packageRoot, 'docs/rootless.md'), 'utf8');
  const sections = page.split(/^## /m);
  for (const [title, rows] of [
    ['Calls that work', can],
    ['Calls that fail', cannot],
  ] as const) {
    const section = sections.find((text) => text.startsWith(title)) ?? '';
    const shown = Array.from(section.matchAll(/^\| (?!---|doing)(.*?) \|/gm), ([, cell = '']) => cell);
    t.deepEqual(
      shown,
      rows.map((row) => row.title),
    );
  }
});

/** A lower with a file, upper and work, of the plain user. */
function plainLayers(dir: string): void {
  makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '' });
  giveTo(dir, join(dir, 'lower'), join(dir, 'lower/file'), join(dir, 'upper'), join(dir, 'work'));
}

const layers = `const [dir] = args;
  const layers = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };`;

mountTest('the synchronous form, a worker, and no_new_privs', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const synchronous = `${layers}
    const mount = overlayfs.mountOverlaySync({ ...layers, rootless: true });
    fs.writeFileSync(join(mount.path, 'second'), '');
    const names = fs.readdirSync(mount.path);
    mount.unmountSync();
    mount.unmountSync();
    return names;`;
  t.deepEqual(evaluateAs([...asNobody, '--no-new-privs'], synchronous, dir), ['file', 'second']);
  const worker = `${layers}
    const { Worker } = await import('node:worker_threads');
    const code = \`
      import { readdirSync } from 'node:fs';
      import { parentPort, workerData } from 'node:worker_threads';
      import { mountOverlay } from 'overlayfs';
      const mount = await mountOverlay({ ...workerData, rootless: true });
      parentPort.postMessage([mount.path, readdirSync(mount.path)]);\`;
    const run = async () => {
      const thread = new Worker(code, { eval: true, workerData: layers });
      const exit = new Promise((resolve) => thread.on('exit', resolve));
      const [path, names] = await new Promise((resolve, reject) => thread.on('message', resolve).on('error', reject));
      await exit;
      return [names, fs.existsSync(path), fs.readdirSync('/proc/self/fd').length];
    };
    const [, , before] = await run(); // Node keeps open some files of the first worker
    const [names, exists, after] = await run();
    return [names, exists, after - before];`;
  t.deepEqual(evaluateAsNobody(worker, dir), [['file', 'second'], false, 0], 'closed with the worker');
});

mountTest('nothing shows of the mount elsewhere, and its end frees the upper', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const outcome = evaluateAsNobody(
    `${layers}
    const table = fs.readFileSync('/proc/self/mountinfo', 'utf8');
    const mount = await overlayfs.mountOverlay({ ...layers, rootless: true });
    const during = fs.readFileSync('/proc/self/mountinfo', 'utf8') === table;
    const dumpable = fs.statSync('/proc/self/status').uid;
    await mount[Symbol.asyncDispose]();
    return { during, dumpable, target: mount.target ?? null, isRootless: mount.isRootless };`,
    dir,
  );
  t.deepEqual(outcome, {
    during: true,
    dumpable: asNobody.length > 0 ? NOBODY : process.getuid?.(),
    target: null,
    isRootless: true,
  });
  // An upper in use would be refused.
  const paths = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
  mkdirSync(join(dir, 'merged'));
  mountOverlaySync({ ...paths, target: join(dir, 'merged'), index: true }).unmountSync();
});

mountTest('SIGKILL frees the upper, and all else', { needs }, async (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const program = `import { mountOverlaySync } from 'overlayfs';
    const dir = process.argv[1];
    const mount = mountOverlaySync({ lowerdir: dir + '/lower', upperdir: dir + '/upper', workdir: dir + '/work', rootless: true });
    console.log(mount.path.replace('self', process.pid));
    setInterval(() => {}, 1000);`;
  const [command = '', ...rest] = [...asNobody, process.execPath, '--input-type=module', '-e', program, dir];
  const child = spawn(command, rest, { cwd: readablePackage(), stdio: ['ignore', 'pipe', 'inherit'] });
  const path = await new Promise<string>((resolve) =>
    child.stdout.once('data', (text) => resolve(String(text).trim())),
  );
  mkdirSync(join(dir, 'merged'));
  t.deepEqual(readdirSync(path), ['file'], 'root sees it by the descriptor of the process');
  const mount = () => {
    const paths = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
    mountOverlaySync({ ...paths, target: join(dir, 'merged'), index: true }).unmountSync();
  };
  t.throws(mount, { code: 'EBUSY' });
  const ended = new Promise((resolve) => child.on('exit', resolve));
  child.kill('SIGKILL');
  await ended;
  t.notThrows(mount);
});

mountTest('without userxattr, a directory that was removed cannot be made again', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  makeTree(dir, { 'lower/tree/file': 'file' });
  giveTo(join(dir, 'lower/tree'), join(dir, 'lower/tree/file'));
  const again = (userxattr: string) =>
    evaluateAsNobody(
      `${layers}
      const mount = await overlayfs.mountOverlay({ ...layers, rootless: true, userxattr: ${userxattr} });
      fs.rmSync(join(mount.path, 'tree'), { recursive: true });
      fs.mkdirSync(join(mount.path, 'tree'));
      return fs.readdirSync(join(mount.path, 'tree'));`,
      dir,
    );
  t.like(again('false'), { code: 'EIO' });
  t.deepEqual(again('undefined'), []);
});

mountTest('a thousand mounts leave no descriptor, child or thread, and a child is reaped as always', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const outcome = evaluateAsNobody(
    `${layers}
    const times = Number(args[1]);
    const state = () => [
      fs.readdirSync('/proc/self/fd').length,
      fs.readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8'),
    ];
    let children = 0;
    process.on('SIGCHLD', () => children++);
    const mountOnce = async (rootless) => (await overlayfs.mountOverlay({ ...layers, rootless })).unmount();
    await mountOnce(true);
    const before = state();
    const child = childProcess.spawn('sleep', ['0.2'], { stdio: 'ignore' });
    const ended = new Promise((resolve) => child.on('exit', resolve));
    for (let i = 0; i < times; i++) {
      try {
        if (i % 2) overlayfs.mountOverlaySync({ ...layers, rootless: true }).unmountSync();
        else await mountOnce(true);
      } catch (error) {
        // The kernel frees namespaces in its own time.
        if (error.reason !== 'rootless-forbidden') throw error;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
    const code = await ended;
    // Which of the two that listen to SIGCHLD is told first, libuv leaves open.
    await new Promise((resolve) => setTimeout(resolve, 20));
    return { before, after: state(), code, children };`,
    dir,
    String(scaled(1000)),
  ) as { before: unknown; after: unknown; code: number; children: number };
  t.deepEqual(outcome.after, outcome.before);
  t.is(outcome.code, 0);
  t.is(outcome.children, 1);
});

mountTest('a mount that fails leaves nothing, and says why', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const outcome = evaluateAsNobody(
    `${layers}
    const before = fs.readdirSync('/proc/self/fd').length;
    const errors = [];
    const attempts = [
      { lowerdir: join(dir, 'missing') },
      { upperdir: join(dir, 'made/upper'), workdir: join(dir, 'upper'), create: true, index: true },
      { workdir: join(dir, 'upper') },
      { upperdir: '/proc', workdir: '/proc' },
    ];
    for (const attempt of attempts) {
      const error = await overlayfs.mountOverlay({ ...layers, rootless: true, ...attempt }).catch((error) => error);
      errors.push(error.reason ?? error.message);
    }
    return { errors, made: fs.existsSync(join(dir, 'made')), left: fs.readdirSync('/proc/self/fd').length - before };`,
    dir,
  ) as { errors: string[]; made: boolean; left: number };
  t.is(outcome.errors[0], 'lower-missing');
  t.is(outcome.errors[1], 'conflicting-options');
  t.is(outcome.errors[2], 'work-inside-upper');
  t.is(outcome.made, false);
  t.is(outcome.left, 0);
});

mountTest('a mount that is forgotten is closed by garbage collection, with a warning', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/file': 'file', 'upper/': '', 'work/': '' });
  const program = `
    import { mountOverlaySync } from 'overlayfs';
    import { readdirSync } from 'node:fs';
    const count = () => readdirSync('/proc/self/fd').length;
    const at = (name) => process.argv[1] + '/' + name;
    const before = count();
    (() => void mountOverlaySync({ lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') }))();
    if (count() !== before + 1) throw new Error('no descriptor');
    let warning;
    process.on('warning', ({ message }) => { warning = message; });
    for (let i = 0; i < 100 && (warning === undefined || count() > before); i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    console.log(JSON.stringify([warning, count() - before]));`;
  const args = ['--expose-gc', '--no-warnings', '--input-type=module', '-e', program, dir];
  const [warning, left] = JSON.parse(execFileSync(process.execPath, args, { cwd: packageRoot, encoding: 'utf8' }));
  t.regex(warning, /^The detached mount of descriptor \d+ is closed by garbage collection/);
  t.is(left, 0);
});

mountTest('detached with privilege: files by descriptor, no place, and the work removed', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/file': 'file' });
  const before = countDescriptors();
  const mounted = mountOverlaySync({ lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), create: true });
  t.is(mounted.target, undefined);
  t.is(mounted.path, `/proc/self/fd/${mounted.fd}`);
  t.false(mounted.isRootless);
  writeFileSync(join(mounted.path, 'new'), 'new');
  t.is(readFileSync(join(dir, 'upper/new'), 'utf8'), 'new');
  await mounted.unmount();
  await mounted.unmount();
  t.is(mounted.fd, -1);
  t.is(countDescriptors(), before);
  t.throws(() => readFileSync(join(dir, 'upper.work')), { code: 'ENOENT' });
});

mountTest('rootless does not go with a target, and takes no other word', (t) => {
  const paths = { lowerdir: '/l', upperdir: '/u', workdir: '/w' };
  const refuse = (options: object, code: string, message: RegExp) =>
    t.throws(() => mountOverlaySync({ ...paths, ...options }), { code, message });
  refuse({ target: '/m', rootless: true }, 'ERR_INVALID_ARG_VALUE', /`target` and `rootless` exclude each other/);
  refuse({ target: '/m', rootless: 'auto' }, 'ERR_INVALID_ARG_VALUE', /`target` and `rootless` exclude each other/);
  refuse({ rootless: 'yes' }, 'ERR_INVALID_ARG_VALUE', /'keep', 'auto'/);
  refuse({ rootless: 1 }, 'ERR_INVALID_ARG_TYPE', /"rootless"/);
});

mountTest('a rootless mount is no layer of another, and the error says so', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  makeLayers(dir, makeDevice);
  const outcome = evaluateAsNobody(
    `const [dir] = args;
      const lower = join(dir, 'lower');
      const mount = await overlayfs.mountOverlay({
        lowerdir: lower, upperdir: join(dir, 'upper'), workdir: join(dir, 'work'), rootless: true,
      });
      return overlayfs.mountOverlay({ lowerdir: [mount.path, lower], rootless: true });`,
    dir,
  ) as { reason: string; message: string };
  t.like(outcome, { code: 'EINVAL', reason: 'layer-foreign' });
  t.regex(
    outcome.message,
    /^EINVAL: the lowerdir\[0\] '\/proc\/self\/fd\/\d+' is on a mount of another mount namespace/,
  );
});

mountTest('the hint of effective() can be followed', { needs: 'rootless' }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/file': '', 'at/': '' });
  giveTo(dir, join(dir, 'lower'), join(dir, 'lower/file'), join(dir, 'at'));
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const layers = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), create: true };
    const mount = await overlayfs.mountOverlay({ ...layers, rootless: true, volatile: true });
    const { reason, hint } = await mount.effective().catch((error) => error);
    const { spawn } = overlayfs;
    const at = join(dir, 'at');
    const [call] = /spawn\\(.*\\)/.exec(hint) ?? [];
    const child = new Function('spawn', 'mount', 'at', 'return ' + call)(spawn, mount, at);
    const table = (await child.stdout.toArray()).join('');
    await mount.unmount();
    return { reason, line: table.split('\\n').find((line) => line.split(' ')[4] === at) };`,
    dir,
  ) as { reason: string; line: string };
  t.is(outcome.reason, 'feature-unverifiable');
  t.regex(outcome.line, /overlay .*upperdir=.*,userxattr/);
});

mountTest('the path of a rootless mount resolves to no file of this machine, in every form', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  makeLayers(dir, makeDevice);
  giveTo(dir);
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const make = (rootless, name) => overlayfs.mountOverlay({
      lowerdir: join(dir, 'lower'), upperdir: join(dir, name), workdir: join(dir, name + '-work'), create: true, rootless,
    });
    const mounts = [await make(true, 'one'), await make('keep', 'two'), await make('keep', 'three')];
    fs.mkdirSync(join(mounts[0].path, 'etc'));
    const code = (call) => { try { return call(); } catch (error) { return error.code; } };
    const resolved = mounts.map(({ path }) => ['', '/tree', '/etc', '/file'].flatMap((name) =>
      [fs.realpathSync, fs.realpathSync.native].map((real) => code(() => real(path + name)))));
    const links = mounts.map(({ path }) => fs.readlinkSync(path));
    const fds = () => fs.readdirSync('/proc/self/fd').length;
    const before = fds();
    for (const mount of mounts) await mount.unmount();
    const { openTreeAttr } = await overlayfs.features();
    return { resolved, links, closed: before - fds(), made: mounts.length * (openTreeAttr ? 2 : 3) };`,
    dir,
  ) as { resolved: string[][]; links: string[]; closed: number; made: number };
  t.deepEqual([...new Set(outcome.resolved?.flat())], ['ENOENT'], JSON.stringify(outcome));
  for (const link of outcome.links) t.regex(link, /^\/overlay-\w+$/);
  t.is(outcome.closed, outcome.made);
});

mountTest('nobody attaches, clones or remounts a rootless mount, not even root', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/': '', 'at/': '' });
  const options = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), create: true, rootless: true };
  const features = kernelFeaturesSync();
  for (const record of [features, { ...features, openTreeAttr: false as const }]) {
    const mount = mountOverlayWithSync(options, record);
    for (const call of [
      () => mount.attachSync(join(dir, 'at')),
      () => mount.cloneSync(),
      () => mount.remountSync({ readonly: true }),
    ]) {
      t.like(t.throws(call), { reason: 'no-privilege' });
    }
    mount.unmountSync();
    t.like(
      t.throws(() => mount.cloneSync()),
      { reason: 'not-mounted' },
    );
  }
});

for (const before615 of [false, true]) {
  const title = before615 ? ', as before Linux 6.15' : '';
  mountTest(`a rootless mount keeps no mount of others alive${title}`, { needs }, async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/': '', 'mine/lower/file': 'file', 'merged/': '', 'at/': '' });
    const options = { lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
    const mount = mountOverlaySync({ ...options, create: true, target: join(dir, 'merged') });
    const mine = { lowerdir: join(dir, 'mine/lower'), upperdir: join(dir, 'mine/upper'), create: true };
    const features = kernelFeaturesSync();
    const record = before615 ? { ...features, openTreeAttr: false as const } : features;
    const atFirst = countDescriptors();
    const rootless = mountOverlayWithSync({ ...mine, rootless: true }, record);
    mount.unmountSync();
    t.notThrows(() => mountOverlaySync({ ...options, create: true, target: join(dir, 'merged') }).unmountSync());
    t.regex(readlinkSync(rootless.path), /^\/overlay-\w+$/);
    const cat = spawnIn('cat', [join(dir, 'at/file')], { mounts: [{ source: rootless, target: join(dir, 'at') }] });
    t.deepEqual(await Promise.all([text(cat.stdout), once(cat, 'close')]), ['file', [0, null]]);
    rootless.unmountSync();
    rootless.unmountSync();
    t.is(countDescriptors(), atFirst);
  });
}

mountTest('500 mounts with 64 descriptors, a worker that ends, a second end: nothing stays', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/': '' });
  giveTo(dir);
  const outcome = evaluateAsNobody(
    `const [dir] = args;
    const { Worker } = await import('node:worker_threads');
    const options = (name, rootless = true) => ({
      lowerdir: join(dir, 'lower'), upperdir: join(dir, name), workdir: join(dir, name + '-work'), create: true, rootless,
    });
    const open = () => fs.readdirSync('/proc/self/fd').length;
    const children = () => fs.readdirSync('/proc/self/task').flatMap((id) =>
      fs.readFileSync('/proc/self/task/' + id + '/children', 'utf8').split(' ').filter(Boolean)).length;
    await (await overlayfs.mountOverlay(options('first'))).unmount();
    const limit = (to) => childProcess.execFileSync('prlimit', ['--pid', String(process.pid), '--nofile=' + to + ':1000']);
    limit(64);
    const atFirst = open();
    const all = await Promise.allSettled(Array.from({ length: 500 }, (_, i) => overlayfs.mountOverlay(options('many' + i))));
    const mounts = all.flatMap(({ value }) => value ?? []);
    const reasons = [...new Set(all.flatMap(({ reason }) => reason === undefined ? [] : [reason.reason ?? String(reason)]))];
    for (const mount of mounts) { await mount.unmount(); await mount.unmount(); mount.unmountSync(); }
    const afterMany = open() - atFirst;
    limit(1000);
    const code = 'import { parentPort, workerData } from "node:worker_threads"; import { mountOverlay } from "overlayfs";' +
      'globalThis.kept = await Promise.all(workerData.map((one) => mountOverlay(one))); parentPort.postMessage("made"); setInterval(() => {}, 1000);';
    const some = [0, 1, 2, 3, 4, 5].map((i) => options('worker' + i));
    const worker = new Worker(code, { eval: true, workerData: some });
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    await worker.terminate();
    const again = await Promise.all(some.map((one) => overlayfs.mountOverlay(one)));
    for (const mount of again) await mount.unmount();
    return { some: mounts.length > 10, all: mounts.length, reasons, afterMany, afterWorker: open() - atFirst, children: children() };`,
    dir,
  ) as { some: boolean; all: number; reasons: string[] };
  t.like(
    outcome,
    { some: true, reasons: ['out-of-descriptors'], afterMany: 0, afterWorker: 0, children: 0 },
    JSON.stringify(outcome),
  );
  t.true(outcome.all < 500);
});

/** Aborts a mount that the kernel has made, before this thread is told. */
const abortMade = `
  const turn = () => new Promise(setImmediate);
  const abortMade = async (options) => {
    for (;;) {
      const controller = new AbortController();
      let error;
      const pending = overlayfs.mountOverlay({ ...options, signal: controller.signal })
        .catch((reason) => { error = reason; });
      const made = () => fs.existsSync(join(options.workdir, 'work'));
      while (!made() && error === undefined) {
        const end = Date.now() + 100;
        while (!made() && Date.now() < end);
        if (!made()) await turn();
      }
      controller.abort();
      const mount = await pending;
      if (mount === undefined) return error.message;
      await mount.unmount();
      if (!options.create) await remove(options.workdir);
      if (options.create) fs.rmdirSync(options.upperdir);
      else fs.mkdirSync(options.workdir, { recursive: true });
    }
  };`;

for (const create of [false, true]) {
  mountTest(`an aborted volatile mount leaves no mark (create: ${create})`, { needs }, (t) => {
    const dir = scratch(t, 'disk');
    plainLayers(dir);
    const outcome = evaluateAsNobody(
      `${layers} ${abortMade}
      const options = { ...layers, rootless: true, volatile: true, create: ${create} };
      if (options.create) for (const path of [layers.upperdir, layers.workdir]) fs.rmdirSync(path);
      const message = await abortMade(options);
      const left = fs.readdirSync(dir).concat(fs.existsSync(layers.workdir) ? fs.readdirSync(layers.workdir) : []);
      const mount = await overlayfs.mountOverlay(options);
      await mount.unmount();
      return { message, left };`,
      dir,
    );
    const left = create ? ['lower'] : ['lower', 'upper', 'work'];
    t.deepEqual(outcome, { message: 'The operation was aborted', left });
  });
}
