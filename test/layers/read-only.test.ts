/** Merges of read-only files and directories by their owner, who has no capability. The judge is a copy of the view. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { OverlayError } from 'overlayfs';
import { baseline, merge } from 'overlayfs/layers';
import { generator, mountTest, scaled, scratch } from '../support/index.js';
import { asNobody, evaluateAs, giveTo } from '../support/plain-user.js';

/** Functions of the programs below. A command that fails changes nothing, or not all: the view tells. */
const prelude = `
  const generator = ${generator};
  const { apply, baseline, merge, pack, squash } =
    await import('overlayfs/layers');
  const { pipeline } = await import('node:stream/promises');
  const sh = (cwd, command, env = {}) =>
    childProcess.spawnSync('bash', ['-c', 'umask 022; ' + command], { cwd, encoding: 'utf8', env: { ...process.env, ...env } });
  const must = (cwd, command, env) => {
    const { status, error, stderr } = sh(cwd, command, env);
    if (status !== 0) throw error ?? new Error(command + ': ' + stderr);
  };
  const at = (name) => join(args[0], name);
  const isPlain = process.getuid() !== 0;
  const options = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') };
  const mount = (more = {}) =>
    isPlain ? overlayfs.mountOverlaySync({ ...options, ...more, rootless: true })
      : overlayfs.mountOverlaySync({ ...options, target: at('view'), ...more });
  /** Its path for other processes. */
  const pathOf = ({ path }) => path.replace('/self/', '/' + process.pid + '/');
  const differences = (one, other) => {
    const { status, stdout, stderr } = sh('/', 'rsync -aHAXni --checksum --delete "$A/" "$B/"', { A: one, B: other });
    return status === 0 ? stdout : 'rsync: ' + stderr;
  };
  /** Copies the view. rsync does not find its way in a mount that has no place. */
  const keep = (mounted, to) => {
    must('/', 'cp -a "$V/." "$S"', { V: pathOf(mounted), S: to });
    mounted.unmountSync();
  };
  /** Makes a change through an overlay, and keeps a copy of what it shows. */
  const change = (lower, upper, more) => {
    must(args[0], 'mkdir -p lower upper work view');
    must(at('lower'), lower);
    const mounted = mount(more);
    const path = pathOf(mounted);
    const outcome = upper(path);
    keep(mounted, at('shown'));
    return outcome;
  };
`;

const run = (command: readonly string[], dir: string, body: string, ...rest: string[]): unknown => {
  if (command === asNobody) giveTo(dir);
  return evaluateAs(command, prelude + body, dir, ...rest);
};

/** The changes of a lower layer with the directories d and d/sub and a file in each; d/sub moves and its files too. */
const changes: Readonly<Record<string, string>> = {
  'a new directory': 'mkdir -p n/sub; echo n > n/sub/f; chmod -R a-w n',
  'a new directory in a read-only one': 'chmod u+w d; mkdir -p d/n/sub; echo n > d/n/sub/f; chmod -R a-w d',
  'a changed directory': 'chmod -R u+w d; echo more >> d/f; setfattr -n user.x -v y d/sub/g; chmod -R a-w d',
  'a changed file in a nested one': 'chmod u+w d/sub/g; echo more >> d/sub/g; chmod a-w d/sub/g',
  'a removed directory': 'chmod -R u+w d; rm -r d',
  'a removed one in a read-only one': 'chmod u+w d d/sub; rm -r d/sub; chmod a-w d',
  'a renamed directory': 'chmod -R u+w d; mv d e; chmod -R a-w e',
  'a renamed one in a read-only one': 'chmod -R u+w d; mv d/sub d/s; chmod -R a-w d',
  'a file in its place': 'chmod -R u+w d; rm -r d/sub; echo f > d/sub; chmod -R a-w d',
  'another one in its place': 'chmod -R u+w d; rm -r d; mkdir -p d/sub; echo f > d/sub/h; chmod -R a-w d',
  'links to a file': 'chmod u+w d; ln d/f d/l; ln d/f l; chmod a-w d; setfattr -n user.x -v y k; chmod a-w k; ln k kl',
  'the root': 'chmod a-w .',
};

for (const [title, command] of Object.entries(changes)) {
  for (const mode of ['copy', 'move'] as const) {
    mountTest(`the owner merges what is read-only: ${title} (${mode})`, { needs: 'rootless' }, (t) => {
      const dir = scratch(t, 'disk');
      const body = `
        change('mkdir -p d/sub; echo f > d/f; echo g > d/sub/g; echo k > k; chmod -R a-w d', (path) => sh(path, args[1]));
        const before = differences(at('lower'), at('shown'));
        const fails = [];
        const call = async (options) => { try { await merge({ upperdir: at('upper'), userxattr: true }, { into: at('lower'), ...options }) } catch (e) { fails.push(e.message) } };
        await call({ move: args[2] === 'move', root: true });
        const left = fs.readdirSync(args[2] === 'move' ? at('upper') : at('view'));
        return { changed: before !== '', fails, left, after: differences(at('shown'), at('lower')) };`;
      t.deepEqual(run(asNobody, dir, body, command, mode), { changed: true, fails: [], left: [], after: '' });
    });
  }
}

