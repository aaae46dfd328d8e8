/** `findHolders` and the holders in errors. Imports internals: they read tables that this machine does not have. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readlinkSync,
  realpathSync,
  rmSync,
  truncateSync,
} from 'node:fs';
import { cpus } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import {
  bindSync,
  type FoundHolders,
  findHolders,
  type Holder,
  type Mount,
  mountOverlaySync,
  type OverlayError,
  type PathLike,
} from 'overlayfs';
import { mountsInside } from '#lib/holders/search-mounts.js';
import { runSync } from '#lib/kernel/task.js';
import { splitMountinfo } from '#lib/mount-table/mountinfo.js';
import {
  countDescriptors,
  evaluateIn,
  eventually,
  forms,
  layers,
  MS_BIND,
  makeNamespace,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  packageRoot,
  scaled,
  scratch,
} from '../support/index.js';
import { asNobody, evaluateAs, giveTo } from '../support/plain-user.js';

/** However long it takes on a machine that has much else to do. */
const whole = { timeout: Number.POSITIVE_INFINITY };

/** The error of an unmount whose search has not been cut short by other programs. */
async function busyError(t: ExecutionContext, unmount: () => Promise<void>): Promise<OverlayError> {
  for (let tries = 0; tries < 100; tries++) {
    const error = await t.throwsAsync<OverlayError>(unmount, { code: 'EBUSY' });
    if (error.holders?.complete) return error;
  }
  throw new Error('no search has come to its end');
}

const sleep = realpathSync(execFileSync('sh', ['-c', 'command -v sleep'], { encoding: 'utf8' }).trim());

