/** Images run as containers: by runc, by crun and by `spawn`, as root and as a plain user; and `overlayfs image run`. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import {
  createImage,
  type Image,
  ImageError,
  openLayout,
  type RunContainerOptions,
  runContainer,
  unpack,
} from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { makeInRoot } from '#lib/images/rootfs.js';
import { run } from '../cli/run.js';
import { kernelTest, MS_BIND, MS_RDONLY, MS_REMOUNT, makeTree, mountTest, native, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { addDependency, asNobody, evaluateAsNobody, giveTo } from '../support/plain-user.js';
import { coverCgroups, hasProgram, makeProgramImage, openSnapshotter } from './helper.js';

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

mountTest('a container that never ran is told from one that ended with 1, and is not committed', async (t) => {
  coverCgroups(t);
  const dir = scratch(t, 'disk');
  const image = await makeProgramImage(dir);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const runs = (runtime: string | false, ...command: string[]) =>
    runContainer(image, { snapshotter, runtime, command, stdio: 'ignore', commit: 'made' });
  const fake = join(dir, 'fake');
  writeFileSync(fake, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  const never = { instanceOf: ImageError, code: 'ERR_IMAGE_RUNTIME' };
  t.regex((await t.throwsAsync(runs(fake, 'id'), never))?.message ?? '', /fake' ended with 1 before the program/);
  const missing = await t.throwsAsync(runs(join(dir, 'none'), 'id'), never);
  t.regex(missing?.message ?? '', /none' cannot be started \(ENOENT\)\. Name another one/);
  writeFileSync(
    fake,
    `#!/bin/sh
    for arg; do [ "$last" = --log ] && log=$arg; [ "$last" = --pid-file ] && pid=$arg; last=$arg; done
    echo 1 > "$pid"; printf '{"level":"error","msg":"lost it"}' > "$log"; exit 1\n`,
  );
  const begun = await t.throwsAsync(runs(fake, 'id'), { instanceOf: ImageError, code: 'ERR_IMAGE_COMMIT' });
  t.regex(begun?.message ?? '', /fake' ended with 1: lost it\. They are in the snapshot 'container/);
  if (hasProgram('crun')) {
    const error = await t.throwsAsync(runs('crun', '/none'), never);
    t.regex(error?.message ?? '', /began: .*`\/none` not found/);
  }
  // It cannot make a control group here.
  if (hasProgram('runc')) await t.throwsAsync(runs('runc', 'id'), never);
  await t.throwsAsync(runs(false, '/none'), { code: 'ENOENT' });
  await t.throwsAsync(image.layout.image('made'), { code: 'ERR_IMAGE_NOT_FOUND' });
  const { exitCode, image: made } = await runs(hasProgram('crun') && 'crun', 'sh', '-c', 'exit 1');
  t.is(exitCode, 1);
  t.is(made?.tag, 'made');
});

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
    t.is((await command('cat /proc/sys/kernel/hostname')).text, 'container\n');
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
    t.is((await command('kill -TERM $$; exit 3')).code, runtime === false ? 143 : 3, 'process 1 ignores the signal');
    t.like(
      await command('echo x > /dev/null && echo null; (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo shut'),
      { text: 'null\nshut\n' },
    );

    const nodes = await createImage(
      image.layout,
      ['base', 'app', 'nodes'].map((name) => pack(join(dir, name))),
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
    for await (const { name } of snapshotter.list()) names.push(name);
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
      [{ volumes: [{ source: dir, target: '/proc/1' }] }, /"volumes\[0\].target".*in \/proc/],
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

const numberOf: Readonly<Record<string, number>> = { TERM: 15, HUP: 1, USR1: 10, 'RTMIN+3': 37, 'RTMAX-1': 63 };

for (const runtime of ['runc', 'crun', false] as const) {
  mountTest(`StopSignal, then SIGKILL, by ${runtime || 'spawn'}`, { needs: 'mountSetattr' }, async (t) => {
    if (runtime !== false && !hasProgram(runtime)) {
      t.pass(`${runtime} is not installed`);
      return;
    }
    if (runtime === 'crun') coverCgroups(t);
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'volume/': '' });
    const image = await makeProgramImage(dir);
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    const got = join(dir, 'volume/got');
    const stopped = async (StopSignal: string | undefined, stopTimeout?: number) => {
      rmSync(got, { force: true });
      const { layout } = image;
      const layers = ['base', 'app'].map((name) => pack(join(dir, name)));
      const asking = await createImage(layout, layers, {
        tag: 'stop',
        config: StopSignal === undefined ? {} : { StopSignal },
      });
      const traps = ['TERM', 'HUP', 'USR1', 'RTMIN+3', 'RTMAX-1'].map((name) => `trap "end ${name}" ${numberOf[name]}`);
      const ends = stopTimeout === undefined ? 'exit 0' : ':';
      const controller = new AbortController();
      const script = `end() { echo $1 >> /volume/got; ${ends}; }; ${traps.join('; ')}; echo ready; while :; do sleep 0.02; done`;
      const ending = runContainer(asking, {
        ...{ snapshotter, runtime, stopTimeout, signal: controller.signal, stdio: ['ignore', 'pipe', 'inherit'] },
        command: ['sh', '-c', script],
        volumes: [{ source: join(dir, 'volume'), target: '/volume' }],
        onStart: ({ process: { stdout } }) => void stdout?.once('data', () => controller.abort()),
      });
      await t.throwsAsync(ending, { code: 'ABORT_ERR' });
      return existsSync(got) ? readFileSync(got, 'utf8') : '';
    };
    for (const [written, name] of [
      [undefined, 'TERM'],
      ['', 'TERM'],
      ['SIGHUP', 'HUP'],
      ['usr1', 'USR1'],
      ['15', 'TERM'],
      ['SIGRTMIN+3', 'RTMIN+3'],
      ['RTMAX-1', 'RTMAX-1'],
    ] as const) {
      t.is(await stopped(written), `${name}\n`, written);
    }
    t.is(await stopped('SIGHUP', 300), 'HUP\n', 'it gets the signal once, then SIGKILL');
    t.is(await stopped('SIGHUP', 0), '', 'SIGKILL at once');
  });

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
      stopTimeout: 100,
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
    for await (const { name } of snapshotter.list()) names.push(name);
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
  const linked = await createImage(image.layout, [pack(join(dir, 'base')), pack(made)], { tag: 'links' });
  await t.throwsAsync(ran(linked, { ...common, command: ['id'], user: 'evil' }), { code: 'ERR_IMAGE_USER_MISSING' });
  const volumes = [{ source: join(dir, 'volume'), target: '/data/made' }];
  await ran(linked, { ...common, command: ['id'], cwd: '/work/here', volumes }).catch(() => {});
  t.deepEqual(readdirSync(outside), ['passwd'], 'nothing is made outside');
});

mountTest('a commit that fails keeps the work of the container', { needs: 'mountSetattr' }, async (t) => {
  const dir = scratch(t, 'disk');
  const image = await makeProgramImage(dir);
  const root = join(dir, 'root');
  const layout = join(dir, 'layout');
  const snapshotter = await openSnapshotter(t, root);
  const marker = join(dir, 'ran');
  makeTree(marker, {});
  const work = (script: string, onStart?: RunContainerOptions['onStart']) =>
    runContainer(image, {
      ...{ snapshotter, runtime: false, commit: 'two', onStart, stdio: 'ignore' },
      volumes: [{ source: marker, target: '/ran' }],
      command: ['sh', '-c', `echo work > /work; echo ran > /ran/it; ${script}`],
    });
  const cover = (): void => {
    t.is(native.mount(layout, layout, '', MS_BIND, ''), 0);
    t.is(native.mount('', layout, '', MS_BIND | MS_REMOUNT | MS_RDONLY, ''), 0);
  };
  cover();
  await t.throwsAsync(work(''), { code: 'EROFS' });
  t.deepEqual(readdirSync(marker), [], 'a layout that is read-only is found before the program starts');
  t.is(native.umount(layout, 0), 0);

  for (const [script, what, mend] of [
    ['', /EROFS|read-only/, undefined],
    ['echo > /.wh.x', /\.wh\.x.*means a whiteout/, '.wh.x'],
  ] as const) {
    const failing = work(script, mend === undefined ? cover : undefined);
    const error = (await t.throwsAsync(failing, { instanceOf: ImageError, code: 'ERR_IMAGE_COMMIT' })) as ImageError;
    t.regex(error.message, what);
    if (mend === undefined) t.is(native.umount(layout, 0), 0);
    const key = error.key as string;
    const [upper] = (await snapshotter.mounts(key)).flatMap(({ options }) =>
      (options ?? []).flatMap((one) => (one.startsWith('upperdir=') ? [one.slice(9)] : [])),
    ) as [string];
    t.is(readFileSync(join(upper, 'work'), 'utf8'), 'work\n');
    if (mend !== undefined) rmSync(join(upper, mend));
    const command = /overlayfs (image commit .*)\.$/.exec(error.hint)?.[1] as string;
    t.regex(command, new RegExp(` '${key}' two$`));
    const words = execFileSync('sh', ['-c', `printf '%s\\n' ${command}`], { encoding: 'utf8' })
      .trim()
      .split('\n');
    t.is(run(words.slice(0, -1)).code, 2);
    t.like(run(words), { code: 0, stderr: '' });
    const two = await (await openLayout(layout)).image('two');
    t.is((await ran(two, { snapshotter, runtime: false, command: ['cat', '/work'] })).text, 'work\n');
  }
});

for (const [who, command, owner] of [
  ['root', [], 0],
  ['a plain user', asNobody, NOBODY],
] as const) {
  mountTest(
    `a full disk: what a container did is committed when there is room, as ${who}`,
    { needs: 'rootless' },
    async (t) => {
      const dir = scratch(t, 'disk');
      await makeProgramImage(dir);
      const layout = join(dir, 'layout');
      execFileSync('mv', [layout, `${layout}-made`]);
      makeTree(dir, { 'layout/': '' });
      const size = Number(execFileSync('du', ['-sk', `${layout}-made`], { encoding: 'utf8' }).split('\t')[0]);
      const mounted = (flags: number, room: number) =>
        t.is(native.mount('none', layout, 'tmpfs', flags, `size=${size + room}k,uid=${owner},gid=${owner}`), 0);
      mounted(0, 200);
      t.teardown(() => native.umount(layout, 0));
      execFileSync('cp', ['-a', `${layout}-made/.`, layout]);
      execFileSync('chown', ['-R', `${owner}:${owner}`, dir]);
      addDependency('@photostructure/sqlite');
      const base = ['image', 'run', '--root', join(dir, 'root'), '--runtime', 'none'];
      const before = readdirSync(layout, { recursive: true });
      const work = 'echo work > /work; cat /lib/*/* /bin/* > /big; cat /big /big > /bigger';
      const failed = run([...base, '--commit', 'two', layout, 'sh', '-c', work], { command });
      t.is(failed.code, 125);
      t.regex(failed.stderr, /ENOSPC[\s\S]*hint: Free/);
      t.deepEqual(readdirSync(layout, { recursive: true }), before, 'nothing half-made is left');
      const again = /overlayfs (image commit .*)\.$/m.exec(failed.stderr)?.[1] as string;
      const words = execFileSync('sh', ['-c', `printf '%s\\n' ${again}`], { encoding: 'utf8' });
      t.is(run(words.trim().split('\n'), { command }).code, 2, 'and the work stays, however often it fails');
      mounted(MS_REMOUNT, 65536);
      t.like(run(words.trim().split('\n'), { command }), { code: 0, stderr: '' });
      t.like(run([...base, `${layout}:two`, 'cat', '/work'], { command }), { code: 0, stdout: 'work\n' });
    },
  );
}

for (const runtime of ['runc', 'crun', false] as const) {
  const title = `a container is committed while a process outside is in its files, by ${runtime || 'spawn'}`;
  mountTest(title, { needs: 'mountSetattr' }, async (t) => {
    if (runtime !== false && !hasProgram(runtime)) {
      t.pass(`${runtime} is not installed`);
      return;
    }
    if (runtime === 'crun') coverCgroups(t);
    const dir = scratch(t, 'disk');
    const image = await makeProgramImage(dir);
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    let inside: ChildProcess | undefined;
    t.teardown(() => inside?.kill('SIGKILL'));
    await runContainer(image, {
      ...{ snapshotter, runtime, commit: 'two', stdio: 'ignore', command: ['sh', '-c', 'echo work > /work'] },
      onStart: ({ path }) => {
        inside = spawn('sleep', ['100'], { cwd: path.replace('/self/', `/${process.pid}/`), stdio: 'ignore' });
      },
    });
    t.is(inside?.exitCode, null);
    const two = await (await openLayout(join(dir, 'layout'))).image('two');
    t.is((await ran(two, { snapshotter, runtime: false, command: ['cat', '/work'] })).text, 'work\n');
    t.false(readFileSync('/proc/self/mountinfo', 'latin1').includes('overlayfs-container'));
  });
}

mountTest('the limits on archives can be raised, for a container too', { needs: 'rootless' }, async (t) => {
  const dir = scratch(t, 'disk');
  const image = await makeProgramImage(dir, { Cmd: ['cat', '/srv/hello'] });
  const root = join(dir, 'root');
  const snapshotter = await openSnapshotter(t, root);
  const limited = (maxEntries: number) => ran(image, { snapshotter, runtime: false, maxEntries });
  await t.throwsAsync(limited(0), { code: 'ERR_OUT_OF_RANGE' });
  await t.throwsAsync(unpack(image, snapshotter, { maxRatio: Number.NaN }), { code: 'ERR_OUT_OF_RANGE' });
  await t.throwsAsync(limited(3), { message: /maxEntries/ });
  for await (const { name } of snapshotter.list()) t.fail(`${name} is left`);
  const base = ['image', 'run', '--root', root, '--runtime', 'none', '--max-entries'];
  const layout = join(dir, 'layout');
  t.regex(run([...base, '3', layout]).stderr, /than --max-entries allows/);
  t.is(run([...base, 'few', layout]).code, 125);
  t.like(run([...base, '1e6', layout]), { code: 0, stdout: 'hello\n' });
  t.is((await limited(1e6)).text, 'hello\n');
});

for (const runtime of ['runc', 'crun', false] as const) {
  mountTest(
    `the place of a mount is no link of the image, by ${runtime || 'spawn'}`,
    { needs: 'mountSetattr' },
    async (t) => {
      if (runtime !== false && !hasProgram(runtime)) {
        t.pass(`${runtime} is not installed`);
        return;
      }
      if (runtime === 'crun') coverCgroups(t);
      const dir = scratch(t, 'disk');
      makeTree(dir, { 'outside/ptmx': 'mine', 'volume/in': 'in', 'volume/sub/': '', file: 'file' });
      const image = await makeProgramImage(dir);
      const snapshotter = await openSnapshotter(t, join(dir, 'root'));
      const outside = join(dir, 'outside');
      const withTop = async (tag: string, make: (top: string) => void): Promise<Image> => {
        const top = join(dir, `top-${tag}`);
        makeTree(top, {});
        make(top);
        return createImage(
          image.layout,
          ['base', `top-${tag}`].map((name) => pack(join(dir, name))),
          { tag },
        );
      };
      const volume = (name: string, target: string) => ({ source: join(dir, name), target });
      const go = (of: Image, script: string, volumes: RunContainerOptions['volumes'] = []) =>
        ran(of, { snapshotter, runtime, command: ['sh', '-c', script], volumes });
      for (const name of ['dev', 'proc', 'sys']) {
        for (const [i, to] of [outside, `../../../../..${outside}`, 'tmp', 'nowhere', undefined].entries()) {
          const bad = await withTop(`${name}-${i}`, (top) => {
            if (to === undefined) writeFileSync(join(top, name), '');
            else symlinkSync(to, join(top, name));
          });
          await t.throwsAsync(go(bad, 'true'), { code: 'ERR_IMAGE_INVALID', message: RegExp(`'/${name}' is `) });
        }
      }
      t.deepEqual(readdirSync(outside), ['ptmx']);
      t.is(readFileSync(join(outside, 'ptmx'), 'utf8'), 'mine');

      const linked = await withTop('linked', (top) => {
        makeTree(top, { 'run/hosts': '', 'var/': '', 'etc/': '' });
        symlinkSync('/run', join(top, 'var/run'));
        symlinkSync('../run/hosts', join(top, 'etc/hosts'));
        symlinkSync('/proc', join(top, 'p'));
        symlinkSync('/', join(top, 'r'));
      });
      const hosts = existsSync('/etc/hosts') ? readFileSync('/etc/hosts', 'utf8') : '';
      t.is((await go(linked, 'cat /run/hosts /run/v/in', [volume('volume', '/var/run/v')])).text, `${hosts}in`);
      for (const target of ['/p', '/p/x', '/r']) {
        const refused = { code: 'ERR_IMAGE_INVALID', message: RegExp(`'${target}' is `) };
        await t.throwsAsync(go(linked, 'true', [volume('volume', target)]), refused);
      }
      const kind = { code: 'ERR_IMAGE_INVALID', message: /'\/tmp' is a directory, and the container needs a file/ };
      await t.throwsAsync(go(linked, 'true', [volume('file', '/tmp')]), kind);

      const nested = [volume('outside', '/v/new/deep'), volume('file', '/v/sub/file'), volume('volume', '/v')];
      t.is((await go(linked, 'cat /v/in /v/new/deep/ptmx /v/sub/file', nested)).text, 'inminefile', 'in any order');
      symlinkSync(outside, join(dir, 'volume/link'));
      const inner = { code: 'ERR_IMAGE_INVALID', message: /'\/link' is / };
      await t.throwsAsync(go(linked, 'true', [volume('volume', '/v'), volume('volume', '/v/link')]), inner);
    },
  );
}

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
    addDependency('@photostructure/sqlite');
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
    addDependency('@photostructure/sqlite');
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
    addDependency('@photostructure/sqlite');
    giveTo(dir);
    if (who === 'root') execFileSync('chown', ['0:0', dir]);
    const layout = join(dir, 'layout');
    const base = ['image', 'run', '--root', join(dir, 'root'), '--runtime', 'none'];
    const go = (...args: string[]) => run([...base, ...args], { command });
    t.deepEqual(go(`${layout}:one`), { code: 0, stdout: 'hello\n', stderr: '' });
    t.deepEqual(go(layout, 'sh', '-c', 'exit 4'), { code: 4, stdout: '', stderr: '' });
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
      'sh',
      '-c',
      script,
    );
    t.is(changed.code, 0, changed.stderr);
    t.regex(changed.stdout, /^b\nin[\s\S]*A new$/m);
    t.like(go(`${layout}:name/two:2`, 'cat', '/new'), { code: 0, stdout: 'new\n' });
    const json = go('--json', `${layout}:name/two:2`, 'sh', '-c', 'echo text; exit 3');
    t.like({ ...json, stdout: JSON.parse(json.stdout) }, { code: 3, stdout: { exitCode: 3 }, stderr: 'text\n' });
    t.is(go(`${layout}:one`, 'no-such-program').code, 127);
    t.regex(go(`${layout}:none`).stderr, /has no image 'none'[\s\S]*one of its tags: one, name\/two:2/);
    t.regex(go(join(dir, 'nothing')).stderr, /no OCI image layout/);
    t.is(go('--env', 'A', layout).code, 125);
    t.is(go('--volume', 'A', layout).code, 125);
    // The image is named by its digest. A program that writes nothing does not need standard output.
    const { digest } = await (await openLayout(layout)).image('one');
    const toFull = [...command, 'sh', '-c', '"$@" >/dev/full', 'sh'];
    t.like(run([...base, `${layout}:${digest}`, 'sh', '-c', ':'], { command: toFull }), { code: 0, stderr: '' });
    t.is(run(['image', 'run', '--no-such-flag', layout], { command }).code, 125);
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

test('a StopSignal that is no signal is refused, and named', async (t) => {
  const dir = scratch(t);
  const image = await makeProgramImage(dir);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  for (const StopSignal of [
    'SIGNO',
    '0',
    '65',
    '-1',
    '1.5',
    'SIGRTMIN+31',
    'RTMAX-31',
    'RTMIN-1',
    'SIG',
    ' 15',
    'constructor',
  ]) {
    const layers = [pack(join(dir, 'base'))];
    const given = {
      code: 'ERR_INVALID_ARG_VALUE',
      message: RegExp(`config.StopSignal.*'${StopSignal.replaceAll('+', '\\+')}'`),
    };
    await t.throwsAsync(createImage(image.layout, layers, { tag: 'two', config: { StopSignal } }), given);
    const read = Object.create(image, { config: { value: { StopSignal } } });
    const refused = { instanceOf: ImageError, code: 'ERR_IMAGE_INVALID', message: given.message };
    await t.throwsAsync(runContainer(read, { snapshotter, command: ['true'], runtime: false }), refused);
  }
  await t.throwsAsync(runContainer(image, { snapshotter, command: ['true'], runtime: false, stopTimeout: -1 }), {
    code: 'ERR_OUT_OF_RANGE',
  });
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

kernelTest('a path with .. is made in a root beside renames elsewhere', async (t) => {
  const dir = scratch(t);
  const rename = `const fs = require('node:fs');
    const { workerData: path } = require('node:worker_threads');
    fs.writeFileSync(path + 'a', '');
    for (;;) { fs.renameSync(path + 'a', path + 'b'); fs.renameSync(path + 'b', path + 'a'); }`;
  const workers = [0, 1].map((i) => new Worker(rename, { eval: true, workerData: join(dir, String(i)) }));
  makeTree(dir, { 'root/': '' });
  // openat2(2) answers EAGAIN at "..", about once in 40 times.
  for (let i = 0; i < 2000; i++) await makeInRoot(join(dir, 'root'), `../up${i % 50}`);
  t.is(readdirSync(join(dir, 'root')).length, 50);
  await Promise.all(workers.map((worker) => worker.terminate()));
});