for (const [title, make, options, hint] of [
  ['a file of another user', 'chown 0:0 upper/f', { move: false }, /run as root/i],
  ['a directory of another user', 'mkdir upper/d/s; chown 0:0 upper/d/s', { move: true }, /run as root/i],
  ['a directory of the target', 'chown 0:0 lower/d', { move: true }, /as that user or as root/i],
  ['a file that its owner may not read', 'chmod 200 upper/f', { move: false }, /merge by move/i],
  ['the target itself', 'chown 0:0 lower; chmod 777 lower', { move: true, root: true }, /as that user or as root/i],
  [
    'a file with capabilities',
    'setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 upper/f',
    { move: false },
    /merge by move/i,
  ],
] as const) {
  mountTest(`a merge without root refuses before it writes: ${title}`, (t) => {
    const dir = scratch(t, 'disk');
    execFileSync('bash', ['-c', 'mkdir -p upper/d lower/d; touch upper/a upper/f; chown -R 65534:65534 .'], {
      cwd: dir,
    });
    execFileSync('bash', ['-c', make], { cwd: dir });
    const body = `
      try { await merge(at('upper'), { into: at('lower'), ...JSON.parse(args[1]) }) } catch (error) {
        return { ...fields(error), left: [fs.readdirSync(at('upper')), fs.readdirSync(at('lower'))] };
      }`;
    const error = run(asNobody, dir, body, JSON.stringify(options)) as {
      reason: string;
      hint: string;
      left: string[][];
    };
    t.is(error?.reason, 'permission-denied');
    t.regex(error.hint, hint);
    t.deepEqual(error.left, [['a', 'd', 'f'], ['d']]);
  });
}

/** A command that gives a file or directory an access control list, acl(5): rights of uid 65534, and of all others. */
const setList = (path: string, user: number, others: number): string => {
  const words = [
    2,
    (7 << 16) + 1,
    -1,
    (user << 16) + 2,
    65534,
    (others << 16) + 4,
    -1,
    (7 << 16) + 0x10,
    -1,
    (others << 16) + 0x20,
    -1,
  ];
  return `setfattr -n system.posix_acl_access -v 0x${Buffer.from(Int32Array.from(words).buffer).toString('hex')} ${path}`;
};

/** Each looks like an obstacle and is none: the kernel lets the user do it. */
for (const [title, make, shown, more] of [
  [
    'a removed directory that its owner may not read',
    'mkdir lower/d; echo f > lower/d/f; chmod 0 lower/d; mknod upper/d c 0 0',
    '',
  ],
  ['another one inside a removed directory', 'mkdir -p lower/d/e; chmod 0 lower/d/e; mknod upper/d c 0 0', ''],
  ['an empty directory of another user that is removed', 'mkdir lower/d; mknod upper/d c 0 0; FOREIGN=lower/d', ''],
  ['an empty directory of another user inside', 'mkdir -p lower/d/e; mknod upper/d c 0 0; FOREIGN=lower/d/e', ''],
  ['an empty directory of another user that a file replaces', 'mkdir lower/d; echo f > upper/d; FOREIGN=lower/d', 'd'],
  [
    'a directory of another user with an access control list',
    `mkdir lower/d; touch lower/d/f; ${setList('lower/d', 7, 5)}; mknod upper/d c 0 0; FOREIGN=lower/d`,
    '',
  ],
  [
    'a directory of another user that all may write',
    'mkdir -m 777 lower/d; touch lower/d/f; mknod upper/d c 0 0; FOREIGN=lower/d',
    '',
  ],
  ['a file of another user that is replaced', 'touch lower/f; echo f > upper/f; FOREIGN=lower/f', 'f'],
  [
    'an immutable file in an untouched directory',
    'mkdir lower/d; touch lower/d/f; chattr +i lower/d/f; touch upper/n',
    'd n',
  ],
  ['a sticky target of the user', 'chmod 1777 lower; touch lower/f; echo f > upper/f; FOREIGN=lower/f', 'f'],
  [
    'a marked file of another user that the user may write',
    `touch upper/f; setfattr -n user.overlay.origin -v x upper/f; ${setList('upper/f', 6, 4)}; FOREIGN=upper/f`,
    'f',
    'move',
  ],
] as const) {
  const needs = title.startsWith('an immutable') ? (['chattr on tmpfs'] as const) : [];
  mountTest(`no obstacle for a merge: ${title}`, { needs: [...needs] }, (t) => {
    const dir = scratch(t, 'disk');
    const sh = (command: string) => execFileSync('bash', ['-c', command], { cwd: dir, encoding: 'utf8' });
    t.teardown(() => sh('chattr -R -f -ia . || true'));
    sh(`mkdir upper lower; ${make}; chown -f -R 65534:65534 . || true; chown 0:0 $FOREIGN .; chmod 755 .`);
    for (const mode of more === 'move' ? ['move'] : ['copy', 'move']) {
      sh('rm -rf u l; cp -a upper u; cp -a lower l');
      const body = `await merge({ upperdir: at('u'), userxattr: true }, { into: at('l'), move: args[1] === 'move', unmarked: true })`;
      run(asNobody, dir, body, mode);
      t.is(readdirSync(join(dir, 'l')).join(' '), shown, mode);
    }
    sh('chmod -R -f u+rwx . || true');
  });
}

