/**
 * The public calls in a process to which a seccomp filter denies some system calls, or which a command has put into
 * other surroundings. Prints a line of JSON for each: what became of it. The argument is a Job.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as overlayfs from 'overlayfs';
import { serve } from 'overlayfs/containerd';
import { commitImage, createImage, createLayout, openLayout, runContainer, unpack } from 'overlayfs/images';
import * as layersEntry from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { overlayfs as inProcess, program } from '../cli/run.js';
import { TestClient } from '../containerd/client.js';
import { makeNamespace } from '../support/namespaces.js';
import { MS_BIND, native } from '../support/native.js';
import { packageRoot } from '../support/package-root.js';

interface Place {
  readonly dir: string;
  /** The directory with an archive and an image that the test has made. */
  readonly made: string;
  readonly layers: { readonly lowerdir: string; readonly upperdir: string; readonly workdir: string };
  readonly target: string;
  /** An overlay that mount(8) has made before. */
  readonly mounted: string;
  readonly namespace: number;
}

const ended = (child: ReturnType<typeof overlayfs.spawn>): Promise<void> =>
  new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => (code === 0 ? resolve() : reject(new Error(`the program ended with ${code}`))));
  });

async function using(mount: overlayfs.Mount, use: (mount: overlayfs.Mount) => unknown = () => {}): Promise<void> {
  try {
    await use(mount);
  } finally {
    await mount.unmount({ detach: true });
  }
}

async function snapshotting(dir: string, use: (snapshotter: Snapshotter) => unknown): Promise<void> {
  const snapshotter = await Snapshotter.open(join(dir, 'root'), { fsync: 'none' });
  try {
    await use(snapshotter);
  } finally {
    await snapshotter.close();
  }
}

/** The image of one program that the test has made. */
const imageIn = async (made: string) => (await openLayout(join(made, 'layout'))).image('one');

/** Runs a command of the command line in this process, and throws the error that it shows. */
async function command(...args: string[]): Promise<void> {
  const names = args.slice(0, args[0] === 'image' || args[0] === 'snapshot' ? 2 : 1);
  const { code, stdout } = await inProcess(...names, '--json', ...args.slice(names.length));
  const last = stdout.trimEnd().split('\n').at(-1) || '{}';
  const { errors, findings } = JSON.parse(last) as Record<string, readonly { message: string }[]>;
  const [error] = errors ?? findings ?? [];
  if (error !== undefined) throw Object.assign(new Error(error.message), error);
  // 1 stands for no: nothing was found.
  if (code !== 0 && code !== 1) throw new Error(`the command ended with ${code}`);
}

/** Runs a program of the package, and throws what it says. */
function runProgram(file: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(process.execPath, [file, ...args], { encoding: 'utf8' });
  if (status === 0 || status === 1) return;
  const reason = /unexplained|no known cause/.test(stderr) ? 'unexplained' : undefined;
  throw Object.assign(new Error(`ended with ${status}: ${stderr}`), { hint: stderr, reason });
}

const layerFlags = ({ lowerdir, upperdir, workdir }: Place['layers']): string[] => [
  ...['--lowerdir', lowerdir, '--upperdir', upperdir, '--workdir', workdir],
];

const map = [{ container: 0, host: 1000, size: 1000 }];

/** crun refuses a machine with both versions of cgroups. */
const WRAPPER = `#!/bin/sh
exec unshare -m sh -c 'mount -t tmpfs none /sys/fs/cgroup; exec crun "$@"' sh "$@"
`;
const runtimes = [false, 'runc', ...(existsSync('/usr/bin/crun') ? (['crun'] as const) : [])] as const;

