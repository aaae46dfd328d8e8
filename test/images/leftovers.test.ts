/** A clean-up finds what killed processes have left, and touches nothing of those that live. The kernel is the judge. */
import { type ChildProcess, execFileSync, fork, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { basename, isAbsolute, join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { bindSync } from 'overlayfs';
import type { Snapshotter } from 'overlayfs/snapshots';
import { run } from '../cli/run.js';
import { generator, makeTree, mountsBelow, mountTest, scaled, scratch } from '../support/index.js';
import { addDependency, asNobody, evaluateAs, giveTo } from '../support/plain-user.js';
import { coverCgroups, hasProgram, makeProgramImage, openSnapshotter } from './helper.js';

const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

/** The programs of containers that run, by the argument that marks them. */
const running = (mark: string): string[] =>
  readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'latin1') === `sleep\0${mark}\0`;
    } catch {
      return false;
    }
  });

async function until(condition: () => boolean): Promise<void> {
  for (let left = 500; left > 0 && !condition(); left--) await sleep(20);
}

async function keysOf(snapshotter: Snapshotter): Promise<string[]> {
  const keys: string[] = [];
  for await (const { name, kind } of snapshotter.list()) if (kind !== 'committed') keys.push(name);
  return keys.sort();
}

/** Sets the directory for temporary files of this process and its children. */
function temporary(t: ExecutionContext, dir: string): string {
  const path = join(dir, 'tmp');
  mkdirSync(path);
  const before = process.env['TMPDIR'];
  process.env['TMPDIR'] = path;
  t.teardown(() => {
    if (before === undefined) delete process.env['TMPDIR'];
    else process.env['TMPDIR'] = before;
  });
  return path;
}

mountTest(
  'after kills at random moments nothing of the dead is left, and nothing of the living is touched',
  async (t) => {
    t.log(`OVERLAYFS_TEST_SEED=${seed}`);
    t.timeout(600_000);
    const random = generator(seed);
    const dir = scratch(t, 'disk');
    const tmp = temporary(t, dir);
    const root = join(dir, 'root');
    const image = await makeProgramImage(dir);
    const snapshotter = await openSnapshotter(t, root);
    const start = async (name: string, mark: string, way: string): Promise<ChildProcess> => {
      const args = [root, image.layout.path, join(dir, name), mark, way];
      const child = fork(join(import.meta.dirname, 'leaver.js'), args, {
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      });
      t.teardown(() => child.kill('SIGKILL'));
      await Promise.race([once(child, 'message'), once(child, 'exit')]);
      return child;
    };
    const [lives, dies] = [`7${seed}`, `8${seed}`];
    const alive = await start('alive', lives, 'alive');
    await until(() => running(lives).length > 0);
    const ofLiving = {
      tmp: readdirSync(tmp).sort(),
      keys: await keysOf(snapshotter),
      mounts: mountsBelow(tmp).map(({ line }) => line),
      programs: running(lives),
    };
    t.is(ofLiving.tmp.length, 2);
    t.is(ofLiving.keys.length, 2);
    let left = 0;
    for (let round = 0; round < scaled(30, 2); round++) {
      const children = await Promise.all([1, 2, 3].map((i) => start(`dies${i}`, dies, `${seed + round * 3 + i}`)));
      const ends = children.map((child) => once(child, 'exit'));
      for (const child of children) {
        await sleep(random(150));
        if (random(3) === 0) left += (await snapshotter.cleanup()).left.length;
        child.kill('SIGKILL');
      }
      await Promise.all(ends);
      for (const child of children) t.is(child.signalCode, 'SIGKILL', `round ${round}`);
      // The kernel ends a container with its caller, and a detached mount with its last descriptor.
      await until(() => running(dies).length === 0);
      const cleaned = await snapshotter.cleanup();
      left += cleaned.left.length;
      t.deepEqual(cleaned.kept, [], `round ${round}`);
      t.deepEqual(running(dies), []);
      t.deepEqual(
        {
          tmp: readdirSync(tmp).sort(),
          keys: await keysOf(snapshotter),
          mounts: mountsBelow(tmp).map(({ line }) => line),
          programs: running(lives),
        },
        ofLiving,
        `round ${round}`,
      );
      const answer = once(alive, 'message');
      alive.send('look');
      t.like((await answer)[0], { read: lives + lives, isRunning: true }, `round ${round}`);
      const ids: string[] = [];
      for await (const { id } of snapshotter.list()) ids.push(String(id));
      t.deepEqual(readdirSync(join(root, 'snapshots')).sort(), ids.sort());
    }
    t.log(`${left} found`);
    alive.kill('SIGKILL');
    await once(alive, 'exit');
    await until(() => running(lives).length === 0);
    const last = await snapshotter.cleanup();
    t.is(last.left.length, 4);
    for (const { maker } of last.left)
      t.like(maker, { pid: alive.pid, program: join(import.meta.dirname, 'leaver.js') });
    t.deepEqual([readdirSync(tmp), await keysOf(snapshotter), mountsBelow(tmp), running(lives)], [[], [], [], []]);
  },
);