/** Each would be in the way of a merge half-way through. The error names it, and a call after the remedy does all. */
for (const [title, make, message, remedy] of [
  [
    'an immutable file in a removed directory',
    'mknod upper/d c 0 0; chattr +i lower/d/s/f',
    /lower\/d\/s\/f' is immutable or append-only; nothing was merged\. Remove the attribute: chattr -ia/,
    'chattr -i lower/d/s/f',
  ],
  [
    'an append-only directory',
    'mkdir upper/d; touch upper/d/n; chattr +a lower/d',
    /lower\/d' is immutable or append-only/,
    'chattr -a lower/d',
  ],
  [
    'a directory of another user in a removed one',
    'mknod upper/d c 0 0; chown 0:0 lower/d/s',
    /lower\/d\/s' belongs to the user 0, and this process may change nothing in it; nothing was merged\. Run as that user or as root/,
    'chown 65534 lower/d/s',
  ],
  [
    'a file of another user in a sticky directory',
    'touch upper/k; chown 0:0 lower lower/k; chmod 1777 lower',
    /lower\/k' belongs to the user 0, and '\S+lower' is sticky/,
    'chown 65534 lower/k',
  ],
  [
    'a foreign directory whose list denies',
    `mknod upper/d c 0 0; chown 0:0 lower/d/s; ${setList('lower/d/s', 5, 7)}`,
    /lower\/d\/s' belongs to the user 0, and this process may change nothing in it/,
    'chown 65534 lower/d/s',
  ],
  [
    'an upper of another user that has to be emptied',
    'chown 0:0 upper',
    /upper' belongs to the user 0, and this process may change nothing in it/,
    'chown 65534 upper',
  ],
  [
    'an immutable directory of the upper',
    'mkdir upper/d; touch upper/d/n; chown -R 65534:65534 upper; chattr +i upper/d',
    /upper\/d' is immutable or append-only/,
    'chattr -i upper/d',
  ],
] as const) {
  for (const mode of ['copy', 'move']) {
    if (mode === 'copy' && / upper/.test(title)) continue;
    mountTest(
      `a merge names what is in its way before it writes: ${title} (${mode})`,
      { needs: 'chattr on tmpfs' },
      (t) => {
        const dir = scratch(t);
        const sh = (command: string) => execFileSync('bash', ['-c', command], { cwd: dir, encoding: 'utf8' });
        t.teardown(() => sh('chattr -R -f -ia . || true'));
        sh(`mkdir -p upper lower/d/s; touch upper/a lower/k lower/d/s/f; chown -R 65534:65534 upper lower`);
        sh(`${make}; chown -f 65534:65534 upper/k upper/d upper/d/n || true`);
        const body = `
        try { await merge({ upperdir: at('upper'), userxattr: true }, { into: at('lower'), move: args[1] === 'move' }); return null; }
        catch (error) { return fields(error); }`;
        const before = sh('ls -lR --time-style=full-iso upper lower');
        const error = run(asNobody, dir, body, mode) as { reason: string; message: string };
        t.is(error?.reason, 'permission-denied');
        t.regex(error.message, message);
        t.is(sh('ls -lR --time-style=full-iso upper lower'), before);
        sh(remedy);
        t.is(run(asNobody, dir, body, mode), null);
        t.deepEqual(readdirSync(join(dir, 'lower')), make.includes('mknod') ? ['a', 'k'] : ['a', 'd', 'k']);
        if (mode === 'move') t.deepEqual(readdirSync(join(dir, 'upper')), []);
      },
    );
  }
}

