/** Images run as containers: by runc, by crun and by `spawn`, as root and as a plain user; and `overlayfs run-image`. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createImage, type Image, openLayout, type RunContainerOptions, runContainer } from 'overlayfs/images';
import { createLayer } from 'overlayfs/layers';
import { run } from '../cli/run.js';
import { MS_BIND, makeTree, mountTest, native, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { addDependency, asNobody, evaluateAsNobody, giveTo } from '../support/plain-user.js';
import { makeProgramImage, openSnapshotter } from './helper.js';

const SYS_FS_CGROUP = '/sys/fs/cgroup';

const hasProgram = (name: string): boolean =>
  ['/usr/bin', '/usr/sbin', '/bin', '/sbin'].some((dir) => existsSync(join(dir, name)));

/** crun refuses a machine with both versions of cgroups. */
function coverCgroups(t: ExecutionContext): void {
  if (!existsSync(SYS_FS_CGROUP)) return;
  t.is(native.mount('none', SYS_FS_CGROUP, 'tmpfs', 0, ''), 0);
  t.teardown(() => native.umount(SYS_FS_CGROUP, 0));
}

/** Returns the output of a container, and its end. */
async function ran(
  image: Image,
  options: RunContainerOptions,
): Promise<{ text: string; code: number; changes: string[] }> {
  let text = '';
  const { exitCode, changes } = await runContainer(image, {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...options,
    onStart: (container) => {
      for (const stream of [container.process.stdout, container.process.stderr]) {
        stream?.on('data', (piece) => {
          text += piece;
        });
      }
      options.onStart?.(container);
    },
  });
  return { text, code: exitCode, changes: changes.map(({ kind, path }) => `${kind} ${path}`) };
}

const furniture = [
  ...['added dev', 'added proc', 'added sys', 'modified .'],
  ...['modified etc', 'added etc', 'added etc/hosts', 'added etc/resolv.conf'],
];
const withoutFurniture = (changes: readonly string[]): string[] => changes.filter((line) => !furniture.includes(line));

