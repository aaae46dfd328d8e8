/** `overlayfs snapshot` */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { rootOf } from '#lib/cli/store.js';
import { generator, scratch } from '../support/index.js';
import { json, overlayfs, runBytes } from './run.js';

test.serial('snapshot: the verbs, one after the other', async (t) => {
  const root = join(scratch(t), 'root');
  const snapshot = (verb: string, ...args: string[]) => overlayfs('snapshot', verb, '--root', root, ...args);
  t.deepEqual(await snapshot('prepare', 'a'), {
    code: 0,
    stdout: `bind ${root}/snapshots/1/fs rw,rbind\n`,
    stderr: '',
  });
  writeFileSync(join(root, 'snapshots/1/fs/file'), Buffer.alloc(10_000, 1));
  t.deepEqual(await snapshot('commit', '--label', 'x=1', 'A', 'a'), { code: 0, stdout: '', stderr: '' });
  t.is((await snapshot('view', 'v', 'A')).stdout, `bind ${root}/snapshots/1/fs ro,rbind\n`);
  t.is((await snapshot('prepare', 'b', 'A', '--label=y=2')).code, 0);
  t.is((await snapshot('prepare', 'c')).code, 0);
  t.is((await snapshot('commit', 'C', 'c', '--parent', 'A')).code, 0);
  t.is((await snapshot('mounts', 'v')).stdout, `bind ${root}/snapshots/1/fs ro,rbind\n`);
  t.is((await snapshot('ls')).stdout, 'committed A\ncommitted C A\nactive b A\nview v A\n');
  t.is((await snapshot('ls', 'labels.y==2', 'name==C')).stdout, 'committed C A\nactive b A\n');
  t.regex(
    (await snapshot('stat', 'b')).stdout,
    /^name: b\nkind: active\nparent: A\ndirectory: snapshots\/\d+\ncreated: .*\nupdated: .*\nlabel: y=2\n$/,
  );
  t.regex((await snapshot('usage', 'A')).stdout, /^\d+ bytes, 2 inodes\n$/);
  t.regex(
    (await snapshot('tree')).stdout,
    /^A {2}committed {2}\d+ bytes, 2 inodes\n├─ C {2}committed {2}\d+ bytes, 1 inodes\n├─ b {2}active {2}\d+ bytes, 1 inodes\n└─ v {2}view\n$/,
  );
  const { code, stderr } = await snapshot('rm', 'A', 'v');
  t.is(code, 2);
  t.is(
    stderr,
    "overlayfs: The snapshot 'A' cannot be removed: it has children.\n  reason: failed-precondition\n  hint: Remove its children first.\n",
  );
  t.is((await snapshot('rm', '--async', 'b')).code, 0);
  t.regex((await snapshot('cleanup')).stdout, /^\d+\n/); // and what processes have left in /tmp
  t.is((await snapshot('rm', 'C', 'A')).code, 0);
  t.deepEqual(readdirSync(join(root, 'snapshots')), []);
});

test.serial('snapshot --json', async (t) => {
  const root = join(scratch(t), 'root');
  const mounts = [{ type: 'bind', source: `${root}/snapshots/1/fs`, options: ['rw', 'rbind'] }];
  t.deepEqual(await json('snapshot', 'prepare', '--root', root, 'a'), {
    code: 0,
    document: { mounts },
    documents: [{ mounts }],
  });
  const { document } = await json('snapshot', 'stat', '--root', root, 'a');
  t.like(document, { name: 'a', kind: 'active', id: 1, parent: '' });
  t.regex(String(document['created']), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$/);
  t.like(await json('snapshot', 'commit', '--root', root, 'B', 'none'), {
    code: 2,
    document: { errors: [{ code: 'ERR_SNAPSHOT_NOT_FOUND' }] },
  });
});