mountTest(
  'one error names the first entries in the way of a merge, and their number',
  { needs: 'chattr on tmpfs' },
  async (t) => {
    const dir = scratch(t);
    const sh = (command: string) => execFileSync('bash', ['-c', command], { cwd: dir, encoding: 'utf8' });
    t.teardown(() => sh('chattr -R -f -ia . || true'));
    sh('mkdir -p upper lower/d/s; touch upper/{1..5} lower/{1..5} lower/d/s/f; mknod upper/d c 0 0');
    sh('chattr +i lower/{2..5}; chattr +a lower/d/s/f');
    const error = await t.throwsAsync<OverlayError>(merge(join(dir, 'upper'), { into: join(dir, 'lower') }));
    t.regex(
      error.message,
      /5 entries are in the way: '\S+lower\/2' is [^;]+; '\S+3' is [^;]+; '\S+4' is [^;]+; and 2 more; nothing/,
    );
    t.deepEqual([error.reason, error.path], ['permission-denied', join(dir, 'lower/2')]);
    // Entries that the directory keeps are not in the way.
    sh('chattr -i lower/{2,3,4}');
    const since = await baseline(join(dir, 'lower'));
    sh('touch -d tomorrow lower/d; chattr -i lower/5; touch -d tomorrow lower/5; chattr +i lower/5');
    await merge(join(dir, 'upper'), { into: join(dir, 'lower'), since, conflict: 'theirs' });
    t.deepEqual(readdirSync(join(dir, 'lower')), ['1', '2', '3', '4', '5', 'd']);
  },
);

mountTest('a mount in a directory that a merge removes is named before it writes', async (t) => {
  const dir = scratch(t);
  const sh = (command: string) => execFileSync('bash', ['-c', command], { cwd: dir, encoding: 'utf8' });
  sh('mkdir -p upper/m lower/d/s lower/m; touch upper/a; mknod upper/d c 0 0; mount -t tmpfs none lower/d/s');
  const call = () => merge(join(dir, 'upper'), { into: join(dir, 'lower') });
  const inside = await t.throwsAsync<OverlayError>(call());
  sh('umount lower/d/s; mount --bind lower/d lower/m');
  const merged = await t.throwsAsync<OverlayError>(call());
  sh('umount lower/m');
  t.deepEqual([inside.reason, merged.reason], ['mount-inside', 'mount-inside']);
  t.regex(inside.message, /'\S+lower\/d\/s' is a mount point; nothing was merged\. Unmount it/);
  t.regex(merged.message, /'\S+lower\/m' is a mount point/);
  t.deepEqual(readdirSync(join(dir, 'lower')), ['d', 'm']);
  await call();
});

mountTest('a copy for which there is no room is refused before it writes', async (t) => {
  const dir = scratch(t);
  const sh = (command: string) => execFileSync('bash', ['-c', command], { cwd: dir, encoding: 'utf8' });
  sh('mkdir upper lower; mount -t tmpfs -o size=4m none lower; head -c 3M /dev/zero > lower/f');
  sh('head -c 2M /dev/zero > upper/a; head -c 2M /dev/zero > upper/b');
  const call = () => merge(join(dir, 'upper'), { into: join(dir, 'lower') });
  const error = await t.throwsAsync<OverlayError>(call());
  t.regex(
    error.message,
    /adds 4 MiB at least, and the file system of '\S+lower' has 1 MiB left; nothing was merged\. Make/,
  );
  t.deepEqual([error.reason, readdirSync(join(dir, 'lower'))], ['out-of-space', ['f']]);
  // So does one with several names if all of them go.
  sh(
    'ln lower/f lower/g; mknod upper/g c 0 0; mknod upper/f c 0 0; truncate -s 0 upper/a; rm upper/b; head -c 3M /dev/zero > upper/z',
  );
  await call();
  t.deepEqual(readdirSync(join(dir, 'lower')), ['a', 'z']);
  sh('rm upper/* lower/*; head -c 3M /dev/zero > lower/f; head -c 2M /dev/zero > upper/b; touch upper/a');
  // A file that the merge removes makes room. A hole takes none.
  sh('mknod upper/f c 0 0; mv upper/f upper/B; mv lower/f lower/B; rm upper/a; truncate -s 1G upper/hole');
  await call();
  t.deepEqual(readdirSync(join(dir, 'lower')), ['b', 'hole']);
  sh('umount lower');
});

mountTest('a move takes a file of mode 0000, whose marks its owner cannot read', (t) => {
  const dir = scratch(t, 'disk');
  const make =
    'mkdir upper lower; echo new > upper/f; setfattr -n user.overlay.origin -v 0x00 upper/f; chmod 0 upper/f';
  execFileSync('bash', ['-c', `${make}; chown 65534:65534 upper lower upper/f`], { cwd: dir });
  run(asNobody, dir, `await merge({ upperdir: at('upper'), userxattr: true }, { into: at('lower'), move: true });`);
  const file = join(dir, 'lower/f');
  t.deepEqual([statSync(file).mode & 0o7777, readFileSync(file, 'utf8')], [0, 'new\n']);
  t.is(execFileSync('getfattr', ['-d', file], { encoding: 'utf8' }), '');
});

