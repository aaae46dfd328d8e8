/** Programs that see a mount at a place: by a plain user, and with privilege. */
import { execFileSync, spawn as nodeSpawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'ava';
import { mountOverlaySync, OverlayError, type OverlayMount, type SpawnOptions, spawn } from 'overlayfs';
import { chrooted } from '../support/chroot.js';
import {
  countDescriptors,
  hasFeature,
  layers,
  makeTree,
  mountsBelow,
  mountTest,
  scaled,
  scratch,
} from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { evaluateAs, evaluateAsNobody, giveTo } from '../support/plain-user.js';

const needs = ['rootless', 'detached mounts that can be cloned'] as const;

/** In a child of the plain user: `run` starts a program and comes to what it printed and how it ended. */
const prelude = `
  const [dir] = args;
  const at = join(dir, 'lower');
  const mount = await overlayfs.mountOverlay({
    lowerdir: at, upperdir: join(dir, 'upper'), workdir: join(dir, 'work'), rootless: true,
  });
  const env = { ...process.env, HOME: dir, GIT_CONFIG_NOSYSTEM: '1', LC_ALL: 'C', PATH: '/usr/local/bin:/usr/bin:/bin' };
  delete env.XDG_CONFIG_HOME;
  const run = (command, args = [], { target = at, source = mount, mounts = [], ...options } = {}) => new Promise((resolve) => {
    const shown = [{ source, target }, ...mounts];
    const child = overlayfs.spawn(command, args, { cwd: at, env, ...options, mounts: shown });
    let text = '', error;
    child.stdout?.on('data', (piece) => (text += piece));
    child.stderr?.on('data', (piece) => (text += piece));
    child.on('error', (thrown) => (error = fields(thrown)));
    child.on('close', (code, signal) => resolve({ code, signal, text: text.trim(), ...(error && { error }) }));
  });`;

function plainLayers(dir: string): void {
  makeTree(dir, {
    'lower/file': 'file',
    'lower/node_modules/answer/index.js': 'module.exports = 42;',
    'upper/': '',
    'work/': '',
  });
  const inLower = ['', 'file', 'node_modules', 'node_modules/answer', 'node_modules/answer/index.js'];
  giveTo(dir, ...inLower.map((name) => join(dir, 'lower', name)), join(dir, 'upper'), join(dir, 'work'));
}

mountTest('git, node, npm and sh at the original path, as the same user, without capabilities', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const at = join(dir, 'lower');
  const outcome = evaluateAsNobody(
    `${prelude}
    const git = (...args) => run('git', ['-c', 'user.name=n', '-c', 'user.email=n@n', ...args]);
    return [
      await run('sh', ['-c', 'pwd; id -u; grep CapEff /proc/self/status; exit 7']),
      await git('init', '-q'), await git('add', 'file'), await git('commit', '-qm', 'first'),
      await git('log', '--format=%s'),
      await run(process.execPath, ['-p', 'require("answer") + " " + process.cwd()']),
      (await run('npm', ['init', '-y'])).code,
      await run('sh', ['-c', 'kill -USR1 $$']),
      fs.readdirSync(mount.path),
    ];`,
    dir,
  );
  const done = { code: 0, signal: null, text: '' };
  t.deepEqual(outcome, [
    { code: 7, signal: null, text: `${at}\n${NOBODY}\nCapEff:\t0000000000000000` },
    done,
    done,
    done,
    { ...done, text: 'first' },
    { ...done, text: `42 ${at}` },
    0,
    { code: null, signal: 'SIGUSR1', text: '' },
    ['.git', 'file', 'node_modules', 'package.json'],
  ]);
  t.deepEqual(readdirSync(at), ['file', 'node_modules'], 'the lower is as it was');
});

