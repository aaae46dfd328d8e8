/** Layer archives where others interfere, and where the process may do little. */
import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { OverlayError } from 'overlayfs';
import { apply } from '#lib/archives/apply.js';
import { countDescriptors, evaluateIn, kernelTest, makeTree, mountTest, scaled, scratch } from '../support/index.js';
import { NOBODY } from '../support/nobody.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';
import { archiveOf, packTar, rawHeader } from '../tar/archives.js';

const file = (name: string, data = 'data'): Buffer => packTar({ name }, data);

/** Exchanges two names again and again, renameat2(2). */
const exchanger = `
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
a, b = sys.argv[1].encode(), sys.argv[2].encode()
while True: libc.renameat2(-100, a, -100, b, 2)
`;

kernelTest('a directory that another process swaps for a symbolic link: nothing outside is touched', async (t) => {
  const base = scratch(t);
  const [root, outside] = [join(base, 'layer'), join(base, 'outside')];
  makeTree(base, { 'layer/d/': '', 'outside/victim': 'victim', 'outside/sub/': '' });
  symlinkSync(outside, join(root, 'link'));
  const entries = [];
  for (let i = 0; i < 40; i++) entries.push(file(`d/f${i}`), file(`d/.wh.w${i}`, ''), file(`d/sub/g${i}`));
  entries.push(
    file('d/.wh.victim', ''),
    packTar({ name: 'd/victim', type: 'symlink', linkname: 'x' }),
    file('d/.wh..wh..opq', ''),
  );
  const archive = archiveOf(
    ...entries,
    file('d/large', 'x'.repeat(400_000)),
    packTar({ name: 'd/hard', type: 'link', linkname: 'd/f1' }),
  );
  const child = spawn('python3', ['-c', exchanger, join(root, 'd'), join(root, 'link')]);
  const ended = new Promise((resolve) => child.on('close', resolve));
  const counts = { done: 0, failed: 0 };
  for (let round = 0; round < scaled(100, 20); round++) {
    try {
      await apply(archive, root);
      counts.done++;
    } catch (error) {
      t.true(error instanceof OverlayError, String(error));
      counts.failed++;
    }
  }
  child.kill();
  await ended;
  t.log(JSON.stringify(counts));
  t.deepEqual(readdirSync(outside).sort(), ['sub', 'victim']);
  t.deepEqual(readdirSync(join(outside, 'sub')), []);
  t.is(readFileSync(join(outside, 'victim'), 'utf8'), 'victim');
});

kernelTest('many entries', async (t) => {
  const base = scratch(t);
  const count = scaled(20_000, 5000);
  async function* archive(): AsyncGenerator<Buffer> {
    const blocks: Buffer[] = [];
    for (let i = 0; i < count; i++) {
      blocks.push(rawHeader({ 0: i % 1000 === 0 ? `d${i / 1000}/` : `d${Math.floor(i / 1000)}/${i}` }));
      if (blocks.length === 1000) yield Buffer.concat(blocks.splice(0));
    }
    yield Buffer.concat([...blocks, Buffer.alloc(1024)]);
  }
  const { entries } = await apply(archive(), join(base, 'out'));
  t.is(entries, count);
});

kernelTest('the file system is full: the error says so, and nothing is left', async (t) => {
  const base = scratch(t);
  mkdirSync(join(base, 'small'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'small', join(base, 'small')]);
  const before = countDescriptors();
  const error = await t.throwsAsync(apply(archiveOf(file('a', 'x'.repeat(2e6))), join(base, 'small/out')), {
    instanceOf: OverlayError,
  });
  t.is(error?.reason, 'out-of-space');
  t.regex(error?.message ?? '', /of the entry at byte 0 of the archive/);
  t.deepEqual(readdirSync(join(base, 'small')), []);
  t.is(countDescriptors(), before);
});

kernelTest('a read-only place, and one that is no directory', async (t) => {
  const base = scratch(t);
  mkdirSync(join(base, 'ro'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'ro', join(base, 'ro')]);
  writeFileSync(join(base, 'file'), '');
  for (const [place, reason] of [
    ['ro', 'read-only'],
    ['ro/out', 'read-only'],
    ['file', 'path-not-directory'],
    ['missing/out', 'path-missing'],
  ] as const) {
    const error = await t.throwsAsync(apply(archiveOf(file('a')), join(base, place)), {
      instanceOf: OverlayError,
    });
    t.is(error?.reason, reason, place);
  }
  t.deepEqual(readdirSync(base).sort(), ['file', 'ro']);
});

kernelTest('a mount inside is not entered', async (t) => {
  const base = scratch(t);
  mkdirSync(join(base, 'layer/m'), { recursive: true });
  execFileSync('mount', ['-t', 'tmpfs', 'm', join(base, 'layer/m')]);
  const error = await t.throwsAsync(apply(archiveOf(file('m/a')), join(base, 'layer')), {
    instanceOf: OverlayError,
  });
  t.is(error?.reason, 'mount-inside');
  t.deepEqual(readdirSync(join(base, 'layer/m')), []);
});

const applied = "(await import('overlayfs/layers')).apply(args[0], args[1], JSON.parse(args[2]))";