/** The work of people in a project. Each is one line of a shell, with random words in $A, $B and $N. */
const commands: readonly string[] = [
  'cd repo && echo $N >> f$A && git add -A && git commit -qm $N',
  'cd repo && mkdir -p s$A && echo $N > s$A/f$B && git add -A && git commit -qm $N',
  'cd repo && git checkout -q -B b$A',
  'cd repo && git checkout -q b$B',
  'cd repo && git rebase -q b$A || git rebase --abort',
  'cd repo && echo $N >> f$B && git stash -q',
  'cd repo && git stash pop -q',
  'cd repo && git gc -q --prune=now',
  'rm -rf clone$A; git clone -q --local repo clone$A',
  'cd build && make -s',
  'cd build && echo "int f$A(void) { return $N; }" > $A.c && make -s',
  'cd build && make -s clean',
  'sqlite3 db "create table if not exists t (x); insert into t values ($N)"',
  'sqlite3 db "pragma journal_mode = wal; insert into t values ($N); vacuum"',
  'python3 -m venv --without-pip env$A; echo $N > env$A/f',
  'cd app && npm ci --offline --silent && chmod -R a-w node_modules',
  'cd app && echo $N > node_modules/dep/index.js',
  'rm -rf venv; cp -a tree venv; ln -s ../tree venv/link; echo $N > venv/pyvenv.cfg',
  'chmod -R a-w tree',
  'chmod -R u+w tree',
  'chmod -R a-w repo/s$A tree/$B',
  'chmod -R u+w repo',
  'find tree -type d | sed -n $((A + 1))p | xargs -r chmod a-w',
  'find . -type f | sed -n $((N % 50 + 1))p | xargs -r -d "\\n" chmod a-w',
  'mv tree/$A tree/$B',
  'mv tree moved$A; cp -a moved$A tree',
  'ln -f tree/f$A tree/l$B',
  'ln -f repo/f$A linked$B',
  'rm -rf tree/$A; mkdir -p tree/$A/$B/deep; echo $N > tree/$A/$B/deep/f; chmod -R a-w tree/$A',
  'chmod -R u+w tree/$A; rm -rf tree/$A; echo $N > tree/$A; chmod a-w tree/$A',
  'setfattr -n user.note -v $N tree/f$A',
  'touch -d @$N tree/f$B tree/$A',
];

const lower = `mkdir -p repo build app dep/lib tree/{0,1,2}/{a,b}; for i in 0 1 2; do echo $i > tree/f$i; echo $i > tree/$i/a/f; done
  ln tree/f0 tree/2/b/linked; chmod a-w tree/f1 tree/1/a/f; chmod -R a-w tree/1
  cd repo && git init -q -b b0 && for i in 0 1 2; do echo $i > f$i; done && git add -A && git commit -qm first && git branch b1
  cd ../build && printf 'all: 0.o\\n0.o: 0.c\\n\\tcp 0.c 0.o\\nclean:\\n\\trm -f *.o\\n' > Makefile && echo 'int f;' > 0.c
  cd .. && echo '{ "name": "dep", "version": "1.0.0" }' > dep/package.json && echo > dep/index.js && echo > dep/lib/index.js
  cd app && echo '{ "name": "app", "dependencies": { "dep": "file:../dep" } }' > package.json && echo install-links=true > .npmrc
  npm install --offline --silent --package-lock-only || true`;