test.serial('snapshot: wrong usage does nothing', async (t) => {
  const root = join(scratch(t), 'root');
  const wrong: Readonly<Record<string, string[]>> = {
    'Usage: overlayfs snapshot COMMAND': [],
    "unknown command 'prepair'\n  hint: Did you mean prepare?": ['prepair', '--root', root, 'a'],
    "missing operand 'KEY'\n  hint: Usage: overlayfs snapshot prepare [OPTION...] KEY [PARENT]": [
      'prepare',
      '--root',
      root,
    ],
    'Expected 1 argument but got 2': ['stat', '--root', root, 'a', 'b'],
    "missing operand 'KEY'": ['rm', '--root', root],
    "missing operand 'KEY'\n  hint: Usage: overlayfs snapshot commit": ['commit', '--root', root, 'a'],
    "unknown option '--label'": ['ls', '--root', root, '--label', 'a=b'],
    "--label cannot be 'a'": ['prepare', '--root', root, '--label', 'a', 'key'],
  };
  for (const [what, args] of Object.entries(wrong)) {
    const { code, stderr } = await overlayfs('snapshot', ...args);
    t.is(code, 2, what);
    t.true(stderr.includes(what), `${what}: ${stderr}`);
  }
  t.is(runBytes(['snapshot', 'prepare', '--root', root, Buffer.from([0xff])]).code, 2);
  for (const verb of [['ls'], ['commit', 'a', 'b'], ['rm', 'a'], ['cleanup']]) {
    t.is((await overlayfs('snapshot', ...verb, '--root', root)).code, 2);
  }
  t.false(existsSync(root));
});

test.serial('snapshot: of a damaged store, ls and tree show what is left, and say so', async (t) => {
  const root = join(scratch(t), 'root');
  const snapshot = (verb: string, ...args: string[]) => overlayfs('snapshot', verb, '--root', root, ...args);
  for (let i = 0; i < 200; i++) await snapshot('prepare', `key ${i}`, '--label', `x=${'y'.repeat(200)}`);
  const file = join(root, 'metadata.db');
  const whole = readFileSync(file);
  const random = generator(1);
  const damage = (from: number, to: number): void => {
    const bytes = Buffer.from(whole);
    for (let i = from; i < to; i++) bytes[i] = random(256);
    writeFileSync(file, bytes);
  };
  for (const [from, to] of [
    [4096, 4 * 4096],
    [whole.length - 4096, whole.length],
  ] as const) {
    damage(from, to);
    for (const verb of ['ls', 'tree']) {
      const { code, stdout, stderr } = await snapshot(verb);
      t.is(code, 2, `${verb} ${from}`);
      t.regex(stderr, /is damaged[\s\S]*hint: .*`overlayfs snapshot ls`/);
      t.true(stdout.split('\n').length <= 201);
    }
  }
  for (const size of [0, 100]) {
    writeFileSync(file, whole.subarray(0, size));
    t.regex((await snapshot('ls')).stderr, size === 0 ? /it is empty, and 'snapshots'/ : /it has 100 bytes/);
  }
  rmSync(file);
  t.regex((await snapshot('ls')).stderr, /it is missing, and 'snapshots' beside it holds 200 directories/);
  t.regex((await snapshot('cleanup')).stderr, /it is missing/);
  t.is(readdirSync(join(root, 'snapshots')).length, 200);
});

test.serial('--root has a default: the data directory of the user, or that of the system for root', (t) => {
  const { XDG_DATA_HOME: before } = process.env;
  const { geteuid } = process;
  t.teardown(() => {
    process.geteuid = geteuid as () => number;
    if (before === undefined) delete process.env['XDG_DATA_HOME'];
    else process.env['XDG_DATA_HOME'] = before;
  });
  t.is(rootOf({ root: 'there' }), 'there');
  process.geteuid = () => 0;
  t.is(rootOf({}), '/var/lib/overlayfs');
  process.geteuid = () => 1000;
  process.env['XDG_DATA_HOME'] = '/data';
  t.is(rootOf({}), '/data/overlayfs');
  process.env['XDG_DATA_HOME'] = 'relative';
  t.regex(String(rootOf({})), /\/\.local\/share\/overlayfs$/);
});