mountTest('several mounts, read-only trees, hidden ones, a shell, a signal and a timeout', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  makeTree(dir, { 'second/': '', 'hidden/secret': 'secret', 'read/file': 'old', token: 'token' });
  giveTo(join(dir, 'second'), join(dir, 'hidden'), join(dir, 'read'), join(dir, 'read/file'), join(dir, 'token'));
  const outcome = evaluateAsNobody(
    `${prelude}
    const places = { mounts: [{ source: mount, target: join(dir, 'second') }], hidden: [join(dir, 'hidden'), join(dir, 'token')], readonly: [join(dir, 'read')] };
    const controller = new AbortController();
    const aborted = run('sleep', ['60'], { signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    return [
      await run('exec 2>&1; cat second/file; cat hidden/secret; cat token; echo new > read/file; echo both > lower/both; cat second/both', [], { ...places, shell: true, cwd: dir }),
      await run('sleep', ['60'], { timeout: 50 }),
      (({ signal, error }) => ({ signal, code: error.code }))(await aborted),
      await run('sh', ['-c', 'cat <&3'], { stdio: ['ignore', 'pipe', 'inherit', fs.openSync(join(dir, 'read/file'))] }),
    ];`,
    dir,
  ) as { text: string }[];
  t.regex(
    outcome[0]?.text ?? '',
    /^file[\s\S]*hidden\/secret: No such file or directory[\s\S]*read\/file: Read-only file system[\s\S]*both$/m,
  );
  t.notRegex(outcome[0]?.text ?? '', /^secret|^token/m);
  t.deepEqual(outcome.slice(1), [
    { code: null, signal: 'SIGTERM', text: '' },
    { signal: 'SIGTERM', code: 'ABORT_ERR' },
    { code: 0, signal: null, text: 'old' },
  ] as never);
});

mountTest('what does not start is an error with a reason, and exit code 127', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const outcome = evaluateAsNobody(
    `${prelude}
    const why = async (...given) => { const { code, error } = await run(...given); return [code, error?.code, error?.reason ?? error?.syscall, error?.path]; };
    return [
      await why('no-such-program'), await why('true', [], { cwd: join(dir, 'none') }),
      await why('true', [], { target: join(dir, 'none') }), await why('true', [], { target: join(dir, 'lower/file') }),
      await why('true', [], { hidden: [join(dir, 'none')] }), await why(join(dir, 'lower/file')),
      await why('true', [], { target: (fs.symlinkSync('lower', join(dir, 'upper/link')), join(dir, 'upper/link')) }),
      await why('true', [], { target: (fs.symlinkSync('loop', join(dir, 'upper/loop')), join(dir, 'upper/loop')) }),
      await why('true', [], { target: join(dir, 'upper/loop/in') }),
    ];`,
    dir,
  );
  t.deepEqual(outcome, [
    [127, 'ENOENT', 'program-missing', 'no-such-program'],
    [127, 'ENOENT', 'path-missing', join(dir, 'none')],
    [127, 'ENOENT', 'target-missing', join(dir, 'none')],
    [127, 'EINVAL', 'target-not-directory', join(dir, 'lower/file')],
    [127, 'ENOENT', 'path-missing', join(dir, 'none')],
    [127, 'EACCES', 'program-unexecutable', join(dir, 'lower/file')],
    [127, 'EINVAL', 'target-symlink', join(dir, 'upper/link')],
    [127, 'EINVAL', 'target-symlink', join(dir, 'upper/loop')],
    [127, 'ELOOP', 'path-inaccessible', join(dir, 'upper/loop/in')],
  ]);
});

