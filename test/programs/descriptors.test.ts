/** The descriptors that a program finds when it starts: the standard streams, and what the caller has named. */
import { coverCgroups, hasProgram, makeProgramImage } from '../images/helper.js';
import { layers, mountTest, scratch } from '../support/index.js';
import { addDependency, evaluateAs } from '../support/plain-user.js';

/** Descriptor 9 stays open in all children that do not close it. */
const leaking = ['sh', '-c', 'exec 9</dev/null; exec "$@"', 'sh'];

/** The shell keeps the listing's own descriptor open only while it expands the pattern. */
const prelude = `
  const [dir, how] = args;
  const list = 'for f in /proc/self/fd/*; do [ -L $f ] && echo \${f##*/} $(readlink $f); done; exit 0';
  if (how === 'refused') {
    const support = process.getBuiltinModule('node:module').createRequire(process.cwd() + '/')('./build/Release/test_support.node');
    if (support.denyCalls([436], 1) !== 0) throw new Error('no filter');
  }
  const textOf = (child) => new Promise((resolve, reject) => {
    let text = '';
    child.stdout.on('data', (piece) => (text += piece));
    child.on('error', reject).on('close', () => resolve(text.trim().split('\\n').map((line) => line.split(' '))));
  });
  const numbersOf = async (child) => (await textOf(child)).map(([number]) => number).join(' ');
  const at = join(dir, 'merged');
  const mount = await overlayfs.mountOverlay({ lowerdir: join(dir, 'lower'), upperdir: join(dir, 'upper'), workdir: join(dir, 'work') });`;

for (const how of ['allowed', 'refused'] as const) {
  mountTest(`a program of spawn, with close_range(2) ${how}`, { needs: 'detached mounts that can be cloned' }, (t) => {
    const dir = scratch(t, 'disk');
    layers(dir);
    const found = evaluateAs(
      leaking,
      `${prelude}
      const file = fs.openSync('/dev/null');
      const found = {};
      for (const [name, options] of Object.entries({
        plain: {}, mounted: { mounts: [{ source: mount, target: at }] }, root: { mounts: [{ source: mount, target: at }], mapRoot: true }, listed: { mounts: [{ source: '/etc', target: at }] },
        readonly: { readonly: ['/usr'] }, hidden: { hidden: ['/root'] }, writable: { writable: ['/tmp'] },
        pids: { unshare: ['pid'] }, network: { unshare: ['net'] }, all: { mounts: [{ source: mount, target: at }], unshare: ['pid', 'ipc', 'uts'], mapRoot: true },
        named: { mounts: [{ source: mount, target: at }], stdio: ['ignore', 'pipe', 'inherit', 'ignore', file] },
        gap: { mounts: [{ source: mount, target: at }], unshare: ['pid'], stdio: ['ignore', 'pipe', ...Array(8).fill('ignore'), 'pipe'] },
      })) found[name] = await numbersOf(overlayfs.spawn('sh', ['-c', list], options));
      await mount.unmount();
      return found;`,
      dir,
      how,
    );
    const all = ['plain', 'mounted', 'root', 'listed', 'readonly', 'hidden', 'writable', 'pids', 'network', 'all'];
    t.deepEqual(found, {
      ...Object.fromEntries(all.map((name) => [name, '0 1 2'])),
      named: '0 1 2 4',
      gap: '0 1 10 2',
    });
  });
}

mountTest('a program of overlayfs run', { needs: 'mountSetattr' }, (t) => {
  const dir = scratch(t, 'disk');
  layers(dir);
  const found = evaluateAs(
    leaking,
    `${prelude}
    const run = ['dist/cli/main.js', 'run', '--lowerdir', join(dir, 'lower'), '--lowerdir', join(dir, 'upper'), '--at', at, '--', 'sh', '-c', list];
    return numbersOf(childProcess.spawn(process.execPath, run, { stdio: ['ignore', 'pipe', 'inherit'] }));`,
    dir,
  );
  t.is(found, '0 1 2');
});

for (const runtime of ['runc', 'crun', 'none'] as const) {
  mountTest(`a container, by ${runtime}`, { needs: 'mountSetattr' }, async (t) => {
    if (runtime !== 'none' && !hasProgram(runtime)) {
      t.pass(`${runtime} is not installed`);
      return;
    }
    if (runtime === 'crun') coverCgroups(t);
    const dir = scratch(t, 'disk');
    layers(dir);
    await makeProgramImage(dir);
    addDependency('@photostructure/sqlite');
    const found = evaluateAs(
      leaking,
      `${prelude}
      const { openLayout, runContainer } = await import('overlayfs/images');
      const { Snapshotter } = await import('overlayfs/snapshots');
      const snapshotter = await Snapshotter.open(join(dir, 'root'));
      let text;
      await runContainer(await (await openLayout(join(dir, 'layout'))).image('one'), {
        snapshotter, command: ['sh', '-c', list.replace('$(readlink $f)', '')], runtime: how === 'none' ? false : how,
        stdio: ['ignore', 'pipe', 'inherit'], onStart: ({ process }) => { text = numbersOf(process); } });
      await snapshotter.close();
      return text;`,
      dir,
      runtime,
    );
    t.is(found, '0 1 2');
  });
}

mountTest(
  "a program of Node's own child_process, beside all that the library keeps open",
  { needs: 'mountSetattr' },
  (t) => {
    const dir = scratch(t, 'disk');
    layers(dir);
    addDependency('@photostructure/sqlite');
    const found = evaluateAs(
      leaking,
      `${prelude}
    const start = () => textOf(childProcess.spawn('sh', ['-c', list], { stdio: ['ignore', 'pipe', 'inherit'] }));
    const before = (await start()).map(([number]) => number);
    const { Snapshotter } = await import('overlayfs/snapshots');
    const snapshotter = await Snapshotter.open(join(dir, 'root'));
    const watch = overlayfs.watchMounts()[Symbol.asyncIterator]();
    const event = watch.next();
    const bound = await overlayfs.bind(join(dir, 'lower'), at);
    await event;
    const found = await start();
    await watch.return();
    await bound.unmount();
    await mount.unmount();
    await snapshotter.close();
    return found.filter(([number]) => !before.includes(number)).map(([, path]) => path);`,
      dir,
    ) as string[];
    t.deepEqual(found, []);
  },
);