for (const runtime of ['runc', 'crun'] as const) {
  mountTest(`a container by ${runtime} whose caller was killed is ended`, async (t) => {
    if (!hasProgram(runtime)) {
      t.pass(`${runtime} is not installed`);
      return;
    }
    if (runtime === 'crun') coverCgroups(t);
    const dir = scratch(t, 'disk');
    const tmp = temporary(t, dir);
    const image = await makeProgramImage(dir);
    const root = join(dir, 'root');
    const snapshotter = await openSnapshotter(t, root);
    const script = `const [root, path, runtime, mark, wait] = process.argv.slice(1);
      const { Snapshotter } = await import('overlayfs/snapshots');
      const { openLayout, runContainer } = await import('overlayfs/images');
      const image = await (await openLayout(path)).image('one');
      setTimeout(() => process.kill(process.pid, 'SIGKILL'), 10_000);
      await runContainer(image, { snapshotter: await Snapshotter.open(root), runtime, command: ['sleep', mark], stdio: 'ignore',
        onStart: () => setTimeout(() => process.kill(process.pid, 'SIGKILL'), Number(wait)) });`;
    const groups = (name: string): string =>
      spawnSync('find', ['/sys/fs/cgroup', '-name', name], { encoding: 'utf8' }).stdout;
    const random = generator(seed);
    for (let round = 0; round < scaled(20, 2); round++) {
      const mark = `9${seed}${round}`;
      const given =
        round % 2 === 0
          ? runtime
          : relative(import.meta.dirname, execFileSync('which', [runtime], { encoding: 'utf8' }).trim());
      const wait = round === 0 ? 1500 : random(200);
      const args = ['--input-type=module', '-e', script, root, image.layout.path, given, mark, `${wait}`];
      t.throws(() => execFileSync(process.execPath, args, { cwd: import.meta.dirname, stdio: 'ignore' }));
      if (round === 0) t.is(running(mark).length, 1, 'it goes on');
      const [name = ''] = readdirSync(tmp);
      const { runtime: named } = JSON.parse(readFileSync(join(tmp, name, 'maker'), 'utf8'));
      t.true(isAbsolute(named[0]));
      const { left, kept } = await snapshotter.cleanup();
      t.deepEqual(kept, []);
      t.deepEqual(left.map(({ path }) => basename(path)).length, 2, `round ${round}, ${wait} ms`);
      await sleep(50);
      t.deepEqual([running(mark), readdirSync(tmp), await keysOf(snapshotter), mountsBelow(tmp)], [[], [], [], []]);
      t.false(existsSync(`/run/${runtime}/${name}`));
      t.is(groups(name), '');
    }
  });
}