/** Each public call, as it is mostly used. */
const uses: Readonly<Record<string, (place: Place) => unknown>> = {
  mountOverlay: async ({ layers, target }) => using(await overlayfs.mountOverlay({ ...layers, target })),
  mountOverlaySync: ({ layers, target }) => overlayfs.mountOverlaySync({ ...layers, target }).unmountSync(),
  'mountOverlay, detached': async ({ layers }) =>
    using(await overlayfs.mountOverlay(layers), ({ path }) => existsSync('/proc/self/fd') && readdirSync(path)),
  'mountOverlay, rootless': async ({ layers }) => using(await overlayfs.mountOverlay({ ...layers, rootless: true })),
  'mountOverlay, idmap': async ({ layers, target }) =>
    using(await overlayfs.mountOverlay({ ...layers, target, idmap: { lowerdir: map } })),
  'mountOverlay, namespace': async ({ layers, target, namespace }) => {
    await overlayfs.mountOverlay({ ...layers, target, namespace });
    await overlayfs.unmount(target, { namespace });
  },
  replace: async ({ layers, target }) =>
    using(await overlayfs.mountOverlay({ ...layers, target }), (mount) =>
      (mount as overlayfs.OverlayMount).replace({ lowerdir: [layers.lowerdir, layers.upperdir] }),
    ),
  remount: async ({ dir, target }) =>
    using(await overlayfs.bind(dir, target), (mount) => mount.remount({ readonly: true })),
  clone: async ({ layers, target }) =>
    using(await overlayfs.mountOverlay({ ...layers, target }), async (mount) => (await mount.clone()).unmount()),
  bind: async ({ dir, target }) => using(await overlayfs.bind(dir, target)),
  'bind, readonly and recursive': async ({ dir, target }) =>
    using(await overlayfs.bind(dir, target, { readonly: true, recursive: true })),
  unmount: async ({ mounted }) => overlayfs.unmount(mounted),
  unmountRecursive: async ({ mounted }) => overlayfs.unmount(mounted, { recursive: true }),
  listMounts: () => overlayfs.listMounts(),
  'listMounts, layer': ({ layers }) => overlayfs.listMounts({ layer: layers.lowerdir }),
  'listMounts, namespace': ({ namespace }) => overlayfs.listMounts({ namespace }),
  findMount: ({ mounted }) => overlayfs.findMount(mounted),
  watchMounts: async ({ dir, target }) => {
    const watch = overlayfs.watchMounts();
    const errno = native.mount(dir, target, '', 4096, '');
    try {
      if (errno === 0) await watch.next();
    } finally {
      await watch.return?.();
    }
  },
  findHolders: ({ mounted }) => overlayfs.findHolders(mounted),
  explain: async ({ layers, target }) => {
    const [finding] = (await overlayfs.explain({ ...layers, target })).findings;
    if (finding !== undefined) throw Object.assign(new Error(finding.message), finding);
  },
  features: () => overlayfs.features(),
  spawn: async ({ layers }) =>
    using(await overlayfs.mountOverlay(layers), (mount) =>
      ended(overlayfs.spawn('true', [], { mounts: [{ source: mount, target: layers.lowerdir }], stdio: 'ignore' })),
    ),
  'spawn, with all of its own': async ({ layers }) =>
    using(await overlayfs.mountOverlay(layers), (mount) =>
      ended(
        overlayfs.spawn('true', [], {
          ...{
            mounts: [{ source: mount, target: layers.lowerdir }],
            stdio: 'ignore',
            unshare: ['net', 'pid', 'ipc', 'uts'],
          },
          ...{ mapRoot: true, readonly: ['/'] },
        }),
      ),
    ),
  whiteout: ({ dir }) => overlayfs.whiteout(join(dir, 'gone')),
  isWhiteout: ({ dir }) => overlayfs.isWhiteout(join(dir, 'lower/file')),
  makeOpaque: ({ layers }) => overlayfs.makeOpaque(layers.upperdir),
  isOpaque: ({ layers }) => overlayfs.isOpaque(layers.upperdir),
  remove: ({ dir }) => {
    mkdirSync(join(dir, 'tree/in'), { recursive: true });
    return layersEntry.remove(join(dir, 'tree'));
  },
  changes: async ({ layers: { upperdir, lowerdir } }) => {
    for await (const _ of layersEntry.changes({ upperdir, lowerdir: [lowerdir] }));
  },
  check: async ({ layers }) => layersEntry.check(layers.lowerdir),
  pack: async ({ layers }) => {
    for await (const _ of layersEntry.pack(layers.lowerdir));
  },
  apply: ({ dir, made }) => layersEntry.apply(join(made, 'layer.tar'), join(dir, 'applied')),
  merge: ({ layers: { upperdir, lowerdir } }) => layersEntry.merge(upperdir, { into: lowerdir }),
  snapshots: ({ dir }) =>
    snapshotting(dir, async (snapshotter) => {
      await snapshotter.prepare('key');
      await snapshotter.commit('key', { name: 'name' });
      await snapshotter.remove('name');
    }),
  containerd: ({ dir }) =>
    snapshotting(dir, async (snapshotter) => {
      const server = await serve(snapshotter, { address: join(dir, 'socket'), logLevel: 'silent' });
      const client = new TestClient(server.address);
      try {
        await client.call('prepare', { key: 'key' }, { deadline: 5000 });
      } finally {
        client.close();
        await server.close();
      }
    }),
  unpack: ({ dir, made }) => snapshotting(dir, async (snapshotter) => unpack(await imageIn(made), snapshotter)),
  'createImage and commitImage': ({ dir, made, layers }) =>
    snapshotting(dir, async (snapshotter) => {
      const image = await imageIn(made);
      await createImage(await createLayout(join(dir, 'layout')), [layersEntry.pack(layers.lowerdir)], {
        tag: 'made',
      });
      await snapshotter.prepare('key', (await unpack(image, snapshotter)).chainId);
      await commitImage(image, snapshotter, 'key', { tag: 'committed' });
    }),
  'cleanup of what a killed process left': ({ dir, layers }) =>
    snapshotting(dir, async (snapshotter) => {
      const before = process.env['TMPDIR'];
      process.env['TMPDIR'] = dir;
      const left = join(dir, 'overlayfs-mounts-0000000000000000');
      mkdirSync(join(left, 'mounts'), { recursive: true });
      native.mount(layers.lowerdir, join(left, 'mounts'), '', MS_BIND, '');
      const { kept } = await snapshotter.cleanup();
      native.umount(join(left, 'mounts'), 0);
      if (before === undefined) delete process.env['TMPDIR'];
      else process.env['TMPDIR'] = before;
      if (kept[0] !== undefined) throw kept[0].error;
      if (existsSync(left)) throw new Error('it is still there');
    }),
  ...Object.fromEntries(
    runtimes.map((runtime) => [
      `runContainer, ${runtime || 'without a runtime'}`,
      ({ dir, made }: Place) =>
        snapshotting(dir, async (snapshotter) => {
          const image = await imageIn(made);
          const script = join(dir, 'crun');
          writeFileSync(script, WRAPPER, { mode: 0o755 });
          const { exitCode } = await runContainer(image, {
            ...{ snapshotter, command: ['true'], stdio: 'ignore' },
            runtime: runtime === 'crun' ? script : runtime,
          });
          if (exitCode !== 0) throw new Error(`the container ended with ${exitCode}`);
        }),
    ]),
  ),
  'overlayfs mount and umount': async ({ layers, target }) => {
    await command('mount', ...layerFlags(layers), target);
    await command('umount', target);
  },
  'overlayfs run': ({ layers }) => command('run', ...layerFlags(layers), '--at', layers.lowerdir, 'true'),
  'overlayfs unshare': () => command('unshare', 'true'),
  'overlayfs ls': () => command('ls'),
  'overlayfs holders': ({ mounted }) => command('holders', mounted),
  'overlayfs explain': ({ layers, target }) => command('explain', ...layerFlags(layers), target),
  'overlayfs features': () => command('features'),
  'overlayfs pack': ({ dir, layers }) => command('pack', layers.upperdir, join(dir, 'packed.tar')),
  'overlayfs apply': ({ dir, made }) => command('apply', join(made, 'layer.tar'), join(dir, 'applied')),
  'overlayfs snapshot': ({ dir }) => command('snapshot', 'prepare', '--root', join(dir, 'root'), 'key'),
  'overlayfs image run': ({ dir, made }) =>
    command('image', 'run', '--root', join(dir, 'root'), `${join(made, 'layout')}:one`, 'true'),
  'the program overlayfs': () => runProgram(program, 'ls'),
  'mount.overlay': ({ layers: { lowerdir, upperdir, workdir }, target }) =>
    runProgram(
      ...[join(packageRoot, 'dist/mount-helper.cjs'), 'overlay', target, '-o'],
      `lowerdir=${lowerdir},upperdir=${upperdir},workdir=${workdir}`,
    ),
};