for (const runtime of ['runc', 'crun', false] as const) {
  mountTest(`a container, by ${runtime || 'spawn'}, as root`, { needs: 'mountSetattr' }, async (t) => {
    if (runtime !== false && !hasProgram(runtime)) {
      t.pass(`${runtime} is not installed`);
      return;
    }
    if (runtime === 'crun') coverCgroups(t);
    const dir = scratch(t, 'disk');
    makeTree(dir, {
      'volume/in': 'in',
      'only/read': 'read',
      'only/inner/': '',
      'only/below/': '',
      'inner/': '',
      file: 'file',
      'nodes/srv/': '',
    });
    execFileSync('mknod', ['-m', '666', join(dir, 'nodes/srv/node'), 'c', '1', '3']);
    const image = await makeProgramImage(dir, {
      User: 'www',
      Env: ['ONE=1', 'TWO=2'],
      WorkingDir: '/srv/deep',
      Entrypoint: ['sh', '-c'],
      Cmd: [
        'id; echo $ONE $TWO $THREE $HOME; echo $PWD; cat /srv/hello; (echo x > /etc/no) 2>/dev/null || echo no; echo y > /srv/new && rm /srv/hello; exit 6',
      ],
    });
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    const common = { snapshotter, runtime } as const;
    const ofNull = () => [statSync('/dev/null').uid, statSync('/dev/null').gid, statSync('/dev/null').ctimeMs];
    const before = ofNull();
    const first = await ran(image, { ...common, env: { THREE: '3', TWO: 'two' } });
    t.deepEqual(ofNull(), before, 'the /dev/null of the host stays as it is');
    const asRoot = 'chmod 600 /dev/null && echo x > /dev/null && ls /dev/tty /dev/zero';
    const second = await ran(image, { ...common, user: '0', command: [asRoot] });
    t.is(second.text, '/dev/tty\n/dev/zero\n');
    t.deepEqual(ofNull(), before, 'and root in the container changes its own');
    t.is(first.text, 'uid=33(www) gid=34(www) groups=34(www),44(extra)\n1 two 3 /srv\n/srv/deep\nhello\nno\n');
    t.is(first.code, 6);
    t.deepEqual(withoutFurniture(first.changes), [
      'modified srv',
      'added srv/deep',
      'deleted srv/hello',
      'added srv/new',
    ]);

    const command = (script: string, more: Partial<RunContainerOptions> = {}) =>
      ran(image, { ...common, command: [script], user: '0', ...more });
    t.like(
      await command('cat /srv/hello; echo $$ | ( read a; [ $a -lt 5 ] && echo own )'),
      { text: 'hello\nown\n' },
      'nothing is left of the first',
    );
    t.like(await command('id', { user: '7:more' }), { text: 'uid=7 gid=45(more) groups=45(more)\n' });
    t.like(await command('id', { user: '7:8' }), { text: 'uid=7 gid=8 groups=8\n' }, 'a number is an id, not a name');
    t.like(await command('', { entrypoint: ['cat', '/srv/hello'], command: [] }), { text: 'hello\n', code: 0 });
    t.is(native.mount('none', join(dir, 'only/below'), 'tmpfs', 0, ''), 0);
    t.teardown(() => native.umount(join(dir, 'only/below'), 0));
    const volumes = [
      { source: join(dir, 'volume'), target: '/data/deep' },
      { source: join(dir, 'only'), target: '/only', readonly: true },
      { source: join(dir, 'inner'), target: '/only/inner' },
      { source: join(dir, 'file'), target: '/etc/file', readonly: true },
    ];
    const script =
      'cat /data/deep/in /only/read /etc/file; echo out > /data/deep/out; echo in > /only/inner/in; (echo x > /only/x) 2>/dev/null || echo shut; (echo x > /only/below/x) 2>/dev/null || echo shut';
    const bound = await command(script, { volumes });
    t.is(bound.text, 'inreadfileshut\nshut\n');
    t.deepEqual(readdirSync(join(dir, 'volume')), ['in', 'out']);
    t.deepEqual(readdirSync(join(dir, 'inner')), ['in'], 'a volume in one that is read-only');
    t.true(
      bound.changes.every((line) => !line.endsWith('/out')),
      'a volume is no change',
    );
    const files = ['/etc/hosts', '/etc/resolv.conf'].filter((path) => existsSync(path));
    const own = files.map((path) => readFileSync(path, 'utf8')).join('');
    const read = `cat ${files.join(' ')}; (echo x >> /etc/hosts) 2>/dev/null || echo shut`;
    t.is((await command(read)).text, `${own}shut\n`, 'files of the network');
    t.is((await command('ls /etc', { network: false })).text, 'group\npasswd\n', 'without the network of the host');
    makeTree(dir, { 'etc/hosts': 'own' });
    const instead = [{ source: join(dir, 'etc'), target: '//etc/' }];
    t.is(
      (await command('ls /etc; cat /etc/hosts', { volumes: instead })).text,
      'hosts\nown',
      'a volume in their place',
    );
    t.like(await command('ls /sys/class/net', { network: false }), {
      text: runtime === false ? (await command('ls /sys/class/net')).text : 'lo\n',
    });
    t.is(
      (await command('kill -TERM $$; sleep 5')).code,
      runtime === false ? 143 : (await command('kill -TERM $$; sleep 5')).code,
    );
    t.like(
      await command('echo x > /dev/null && echo null; (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo shut'),
      { text: 'null\nshut\n' },
    );

    const nodes = await createImage(
      image.layout,
      ['base', 'app', 'nodes'].map((name) => createLayer(join(dir, name))),
      { tag: 'nodes' },
    );
    t.like(
      await ran(nodes, { ...common, command: ['sh', '-c', 'exec 2>&1; ls /srv/node; cat /srv/node'] }),
      { text: '/srv/node\ncat: /srv/node: Permission denied\n' },
      'a device node of the image',
    );

    const none = await t.throwsAsync(command('true', { user: 'nobody' }));
    t.is((none as NodeJS.ErrnoException).code, 'ERR_IMAGE_USER_MISSING');
    await t.throwsAsync(command('true', { user: 'www:none' }), { code: 'ERR_IMAGE_USER_MISSING' });
    t.deepEqual(readdirSync(join(dir, 'root/removed')), []);
    const names: string[] = [];
    for await (const { name } of snapshotter.walk()) names.push(name);
    t.deepEqual(names.sort(), nodes.layers.map(({ chainId }) => chainId).sort(), 'no snapshot of a container is left');
  });
}