mountTest(
  'a clean-up leaves what others made, links, and mounts in use; the command says who made what it removed',
  async (t) => {
    const dir = scratch(t, 'disk');
    const tmp = temporary(t, dir);
    const name = (i: number): string => `overlayfs-mounts-${`${i}`.padStart(16, '0')}`;
    const maker = { pid: 5, program: 'evil\u001b[2J', made: '2026-01-01T00:00:00.000Z' };
    makeTree(dir, { 'precious/file': 'x' });
    makeTree(tmp, {
      [`${name(1)}/maker`]: JSON.stringify(maker),
      [`${name(2)}/maker`]: '{"pid":',
      [`${name(3)}/file`]: '',
      [`${name(4)}/inside/`]: '',
      [`${name(6)}/mounts/`]: '',
      'overlayfs-mounts-AbCdEf/file': '',
      'others/': '',
    });
    symlinkSync(join(dir, 'precious'), join(tmp, name(5)));
    symlinkSync(join(dir, 'precious'), join(tmp, name(1), 'link'));
    giveTo(join(tmp, name(3)));
    bindSync(join(dir, 'precious'), join(tmp, name(4), 'inside'));
    bindSync(join(dir, 'precious'), join(tmp, name(6), 'mounts'));
    await openSnapshotter(t, join(dir, 'root'));
    const cwd = process.cwd();
    process.chdir(join(tmp, name(4), 'inside'));
    const said = run(['snapshot', 'cleanup', '--root', join(dir, 'root')]);
    process.chdir(cwd);
    t.is(said.code, 2);
    t.regex(said.stderr, /inside/);
    t.deepEqual(said.stdout.split('\n').sort().slice(1), [
      `${join(tmp, name(1))} of process 5, evil\\033[2J, made 2026-01-01T00:00:00.000Z`,
      join(tmp, name(2)),
      join(tmp, name(6)),
    ]);
    t.deepEqual(readdirSync(tmp).sort(), ['others', 'overlayfs-mounts-AbCdEf', name(3), name(4), name(5)].sort());
    t.is(readFileSync(join(dir, 'precious/file'), 'utf8'), 'x');
    t.is(run(['snapshot', 'cleanup', '--root', join(dir, 'root')]).code, 0);
    t.false(existsSync(join(tmp, name(4))));
    t.is(readFileSync(join(dir, 'precious/file'), 'utf8'), 'x');
  },
);

for (const hidepid of ['2', 'invisible']) {
  mountTest(`a plain user cleans up where /proc hides the processes of others (hidepid=${hidepid})`, async (t) => {
    const dir = scratch(t, 'disk');
    execFileSync('chmod', ['755', dir]);
    addDependency('@photostructure/sqlite');
    const tmp = temporary(t, dir);
    makeTree(dir, { 'own/': '' });
    giveTo(tmp, join(dir, 'own'));
    const script = `mount -t proc -o hidepid=${hidepid} proc /proc; exec "$@"`;
    const body = `const { Snapshotter } = await import('overlayfs/snapshots');
      const snapshotter = await Snapshotter.open(join(args[0], 'own/root'));
      await snapshotter.hold('lives');
      const script = 'const { Snapshotter } = await import("overlayfs/snapshots");' +
        'await (await Snapshotter.open(process.argv[1])).hold("dies"); process.kill(process.pid, "SIGKILL")';
      childProcess.spawnSync(process.execPath, ['--input-type=module', '-e', script, join(args[0], 'own/root')]);
      fs.mkdirSync(join(args[0], 'tmp/overlayfs-container-0000000000000000'));
      const { left, kept } = await snapshotter.cleanup();
      const keys = [];
      for await (const { name } of snapshotter.list()) keys.push(name);
      return { left: left.map(({ key, maker }) => [key, typeof maker?.startTime]), kept, keys };`;
    t.deepEqual(evaluateAs(['unshare', '-m', 'sh', '-ec', script, 'sh', ...asNobody], body, dir), {
      left: [
        [null, 'undefined'],
        ['dies', 'string'],
      ],
      kept: [],
      keys: ['lives'],
    });
  });
}