export const useNames: readonly string[] = Object.keys(uses);

export interface Outcome {
  readonly use: string;
  readonly code?: string;
  readonly reason?: string;
  readonly message?: string;
  readonly hint?: string;
  readonly hangs?: true;
}

export interface Job {
  readonly dir: string;
  readonly made: string;
  /** The numbers of the denied system calls, and their errno. */
  readonly denied: readonly number[];
  readonly errno?: number;
  readonly uses: readonly string[];
  /** In ms. A call that takes longer hangs. */
  readonly patience: number;
  /** The command that runs this program again with the same job, once the places are prepared. */
  readonly command?: readonly string[];
  /** Limits for prlimit(1), once all modules are loaded. */
  readonly limits?: readonly string[];
}

/** The descriptor of a namespace that was made before the surroundings were. */
const INHERITED = 3;

let namespace: number | undefined;

function placeAt(dir: string, made: string): Place {
  const at = (name: string): string => join(dir, name);
  const layers = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') };
  return {
    ...{ dir, made, layers, target: at('target'), mounted: at('mounted') },
    get namespace() {
      namespace ??= makeNamespace();
      return namespace;
    },
  };
}

function prepare(dir: string): void {
  for (const name of ['lower/in', 'lower2', 'upper', 'work', 'target', 'mounted', 'applied']) {
    mkdirSync(join(dir, name), { recursive: true });
  }
  writeFileSync(join(dir, 'lower/file'), 'file');
  writeFileSync(join(dir, 'upper/file'), 'changed');
  const at = (name: string): string => join(dir, name);
  spawnSync('mount', ['-t', 'overlay', 'x', '-o', `lowerdir=${at('lower2')}:${at('lower')}`, at('mounted')]);
}