mountTest('in a user namespace: owners and devices by option, marks of users', { needs: 'user namespaces' }, (t) => {
  const base = scratch(t, 'disk');
  chmodSync(base, 0o755);
  const archive = join(base, 'archive.tar');
  writeFileSync(
    archive,
    archiveOf(
      packTar({ name: 'd/', type: 'directory', mode: 0o555 }),
      packTar({ name: 'd/theirs', uid: 5, gid: 6, mode: 0o400 }, 'x'),
      file('d/.wh..wh..opq', ''),
      file('.wh.gone', ''),
      packTar({ name: 'null', type: 'character', major: 1, minor: 3 }),
    ),
  );
  const inside = ['unshare', '-Ur'];
  const run = (name: string, options: object): unknown =>
    evaluateIn(inside, applied, archive, join(base, name), JSON.stringify(options));
  t.like(run('a', { userxattr: true }), { reason: 'permission-denied', syscall: 'chown' });
  t.like(run('b', { userxattr: true, owners: 'ignore', devices: 'create' }), {
    reason: 'permission-denied',
    syscall: 'mknod',
  });
  t.like(run('c', { userxattr: false, owners: 'ignore', devices: 'skip' }), { reason: 'xattr-denied' });
  t.like(run('d', { owners: 'ignore' }), { entries: 5, whiteouts: 1 });
  t.deepEqual(readdirSync(base).sort(), ['archive.tar', 'd'], 'what failed is gone');
  t.deepEqual(readdirSync(join(base, 'd')).sort(), ['d', 'gone']);
  t.is(lstatSync(join(base, 'd/d')).mode & 0o7777, 0o555);
});

mountTest("as a plain user: all files are the user's, devices are left out, modes are as the archive says", (t) => {
  const base = scratch(t, 'disk');
  giveTo(base);
  writeFileSync(
    join(base, 'archive.tar'),
    archiveOf(
      packTar({ name: 'd/', type: 'directory', mode: 0o555, uid: 7 }),
      packTar({ name: 'd/large', uid: 5, gid: 6, mode: 0o400 }, 'x'.repeat(300_000)),
      packTar({
        name: 'd/cap',
        xattrs: new Map([['security.capability', Buffer.from('0100000200200000000000000000000000000000', 'hex')]]),
      }),
      file('d/.wh..wh..opq', ''),
      packTar({ name: 'null', type: 'character', major: 1, minor: 3 }),
    ),
  );
  const body = `const { apply, pack } = await import('overlayfs/layers');
    const { skipped } = await apply(args[0] + '/archive.tar', args[0] + '/out', { userxattr: true });
    let size = 0;
    for await (const chunk of pack({ upperdir: args[0] + '/out', userxattr: true })) size += chunk.length;
    return { skipped, size };`;
  const outcome = evaluateAsNobody(body, base) as { skipped: object[]; size: number };
  t.deepEqual(outcome.skipped, [
    { reason: 'device', count: 1, first: 'null' },
    { reason: 'attribute', count: 1 },
  ]);
  t.true(outcome.size > 300_000);
  t.is(lstatSync(join(base, 'out/d')).mode & 0o7777, 0o555);
  t.is(lstatSync(join(base, 'out/d/large')).mode & 0o7777, 0o400);
  t.is(lstatSync(join(base, 'out/d/large')).uid, NOBODY);
});

mountTest('a directory that this process may not read is in the way only of what goes into it', (t) => {
  const base = scratch(t, 'disk');
  makeTree(base, { 'layer/closed/': '' });
  giveTo(base);
  giveTo(join(base, 'layer'));
  chmodSync(join(base, 'layer/closed'), 0o700);
  const body = `const { apply } = await import('overlayfs/layers');
    return await apply(Buffer.from(args[1], 'base64'), args[0] + '/layer').catch(({ reason }) => reason);`;
  const apply = (name: string): unknown => evaluateAsNobody(body, base, archiveOf(file(name)).toString('base64'));
  t.like(apply('a'), { entries: 1 });
  t.is(apply('closed/a'), 'path-inaccessible');
  t.deepEqual(readdirSync(join(base, 'layer')).sort(), ['a', 'closed']);
});

mountTest('a directory of mode 000 of one’s own: the hint is chmod, and it works', (t) => {
  const base = scratch(t, 'disk');
  makeTree(base, { 'layer/closed/file': '', 'layer/closed/root/': '' });
  for (const name of ['', 'layer', 'layer/closed']) giveTo(join(base, name));
  chmodSync(join(base, 'layer/closed'), 0);
  chmodSync(join(base, 'layer/closed/root'), 0);
  const body = `const { changes } = await import('overlayfs/layers');
    const found = [];
    for await (const { path } of changes({ upperdir: args[0] + '/layer', lowerdir: args[0] })) found.push(path);
    return found.length;`;
  const closed = join(base, 'layer/closed');
  const own = evaluateAsNobody(body, base) as { hint: string };
  t.is(own.hint, `Make it readable: chmod u+rx '${closed}'.`);
  chmodSync(closed, 0o500);
  t.is((evaluateAsNobody(body, base) as { hint: string }).hint, 'Run as its owner or as root.');
});
