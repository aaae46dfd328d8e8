/** A file system that does not answer holds the calls that ask it, and no others. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isWhiteout, mountOverlay, unmount } from 'overlayfs';
import {
  countDescriptors,
  countThreads,
  eventually,
  layers,
  mountsBelow,
  mountTest,
  native,
  packageRoot,
  scratch,
} from '../support/index.js';

const O_RDWR = 2;
const MNT_FORCE_DETACH = 3;

/** A FUSE file system whose server has opened the door and says nothing. */
function mountSilent(target: string): () => void {
  const server = openSync('/dev/fuse', O_RDWR);
  const data = `fd=${server},rootmode=40000,user_id=0,group_id=0`;
  const errno = native.mount('silent', target, 'fuse', 0, data);
  if (errno !== 0) throw new Error(`no FUSE: errno ${errno}`);
  return () => {
    native.umount(target, MNT_FORCE_DETACH);
    closeSync(server);
  };
}

mountTest('a diagnosis does not wait for a file system that hangs', { needs: 'FUSE' }, async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  mkdirSync(join(dir, 'silent'));
  const end = mountSilent(join(dir, 'silent'));
  try {
    const lowerdir = [options.lowerdir, join(dir, 'silent')];
    const error = await t.throwsAsync(mountOverlay({ ...options, lowerdir, target: join(dir, 'none') }));
    t.like(error, { code: 'ENOENT', reason: 'target-missing', path: join(dir, 'none') });
  } finally {
    end();
  }
});

/** The device number of the mount at a path, as in proc_pid_mountinfo(5). */
const deviceAt = (path: string): string | undefined => mountsBelow(path).at(-1)?.line.split(' ')[2];

mountTest(
  'a mount does not wait for what has the device number of an earlier overlay',
  { needs: 'FUSE' },
  async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const silent = join(dir, 'silent');
    mkdirSync(silent);
    let end = () => {};
    try {
      // The kernel hands out the lowest free number. Other programs take numbers too.
      for (let number: string | undefined; number === undefined || number !== deviceAt(silent); ) {
        end();
        const mounted = await mountOverlay(options);
        number = deviceAt(mounted.path);
        await mounted.unmount();
        end = mountSilent(silent);
      }
      await (await mountOverlay(options)).unmount();
    } finally {
      end();
    }
  },
);

mountTest("a mount does not wait for the paths of others' overlays", { needs: 'FUSE' }, async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const covered = join(dir, 'covered');
  mkdirSync(covered);
  const others = layers(covered);
  const set = `lowerdir=${others.lowerdir},upperdir=${others.upperdir},workdir=${others.workdir}`;
  t.is(native.mount('other', others.target, 'overlay', 0, set), 0);
  // From here on, no path of the other overlay leads anywhere.
  const end = mountSilent(covered);
  try {
    for (let i = 0; i < 2; i++) await (await mountOverlay(options)).unmount();
  } finally {
    end();
  }
  // A search of another call may hold it for a moment.
  await eventually(t, () => native.umount(others.target, 0) === 0);
});

mountTest(
  'a process that is killed takes the child of its rootless mount with it',
  { needs: ['FUSE', 'rootless'] },
  async (t) => {
    const dir = scratch(t);
    const { target: _, ...options } = layers(dir);
    mkdirSync(join(dir, 'silent'));
    const end = mountSilent(join(dir, 'silent'));
    try {
      const wanted = { ...options, lowerdir: [options.lowerdir, join(dir, 'silent/lower')], rootless: true };
      const program = `import { mountOverlay } from 'overlayfs'; mountOverlay(${JSON.stringify(wanted)});`;
      const args = ['--input-type=module', '-e', program];
      const killed = spawn(process.execPath, args, { cwd: packageRoot, stdio: ['ignore', 'ignore', 'inherit'] });
      const childOf = () =>
        readdirSync(`/proc/${killed.pid}/task`)
          .flatMap((task) => readFileSync(`/proc/${killed.pid}/task/${task}/children`, 'utf8').split(' '))
          .find((pid) => pid !== '' && 'DS'.includes(stateOf(pid) ?? '?'));
      let child = '';
      let looks = 0;
      // A child that waits for long waits for the file system.
      await eventually(
        t,
        () => {
          const found = childOf();
          looks = found === child ? looks + 1 : 0;
          child = found ?? '';
          return looks >= 10;
        },
        60,
      );
      killed.kill('SIGKILL');
      await once(killed, 'exit');
      await eventually(t, () => ['Z', 'X', undefined].includes(stateOf(child)));
    } finally {
      end();
    }
  },
);