mountTest(
  'a container that is committed, aborted, or has no program, by spawn',
  { needs: 'mountSetattr' },
  async (t) => {
    const dir = scratch(t, 'disk');
    const image = await makeProgramImage(dir);
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    const common = { snapshotter, runtime: false } as const;
    await t.throwsAsync(runContainer(image, common), { code: 'ERR_IMAGE_COMMAND' });
    await t.throwsAsync(runContainer(image, { ...common, command: ['/no/program'] }), { code: 'ENOENT' });
    await t.throwsAsync(runContainer(image, { ...common, command: ['true'], runtime: 'no-runtime' }), {
      code: 'ERR_INVALID_ARG_VALUE',
    });
    await t.throwsAsync(runContainer(image, { ...common, command: ['true'], cwd: 'here' }), {
      code: 'ERR_INVALID_ARG_VALUE',
    });
    const volumes = [{ source: dir, target: '/a/../../b' }];
    await t.throwsAsync(runContainer(image, { ...common, command: ['true'], volumes }), {
      code: 'ERR_INVALID_ARG_VALUE',
    });
    const wrong: readonly (readonly [options: object, names: RegExp])[] = [
      [{ commit: 'no tag' }, /"tag"/],
      [{ commit: { tag: 'two', config: { Cmd: 'true' } } }, /"config.Cmd"/],
      [{ commit: { tag: 'two', level: 99 } }, /"level"/],
      [{ user: 0 }, /"user"/],
      [{ cwd: 0 }, /"cwd"/],
      [{ env: { 'A=B': 'C' } }, /"env"/],
      [{ env: { A: 'a\0' } }, /"env.A"/],
      [{ onStart: 'true' }, /"onStart"/],
      [{ volumes: [{ source: dir, target: '//' }] }, /"volumes\[0\].target"/],
      [{ volumes: [{ source: dir, target: '/x/../proc' }] }, /"volumes\[0\].target"/],
      [{ volumes: [null] }, /"volumes\[0\]"/],
    ];
    let hasStarted = false;
    for (const [options, names] of wrong) {
      const onStart = (): void => {
        hasStarted = true;
      };
      const refused = runContainer(image, { ...common, command: ['true'], onStart, ...options } as never);
      const error = await t.throwsAsync(refused, { message: names });
      t.regex((error as NodeJS.ErrnoException).code ?? '', /^ERR_(INVALID_ARG|OUT_OF_RANGE)/, String(names));
    }
    t.false(hasStarted, 'a wrong option is found before the container runs');
    const { image: committed } = await runContainer(image, {
      ...common,
      command: ['sh', '-c', 'echo kept > /kept'],
      commit: 'two',
    });
    t.is(committed?.layers.length, 3);
    t.is(committed?.document.history?.at(-1)?.created_by, 'sh -c echo kept > /kept');
    t.like(await ran(committed as Image, { ...common, command: ['cat', '/kept'] }), { text: 'kept\n', code: 0 });
  },
);

