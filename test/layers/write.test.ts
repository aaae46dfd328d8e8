/** Tests of the tree writer: each kind of operation, the order in which it sets metadata, and its failures. */
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { run, runSync } from '#lib/kernel/task.js';
import { TreeWriter, WriteFailure, type WriterOptions, type WriteTotals } from '#lib/trees/write.js';
import { countDescriptors, kernelTest, makeTree, scratch } from '../support/index.js';

type Work = (writer: TreeWriter) => void;

const mtime = { seconds: 1_000_000_000, nanoseconds: 123_456_789 };

function writes(dir: string, work: Work, options?: WriterOptions): WriteTotals {
  const root = openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    const writer = new TreeWriter(root, options);
    work(writer);
    return runSync(writer.finish());
  } finally {
    closeSync(root);
  }
}

const modeOf = (path: string): number => lstatSync(path).mode & 0o7777;

kernelTest('every kind of entry, with its owner, mode and times, whatever the umask', (t) => {
  const dir = scratch(t, 'disk');
  const umask = process.umask(0o077);
  const descriptors = countDescriptors();
  const totals = writes(dir, (writer) => {
    writer.add('directory', 'a', { mode: 0o2775, uid: 7, gid: 8 });
    writer.add('file', 'a/f', { mode: 0o4755, uid: 1, gid: 2, mtime, data: Buffer.from('text') });
    writer.add('link', 'a/l', { from: 'a/f' });
    writer.add('symlink', 'a/s', { from: '../nowhere', uid: 3, gid: 4, mtime });
    writer.add('node', 'a/fifo', { mode: constants.S_IFIFO | 0o622, mtime });
    writer.add('node', 'a/null', { mode: constants.S_IFCHR | 0o666, device: { major: 1, minor: 3 } });
    writer.add('whiteout', 'a/w');
    writer.add('whiteout', 'a/x');
    writer.add('file', Buffer.from([0x61, 0x2f, 0xff]), { mode: 0o666 });
    writer.add('data', 'a/f', { number: 2, data: Buffer.from('xt and more') });
    writer.add('truncate', 'a/f', { number: 6 });
    writer.add('metadata', 'a/f', { mtime });
    writer.addLast('a', { mtime });
    writer.addLast('', { mode: 0o711 });
  });
  t.is(process.umask(umask), 0o077);
  t.is(countDescriptors(), descriptors);
  t.is(totals.operations, 14);
  const at = (name: string) => join(dir, 'a', name);
  t.is(modeOf(dir), 0o711);
  t.is(modeOf(at('')), 0o2775);
  t.is(readFileSync(at('f'), 'utf8'), 'text a');
  // A write clears the set-user-ID bit.
  const file = statSync(at('f'));
  t.deepEqual([file.uid, file.gid, file.nlink], [1, 2, 2]);
  t.is(statSync(at('f'), { bigint: true }).mtimeNs, 1_000_000_000_123_456_789n);
  t.is(statSync(at(''), { bigint: true }).mtimeNs, 1_000_000_000_123_456_789n);
  t.is(readlinkSync(at('s')), '../nowhere');
  t.deepEqual([lstatSync(at('s')).uid, lstatSync(at('s')).gid], [3, 4]);
  t.is(lstatSync(at('s'), { bigint: true }).mtimeNs, 1_000_000_000_123_456_789n);
  t.true(lstatSync(at('fifo')).isFIFO());
  t.is(modeOf(at('fifo')), 0o622);
  t.is(lstatSync(at('null')).rdev, 0x103);
  t.is(lstatSync(at('w')).rdev, 0);
  t.is(lstatSync(at('w')).ino, lstatSync(at('x')).ino);
  t.is(readdirSync(at(''), 'buffer').filter((name) => name[0] === 0xff).length, 1);
});