/** The state of a process, as in proc_pid_stat(5); undefined when it is gone. */
function stateOf(pid: string): string | undefined {
  try {
    return /\) (.)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1];
  } catch {
    return undefined;
  }
}

/** As in native/threads.h. */
const MOST_THREADS = 16;
const MOST_WITH_STUCK = 128;

mountTest('sixteen calls that hang do not stop the seventeenth', { needs: 'FUSE' }, async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  mkdirSync(join(dir, 'silent'));
  const before = countDescriptors();
  const end = mountSilent(join(dir, 'silent'));
  let settled = 0;
  const hang = (count: number) =>
    Array.from({ length: count }, () => {
      const pending = isWhiteout(join(dir, 'silent/file'));
      const count = () => settled++;
      pending.then(count, count);
      return pending;
    });
  const pending = hang(MOST_THREADS);
  try {
    t.false(await isWhiteout(join(dir, 'lower/from-lower')));
    // From then on as many as before are at hand.
    for (let round = 0; round < 20; round++) {
      const made = await mountOverlay(options);
      await Promise.all(Array.from({ length: MOST_THREADS }, () => isWhiteout(options.lowerdir)));
      await unmount(made.target as string);
    }
    pending.push(...hang(2 * MOST_THREADS));
    t.false(await isWhiteout(options.lowerdir));
    t.is(settled, 0);
    // Calls that are never served take no more threads than there may be.
    pending.push(...hang(2 * MOST_WITH_STUCK));
    await eventually(t, () => countThreads() >= MOST_WITH_STUCK, 30);
    t.true(countThreads() <= MOST_WITH_STUCK + 1);
  } finally {
    end();
  }
  await Promise.allSettled(pending);
  await eventually(t, () => countThreads() === 0);
  t.is(countDescriptors(), before);
});

const needs = ['FUSE', 'an exit with threads that hang'] as const;
mountTest('a process with calls that hang exits within a second', { needs }, async (t) => {
  const dir = scratch(t);
  const { lowerdir, target } = layers(dir);
  mkdirSync(join(dir, 'silent'));
  const end = mountSilent(join(dir, 'silent'));
  const mounts = mountsBelow(dir);
  const script = `
    import { isWhiteout, mountOverlay } from 'overlayfs';
    const [dir, lower, target] = process.argv.slice(1);
    for (let i = 0; i < 8; i++) void isWhiteout(dir + '/silent/file').catch(() => {});
    const layers = { upperdir: dir + '/new/upper', workdir: dir + '/new/work', create: true };
    void mountOverlay({ lowerdir: dir + '/silent/lower', ...layers, target }).catch(() => {});
    void mountOverlay({ lowerdir: [lower, dir + '/silent'], target }).catch(() => {});
    setTimeout(() => {
      process.on('exit', () => console.log('exit'));
      process.exit(3);
    }, Number(process.argv[4]));`;
  try {
    for (const wait of [0, 20, 1500]) {
      // The least of some: the machine does other things too.
      let least = Number.POSITIVE_INFINITY;
      for (let round = 0; round < 5 && least >= 1000; round++) {
        const args = ['--input-type=module', '-e', script, dir, lowerdir, target, String(wait)];
        const child = spawn(process.execPath, args, { cwd: packageRoot, stdio: ['ignore', 'pipe', 'inherit'] });
        await once(child.stdout, 'data');
        const start = performance.now();
        t.deepEqual(await once(child, 'exit'), [3, null]);
        least = Math.min(least, performance.now() - start);
      }
      t.true(least < 1000, `${least} ms`);
    }
    t.deepEqual(mountsBelow(dir), mounts);
  } finally {
    end();
  }
});
