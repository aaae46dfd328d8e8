/** `overlayfs snapshot` */
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { scratch } from '../support/index.js';
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
  t.is(code, 1);
  t.is(stderr, "overlayfs: The snapshot 'A' cannot be removed: it has children.\n  hint: Remove its children first.\n");
  t.is((await snapshot('rm', '--async', 'b')).code, 0);
  t.regex((await snapshot('cleanup')).stdout, /^\d+\n$/);
  t.is((await snapshot('rm', 'C', 'A')).code, 0);
  t.deepEqual(readdirSync(join(root, 'snapshots')), []);
});

test.serial('snapshot --json', async (t) => {
  const root = join(scratch(t), 'root');
  const mounts = [{ type: 'bind', source: `${root}/snapshots/1/fs`, options: ['rw', 'rbind'] }];
  t.deepEqual(await json('snapshot', 'prepare', '--root', root, 'a'), { code: 0, document: { mounts } });
  const { document } = await json('snapshot', 'stat', '--root', root, 'a');
  t.like(document, { name: 'a', kind: 'active', id: 1, parent: '' });
  t.regex(String(document['created']), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$/);
  t.like(await json('snapshot', 'commit', '--root', root, 'B', 'none'), {
    code: 1,
    document: { errors: [{ code: 'ERR_SNAPSHOT_NOT_FOUND' }] },
  });
});

test.serial('snapshot: wrong usage does nothing', async (t) => {
  const root = join(scratch(t), 'root');
  const wrong: Readonly<Record<string, string[]>> = {
    'say what to do': [],
    "there is no verb 'prepair'": ['prepair', '--root', root, 'a'],
    '--root is missing': ['prepare', 'a'],
    'takes 1 or 2 operands, not 0': ['prepare', '--root', root],
    'takes 1 operand, not 2': ['stat', '--root', root, 'a', 'b'],
    'takes 1 or more operands, not 0': ['rm', '--root', root],
    'takes 2 operands, not 1': ['commit', '--root', root, 'a'],
    '--label is of no use': ['ls', '--root', root, '--label', 'a=b'],
    "--label cannot be 'a'": ['prepare', '--root', root, '--label', 'a', 'key'],
  };
  for (const [what, args] of Object.entries(wrong)) {
    const { code, stderr } = await overlayfs('snapshot', ...args);
    t.is(code, 2, what);
    t.true(stderr.includes(what), `${what}: ${stderr}`);
  }
  t.is(runBytes(['snapshot', 'prepare', '--root', root, Buffer.from([0xff])]).code, 2);
  for (const verb of [['ls'], ['commit', 'a', 'b'], ['rm', 'a'], ['cleanup']]) {
    t.is((await overlayfs('snapshot', ...verb, '--root', root)).code, 1);
  }
  t.false(existsSync(root));
});