for (const runtime of ['runc', 'crun', false] as const) {
  mountTest(`a container that is aborted, by ${runtime || 'spawn'}`, { needs: 'mountSetattr' }, async (t) => {
    if (runtime !== false && !hasProgram(runtime)) {
      t.pass(`${runtime} is not installed`);
      return;
    }
    if (runtime === 'crun') coverCgroups(t);
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'volume/': '' });
    const image = await makeProgramImage(dir);
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    const paths = new Set<string>();
    const common = {
      snapshotter,
      runtime,
      // The container does not end by itself when it is asked to.
      command: ['sh', '-c', 'trap "" TERM; while :; do echo alive; echo alive >> /volume/alive; sleep 0.02; done'],
      volumes: [{ source: join(dir, 'volume'), target: '/volume' }],
    };
    const alive = join(dir, 'volume/alive');
    for (const stdio of [['ignore', 'pipe', 'pipe'], 'ignore'] as const) {
      const controller = new AbortController();
      const aborted = runContainer(image, {
        ...common,
        stdio: stdio as 'ignore',
        signal: controller.signal,
        onStart: ({ path, process: { stdout } }) => {
          paths.add(path);
          stdout?.resume();
          const timer = setInterval(() => {
            if (!existsSync(alive)) return;
            clearInterval(timer);
            controller.abort();
          }, 10);
        },
      });
      await t.throwsAsync(aborted, { code: 'ABORT_ERR' });
      rmSync(alive);
    }
    const thrown = runContainer(image, {
      ...common,
      stdio: 'ignore',
      onStart: () => {
        throw new RangeError('mine');
      },
    });
    await t.throwsAsync(thrown, { instanceOf: RangeError, message: 'mine' });
    rmSync(alive, { force: true });
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.false(existsSync(alive), 'the container has ended');
    t.deepEqual(
      [...paths].filter((path) => path.startsWith(tmpdir()) && existsSync(path)),
      [],
    );
    const names: string[] = [];
    for await (const { name } of snapshotter.walk()) names.push(name);
    t.deepEqual(names.sort(), image.layers.map(({ chainId }) => chainId).sort());
  });
}

mountTest('symbolic links of an image lead nowhere outside', { needs: 'mountSetattr' }, async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'outside/passwd': 'evil:x:5:5::/:/bin/sh\n', volume: 'volume' });
  const image = await makeProgramImage(dir);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const common = { snapshotter, runtime: false } as const;
  const outside = join(dir, 'outside');
  const made = join(dir, 'links');
  makeTree(made, { 'etc/keep': '' });
  for (const [to, name] of [
    [`${outside}/passwd`, 'etc/passwd'],
    [outside, 'data'],
    [outside, 'work'],
  ] as const) {
    execFileSync('ln', ['-s', to, join(made, name)]);
  }
  const linked = await createImage(image.layout, [createLayer(join(dir, 'base')), createLayer(made)], { tag: 'links' });
  await t.throwsAsync(ran(linked, { ...common, command: ['id'], user: 'evil' }), { code: 'ERR_IMAGE_USER_MISSING' });
  const volumes = [{ source: join(dir, 'volume'), target: '/data/made' }];
  await ran(linked, { ...common, command: ['id'], cwd: '/work/here', volumes }).catch(() => {});
  t.deepEqual(readdirSync(outside), ['passwd'], 'nothing is made outside');
});

/** In a child of the plain user. */
const prelude = `
  const [dir] = args;
  const { openLayout, runContainer } = await import('overlayfs/images');
  const { Snapshotter } = await import('overlayfs/snapshots');
  const image = await (await openLayout(join(dir, 'layout'))).image('one');
  const snapshotter = await Snapshotter.open(join(dir, 'root'));
  const run = async (of, options) => {
    let text = '';
    try {
      const { exitCode, changes, image: committed } = await runContainer(of, { snapshotter, stdio: ['ignore', 'pipe', 'pipe'], ...options,
        onStart: ({ process }) => { for (const stream of [process.stdout, process.stderr]) stream.on('data', (piece) => (text += piece)); } });
      return { exitCode, text, changes: changes.map(({ kind, path }) => kind + ' ' + path), committed };
    } catch (error) { return { code: error.code, reason: error.reason }; }
  };`;