mountTest(
  'what is hidden or read-only in a mount is so in that mount, and a mount in what is read-only is not',
  { needs },
  (t) => {
    const dir = scratch(t, 'disk');
    plainLayers(dir);
    makeTree(dir, { 'lower/secret': 'secret', 'lower/etc/conf': 'old' });
    giveTo(join(dir, 'lower/etc'), join(dir, 'lower/etc/conf'));
    const outcome = evaluateAsNobody(
      `${prelude}
    const tried = 'exec 2>/dev/null; cat secret; echo new > etc/conf || echo no; echo new > file && echo yes';
    return [
      await run('sh', ['-c', tried], { hidden: [join(at, 'secret')], readonly: [join(at, 'etc'), dir] }),
      await run('sh', ['-c', tried], { readonly: [at] }),
    ];`,
      dir,
    );
    t.deepEqual(outcome, [
      { code: 0, signal: null, text: 'no\nyes' },
      { code: 2, signal: null, text: 'secretno' },
    ]);
  },
);

mountTest('where no descriptor or no process is left, the error comes as an event, with its remedy', { needs }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  const outcome = evaluateAsNobody(
    `${prelude}
    await run('true');
    const failed = async (options) => {
      const child = overlayfs.spawn('true', [], { mounts: [{ source: mount, target: at }], ...options });
      const { code, reason, message } = await new Promise((resolve) => child.on('error', resolve));
      return [code, reason, message];
    };
    const all = [];
    try { for (;;) all.push(fs.openSync('/dev/null')); } catch {}
    const found = [await failed()];
    for (const one of all) fs.closeSync(one);
    childProcess.spawnSync('prlimit', ['--pid', String(process.pid), '--nproc=1']);
    for (const options of [{}, { unshare: ['pid'] }, { mapRoot: true }]) found.push(await failed(options));
    const uncaught = new Promise((resolve) => process.once('uncaughtException', resolve));
    overlayfs.spawn('true', [], { mounts: [{ source: mount, target: at }] });
    found.push([(await uncaught).reason]);
    return found;`,
    dir,
  ) as string[][];
  const full = ['EAGAIN', 'out-of-threads'];
  t.deepEqual(
    outcome.map(([code, reason]) => [code, reason]),
    [['EMFILE', 'out-of-descriptors'], full, full, full, ['out-of-threads', undefined]],
  );
  t.regex(outcome[0]?.[2] ?? '', /no file descriptor is left in the process to run the program\. /);
  t.regex(outcome[1]?.[2] ?? '', /no process could be started to run the program\. Raise the limit \(ulimit -u/);
});

mountTest(
  'a detached mount is shown to one program everywhere, and to more from Linux 6.15 on',
  { needs: 'rootless' },
  (t) => {
    const dir = scratch(t, 'disk');
    plainLayers(dir);
    const outcome = evaluateAsNobody(
      `${prelude} return [await run('cat', ['file']), await run('cat', ['file'])];`,
      dir,
    );
    const shown = { code: 0, signal: null, text: 'file' };
    const [first, second] = outcome as [unknown, { error?: unknown }];
    t.deepEqual(first, shown);
    if (hasFeature('detached mounts that can be cloned')) t.deepEqual(second, shown);
    else t.like(second.error, { code: 'EINVAL', reason: 'shown-before', path: join(dir, 'lower') });
  },
);

/** A program's output and end. */
function end(
  mount: OverlayMount | undefined,
  command: string,
  { target = '', mounts = [], ...options }: SpawnOptions & { target?: string },
): Promise<[string, number | null]> {
  const shown = mount === undefined ? mounts : [{ source: mount, target }, ...mounts];
  const child = spawn('sh', ['-c', command], { ...options, mounts: shown });
  let text = '';
  child.stdout?.on('data', (piece) => {
    text += piece;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve([text, code]));
  });
}

mountTest('with privilege: a mount that has a place, at another one, in a namespace of the program', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const mount = mountOverlaySync(options);
  const at = join(dir, 'elsewhere');
  mkdirSync(at);
  const before = countDescriptors();
  t.deepEqual(
    await end(mount, 'pwd; cat from-lower; echo new > new; grep -c elsewhere /proc/self/mountinfo', {
      target: at,
      cwd: at,
    }),
    [`${at}\nlower1\n`, 0],
  );
  t.is(mountsBelow(at).length, 0, 'nobody else sees it there');
  t.is(readFileSync(join(options.target, 'new'), 'utf8'), 'new\n');
  t.is(countDescriptors(), before);
  mount.unmountSync();
});

