/** Mounts without privilege and programs that see them, many after each other, of which some fail. */
import { join } from 'node:path';
import { makeTree, mountTest, scaled, scratch } from '../support/index.js';
import { asNobody, evaluateAs, giveTo } from '../support/plain-user.js';

/** So few user namespaces may there be that one left over in each thirty rounds would show. */
const ALLOWED = 32;
const limited = [
  'unshare',
  '-Ur',
  'sh',
  '-c',
  `echo ${ALLOWED} > /proc/sys/user/max_user_namespaces && exec "$@"`,
  'sh',
];

const rounds = `
  const [dir, count] = args;
  const at = join(dir, 'lower');
  const layers = { lowerdir: at, upperdir: join(dir, 'upper'), workdir: join(dir, 'work') };
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const numbers = (path) => fs.readdirSync(path).filter((name) => /^\\d+$/.test(name));
  const read = (path) => { try { return fs.readFileSync(path, 'latin1'); } catch { return ''; } };
  // Zombies have a parent too, and a thread can be one.
  const children = () => numbers('/proc').filter((pid) => read('/proc/' + pid + '/stat').replace(/^.*\\) /, '').split(' ')[1] === String(process.pid));
  const threads = () => numbers('/proc/self/task').filter((id) => read('/proc/self/task/' + id + '/comm') === 'overlayfs\\n').length;
  const descriptors = () => fs.readdirSync('/proc/self/fd').length;

  // The kernel frees namespaces in its own time.
  const patient = async (make) => {
    for (let i = 0; ; i++) {
      try { return await make(); } catch (error) {
        if (error.code !== 'ENOSPC' || i === 200) throw error;
        await pause(10);
      }
    }
  };
  const mount = (rootless, isSync, more) => {
    const options = { ...layers, rootless, ...more };
    return isSync ? overlayfs.mountOverlaySync(options) : overlayfs.mountOverlay(options);
  };
  const run = (command, args, options) => new Promise((resolve) => {
    let reason;
    overlayfs.spawn(command, args, { stdio: 'ignore', env: { PATH: '/usr/bin:/bin' }, ...options })
      .on('error', (error) => { reason = error.reason ?? error.code; })
      .on('close', (code, signal) => resolve(reason ?? signal ?? code));
  });
  const programs = [
    ['true', [], {}, 0],
    ['no-such-program', [], {}, 'program-missing'],
    ['sh', ['-c', 'test "$(cat file)" = file && echo > made && rm made && exit 7'], { cwd: at }, 7],
    ['true', [], { target: join(dir, 'none') }, 'target-missing'],
    ['sh', ['-c', 'kill -TERM $$'], {}, 'SIGTERM'],
    ['true', [], { target: join(dir, 'lower/file') }, 'target-not-directory'],
    ['true', [], { cwd: join(dir, 'none') }, 'path-missing'],
    ['sleep', ['60'], { timeout: 1 }, 'SIGTERM'],
  ];
  // How many namespaces are left: at the same time there can be so many mounts.
  const capacity = async () => {
    await pause(300);
    const all = [];
    for (;;) {
      const one = await patientFor(20, () => overlayfs.mountOverlay({ lowerdir: [at, join(dir, 'second')], rootless: true }));
      if (one === undefined) break;
      all.push(one);
    }
    for (const one of all) one.unmountSync();
    await pause(300);
    return all.length;
  };
  const patientFor = async (times, make) => {
    for (let i = 0; i < times; i++) {
      try { return await make(); } catch (error) { if (error.code !== 'ENOSPC') throw error; }
      await pause(10);
    }
  };

  const wrong = [];
  const round = async (i) => {
    const mounted = await patient(() => mount(i % 3 === 0 ? 'keep' : true, i % 2 === 0));
    const [command, words, { target = at, ...options }, outcome] = programs[i % programs.length];
    let found = 'rootless-forbidden';
    for (let tries = 0; found === 'rootless-forbidden' && tries < 200; tries++) {
      if (tries > 0) await pause(10);
      found = await run(command, words, { mounts: [{ source: mounted, target }], ...options });
    }
    if (found !== outcome) wrong.push([i, command, found]);
    if (i % 5 === 0) await mounted.unmount();
    else mounted.unmountSync();
    if (i % 7 !== 0) return;
    const refused = await patient(() => mount(i % 2 === 0 || 'keep', i % 3 === 0, { lowerdir: join(dir, 'none') })).catch((error) => error.reason);
    if (refused !== 'lower-missing') wrong.push([i, refused]);
  };

  for (let i = 0; i < 24; i++) await round(i);
  const before = [descriptors(), children(), await capacity()];
  const sleeper = childProcess.spawn('sleep', ['600'], { stdio: 'ignore' });
  const plain = [];
  for (let i = 0; i < Number(count); i++) {
    if (i % 50 === 0) {
      const child = childProcess.spawn('sh', ['-c', 'exit 3'], { stdio: 'ignore' });
      plain.push(new Promise((resolve) => child.on('exit', resolve)));
    }
    await round(i);
  }
  // Kept namespaces that are let go meanwhile come again.
  (await patient(() => mount('keep', true))).unmountSync();
  const slept = new Promise((resolve) => sleeper.on('exit', (code, signal) => resolve(signal)));
  sleeper.kill();
  const codes = new Set(await Promise.all(plain));
  const signal = await slept;
  for (let i = 0; i < 400 && threads() > 0; i++) await pause(10);
  const idle = threads();
  return { wrong, before, after: [descriptors(), children(), await capacity()], codes: [...codes], signal, threads: idle };`;

mountTest(
  'a thousand rounds leave no descriptor, process, thread, namespace or zombie, and other children alone',
  { needs: 'rootless' },
  (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'lower/file': 'file', 'second/': '', 'upper/': '', 'work/': '' });
    giveTo(dir, ...['lower', 'lower/file', 'upper', 'work'].map((name) => join(dir, name)));
    const outcome = evaluateAs([...asNobody, ...limited], rounds, dir, String(scaled(1000, 20))) as {
      readonly wrong: unknown;
      readonly before: readonly [number, unknown, number];
      readonly after: readonly [number, unknown, number];
      readonly codes: unknown;
      readonly signal: unknown;
      readonly threads: unknown;
    };
    t.deepEqual(outcome.wrong, [], JSON.stringify(outcome));
    const [[descriptors, children, capacity], [left, others, now]] = [outcome.before, outcome.after];
    t.deepEqual(others, children);
    // A kept namespace is let go, with its descriptor, when the machine has none left: earlier or later, under load.
    t.is(left + now, descriptors + capacity);
    t.true(Math.abs(now - capacity) <= 2, `${capacity} namespaces left, then ${now}`);
    t.true(capacity > 1 && capacity <= ALLOWED);
    t.deepEqual([outcome.codes, outcome.signal, outcome.threads], [[3], 'SIGTERM', 0]);
  },
);