mountTest(
  'a container, as a plain user: root inside, all files its own',
  { needs: ['rootless', 'mountSetattr'] },
  async (t) => {
    const dir = scratch(t, 'disk');
    await makeProgramImage(dir, { User: 'www', WorkingDir: '/srv' });
    makeTree(dir, { 'volume/in': 'in' });
    execFileSync('chown', ['-R', `${NOBODY}:${NOBODY}`, dir]);
    addDependency('lmdb');
    const outcome = evaluateAsNobody(
      `${prelude}
    const script = 'id; cat hello; echo new > new; rm hello; cat /volume/in; ls /proc | { n=0; while read p; do case $p in [0-9]*) n=$((n+1));; esac; done; echo $n; }; exit 9';
    const first = await run(image, { user: '0', command: ['sh', '-c', script], volumes: [{ source: join(dir, 'volume'), target: '/volume' }], network: false, commit: 'two' });
    const again = await run(first.committed, { user: '0:0', command: ['cat', 'new'] });
    const refused = await run(image, { command: ['true'] });
    await snapshotter.close();
    return [first.exitCode, first.text, first.changes, again.text, refused];`,
      dir,
    ) as unknown[];
    t.deepEqual(outcome.slice(0, 2), [9, 'uid=0(root) gid=0(root) groups=0(root)\nhello\nin4\n']);
    t.deepEqual(withoutFurniture(outcome[2] as string[]), [
      'modified srv',
      'deleted srv/hello',
      'added srv/new',
      'added volume',
    ]);
    t.is(outcome[3], 'new\n');
    t.deepEqual(outcome[4], { code: 'EINVAL', reason: 'sub-ids-missing' }, 'it has no other user');
  },
);

mountTest(
  'a container, as a plain user with subordinate ids: its users are there',
  { needs: ['subordinate ids', 'mountSetattr'] },
  async (t) => {
    const dir = scratch(t, 'disk');
    await makeProgramImage(dir, { User: 'www', WorkingDir: '/srv' });
    makeTree(dir, { subuid: `${NOBODY}:100000:1000\n`, subgid: `${NOBODY}:100000:1000\n` });
    execFileSync('chown', ['-R', `${NOBODY}:${NOBODY}`, dir]);
    for (const name of ['subuid', 'subgid']) {
      t.is(native.mount(join(dir, name), `/etc/${name}`, '', MS_BIND, ''), 0);
      t.teardown(() => native.umount(`/etc/${name}`, 0));
    }
    addDependency('lmdb');
    const outcome = evaluateAsNobody(
      `${prelude}
    const first = await run(image, { subIds: true, command: ['sh', '-c', 'id; (echo no > hello) 2>/dev/null || echo roots; echo new > /tmp/new'] });
    const second = await run(image, { subIds: true, user: '0', command: ['sh', '-c', 'echo x > /owned; id -u'], commit: 'two' });
    await snapshotter.close();
    return [first, second.text, second.exitCode];`,
      dir,
    ) as [{ text: string; exitCode: number }, string, number];
    t.like(outcome[0], {
      text: 'uid=33(www) gid=34(www) groups=34(www),44(extra)\nroots\nsh: 1: cannot create /tmp/new: Permission denied\n',
      exitCode: 2,
    });
    t.deepEqual(outcome.slice(1), ['0\n', 0]);
  },
);