mountTest('a mount that is not at its place any more is not shown, nor what is there instead', async (t) => {
  const dir = scratch(t);
  const { target, ...options } = layers(dir);
  makeTree(dir, { 'second/other': '', 'at/': '' });
  const other = mountOverlaySync({ lowerdir: [options.lowerdir, join(dir, 'second')] });
  const mount = mountOverlaySync({ ...options, target });
  const shown = () => end(mount, 'ls', { target: join(dir, 'at'), cwd: join(dir, 'at') });
  const refused = async (reason: string) =>
    t.like(await t.throwsAsync(shown, { instanceOf: OverlayError }), { reason, path: target });
  t.deepEqual(await shown(), ['from-lower\n', 0]);
  other.attachSync(target, { stack: true });
  await refused('mount-covered');
  other.unmountSync();
  t.deepEqual(await shown(), ['from-lower\n', 0]);
  mount.unmountSync();
  await refused('not-mounted');
});

mountTest('with privilege: a detached mount, as root with its capabilities', async (t) => {
  const dir = scratch(t);
  const { target, ...rest } = layers(dir);
  const mount = mountOverlaySync(rest);
  const [text, code] = await end(mount, 'cat from-lower; grep CapEff /proc/self/status', { target, cwd: target });
  t.is(code, 0);
  const own = readFileSync('/proc/self/status', 'latin1').match(/CapEff:.*\n/)?.[0];
  t.is(text, `lower${own}`);
  mount.unmountSync();
  t.false(existsSync(join(target, 'from-lower')));
});

mountTest(
  'with privilege: a clone of an attached mount is shown to several programs, at several places, and attached after',
  { needs: 'detached mounts that can be cloned' },
  async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'one/': '', 'two/': '' });
    const mounted = mountOverlaySync(layers(dir));
    const clone = await mounted.clone();
    const places = [join(dir, 'one'), join(dir, 'two')];
    const names = readdirSync(mounted.path);
    for (let i = 0; i < 2; i++) {
      const child = spawn('ls', places, { mounts: places.map((at) => ({ source: clone, target: at })) });
      const shown = (await child.stdout.toArray()).join('');
      for (const place of places) t.true(shown.includes([`${place}:`, ...names].join('\n')), shown);
    }
    const [place = ''] = places;
    await clone.attach(place);
    t.deepEqual(readdirSync(place), names);
    await clone.unmount();
    await mounted.unmount();
  },
);

mountTest('without a mount: only what is hidden or read-only', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'hidden/file': '' });
  t.deepEqual(await end(undefined, `ls ${join(dir, 'hidden')}`, { hidden: [join(dir, 'hidden')] }), ['', 0]);
});

mountTest('a launcher without its execute bit is no missing program', (t) => {
  const outcome = evaluateAs(
    ['env'],
    `const launcher = fs.realpathSync('build/Release/launch/overlayfs-launch');
    fs.chmodSync(launcher, 0o644);
    try { return fields(await new Promise((resolve) => overlayfs.spawn('true').on('error', resolve))).path === launcher && await overlayfs.run('true').catch(({ code, reason }) => [code, reason]); }
    finally { fs.chmodSync(launcher, 0o755); }`,
  );
  t.deepEqual(outcome, ['EACCES', 'path-inaccessible']);
});

mountTest('no shell is asked for by an empty string', async (t) => {
  t.deepEqual(await end(undefined, 'echo "$0"', { shell: '', argv0: 'name' }), ['name\n', 0]);
});