/** The directories of a program's libraries. */
function librariesOf(program: string): string[] {
  const text = execFileSync('ldd', [program], { encoding: 'utf8' });
  return [...text.matchAll(/(\/\S+) \(0x/g)].map(([, path = '']) => path);
}

/** A program that runs until the test ends. */
function running(t: ExecutionContext, command: readonly string[], options: Parameters<typeof spawn>[2] = {}) {
  const [program = '', ...args] = command;
  const child = spawn(program, args, { stdio: 'ignore', ...options });
  t.teardown(() => end(child));
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

/**
 * A copy of this mount namespace that is bound to a file, and its number. The kernel has it bound only in one with a
 * lower id, and since 6.18 each CPU gives ids from a stock of its own: on one of them it works.
 */
async function bindNamespace(t: ExecutionContext, file: string): Promise<number> {
  for (let cpu = 0; cpu < cpus().length; cpu++) {
    const onCpu = ['taskset', '--cpu-list', String(cpu)];
    if (spawnSync('taskset', [...onCpu.slice(1), 'true']).status !== 0) continue;
    const child = running(t, [...onCpu, 'unshare', '--mount', sleep, '600']);
    const link = `/proc/${child.pid}/ns/mnt`;
    await eventually(t, () => readlinkSync(`/proc/${child.pid}/exe`) === sleep);
    const namespace = Number(/\d+/.exec(readlinkSync(link))?.[0]);
    const isBound = native.mount(link, file, '', MS_BIND, '') === 0;
    await end(child);
    if (isBound) return namespace;
  }
  throw new Error('no namespace could be bound to a file');
}

/** Copies files to the same paths below a directory. */
function copyBelow(dir: string, paths: readonly string[]): void {
  for (const path of paths) {
    mkdirSync(dirname(join(dir, path)), { recursive: true });
    copyFileSync(path, join(dir, path));
  }
}

/** The holder to be found, and how it ends. */
interface Held {
  readonly expected: Partial<Holder>;
  readonly release: () => unknown;
}

interface Site {
  readonly t: ExecutionContext;
  readonly dir: string;
  readonly target: string;
}

/** A process that is in place when the file to which it is linked is the expected one. */
async function settled({ t }: Site, command: readonly string[], link: string, path: string, options = {}) {
  const child = running(t, command, options);
  await eventually(t, () => {
    try {
      return readlinkSync(`/proc/${child.pid}/${link}`) === path;
    } catch {
      return false;
    }
  });
  return child;
}

const by = (child: ChildProcess, expected: Partial<Holder>): Held => ({
  expected: { pid: child.pid as number, ...expected },
  release: () => end(child),
});

/** Each kind of holder, made by a real process. */
const kinds: Readonly<Record<string, (site: Site) => Promise<Held>>> = {
  'a working directory': async (site) => {
    const cwd = join(site.target, 'sub');
    const child = await settled(site, [sleep, '600'], 'cwd', cwd, { cwd });
    return by(child, { what: 'cwd', path: cwd, command: `${sleep} 600` });
  },
  'a root directory': async (site) => {
    const child = await settled(site, ['chroot', site.target, sleep, '600'], 'root', site.target);
    return by(child, { what: 'root', path: site.target });
  },
  'a program that runs': async (site) => {
    const path = join(site.target, sleep);
    const child = await settled(site, [path, '600'], 'exe', path);
    return by(child, { what: 'executable', path, command: `${path} 600` });
  },
  'a file mapped into memory, whose descriptor is closed': async (site) => {
    const path = join(site.target, 'library.so');
    const child = running(site.t, [sleep, '600'], { env: { LD_PRELOAD: path } });
    await eventually(site.t, async () =>
      (await findHolders(site.target)).holders.some(({ pid, what }) => pid === child.pid && what === 'mapping'),
    );
    return by(child, { what: 'mapping', path });
  },
  'an open file of this process': async ({ target }) => {
    const path = join(target, 'from-lower');
    const descriptor = openSync(path, 'r');
    return {
      expected: { what: 'file', pid: process.pid, path, descriptor },
      release: () => closeSync(descriptor),
    };
  },
  'an open file of another process': async (site) => {
    const path = join(site.target, 'from-lower');
    const descriptor = openSync(path, 'r');
    const child = await settled(site, [sleep, '600'], 'fd/3', path, {
      stdio: ['ignore', 'ignore', 'ignore', descriptor],
    });
    closeSync(descriptor);
    return by(child, { what: 'file', path, descriptor: 3 });
  },
  'an open directory': async ({ target }) => {
    const descriptor = openSync(target, 'r');
    return {
      expected: { what: 'file', pid: process.pid, path: target, descriptor },
      release: () => closeSync(descriptor),
    };
  },
  'a file that has been deleted': async ({ target }) => {
    const path = join(target, 'from-lower');
    const descriptor = openSync(path, 'r');
    rmSync(path);
    return {
      expected: { what: 'file', pid: process.pid, path: `${path} (deleted)`, descriptor },
      release: () => closeSync(descriptor),
    };
  },
  'a socket that is bound': async (site) => {
    const path = join(site.target, 'socket');
    const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => console.log('ready'))`;
    const child = running(site.t, [process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    if (child.stdout !== null) await once(child.stdout, 'data');
    return by(child, { what: 'socket', path });
  },
  'a mount inside': async ({ t, target }) => {
    const path = join(target, 'sub');
    t.is(native.mount('inner', path, 'tmpfs', 0, ''), 0);
    return { expected: { what: 'inside', path }, release: () => t.is(native.umount(path, 0), 0) };
  },
};

for (const { form, of } of forms) {
  const find = async (mount: Mount | PathLike) => (await findHolders(mount, whole)).holders;
  const unmount = of('unmount');

  for (const [kind, hold] of Object.entries(kinds)) {
    mountTest(`a busy mount's error names ${kind}, and so does findHolders (${form})`, async (t) => {
      const dir = scratch(t);
      const options = layers(dir);
      const { target } = options;
      makeTree(dir, { 'lower/sub/': '', 'lower/dev/': '' });
      const libraries = librariesOf(sleep);
      copyBelow(join(dir, 'lower'), [sleep, ...libraries]);
      const library = libraries.find((path) => basename(path).startsWith('libc.')) ?? '';
      copyFileSync(library, join(dir, 'lower/library.so'));
      const mounted = mountOverlaySync(options);
      const { expected, release } = await hold({ t, dir, target });

      const descriptors = countDescriptors();
      const error = await busyError(t, () => unmount(target));
      const named = error.holders?.find(({ what, pid }) => what === expected.what && pid === expected.pid);
      t.like(named, { ...expected });
      t.true(error.holders?.every(({ what, copy }) => what !== 'mount' && what !== 'layer' && copy === undefined));
      t.true(error.message.includes(`'${expected.path}'`), error.message);
      for (const mount of [mounted, target]) {
        t.like(
          (await find(mount)).find(({ what, pid }) => what === expected.what && pid === expected.pid),
          { ...expected },
        );
      }
      t.is(countDescriptors(), descriptors);

      await release();
      t.deepEqual(await find(mounted), []);
      await unmount(target);
      t.deepEqual(await find(mounted), []);
    });
  }

  mountTest(`a file that backs a loop device (${form})`, { needs: 'loop devices' }, async (t) => {
    const options = layers(scratch(t));
    const mounted = mountOverlaySync(options);
    const image = join(options.target, 'image');
    closeSync(openSync(image, 'w'));
    truncateSync(image, 2 ** 20);
    const device = execFileSync('losetup', ['--find', '--show', image], { encoding: 'utf8' }).trim();
    const detach = () => execFileSync('losetup', ['--detach', device], { stdio: 'ignore' });
    try {
      const error = await busyError(t, () => unmount(options.target));
      const expected = { what: 'loop', path: image, device };
      t.deepEqual([...(error.holders ?? [])], [expected] as never);
      t.deepEqual(await find(mounted), [expected] as never);
    } finally {
      detach();
    }
    await eventually(t, async () => (await find(mounted)).length === 0);
    await unmount(options.target);
  });

  mountTest(`a copied mount namespace, which no unmount tells of (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const { target } = options;
    const mounted = mountOverlaySync(options);
    const child = running(t, ['unshare', '--mount', 'sh', '-c', `cd ${target} && exec ${sleep} 600`]);
    const inChild = async () => (await find(mounted)).filter(({ pid }) => pid === child.pid);
    await eventually(t, async () =>
      (await inChild()).some(({ what, command }) => what === 'cwd' && command === `${sleep} 600`),
    );
    const namespace = Number(/\d+/.exec(readlinkSync(`/proc/${child.pid}/ns/mnt`))?.[0]);

    const expected: Holder[] = [
      { what: 'cwd', pid: child.pid as number, command: `${sleep} 600`, path: target, copy: target, namespace },
      { what: 'mount', pid: child.pid as number, command: `${sleep} 600`, path: target, namespace },
    ];
    t.deepEqual(await find(mounted), expected);
    await unmount(target);
    t.is(mountsBelow(target).length, 0);
    t.deepEqual(await find(mounted), expected, 'the upper is in use still');
    await end(child);
    t.deepEqual(await find(mounted), []);
  });

  mountTest(`a copy on a shared mount keeps the mount busy, and is named (${form})`, async (t) => {
    const dir = scratch(t);
    execFileSync('mount', ['--make-shared', dir]);
    const options = layers(dir);
    const { target } = options;
    const ready = `while ! [ -e ${target}/from-lower ]; do sleep 0.05; done; cd ${target} && exec ${sleep} 600`;
    const child = running(t, ['unshare', '--mount', '--propagation', 'unchanged', 'sh', '-c', ready]);
    await eventually(t, () => readlinkSync(`/proc/${child.pid}/ns/mnt`) !== readlinkSync('/proc/self/ns/mnt'));
    const mounted = mountOverlaySync(options);
    await eventually(t, async () => (await find(mounted)).some(({ pid, what }) => pid === child.pid && what === 'cwd'));
    const error = await busyError(t, () => unmount(target));
    t.like(error.holders?.[0], { what: 'cwd', pid: child.pid, copy: target });
    await end(child);
    await unmount(target);
  });

  mountTest(`a mount namespace that only a descriptor keeps (${form})`, async (t) => {
    const options = layers(scratch(t));
    const mounted = mountOverlaySync(options);
    const namespace = makeNamespace();
    const link = readlinkSync(`/proc/self/fd/${namespace}`);
    const expected = {
      what: 'namespace',
      path: options.target,
      pid: process.pid,
      descriptor: namespace,
      namespace: Number(/\d+/.exec(link)?.[0]),
    };
    const holders = await find(mounted);
    t.is(holders.length, 1);
    t.like(holders[0], expected);
    t.regex(holders[0]?.command ?? '', /node/);
    // It does not make the mount busy, and keeps its file system for all that.
    await unmount(options.target);
    const after = await find(mounted);
    t.is(after.length, 1);
    t.like(after[0], expected);
    closeSync(namespace);
    t.deepEqual(await find(mounted), []);
  });

  mountTest(`a mount namespace that only a file keeps (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mounted = mountOverlaySync(options);
    makeTree(dir, { bound: '' });
    const boundAt = join(dir, 'bound');
    const namespace = await bindNamespace(t, boundAt);
    const holders = await find(mounted);
    t.is(holders.length, 1);
    t.like(holders[0], { what: 'namespace', path: options.target, boundAt, namespace, pid: undefined });
    native.umount(boundAt, 0);
    t.deepEqual(await find(mounted), []);
    await unmount(options.target);
  });

  mountTest(`a mount namespace that one thread of a process is in (${form})`, async (t) => {
    const options = layers(scratch(t));
    const mounted = mountOverlaySync(options);
    const script = `
      const { parentPort } = require('node:worker_threads');
      parentPort.postMessage(require('${packageRoot}/build/Release/test_support.node').unshareMounts());
      parentPort.on('message', () => process.exit());`;
    const worker = new Worker(script, { eval: true });
    t.deepEqual(await once(worker, 'message'), [0]);
    const holders = await find(mounted);
    t.is(holders.length, 1);
    t.like(holders[0], { what: 'namespace', path: options.target, pid: process.pid, descriptor: undefined });
    const ended = once(worker, 'exit');
    worker.postMessage('end');
    await ended;
    t.deepEqual(await find(mounted), []);
    await unmount(options.target);
  });

  mountTest(`a layer of another overlay (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'lower/a,b:c\\/file': '', 'outer/lower/': '', 'outer/merged/': '' });
    const inner = mountOverlaySync(options);
    const target = join(dir, 'outer/merged');
    const layer = join(options.target, 'a,b:c\\');
    const outer = mountOverlaySync({ lowerdir: [layer, join(dir, 'outer/lower')], target });
    const expected: Holder[] = [{ what: 'layer', path: target, layer }];
    t.deepEqual(await find(inner), expected);
    await unmount(options.target);
    t.deepEqual(await find(inner), expected);
    t.deepEqual(await find(outer), []);
    await outer.unmount();
    t.deepEqual(await find(inner), []);
  });

  mountTest(`another mount of the same overlay (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    makeTree(dir, { 'bound/': '' });
    const mounted = mountOverlaySync(options);
    const path = join(dir, 'bound');
    const MS_BIND = 4096;
    t.is(native.mount(options.target, path, '', MS_BIND, ''), 0);
    t.deepEqual(await find(mounted), [{ what: 'mount', path }]);
    await unmount(options.target);
    t.deepEqual(await find(mounted), [{ what: 'mount', path }]);
    t.deepEqual(await find(path), []);
    await unmount(path);
  });

  mountTest(`after a lazy unmount (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mounted = mountOverlaySync(options);
    const descriptor = openSync(join(options.target, 'from-lower'), 'r');
    const child = running(t, [sleep, '600'], { cwd: options.target });
    await eventually(t, async () => (await find(mounted)).length === 2);
    await mounted.unmount({ detach: true });
    makeTree(dir, { 'other/': '' });
    // Another one at the same place has nothing to do with it.
    const another = mountOverlaySync({ lowerdir: [options.lowerdir, join(dir, 'other')], target: options.target });
    const holders = await find(mounted);
    t.like(
      holders.find(({ pid }) => pid === process.pid),
      { what: 'file', path: '/from-lower', descriptor },
    );
    t.like(
      holders.find(({ pid }) => pid === child.pid),
      { what: 'cwd', path: '/' },
    );
    t.is(holders.length, 2);
    t.deepEqual(await find(another), []);
    closeSync(descriptor);
    await end(child);
    t.deepEqual(await find(mounted), []);
  });

  mountTest(`of what is no mount point (${form})`, async (t) => {
    const { lowerdir, target } = layers(scratch(t));
    t.like(await t.throwsAsync(find(lowerdir)), { code: 'EINVAL', reason: 'not-mounted', path: lowerdir });
    t.like(await t.throwsAsync(find(join(target, 'missing'))), { code: 'ENOENT', reason: 'target-missing' });
    t.like(await t.throwsAsync(find(join(lowerdir, 'from-lower/x'))), {
      code: 'ENOTDIR',
      reason: 'path-inaccessible',
    });
    t.like(await t.throwsAsync(find('/proc/self')), { code: 'EINVAL', reason: 'target-symlink' });
    await t.throwsAsync(find(5 as never), { code: 'ERR_INVALID_ARG_TYPE', message: /"mount"/ });
  });
}

mountTest('kept mount namespaces, where the kernel may not list them', (t) => {
  const options = layers(scratch(t));
  const mounted = mountOverlaySync(options);
  const namespace = makeNamespace();
  t.teardown(() => closeSync(namespace));
  // Later kernels list them in the first pid namespace only.
  const elsewhere = ['unshare', '--pid', '--fork'];
  const { holders } = evaluateIn(
    elsewhere,
    'overlayfs.findHolders(args[0], { timeout: 60_000 })',
    options.target,
  ) as FoundHolders;
  t.like(holders[0], {
    what: 'namespace',
    path: options.target,
    pid: process.pid,
    descriptor: namespace,
  });
  t.is(holders.length, 1);
  mounted.unmountSync();
});

mountTest('processes of others are counted, and the search ends when it is told to', async (t) => {
  const { target, ...options } = layers(scratch(t));
  mountOverlaySync({ ...options, target });
  running(t, [sleep, '600'], { cwd: target });
  const counts =
    'overlayfs.findHolders(args[0], { timeout: 60_000 }).then(({ hidden, complete, holders }) => [hidden, complete, holders.length])';
  const nobody = ['setpriv', '--reuid', '65534', '--clear-groups', '--regid', '65534', '--bounding-set=-all'];
  const [hidden, complete, length] = evaluateIn(nobody, counts, target) as [number, boolean, number];
  t.true(hidden >= 2, String(hidden));
  t.true(complete);
  t.is(length, 0);
  t.false((await findHolders(target, { timeout: 0 })).complete);
  t.true((await findHolders(target, whole)).complete);
});

mountTest('a search ends in time, and names nothing that it has not looked at', async (t) => {
  const dir = scratch(t);
  const mounted = mountOverlaySync(layers(dir));
  makeTree(dir, { 'from/': '' });
  for (let i = 0; i < scaled(1000, 100); i++) {
    mkdirSync(join(dir, `${i}`));
    native.mount(join(dir, 'from'), join(dir, `${i}`), '', MS_BIND, '');
  }
  const children = Array.from({ length: 20 }, () => running(t, ['unshare', '--mount', '--net', sleep, '600']));
  for (const { pid } of children) await eventually(t, () => readlinkSync(`/proc/${pid}/exe`) === sleep);
  const take = async (timeout: number) => {
    const start = performance.now();
    const found = await findHolders(mounted, { timeout });
    return { ...found, took: performance.now() - start };
  };
  const all = await take(Number.POSITIVE_INFINITY);
  t.is(all.holders.length, children.length);
  const none = await take(0);
  t.deepEqual([none.holders, none.complete], [[], false]);
  // Enough to find the namespaces, and not to read their tables. Other programs may take their time of one search.
  const times: number[] = [];
  for (let i = 0; i < 5; i++) times.push((await take(all.took / 20)).took);
  t.true(Math.min(...times) < all.took / 2, `${times} of ${all.took} ms`);
  await Promise.all(children.map(end));
});

/** A thread that opens a file in a table of its own; with `ends`, the first thread of its process has ended by then. */
const threadScript = (file: string, ends: boolean): string => `
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
def work():
    libc.unshare(0x400)
    if ${ends ? 'True' : 'False'}:
        while open('/proc/%d/stat' % os.getpid()).read().split()[2] != 'Z': time.sleep(0.01)
    os.open(${JSON.stringify(file)}, os.O_RDONLY)
    print('ready', flush=True)
    time.sleep(600)
threading.Thread(target=work).start()
if ${ends ? 'True' : 'False'}: libc.syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
`;

/** Holders that hide from a search by names, each made by a real process. */
const hidden: Readonly<Record<string, (site: Site, mount: Mount) => Promise<Partial<Holder>>>> = {
  'a detached clone of this process': async ({ t }, mount) => {
    const clone = await mount.clone();
    t.teardown(() => clone.unmount());
    return { what: 'file', pid: process.pid, copy: '' };
  },
  'a detached clone of another process': async ({ t, target }) => {
    // open_tree(2) with OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC.
    const script = `import ctypes, sys, time
ctypes.CDLL(None).syscall(428, -100, sys.argv[1].encode(), 0x80001)
print('ready', flush=True)
time.sleep(1000)`;
    const child = running(t, ['python3', '-c', script, target], { stdio: ['ignore', 'pipe', 'inherit'] });
    if (child.stdout !== null) await once(child.stdout, 'data');
    return { what: 'file', pid: child.pid as number, copy: '' };
  },
  ...Object.fromEntries(
    [false, true].map((ends) => [
      ends ? 'a process whose first thread has ended' : 'a thread with a table of descriptors of its own',
      async ({ t, target }: Site) => {
        const path = join(target, 'from-lower');
        const child = running(t, ['python3', '-c', threadScript(path, ends)], { stdio: ['ignore', 'pipe', 'inherit'] });
        if (child.stdout !== null) await once(child.stdout, 'data');
        return { what: 'file' as const, pid: child.pid as number, path };
      },
    ]),
  ),
  'a socket that is bound by a relative path': async ({ t, target }) => {
    const script = "require('node:net').createServer().listen('relative', () => console.log('ready'))";
    const child = running(t, [process.execPath, '-e', script], {
      cwd: target,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    if (child.stdout !== null) await once(child.stdout, 'data');
    return { what: 'socket', pid: child.pid as number, path: join(target, 'relative') };
  },
  'an overlay in another namespace, in which the mount is no longer there': async ({ t, dir, target }) => {
    makeTree(dir, { 'else/': '' });
    makeTree(target, { 'in/l/': '', 'in/m/': '' });
    const script = `mount -t overlay else -o lowerdir=${target}/in/l:${target}/in/m ${dir}/else && umount -l ${target} && echo ready && exec ${sleep} 600`;
    const child = running(t, ['unshare', '--mount', 'sh', '-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    if (child.stdout !== null) await once(child.stdout, 'data');
    return { what: 'layer', path: join(dir, 'else'), layer: join(target, 'in/l') };
  },
};

for (const [name, hold] of Object.entries(hidden)) {
  mountTest(`a holder that names do not show: ${name}`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mount = mountOverlaySync(options);
    const expected = await hold({ t, dir, target: options.target }, mount);
    const { holders } = await findHolders(options.target, whole);
    const found = holders.find((one) =>
      Object.entries(expected).every(([key, value]) => Reflect.get(one, key) === value),
    );
    t.truthy(found, JSON.stringify(holders));
  });
}

mountTest('a file that is removed while a loop device has it', { needs: 'loop devices' }, async (t) => {
  const { target, ...options } = layers(scratch(t));
  mountOverlaySync({ ...options, target });
  const image = join(target, 'image');
  execFileSync('truncate', ['--size', '1M', image]);
  const device = execFileSync('losetup', ['--find', '--show', image], { encoding: 'utf8' }).trim();
  t.teardown(() => execFileSync('losetup', ['--detach', device]));
  rmSync(image);
  t.like(
    (await findHolders(target, whole)).holders.find(({ what }) => what === 'loop'),
    { device, path: `${image} (deleted)` },
  );
});

mountTest('without /proc, a search is not complete', { needs: 'programs without /proc' }, async (t) => {
  const { target, ...options } = layers(scratch(t));
  mountOverlaySync({ ...options, target });
  const counts =
    'overlayfs.findHolders(args[0], { timeout: 60_000 }).then(({ complete, holders }) => [complete, holders.length])';
  const command = ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /proc && exec "$@"', 'sh'];
  t.deepEqual(evaluateIn(command, counts, target), [false, 0]);
});

test.serial('the options of findHolders are checked', async (t) => {
  const refused = (options: unknown, code: string, message: RegExp) =>
    t.throwsAsync(findHolders('/', options as never), { code, message });
  await refused({ timeout: '1' }, 'ERR_INVALID_ARG_TYPE', /"timeout".*milliseconds/);
  await refused({ timeout: -1 }, 'ERR_OUT_OF_RANGE', /"timeout"/);
  await refused({ timeout: Number.NaN }, 'ERR_OUT_OF_RANGE', /"timeout"/);
  await refused({ timeuot: 1 }, 'ERR_INVALID_ARG_VALUE', /did you mean "timeout"/);
  await refused(5, 'ERR_INVALID_ARG_TYPE', /"options"/);
});

test.serial('a mount that is its own parent, as the root of a mount table can be, is not inside itself', (t) => {
  const text = '1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 / /m rw - tmpfs x rw\n3 2 0:4 / /m/n rw - tmpfs x rw\n';
  const namespace = { inode: undefined, pid: 1, table: [...splitMountinfo(Buffer.from(text))] };
  t.deepEqual(runSync(mountsInside([namespace], new Map([[1, {}]]))), [
    { what: 'inside', path: '/m' },
    { what: 'inside', path: '/m/n' },
  ]);
});

for (const hidepid of ['2', 'invisible']) {
  mountTest(
    `where /proc hides the processes of others (hidepid=${hidepid}): holders, watches and namespaces`,
    async (t) => {
      const dir = scratch(t, 'disk');
      makeTree(dir, { 'one/': '', 'two/': '', 'target/': '', 'own/one/': '', 'own/two/': '' });
      chmodSync(dir, 0o755);
      for (const name of ['own', 'own/one', 'own/two']) giveTo(join(dir, name));
      const others = bindSync(join(dir, 'one'), join(dir, 'target'));
      const file = openSync(join(dir, 'target'), 'r');
      const later = `(until [ -e ${dir}/own/go ]; do sleep 0.05; done; mount -t tmpfs late ${dir}/two) &`;
      const script = `mount -t proc -o hidepid=${hidepid} proc /proc; ${later} exec "$@"`;
      const body = `const [dir] = args;
      const said = ({ holders, complete }) => ({ length: holders.length, complete });
      const found = said(await overlayfs.findHolders(join(dir, 'target'), { timeout: Infinity }));
      const own = await overlayfs.mountOverlay({ lowerdir: [join(dir, 'own/one'), join(dir, 'own/two')], rootless: true });
      const ours = said(await overlayfs.findHolders(own, { timeout: Infinity }));
      await own.unmount();
      const listed = (await overlayfs.listMounts()).some(({ target }) => target === join(dir, 'target'));
      const watch = overlayfs.watchMounts();
      fs.writeFileSync(join(dir, 'own/go'), '');
      const { type, mount } = (await watch.next()).value;
      await watch.return();
      const watched = [type, mount.source];
      const hidden = [];
      for (const call of [overlayfs.listMounts, (options) => overlayfs.watchMounts(options).next()]) {
        await (async () => call({ namespace: '/proc/1/ns/mnt' }))().catch(({ reason, message }) => {
          hidden.push([reason, message.includes('or /proc hides its process')]);
        });
      }
      return { found, ours, listed, watched, hidden };`;
      t.deepEqual(evaluateAs(['unshare', '-m', 'sh', '-ec', script, 'sh', ...asNobody], body, dir), {
        found: { length: 0, complete: false },
        ours: { length: 1, complete: false },
        listed: true,
        watched: ['mounted', 'late'],
        hidden: [
          ['namespace-missing', true],
          ['namespace-missing', true],
        ],
      });
      closeSync(file);
      others.unmountSync();
    },
  );
}