kernelTest('what exists stays, is replaced, or is an error that names it', (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'd/inside': 'x', 'e/deep/file': 'y', f: 'old', 'staging/': '' });
  writes(
    dir,
    (writer) => {
      writer.add('directory', 'd', { mode: 0o700, flags: ['existing'] });
      writer.add('file', 'd/inside', { mode: 0o600, data: Buffer.from('new'), flags: ['replace'] });
      writer.add('symlink', 'e', { from: 'd', flags: ['atomic'] });
      writer.add('directory', 'f', { mode: 0o755, flags: ['atomic'] });
      writer.add('file', 'f/made', { mode: 0o644, flags: ['atomic'] });
      writer.add('remove', 'nothing');
      writer.add('rmdir', 'nothing');
    },
    { staging: 'staging' },
  );
  t.is(modeOf(join(dir, 'd')), 0o700);
  t.is(readFileSync(join(dir, 'd/inside'), 'utf8'), 'new');
  t.is(readlinkSync(join(dir, 'e')), 'd');
  t.deepEqual(readdirSync(join(dir, 'f')), ['made']);
  t.deepEqual(readdirSync(join(dir, 'staging')), []);
  const failure = t.throws(
    () =>
      writes(dir, (writer) => {
        writer.add('file', 'before', { mode: 0o644 });
        writer.add('directory', 'd', { mode: 0o755 });
        writer.add('file', 'after', { mode: 0o644 });
      }),
    { instanceOf: WriteFailure },
  );
  t.deepEqual([failure?.kind, failure?.path.toString(), failure?.stage], ['directory', 'd', 'create']);
  t.true(existsSync(join(dir, 'before')));
  t.false(existsSync(join(dir, 'after')));
});

kernelTest('nothing outside the root is made, changed or read', (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'root/inside/x': '', 'outside/secret': 'kept' });
  symlinkSync('../outside', join(dir, 'root/link'));
  symlinkSync('../outside/secret', join(dir, 'root/file'));
  symlinkSync('/inside', join(dir, 'root/within'));
  const root = join(dir, 'root');
  const fails = (work: Work, options?: WriterOptions) =>
    t.throws(() => writes(root, work, options), { instanceOf: WriteFailure });
  for (const path of ['link/made', '../outside/made', 'inside/../../outside/made', '..', 'inside/..']) {
    fails((writer) => writer.add('file', path, { mode: 0o644 }));
    fails((writer) => writer.add('remove', path));
    fails((writer) => writer.add('metadata', path, { mode: 0o777 }));
  }
  fails((writer) => writer.add('data', 'file', { data: Buffer.from('lost') }));
  fails((writer) => writer.add('link', 'stolen', { from: 'link/secret' }));
  fails((writer) => writer.add('file', 'link/made', { mode: 0o644 }), { inRoot: true });
  writes(root, (writer) => writer.add('file', 'within/made', { mode: 0o644 }), { inRoot: true });
  t.true(existsSync(join(root, 'inside/made')));
  t.deepEqual(readdirSync(join(dir, 'outside')), ['secret']);
  t.is(readFileSync(join(dir, 'outside/secret'), 'utf8'), 'kept');
});

kernelTest('a default access control list and a set-group-ID directory change nothing of what is asked for', (t) => {
  const dir = scratch(t, 'disk');
  chmodSync(dir, 0o2777);
  writes(dir, (writer) => {
    writer.add('directory', 'd', { mode: 0o755, uid: 0, gid: 0 });
    writer.add('file', 'f', { mode: 0o666, uid: 0, gid: 0 });
    writer.add('file', 'g', { mode: 0o640, uid: 0, gid: 0 });
  });
  t.deepEqual(
    ['d', 'f', 'g'].map((name) => [modeOf(join(dir, name)), lstatSync(join(dir, name)).gid]),
    [
      [0o755, 0],
      [0o666, 0],
      [0o640, 0],
    ],
  );
});

kernelTest('with promises many batches come in order, and the first failure ends them', async (t) => {
  const dir = scratch(t, 'disk');
  mkdirSync(join(dir, 'tree'));
  const root = openSync(join(dir, 'tree'), constants.O_RDONLY);
  const data = Buffer.alloc(100_000, 'x');
  function* all(count: number, bad: number) {
    const writer = new TreeWriter(root);
    for (let i = 0; i < count; i++) {
      writer.add('file', `f${i}`, { mode: 0o644 });
      writer.add('data', `f${i}`, { data });
      if (i === bad) writer.add('file', 'f0', { mode: 0o644 });
      if (writer.isFull) yield* writer.send();
    }
    return yield* writer.finish();
  }
  const totals = await run(all(100, -1));
  t.is(totals.operations, 200);
  t.true(readdirSync(join(dir, 'tree')).every((name) => statSync(join(dir, 'tree', name)).size === data.length));
  writeFileSync(join(dir, 'tree/f0'), '');
  await t.throwsAsync(run(all(100, 99)), { instanceOf: WriteFailure, message: /f0/ });
  closeSync(root);
});