mountTest('the child has the words of the program, as from child_process.spawn', async (t) => {
  for (const [command, args, options] of [
    ['true', ['a', 'b'], {}],
    ['true', ['a'], { argv0: 'name' }],
    ['true', ['a'], { shell: true }],
    ['no-such-program', ['a'], {}],
    ['true', ['a'], { shell: '/no/such/shell' }],
  ] as const) {
    const [ours, theirs] = await Promise.all(
      [spawn, nodeSpawn].map(async (start) => {
        const child = (start as typeof nodeSpawn)(command, args, options);
        const { spawnfile, spawnargs } = child;
        const error = await new Promise((resolve) => child.on('error', resolve).on('close', () => resolve(undefined)));
        return { spawnfile, spawnargs, error: { ...(error as Error | undefined) } };
      }),
    );
    // Beside these, our error has a reason and a hint.
    t.like(ours, theirs as never);
  }
});

mountTest('what is read-only or hidden may be named by a symbolic link', { needs: 'mountSetattr' }, async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'read/file': 'old', 'read/token': 'token', 'read/secrets/key': 'key', 'open/file': 'old' });
  const link = (name: string, to: string) => {
    symlinkSync(to, join(dir, name));
    return join(dir, name);
  };
  const options = {
    readonly: [link('to-directory', 'read'), link('to-file', 'open/file')],
    hidden: [link('to-token', 'read/token'), link('to-secrets', 'read/secrets')],
  };
  const script = `cd ${dir}; exec 2>/dev/null
    for name in read/new read/file to-directory/new open/file to-file; do
      sh -c "echo new > $name" || echo "$name stays"
    done
    cat read/token to-token read/secrets/key to-secrets/key; echo new > open/new`;
  t.deepEqual(await end(undefined, script, options), [
    'read/new stays\nread/file stays\nto-directory/new stays\nopen/file stays\nto-file stays\n',
    0,
  ]);
});

mountTest(
  'a mount in what is read-only stays writable, however both are spelled',
  { needs: 'mountSetattr' },
  async (t) => {
    const dir = scratch(t);
    const mount = mountOverlaySync(layers(dir));
    makeTree(dir, { 'srv/app/': '', 'srv/sub/': '' });
    symlinkSync('srv', join(dir, 'link'));
    const script = 'echo yes > app/new && cat app/new; (echo no > new) 2>/dev/null || echo stays';
    for (const [at, readonly] of [
      ['link/app', 'srv'],
      ['srv/app', 'link'],
      ['srv/app', './srv'],
      ['srv/../srv/app', 'srv/sub/..'],
    ] as const) {
      const options = { target: `${dir}/${at}`, readonly: [`${dir}/${readonly}`], cwd: join(dir, 'srv') };
      t.deepEqual(await end(mount, script, options), ['yes\nstays\n', 0], `${at} in ${readonly}`);
    }
  },
);

mountTest('a mount that is unmounted cannot be shown', (t) => {
  const { target, ...rest } = layers(scratch(t));
  const mount = mountOverlaySync(rest);
  mount.unmountSync();
  t.throws(() => spawn('true', [], { mounts: [{ source: mount, target }] }), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /is unmounted/,
  });
});

mountTest('a program that is missing emits one error, whenever its signal aborts', async (t) => {
  const { lowerdir, target } = layers(scratch(t));
  mkdirSync(join(lowerdir, '../second'));
  const mount = mountOverlaySync({ lowerdir: [lowerdir, join(lowerdir, '../second')], target });
  const codes = new Set<string | undefined>();
  for (let round = 0; round < scaled(200, 40); round++) {
    const controller = new AbortController();
    if (round % 10 === 0) controller.abort();
    const child = spawn('/missing/program', [], {
      mounts: [{ source: mount, target: lowerdir }],
      signal: controller.signal,
      stdio: 'ignore',
    });
    const errors: NodeJS.ErrnoException[] = [];
    const ended = new Promise((resolve) => child.on('close', resolve));
    child.on('error', (error) => {
      errors.push(error);
      // By then the launcher has not been seen to end.
      if (round % 2 === 0) controller.abort();
    });
    if (round % 2 === 1) setTimeout(() => controller.abort(), (round % 20) / 4);
    await ended;
    await new Promise(setImmediate);
    t.is(errors.length, 1, `round ${round}: ${errors.map(({ message }) => message)}`);
    codes.add(errors[0]?.code);
  }
  t.deepEqual([...codes].sort(), ['ABORT_ERR', 'ENOENT']);
  mount.unmountSync();
});