/** Random commands in a view of theirs, then each way to fold the view, compared with a copy of the view. */
const folds = `
  const [, seedText, commandsText, lower] = args;
  const commands = JSON.parse(commandsText);
  const random = generator(Number(seedText));
  const git = { HOME: args[0], GIT_CONFIG_NOSYSTEM: '1', GIT_AUTHOR_NAME: 'n', GIT_AUTHOR_EMAIL: 'e', GIT_COMMITTER_NAME: 'n', GIT_COMMITTER_EMAIL: 'e' };
  Object.assign(process.env, git);
  const done = [];
  change(lower, (path) => {
    for (let i = 4 + random(16); i > 0; i--) {
      const env = { A: random(3), B: random(3), N: random(1e9) };
      const command = commands[random(commands.length)];
      done.push(command.replace(/[$]([ABN])/g, (_, name) => env[name]));
      sh(path, command, env);
    }
  });
  const found = {};
  const compare = (name, dir) => {
    const text = differences(at('shown'), dir);
    if (text !== '') found[name] = text.slice(0, 500);
    const { status, stdout, stderr } = sh(join(dir, 'repo'), 'git fsck --strict 2>&1 | grep -v dangling; git status > /dev/null');
    if (/missing|broken|corrupt|error/.test(stdout)) found[name + ' git'] = stdout;
  };
  const attempt = async (name, dir, call) => {
    try { await call(dir); compare(name, dir); } catch (error) { found[name] = error.message; }
  };
  const fresh = (name) => { must('/', 'cp -a "$A" "$B"', { A: at('lower'), B: at(name) }); return at(name); };
  const userxattr = isPlain;
  const layers = [at('upper'), at('lower')];
  await attempt('copy', fresh('copy'), (dir) => merge({ upperdir: at('upper'), userxattr }, { into: dir, root: true }));
  await attempt('apply', fresh('apply'), async (dir) => {
    await pipeline(pack({ upperdir: at('upper'), lowerdir: at('lower'), userxattr }), fs.createWriteStream(at('archive')));
    await apply(at('archive'), dir, { layout: 'plain' });
  });
  await attempt('flatten', at('flat'), (dir) => squash({ upperdir: layers, userxattr }, { into: dir, plain: true }));
  await attempt('squash', at('unsquashed'), async (dir) => {
    await squash({ upperdir: layers, userxattr }, { into: at('squashed') });
    const mounted = mount({ lowerdir: [at('squashed'), at('lower')], upperdir: undefined, workdir: undefined });
    keep(mounted, dir);
  });
  await attempt('move', fresh('move'), (dir) => merge({ upperdir: at('upper'), userxattr }, { into: dir, move: true, root: true }));
  if (fs.readdirSync(at('upper')).length > 0) found.left = fs.readdirSync(at('upper'));
  sh('/', 'chmod -R u+rwx "$D"', { D: args[0] });
  return Object.keys(found).length === 0 ? null : { found, done };`;

for (const [user, command] of [
  ['a plain user', asNobody],
  ['root', []],
] as const) {
  const needs = ['rootless', 'rsync', 'sqlite3'] as const;
  mountTest(
    `real programs with read-only entries: each fold gives what the view shows (${user})`,
    { needs: [...needs] },
    (t) => {
      t.timeout(3_600_000);
      const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
      t.log(`seeds from ${first}`);
      for (let seed = first; seed < first + scaled(20); seed++) {
        const dir = scratch(t, 'disk');
        t.is(run(command, dir, folds, String(seed), JSON.stringify(commands), lower), null, `seed ${seed}`);
        if (!t.passed) return;
        execFileSync('chmod', ['-R', 'u+rwx', dir]);
        rmSync(dir, { recursive: true });
      }
    },
  );
}

/** A merge that is killed at a system call, then called again in either mode until it is done. */
const kills = `
  const [, seedText, command] = args;
  const random = generator(Number(seedText));
  change('mkdir -p d/sub d2/sub; for i in d d2 d/sub d2/sub; do echo f > $i/f; echo g > $i/g; done; chmod -R a-w d d2', (path) =>
    must(path, command + '; chmod u+w d2 d2/sub; echo more > d2/n; chmod a-w d2/f d2/sub d2; chmod a-w .'));
  const program = "const { merge } = await import('overlayfs/layers'); const [from, to, mode] = process.argv.slice(1);" +
    "await merge({ upperdir: from, userxattr: true }, { into: to, move: mode === 'move', root: true });";
  const node = [process.execPath, '--input-type=module', '-e', program, at('upper'), at('lower')];
  // strace may not know fchmodat2. Each such call comes before one of these.
  const calls = ['mkdirat', 'renameat2', 'unlinkat', 'fchmod', 'lsetxattr', 'lremovexattr', 'utimensat'];
  let killed = 0;
  const first = random(2);
  for (let i = 0; i < 40; i++) {
    const call = calls[random(calls.length)];
    const inject = 'inject=' + call + ':signal=KILL:when=' + (i < 6 ? 1 + random(10) : 10_000);
    const mode = ['copy', 'move'][(first + (random(3) === 0 ? 1 : 0)) % 2];
    const made = childProcess.spawnSync('strace', ['-f', '-qq', '-o', '/dev/null', '-e', 'trace=' + call, '-e', inject, ...node, mode], { encoding: 'utf8' });
    if (made.signal === 'SIGKILL') killed++;
    else if (made.status === 0) break;
    // A copy does not finish a move that has separated hard links, as those of a file that takes a directory's place.
    else if (mode === 'move' || !made.stderr.includes('layers-incomplete')) return { error: made.stderr, mode, inject };
  }
  const after = differences(at('shown'), at('lower'));
  must('/', 'chmod -R u+rwx "$D"', { D: args[0] });
  return { killed, after };`;