for (const [who, command] of [
  ['root', []],
  ['a plain user', asNobody],
] as const) {
  mountTest(`run-image, as ${who}`, { needs: ['rootless', 'mountSetattr'] }, async (t) => {
    const dir = scratch(t, 'disk');
    await makeProgramImage(dir, {
      Cmd: ['cat', '/srv/hello'],
      Volumes: { '/declared': {}, '/etc/passwd/x': {}, '../up': {} },
    });
    makeTree(dir, { 'volume/in': 'in' });
    if (who !== 'root') execFileSync('chown', ['-R', `${NOBODY}:${NOBODY}`, dir]);
    addDependency('lmdb');
    giveTo(dir);
    if (who === 'root') execFileSync('chown', ['0:0', dir]);
    const layout = join(dir, 'layout');
    const base = ['run-image', '--root', join(dir, 'root'), '--runtime', 'none'];
    const go = (...args: string[]) => run([...base, ...args], { command });
    t.deepEqual(go(`${layout}:one`), { code: 0, stdout: 'hello\n', stderr: '' });
    t.deepEqual(go(layout, '--', 'sh', '-c', 'exit 4'), { code: 4, stdout: '', stderr: '' });
    const script = 'cd /up && cd /declared && echo $A; cat /v/in; echo new > /new';
    const changed = go(
      '--env',
      'A=b',
      '--volume',
      `${join(dir, 'volume')}:/v:ro`,
      '--changes',
      '--commit',
      'name/two:2',
      layout,
      '--',
      'sh',
      '-c',
      script,
    );
    t.is(changed.code, 0, changed.stderr);
    t.regex(changed.stdout, /^b\nin[\s\S]*A new$/m);
    t.like(go(`${layout}:name/two:2`, '--', 'cat', '/new'), { code: 0, stdout: 'new\n' });
    const json = go('--json', `${layout}:name/two:2`, '--', 'sh', '-c', 'echo text; exit 3');
    t.like({ ...json, stdout: JSON.parse(json.stdout) }, { code: 3, stdout: { exitCode: 3 }, stderr: 'text\n' });
    t.is(go(`${layout}:one`, '--', 'no-such-program').code, 127);
    t.regex(go(`${layout}:none`).stderr, /has no image 'none'[\s\S]*one of its tags: one, name\/two:2/);
    t.regex(go(join(dir, 'nothing')).stderr, /no OCI image layout/);
    t.is(go('--env', 'A', layout).code, 2);
    t.is(go('--volume', 'A', layout).code, 2);
    // The image is named by its digest. A program that writes nothing does not need standard output.
    const { digest } = await (await openLayout(layout)).image('one');
    const toFull = [...command, 'sh', '-c', '"$@" >/dev/full', 'sh'];
    t.like(run([...base, `${layout}:${digest}`, '--', 'sh', '-c', ':'], { command: toFull }), { code: 0, stderr: '' });
    t.is(run(['run-image', layout], { command }).code, 2);
    t.is((await (await openLayout(layout)).tags()).length, 2);
  });
}

mountTest('examples/run-image.ts', { needs: 'mountSetattr' }, async (t) => {
  const dir = scratch(t, 'disk');
  await makeProgramImage(dir, { Entrypoint: ['sh', '-c'] });
  const example = join(import.meta.dirname, '../../examples/run-image.js');
  const args = [example, `${join(dir, 'layout')}:one`, 'cat /srv/hello; echo x > /srv/new; exit 3'];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  t.is(status, 3, stderr);
  t.regex(stdout, /^hello\n[\s\S]*^added srv\/new$/m);
});

test('an unknown option is refused', async (t) => {
  const dir = scratch(t);
  const image = await makeProgramImage(dir);
  await t.throwsAsync(runContainer(image, { snapshoter: 5 } as never), { code: 'ERR_INVALID_ARG_VALUE' });
  await t.throwsAsync(runContainer(image, {} as never), { code: 'ERR_INVALID_ARG_TYPE' });
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const volumes = [{ source: join(dir, 'none'), target: '/v' }];
  const missing = { code: 'ERR_INVALID_ARG_VALUE', message: /volumes\[0\]\.source.*exists.*none'/ };
  await t.throwsAsync(runContainer(image, { snapshotter, runtime: false, volumes }), missing);
});