test('arguments are checked before anything starts', (t) => {
  const refuse = (given: unknown[], code: string, message: RegExp) =>
    t.throws(() => spawn(...(given as [string])), { code, message });
  refuse([''], 'ERR_INVALID_ARG_TYPE', /"command"/);
  refuse([5], 'ERR_INVALID_ARG_TYPE', /"command"/);
  refuse(['true', 'x'], 'ERR_INVALID_ARG_TYPE', /"args"/);
  refuse(['true', [5]], 'ERR_INVALID_ARG_TYPE', /"args\[0\]"/);
  refuse(['true', [], { mounts: 5 }], 'ERR_INVALID_ARG_TYPE', /"mounts"/);
  refuse(['true', [], { mounts: [{ target: '/m' }] }], 'ERR_INVALID_ARG_TYPE', /"mounts\[0\]\.source"/);
  refuse(['true', [], { mounts: [{ source: '/m' }] }], 'ERR_INVALID_ARG_TYPE', /"mounts\[0\]\.target"/);
  refuse(
    ['true', [], { mounts: [{ source: '/m', tmpfs: true, target: '/m' }] }],
    'ERR_INVALID_ARG_VALUE',
    /`mounts\[0\]\.tmpfs`/,
  );
  refuse(
    ['true', [], { mounts: [{ tmpfs: { size: 0 }, target: '/m' }] }],
    'ERR_OUT_OF_RANGE',
    /"mounts\[0\]\.tmpfs\.size"/,
  );
  refuse(
    ['true', [], { mounts: [{ source: '/m', target: '/m', readonly: 1 }] }],
    'ERR_INVALID_ARG_TYPE',
    /"mounts\[0\]\.readonly"/,
  );
  refuse(['true', [], { mounts: [{ source: {}, target: '/m' }] }], 'ERR_INVALID_ARG_TYPE', /"mounts\[0\]\.source"/);
  refuse(['true', [], { hiden: [] }], 'ERR_INVALID_ARG_VALUE', /did you mean "hidden"\?/);
  refuse(['true', [], { uid: -1 }], 'ERR_OUT_OF_RANGE', /"uid"/);
  refuse(['true', [], { groups: [1, 0.5] }], 'ERR_OUT_OF_RANGE', /"groups\[1\]"/);
  refuse(['true', [], { groups: new Array(257).fill(1) }], 'ERR_OUT_OF_RANGE', /"groups"/);
  refuse(['true', [], { unshare: 'net' }], 'ERR_INVALID_ARG_TYPE', /"unshare"/);
  refuse(['true', [], { unshare: ['pid', 'mnt'] }], 'ERR_INVALID_ARG_VALUE', /"unshare\[1\]".*'net'/);
  refuse(['true', [], { mapRoot: 0 }], 'ERR_INVALID_ARG_TYPE', /"mapRoot"/);
  refuse(['true', [], { writable: '/tmp' }], 'ERR_INVALID_ARG_TYPE', /"writable"/);
  refuse(['true', [], { writable: new Array(65).fill('/tmp') }], 'ERR_OUT_OF_RANGE', /"writable"/);
  refuse(['true', [], { readonly: true }], 'ERR_INVALID_ARG_TYPE', /"readonly"/);
  refuse(['tr\0ue'], 'ERR_INVALID_ARG_VALUE', /"command"/);
  refuse(['true', ['', 'a\0b']], 'ERR_INVALID_ARG_VALUE', /"args\[1\]"/);
  refuse(['true', [], { argv0: 5 }], 'ERR_INVALID_ARG_TYPE', /"argv0"/);
  refuse(['true', [], { shell: 5 }], 'ERR_INVALID_ARG_TYPE', /"shell"/);
  refuse(['true', [], { stdio: 'pip' }], 'ERR_INVALID_ARG_VALUE', /"stdio"/);
  const withHole = (value: unknown) => Object.assign(new Array(2), { 1: value });
  refuse(['true', [], { mounts: withHole({}) }], 'ERR_INVALID_ARG_TYPE', /"mounts\[0\]"/);
  refuse(['true', [], { hidden: withHole('/m') }], 'ERR_INVALID_ARG_TYPE', /"hidden\[0\]"/);
  refuse(['true', withHole('')], 'ERR_INVALID_ARG_TYPE', /"args\[0\]"/);
  refuse(['true', [], { mounts: new Array(65).fill({}) }], 'ERR_OUT_OF_RANGE', /"mounts"/);
});