mountTest(
  'a merge of read-only entries that is killed, and called again in either mode',
  { needs: ['rootless', 'rsync', 'strace'] },
  (t) => {
    t.timeout(3_600_000);
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
    t.log(`seeds from ${first}`);
    const all = Object.values(changes).filter((command) => !command.includes('ln '));
    let killed = 0;
    for (let seed = first; seed < first + scaled(30) || killed === 0; seed++) {
      const dir = scratch(t, 'disk');
      const outcome = run(asNobody, dir, kills, String(seed), all[seed % all.length] ?? '') as { killed?: number };
      t.deepEqual(outcome, { killed: outcome.killed ?? 0, after: '' }, `seed ${seed}`);
      if (!t.passed) return;
      killed += outcome.killed ?? 0;
      rmSync(dir, { recursive: true });
    }
    t.log(`${killed} kills`);
    t.true(killed > 0);
  },
);

/** A merge into a directory of mode 0555 that is killed at each of its calls in turn, then called again. */
const keeps = `
  const [, mode, most, isRoot] = args;
  const program = "const { merge } = await import('overlayfs/layers');" +
    "await merge({ upperdir: process.argv[1], userxattr: true }, { into: process.argv[2], move: process.argv[3] === 'move', root: " + isRoot + " });";
  const mergeTraced = (tracing) => childProcess.spawnSync('strace', ['-f', '-qq', '-o', '/dev/null', ...tracing,
    process.execPath, '--input-type=module', '-e', program, at('upper'), at('lower'), mode], { encoding: 'utf8' });
  let killed = 0;
  const wrong = [];
  for (const call of ['mkdirat', 'renameat2', 'unlinkat', 'fchmod', 'lsetxattr', 'lremovexattr', 'utimensat', 'newfstatat']) {
    for (let when = 1; when <= Number(most); when++) {
      must(args[0], 'mkdir lower upper; echo f > lower/f; echo n > upper/n; touch -d @5 upper; chmod 555 lower upper');
      const inject = 'inject=' + call + ':signal=KILL:when=' + when;
      const { signal } = mergeTraced(['-e', 'trace=' + call, '-e', inject]);
      const { status, stderr } = mergeTraced([]);
      const { mode: left, atimeMs, mtimeMs } = fs.statSync(at('lower'));
      const found = fs.readdirSync(at('lower')).join();
      if (status !== 0 || (left & 0o777) !== 0o555 || atimeMs > Date.now() || found !== 'f,n' || (isRoot === 'true') !== (mtimeMs === 5000))
        wrong.push([inject, stderr, left.toString(8), atimeMs, found]);
      must(args[0], 'chmod u+w lower upper; rm -r lower upper');
      if (signal !== 'SIGKILL') break;
      killed++;
    }
  }
  return { killed: killed > 0, wrong };`;

for (const mode of ['copy', 'move'] as const) {
  for (const root of [false, true]) {
    const title = root ? 'gets that of a read-only upper' : 'gets its mode back';
    mountTest(`a read-only target ${title} after a kill at any call (${mode})`, { needs: 'strace' }, (t) => {
      t.timeout(600_000);
      const dir = scratch(t, 'disk');
      t.deepEqual(run(asNobody, dir, keeps, mode, String(scaled(20)), String(root)), { killed: true, wrong: [] });
    });
  }
}

/** A move that is killed, then a copy that is killed after its last entry, then a copy. */
const ends = `
  const program = "const { merge } = await import('overlayfs/layers'); const [from, to, mode] = process.argv.slice(1);" +
    "await merge({ upperdir: from, userxattr: true }, { into: to, move: mode === 'move', root: true });";
  const mergeTraced = (mode, call, when) => childProcess.spawnSync('strace', ['-f', '-qq', '-o', '/dev/null', '-e', 'trace=' + call,
    '-e', 'inject=' + call + ':signal=KILL:when=' + when,
    process.execPath, '--input-type=module', '-e', program, at('upper'), at('lower'), mode], { encoding: 'utf8' });
  const wrong = [];
  let killed = 0;
  for (let when = 1; when <= Number(args[1]); when++) {
    change('mkdir d; echo f > d/f; echo g > d/g; touch -d @1 d; chmod a-w d', (path) =>
      must(path, 'chmod u+w d; echo n > d/m; echo n > d/n; touch -d @2 d; chmod 555 d; touch -d @3 .'));
    const moved = mergeTraced('move', 'renameat2', 2);
    const copied = mergeTraced('copy', 'lremovexattr', when);
    const last = mergeTraced('copy', 'lremovexattr', 10_000);
    if (moved.signal === 'SIGKILL' && copied.signal === 'SIGKILL') killed++;
    const after = differences(at('shown'), at('lower'));
    if (last.status !== 0 || after !== '') wrong.push([when, moved.signal, copied.signal, last.stderr, after]);
    must('/', 'chmod -R u+rwx "$D/lower" "$D/upper" "$D/shown"; rm -rf "$D"/*', { D: args[0] });
  }
  return { killed: killed > 0, wrong };`;