async function tried(use: string, place: Place, patience: number): Promise<Outcome> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Outcome>((resolve) => {
    timer = setTimeout(() => resolve({ use, hangs: true }), patience);
  });
  const done = (async (): Promise<Outcome> => {
    try {
      await uses[use]?.(place);
      return { use };
    } catch (error) {
      const { code = '', reason = '', message, hint = '' } = error as overlayfs.OverlayError;
      return { use, code, reason, message, hint };
    }
  })();
  const outcome = await Promise.race([done, late]);
  clearTimeout(timer);
  return outcome;
}

if (process.argv[1] === import.meta.filename) {
  const [text = '{}', isPrepared] = process.argv.slice(2);
  const { dir, made, denied, errno = 0, uses: chosen, patience, command = [], limits = [] } = JSON.parse(text) as Job;
  const dirs = chosen.map((_, i) => join(dir, String(i)));
  if (isPrepared === undefined) dirs.forEach(prepare);
  if (isPrepared === undefined && command.length > 0) {
    const [first = '', ...rest] = [...command, process.execPath, import.meta.filename, text, 'prepared'];
    const stdio = ['inherit', 'inherit', 'inherit', makeNamespace()] as const;
    process.exit(spawnSync(first, rest, { stdio: [...stdio] }).status ?? 1);
  }
  if (isPrepared !== undefined) namespace = INHERITED;
  const places = dirs.map((each) => placeAt(each, made));
  if (limits.length > 0) spawnSync('prlimit', ['--pid', String(process.pid), ...limits]);
  if (denied.length > 0) {
    namespace = makeNamespace();
    if (native.denyCalls([...denied], errno) !== 0) throw new Error('there is no filter');
  }
  for (const [i, use] of chosen.entries()) console.log(JSON.stringify(await tried(use, places[i] as Place, patience)));
  process.exit();
}