/** As in the image of a container: programs with all that they load. */
function makeRoot(dir: string): void {
  const names = ['sh', 'unshare'];
  const programs = names.map((name) => execFileSync('which', [name], { encoding: 'utf8' }).trim());
  const files = programs.flatMap(
    (program) => execFileSync('ldd', [program], { encoding: 'utf8' }).match(/(?<=\s)\/\S+/g) ?? [],
  );
  makeTree(dir, { 'bin/': '', 'proc/': '', 'dev/': '', 'mnt/': '', 'etc/name': 'image' });
  for (const file of files) {
    mkdirSync(join(dir, dirname(file)), { recursive: true });
    copyFileSync(file, join(dir, file));
  }
  for (const [i, program] of programs.entries()) copyFileSync(program, join(dir, 'bin', names[i] as string));
}

const rootScript = `read name < /etc/name; echo "$name"; echo new > /test-new; read only < /mnt/from-lower; echo "$only"
  test -c /dev/null && echo dev; test -e /proc/self/mountinfo && echo proc; test -e /sys || echo "no sys"
  (echo no > /etc/name) 2>/dev/null || echo read-only; echo /tmp*; unshare -Ur sh -c 'cd /; pwd'`;
const rootSaid = ['image', 'lower', 'dev', 'proc', 'no sys', 'read-only', '/tmp*', '/'].join('\n');
const rootNeeds = ['rootless', 'mountSetattr', 'user namespaces'] as const;

mountTest('with privilege: a mount at the root, however that is spelled', { needs: rootNeeds }, async (t) => {
  const dir = scratch(t);
  const { lowerdir, upperdir, workdir, target } = layers(dir);
  makeRoot(join(dir, 'root'));
  symlinkSync('/', join(dir, 'link'));
  const inside = mountOverlaySync({ lowerdir: [lowerdir, join(dir, 'root/etc')], target });
  for (const at of ['/', '/tmp/..', `${dir}/link/`]) {
    const root = mountOverlaySync({ lowerdir: join(dir, 'root'), upperdir, workdir });
    const shown = { target: at, mounts: [{ source: inside, target: '/mnt' }], readonly: ['/etc'], cwd: '/mnt' };
    t.deepEqual(await end(root, rootScript, { ...shown, env: { PATH: '/bin' } }), [`${rootSaid}\n`, 0], at);
    root.unmountSync();
    t.deepEqual(readdirSync(upperdir), ['test-new']);
    rmSync(join(upperdir, 'test-new'));
  }
  inside.unmountSync();
  t.false(existsSync('/test-new'));
});