mountTest('a copy that finishes a move keeps times, also if it is killed at its end', { needs: 'strace' }, (t) => {
  t.timeout(600_000);
  t.deepEqual(run(asNobody, scratch(t, 'disk'), ends, '5'), { killed: true, wrong: [] });
});

/** Others add a file to each directory and remove each name of a file with several: which conflicts does a merge find? */
const removals = `
  const [, seedText, commandsText, lower] = args;
  const random = generator(Number(seedText));
  const commands = JSON.parse(commandsText);
  Object.assign(process.env, { HOME: args[0], GIT_CONFIG_NOSYSTEM: '1', GIT_AUTHOR_NAME: 'n', GIT_AUTHOR_EMAIL: 'e', GIT_COMMITTER_NAME: 'n', GIT_COMMITTER_EMAIL: 'e' });
  must(args[0], 'mkdir lower'); must(at('lower'), lower);
  const bases = await Promise.all([true, false].map((links) => baseline(at('lower'), { links })));
  const find = (cwd, test) => sh(cwd, 'find . ' + test + ' -printf "%P\\\\n"').stdout.split('\\n').filter(Boolean).sort();
  const linked = find(at('lower'), '-type f -links +1');
  const numbers = linked.map((name) => fs.statSync(join(at('lower'), name)).ino);
  const wanted = [];
  change('true', (path) => {
    for (let i = 4 + random(16); i > 0; i--)
      sh(path, commands[random(commands.length)], { A: random(3), B: random(3), N: random(1e9) });
    // Some of the names that still show the lower file are written and read.
    linked.forEach((name, i) => {
      const file = join(path, name);
      if (random(3) === 0 || !fs.existsSync(file) || fs.lstatSync(file).ino !== numbers[i]) return;
      wanted.push(name);
      fs.chmodSync(file, 0o644);
      fs.appendFileSync(file, 'ours');
      fs.readFileSync(file);
      if (random(2)) fs.writeFileSync(file + '.new', 'ours');
    });
  });
  // Directories that the view has as well.
  const shared = find(at('lower'), '-type d').filter((name) => fs.existsSync(join(at('upper'), name)) && fs.statSync(join(at('upper'), name)).isDirectory());
  for (const name of shared) fs.writeFileSync(join(at('lower'), name, 'theirs'), '');
  const isNew = (name) => !linked.includes(name);
  const removed = async (since) => (await merge(at('upper'), { into: at('lower'), since, dryRun: true })).conflicts
    .filter(({ theirs }) => theirs === 'removed').map(({ path }) => path);
  const falsely = [await removed(bases[0]), await removed(bases[1])];
  for (const name of linked) fs.unlinkSync(join(at('lower'), name));
  const truly = [await removed(bases[0]), await removed(bases[1])];
  return { news: find(at('upper'), '-type f').filter(isNew).length, falsely, wanted, truly };`;

mountTest(
  'real programs: names that others removed are conflicts, and new files are none',
  { needs: ['sqlite3'] },
  (t) => {
    t.timeout(3_600_000);
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
    t.log(`seeds from ${first}`);
    const more = `${lower}; cd ../; mkdir -p node/{a,b} store; for i in a b; do echo $i > store/$i; ln store/$i node/$i/$i; done`;
    const counts = { new: 0, false: 0, falseByTimes: 0, wanted: 0, found: 0, foundByTimes: 0, replaced: 0 };
    for (let seed = first; seed < first + scaled(20); seed++) {
      const dir = scratch(t, 'disk');
      const found = run([], dir, removals, String(seed), JSON.stringify(commands), more) as {
        news: number;
        falsely: [string[], string[]];
        wanted: string[];
        truly: [string[], string[]];
      };
      if (!t.truthy(found.wanted, `seed ${seed}: ${JSON.stringify(found)}`)) return;
      counts.new += found.news;
      counts.false += found.falsely[0].length;
      counts.falseByTimes += found.falsely[1].length;
      counts.wanted += found.wanted.length;
      const of = (names: string[]): number => found.wanted.filter((name) => names.includes(name)).length;
      counts.found += of(found.truly[0]);
      counts.foundByTimes += of(found.truly[1]);
      counts.replaced += found.truly[0].length - of(found.truly[0]);
      t.deepEqual([found.falsely[0], of(found.truly[0])], [[], found.wanted.length], `seed ${seed}`);
      rmSync(dir, { recursive: true });
    }
    t.log(counts);
  },
);