mountTest('without privilege: a mount at the root', { needs: rootNeeds }, (t) => {
  const dir = scratch(t, 'disk');
  plainLayers(dir);
  makeRoot(join(dir, 'root'));
  makeTree(dir, { 'lower/from-lower': 'lower', 'changes/': '', 'other-work/': '' });
  giveTo(join(dir, 'root'), join(dir, 'changes'), join(dir, 'other-work'));
  const outcome = evaluateAsNobody(
    `${prelude}
    const root = await overlayfs.mountOverlay({
      lowerdir: join(dir, 'root'), upperdir: join(dir, 'changes'), workdir: join(dir, 'other-work'), rootless: true,
    });
    const places = { source: root, target: '/', mounts: [{ source: mount, target: '/mnt' }], readonly: ['/etc'], cwd: '/mnt', env: { PATH: '/bin' } };
    return [await run('sh', ['-c', args[1]], places), fs.readdirSync(join(dir, 'changes'))];`,
    dir,
    rootScript,
  );
  t.deepEqual(outcome, [{ code: 0, signal: null, text: rootSaid }, ['test-new']]);
});

mountTest('where no mount namespace is left, the error says so', { needs: 'rootless' }, (t) => {
  const dir = scratch(t);
  layers(dir);
  const reasons = evaluateAs(
    ['env', '-u', 'NODE_V8_COVERAGE', 'unshare', '-Urm'],
    `const [dir] = args;
    const [one, two, target] = ['lower', 'upper', 'merged'].map((name) => join(dir, name));
    const mount = overlayfs.mountOverlaySync({ lowerdir: [one, two], target });
    const run = () => new Promise((resolve) => {
      const child = overlayfs.spawn('true', [], { mounts: [{ source: mount, target: one }] });
      child.on('error', (error) => resolve(error.reason)).on('close', resolve);
    });
    const reasons = [];
    // One is this process's own; with two, the program has one, and the mount that it is to be shown none.
    for (const count of [1, 2, 50]) {
      fs.writeFileSync('/proc/sys/user/max_mnt_namespaces', String(count));
      reasons.push(await run());
    }
    return reasons;`,
    dir,
  );
  t.deepEqual(reasons, ['out-of-namespaces', 'out-of-namespaces', 0]);
});

mountTest('in a chroot whose root is no mount point', { needs: 'mountSetattr' }, (t) => {
  const dir = scratch(t);
  layers(dir);
  const outcome = evaluateAs(
    // A mount that is shared would show it if the program's were not its own.
    ['unshare', '-m', '--propagation', 'shared', ...chrooted(t, dir)],
    `const [dir] = args;
    const [lowerdir, upperdir, workdir, target] = ['lower', 'upper', 'work', 'merged'].map((name) => join(dir, name));
    const mount = overlayfs.mountOverlaySync({ lowerdir, upperdir, workdir });
    const script = 'ls; ls ' + dir + '; grep -c shared: /proc/self/mountinfo; (echo new > /test-new) 2>/dev/null; read x';
    const child = overlayfs.spawn('sh', ['-c', script], { mounts: [{ source: mount, target }], cwd: target, readonly: ['/'] });
    let text = '';
    child.stdout.on('data', (piece) => { text += piece; });
    const ended = new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));
    await new Promise((resolve) => child.stdout.once('data', resolve).once('close', resolve));
    const elsewhere = fs.readdirSync(target);
    child.stdin.end();
    await ended;
    return [text, elsewhere, fs.existsSync('/test-new')];`,
    dir,
  );
  t.deepEqual(outcome, ['from-lower\nlower\nmerged\nroot\nupper\nwork\n0\n', [], false]);
});

mountTest('the root cannot be hidden, however it is spelled', async (t) => {
  const dir = scratch(t);
  symlinkSync('/', join(dir, 'link'));
  for (const path of ['/', '/tmp/..', join(dir, 'link')]) {
    await t.throwsAsync(() => end(undefined, 'true', { hidden: [path] }), {
      code: 'ERR_INVALID_ARG_VALUE',
      message: /"hidden" must not contain the root directory/,
    });
  }
});
