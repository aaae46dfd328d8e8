/** Layer archives into directories: the rows of the rules, each as a test, and bad input. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { gzipSync } from 'node:zlib';
import type { ExecutionContext } from 'ava';
import { OverlayError } from 'overlayfs';
import { type ApplySummary, apply } from '#lib/archives/apply.js';
import type { ApplyOptions } from '#lib/archives/apply-options.js';
import type { TarEntry } from '#lib/tar/entry.js';
import { formatRecord } from '#lib/tar/pax.js';
import { crowded } from '../overlay/failures/steps.js';
import {
  countDescriptors,
  getAttribute,
  kernelTest,
  mountTest,
  packageRoot,
  scratch,
  setAttribute,
} from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';
import { describeTree, type Tree } from '../support/trees.js';
import { archiveOf, packTar, rawExtended, rawHeader } from '../tar/archives.js';

const isWhiteout = (path: string): boolean => {
  const found = lstatSync(path, { throwIfNoEntry: false });
  return found?.isCharacterDevice() === true && found.rdev === 0;
};
const opaque = (path: string): string | undefined => getAttribute(path, 'trusted.overlay.opaque');
const dir = (name: string, more: Partial<TarEntry> = {}): Buffer =>
  packTar({ name, type: 'directory', mode: 0o755, ...more });
const file = (name: string, data = 'data', more: Partial<TarEntry> = {}): Buffer => packTar({ name, ...more }, data);
const link = (name: string, linkname: string): Buffer => packTar({ name, type: 'link', linkname });
const symlink = (name: string, linkname: string): Buffer => packTar({ name, type: 'symlink', linkname });

/** Applies to a fresh directory, beside which a file tells what gets out. */
async function unpacked(
  t: ExecutionContext,
  entries: readonly Uint8Array[],
  options?: ApplyOptions,
  prepare?: (root: string) => void,
): Promise<{ root: string; summary: ApplySummary }> {
  const root = join(scratch(t), 'layer');
  if (prepare !== undefined) {
    mkdirSync(root);
    prepare(root);
  }
  const summary = await apply(archiveOf(...entries), root, options);
  t.deepEqual(
    readdirSync(join(root, '..')).filter((name) => name.startsWith('.')),
    [],
    'nothing temporary is left',
  );
  return { root, summary };
}

interface Refused {
  readonly rule: RegExp;
  readonly reason?: string;
  readonly options?: ApplyOptions;
  readonly prepare?: (root: string) => void;
}

function refuses(
  title: string,
  entries: () => readonly Uint8Array[],
  { rule, reason = 'archive-invalid', options, prepare }: Refused,
): void {
  kernelTest(title, async (t) => {
    const base = scratch(t);
    const root = join(base, 'layer');
    writeFileSync(join(base, 'outside'), 'outside');
    mkdirSync(join(base, 'directory'));
    if (prepare !== undefined) {
      mkdirSync(root);
      prepare(root);
    }
    const descriptors = countDescriptors();
    const error = await t.throwsAsync(apply(archiveOf(...entries()), root, options), { instanceOf: OverlayError });
    t.is(error?.reason, reason as never, error?.message);
    t.regex(error?.message ?? '', rule);
    t.deepEqual(
      readdirSync(base).sort(),
      prepare === undefined ? ['directory', 'outside'] : ['directory', 'layer', 'outside'],
    );
    t.deepEqual(readdirSync(join(base, 'directory')), []);
    t.is(readFileSync(join(base, 'outside'), 'utf8'), 'outside');
    t.is(countDescriptors(), descriptors);
  });
}

// ------------------------------------------------------------------------------------- rows of the table, in order

kernelTest('`.wh.NAME`: a whiteout, whose parent is made if it is missing', async (t) => {
  const { root, summary } = await unpacked(t, [dir('a/'), file('a/.wh.gone', ''), file('b/c/.wh.x', '')]);
  t.true(isWhiteout(join(root, 'a/gone')));
  t.true(isWhiteout(join(root, 'b/c/x')));
  t.is(statSync(join(root, 'b/c')).mode & 0o7777, 0o755);
  t.is(summary.whiteouts, 2);
});

kernelTest('a new directory without an entry has the mode 0755, whatever the umask', (t) => {
  const base = scratch(t);
  writeFileSync(join(base, 'archive'), archiveOf(file('x')));
  const program = `
    import { apply } from 'overlayfs/layers';
    process.umask(0o077);
    await apply(process.argv[1], process.argv[2]);`;
  const args = ['--input-type=module', '-e', program, join(base, 'archive'), join(base, 'layer')];
  execFileSync(process.execPath, args, { cwd: packageRoot });
  t.is(statSync(join(base, 'layer')).mode & 0o7777, 0o755);
});

for (const [what, before] of [
  ['a file', [file('x')]],
  ['a directory with files', [dir('x/'), file('x/y'), dir('x/z/')]],
  ['a symbolic link', [symlink('x', 'y')]],
  ['a whiteout', [file('.wh.x', '')]],
] as const) {
  kernelTest(`.wh.NAME: ${what} that this layer put there earlier is removed first`, async (t) => {
    const { root } = await unpacked(t, [...before, file('.wh.x', '')]);
    t.true(isWhiteout(join(root, 'x')));
  });
}

for (const [order, entries] of [
  [
    'before',
    [dir('d/'), file('d/.wh..wh..opq', ''), file('d/.wh.a', ''), file('d/b'), dir('d/e/'), file('d/e/.wh.f', '')],
  ],
  [
    'after',
    [dir('d/'), file('d/.wh.a', ''), file('d/b'), dir('d/e/'), file('d/e/.wh.f', ''), file('d/.wh..wh..opq', '')],
  ],
] as const) {
  kernelTest(`.wh..wh..opq ${order} what is in its directory: opaque, without whiteouts at any depth`, async (t) => {
    const { root } = await unpacked(t, entries);
    t.is(opaque(join(root, 'd')), 'y');
    t.deepEqual(readdirSync(join(root, 'd')), ['b', 'e']);
    t.deepEqual(readdirSync(join(root, 'd/e')), []);
    t.is(opaque(join(root, 'd/e')), undefined);
  });
}

kernelTest('.wh..wh..opq before its directory has an entry', async (t) => {
  const { root } = await unpacked(t, [file('d/.wh..wh..opq', ''), dir('d/', { mode: 0o700, uid: 5 })]);
  t.is(opaque(join(root, 'd')), 'y');
  t.is(statSync(join(root, 'd')).uid, 5);
});

for (const [what, before] of [
  ['a file', file('d')],
  ['a whiteout', file('.wh.d', '')],
] as const) {
  kernelTest(`.wh..wh..opq on ${what}: a directory takes its place`, async (t) => {
    const { root } = await unpacked(t, [before, file('d/.wh..wh..opq', '')]);
    t.is(opaque(join(root, 'd')), 'y');
    t.true(statSync(join(root, 'd')).isDirectory());
  });
}

kernelTest('.wh..wh..opq on the root: the mark is set, and the summary says that the kernel ignores it', async (t) => {
  const { root, summary } = await unpacked(t, [file('.wh..wh..opq', '')]);
  t.is(opaque(root), 'y');
  t.deepEqual(summary.skipped, [{ reason: 'opaque-root', count: 1, first: '.wh..wh..opq' }]);
});

kernelTest('a directory where this layer made a whiteout: the directory, opaque', async (t) => {
  const { root } = await unpacked(t, [file('.wh.d', ''), dir('d/'), file('d/a'), file('.wh.e', ''), file('e/f')]);
  t.is(opaque(join(root, 'd')), 'y');
  t.is(opaque(join(root, 'e')), 'y', 'a missing parent, too');
  t.true(existsSync(join(root, 'd/a')));
});

kernelTest('a whiteout in what is a file or a whiteout by now: nothing is left to hide', async (t) => {
  const entries = [file('f', 'f'), file('f/.wh.x', ''), file('.wh.d', ''), file('d/.wh.x', ''), file('d/e/.wh.x', '')];
  const { root } = await unpacked(t, entries);
  t.deepEqual(readdirSync(root), ['d', 'f']);
  t.true(isWhiteout(join(root, 'd')));
  const plain = await unpacked(t, [...entries, file('missing/.wh.x', '')], { layout: 'plain' });
  t.deepEqual(readdirSync(plain.root), ['f']);
});

kernelTest('a whiteout in what is a symbolic link of this layer: nothing where that leads is touched', async (t) => {
  // As umoci packs a directory that a link has replaced: /bin where /usr was merged.
  const merged = [symlink('bin', 'usr/bin'), file('bin/.wh.ls', '')];
  const layer = await unpacked(t, merged);
  t.is(layer.summary.whiteouts, 1);
  t.deepEqual(readdirSync(layer.root), ['bin']);
  const before = (root: string): void => {
    mkdirSync(join(root, 'usr/bin'), { recursive: true });
    writeFileSync(join(root, 'usr/bin/ls'), 'ls');
  };
  const plain = await unpacked(t, merged, { layout: 'plain' }, before);
  t.deepEqual(readdirSync(join(plain.root, 'usr/bin')), ['ls']);
  // A link from before is the way to what is there.
  const through = await unpacked(t, [file('bin/.wh.ls', '')], { layout: 'plain' }, (root) => {
    before(root);
    symlinkSync('usr/bin', join(root, 'bin'));
  });
  t.deepEqual(readdirSync(join(through.root, 'usr/bin')), []);
});

kernelTest('a file where this layer made a whiteout: the file', async (t) => {
  const { root } = await unpacked(t, [file('.wh.f', ''), file('f', 'new')]);
  t.is(readFileSync(join(root, 'f'), 'utf8'), 'new');
});

for (const name of ['.wh.', '.wh..', '.wh...', 'd/.wh.', 'd/.wh...']) {
  refuses(`${name}: the archive is invalid`, () => [file(name, '')], { rule: /whiteout of no name/ });
}
refuses('.wh.a/: a slash trick', () => [dir('.wh.a/')], { rule: /no directory/ });
refuses('.wh.a/b: a slash trick', () => [file('.wh.a/b')], { rule: /inside the whiteout/ });
refuses('.wh.a/../b: a slash trick', () => [file('.wh.a/../b')], { rule: /'\.\.'/ });
refuses('.wh.a/.wh..wh..opq: a slash trick', () => [file('.wh.a/.wh..wh..opq')], { rule: /inside the whiteout/ });

kernelTest('.wh..wh.plnk and other .wh..wh. names: ignored', async (t) => {
  const { root, summary } = await unpacked(t, [
    dir('.wh..wh.plnk/'),
    file('.wh..wh.plnk/1.2'),
    file('.wh..wh.aufs', ''),
    file('a'),
  ]);
  t.deepEqual(readdirSync(root), ['a']);
  t.deepEqual(summary.skipped, [{ reason: 'aufs', count: 3, first: '.wh..wh.plnk/' }]);
});

kernelTest('overlay.* attributes: never written as such, but with one level more', async (t) => {
  const xattrs = new Map([
    ['trusted.overlay.opaque', Buffer.from('y')],
    ['trusted.overlay.redirect', Buffer.from('/etc')],
    ['trusted.overlay.overlay.x', Buffer.from('z')],
  ]);
  const { root } = await unpacked(t, [dir('d/', { xattrs })]);
  const described = describeTree(root)['d']?.xattrs ?? {};
  t.deepEqual(Object.keys(described).sort(), [
    'trusted.overlay.overlay.opaque',
    'trusted.overlay.overlay.overlay.x',
    'trusted.overlay.overlay.redirect',
  ]);
});

kernelTest('a device 0:0 is a whiteout, as overlayfs takes it', async (t) => {
  const { root, summary } = await unpacked(t, [file('x'), packTar({ name: 'x', type: 'character' })]);
  t.true(isWhiteout(join(root, 'x')));
  t.is(summary.whiteouts, 1);
});

kernelTest(
  'hard links: to files, to links, to symbolic links, to devices; over what is there; to themselves',
  async (t) => {
    const { root } = await unpacked(t, [
      file('a', 'a'),
      link('b', 'a'),
      link('c', './b'),
      symlink('s', 'nowhere'),
      link('t', '/s'),
      packTar({ name: 'n', type: 'fifo' }),
      link('m', 'n'),
      file('old', 'old'),
      link('old', 'a'),
      link('a', 'a'),
      dir('d/'),
      symlink('e', 'd'),
      file('d/f', 'f'),
      link('g', 'e/f'),
    ]);
    const inode = (name: string): number => lstatSync(join(root, name)).ino;
    t.is(inode('a'), inode('b'));
    t.is(inode('a'), inode('c'));
    t.is(inode('a'), inode('old'));
    t.is(inode('s'), inode('t'));
    t.is(inode('n'), inode('m'));
    t.is(inode('g'), inode('d/f'), 'through a link in the root');
  },
);

refuses('a hard link to nothing names both', () => [link('a', 'missing/x')], {
  rule: /in the entry 'a'.*'missing\/x', does not exist/,
});
refuses('a hard link to a whiteout', () => [file('.wh.x', ''), link('a', 'x')], { rule: /'x', does not exist/ });
refuses('a hard link to a directory', () => [dir('d/'), link('a', 'd')], { rule: /is a directory/ });
refuses('a hard link in the place of its own directory', () => [dir('d/'), file('d/x'), link('d', 'd/x')], {
  rule: /takes the place/,
});

kernelTest('device nodes: made, skipped or refused, by option', async (t) => {
  const entries = [
    packTar({ name: 'null', type: 'character', major: 1, minor: 3 }),
    packTar({ name: 'f', type: 'fifo' }),
  ];
  const { root } = await unpacked(t, entries);
  t.true(lstatSync(join(root, 'null')).isCharacterDevice());
  t.true(lstatSync(join(root, 'f')).isFIFO());
  const skipped = await unpacked(t, entries, { devices: 'skip' });
  t.deepEqual(readdirSync(skipped.root), ['f']);
  t.deepEqual(skipped.summary.skipped, [{ reason: 'device', count: 1, first: 'null' }]);
});
refuses('a device, with `devices` "fail"', () => [packTar({ name: 'sda', type: 'block', major: 8 })], {
  rule: /it is a device/,
  options: { devices: 'fail' },
});

kernelTest('attributes, ACLs and capabilities are kept', async (t) => {
  const acl = Buffer.from(
    '0200000001000700ffffffff02000500e803000004000400ffffffff10000500ffffffff20000000ffffffff',
    'hex',
  );
  const capability = Buffer.from('0100000200200000000000000000000000000000', 'hex');
  const xattrs = new Map([
    ['user.a', Buffer.from('b\0\xff', 'latin1')],
    ['security.capability', capability],
    ['system.posix_acl_access', acl],
    ['trusted.t', Buffer.alloc(0)],
  ]);
  const large = { xattrs, mode: 0o750, uid: 33 };
  const root = join(scratch(t, 'disk'), 'layer');
  await apply(
    archiveOf(
      file('f', 'x', large),
      file('large', 'x'.repeat(3e5), large),
      dir('d/', { xattrs: new Map([['user.d', Buffer.from('e')]]) }),
    ),
    root,
  );
  const tree = describeTree(root);
  const wanted = Object.fromEntries([...xattrs].map(([name, value]) => [name, value.toString('hex')]));
  for (const name of ['f', 'large']) {
    t.deepEqual(Object.entries(tree[name]?.xattrs ?? {}).sort(), Object.entries(wanted).sort(), name);
    t.is(tree[name]?.owner, '33:0');
    t.is(tree[name]?.mode, 0o750);
  }
  t.deepEqual(tree['d']?.xattrs, { 'user.d': '65' });
});

kernelTest('user.* on symbolic links and devices is tolerated and counted', async (t) => {
  const xattrs = new Map([['user.a', Buffer.from('b')]]);
  const { root, summary } = await unpacked(t, [
    packTar({ name: 's', type: 'symlink', linkname: 'x', xattrs }),
    packTar({ name: 'n', type: 'character', major: 1, minor: 3, xattrs }),
  ]);
  t.deepEqual(readdirSync(root), ['n', 's']);
  t.deepEqual(summary.skipped, [{ reason: 'attribute', count: 2, first: undefined }]);
});

kernelTest('times to the nanosecond, directories last; owners before modes', async (t) => {
  const mtime = { seconds: 1_234_567_890, nanoseconds: 123_456_789 };
  const { root } = await unpacked(t, [
    dir('./', { mtime, mode: 0o711, uid: 7 }),
    dir('d/', { mtime, mode: 0o500 }),
    file('d/f', 'x', { mtime: { seconds: -2, nanoseconds: 5 } }),
    dir('d/e/', { mtime, mode: 0o2755, gid: 9 }),
    file('d/e/suid', 'x', { mode: 0o6755, uid: 1, gid: 2 }),
    symlink('d/s', 'x'),
  ]);
  const tree = describeTree(root);
  for (const name of ['', 'd', 'd/e']) t.is(tree[name]?.mtime, 1_234_567_890_123_456_789n, name);
  t.is(tree['d/f']?.mtime, -1_999_999_995n);
  t.is(tree['d/s']?.mtime, 1_600_000_000_000_000_000n);
  t.is(tree['']?.mode, 0o711);
  t.is(tree['']?.owner, '7:0');
  t.is(tree['d']?.mode, 0o500);
  t.is(tree['d/e']?.mode, 0o2755);
  t.is(tree['d/e/suid']?.mode, 0o6755);
  t.is(tree['d/e/suid']?.owner, '1:2');
});

for (const [what, make] of [
  ['a file', (path: string) => writeFileSync(path, 'old')],
  ['a directory', (path: string) => mkdirSync(join(path, 'in/it'), { recursive: true })],
  ['a symbolic link', (path: string) => symlinkSync('/etc', path)],
  ['a whiteout', (path: string) => execFileSync('mknod', [path, 'c', '0', '0'])],
] as const) {
  kernelTest(`an existing path, ${what}: replaced by each type, unless both are directories`, async (t) => {
    const names = ['file', 'link', 'symlink', 'fifo', 'whiteout', 'directory'];
    const { root } = await unpacked(
      t,
      [
        file('target', 'target'),
        file('file', 'new'),
        link('link', 'target'),
        symlink('symlink', 'target'),
        packTar({ name: 'fifo', type: 'fifo' }),
        file('.wh.whiteout', ''),
        dir('directory/', { mode: 0o711 }),
      ],
      {},
      (path) => {
        for (const name of names) make(join(path, name));
      },
    );
    t.is(readFileSync(join(root, 'file'), 'utf8'), 'new');
    t.is(lstatSync(join(root, 'link')).ino, lstatSync(join(root, 'target')).ino);
    t.true(lstatSync(join(root, 'symlink')).isSymbolicLink());
    t.true(lstatSync(join(root, 'fifo')).isFIFO());
    t.true(isWhiteout(join(root, 'whiteout')));
    t.is(lstatSync(join(root, 'directory')).mode & 0o7777, 0o711);
    t.is(existsSync(join(root, 'directory/in')), what === 'a directory');
    t.is(opaque(join(root, 'directory')), what === 'a directory' ? undefined : 'y', 'it hides what the other one hid');
  });
}

kernelTest('sparse files keep their holes', async (t) => {
  const size = 10 * 2 ** 20;
  const data = Buffer.alloc(size);
  data.fill('x', 4096, 8192).fill('y', 5 * 2 ** 20, 6 * 2 ** 20);
  const { root } = await unpacked(t, [
    packTar({ name: 's', segments: [4096, 4096, 5 * 2 ** 20, 2 ** 20] }, data),
    packTar({ name: 'h', segments: [] }, data),
  ]);
  t.true(readFileSync(join(root, 's')).equals(data));
  t.true(lstatSync(join(root, 's')).blocks * 512 < 2 ** 20 + 65536);
  t.is(lstatSync(join(root, 'h')).size, size);
  t.is(lstatSync(join(root, 'h')).blocks, 0);
});

// ------------------------------------------------------------------------------------------------- layout: 'plain'

kernelTest("layout 'plain': .wh.NAME removes NAME with all that it holds", async (t) => {
  const { root } = await unpacked(
    t,
    [file('.wh.d', ''), file('e/.wh.f', ''), file('.wh.missing', '')],
    { layout: 'plain' },
    (path) => {
      mkdirSync(join(path, 'd/e/f'), { recursive: true });
      mkdirSync(join(path, 'e'));
      writeFileSync(join(path, 'e/f'), '');
    },
  );
  t.deepEqual(Object.keys(describeTree(root)), ['', 'e']);
});

kernelTest("layout 'plain': .opq removes all that this layer did not write", async (t) => {
  const entries = [
    dir('d/'),
    file('d/early'),
    dir('d/sub/'),
    file('d/.wh..wh..opq', ''),
    file('d/late'),
    file('d/other/new'),
  ];
  const { root } = await unpacked(t, entries, { layout: 'plain' }, (path) => {
    mkdirSync(join(path, 'd/sub/old'), { recursive: true });
    mkdirSync(join(path, 'd/other'));
    for (const name of ['early', 'old', 'sub/file', 'other/old']) writeFileSync(join(path, 'd', name), 'old');
  });
  t.deepEqual(Object.keys(describeTree(root)), ['', 'd', 'd/early', 'd/late', 'd/other', 'd/other/new', 'd/sub']);
  t.is(opaque(join(root, 'd')), undefined);
});

kernelTest('an entry of an existing directory replaces its attributes, but no marks', async (t) => {
  const root = join(scratch(t, 'disk'), 'layer');
  mkdirSync(join(root, 'd'), { recursive: true });
  for (const name of ['user.old', 'user.both', 'trusted.overlay.opaque', 'trusted.overlay.overlay.x'])
    setAttribute(join(root, 'd'), name, 'y');
  await apply(archiveOf(dir('d/', { xattrs: new Map([['user.both', Buffer.from('z')]]) })), root);
  t.deepEqual(describeTree(root)['d']?.xattrs, { 'user.both': '7a', 'trusted.overlay.opaque': '79' });
});

kernelTest('a directory without an entry, the root too, is as the layer below has it', async (t) => {
  const base = scratch(t);
  const [below, above] = [join(base, 'below'), join(base, 'above')];
  const at = { mtime: { seconds: 1_000_000_000, nanoseconds: 5 } };
  await apply(archiveOf(dir('./', { ...at, mode: 0o750, uid: 7 }), dir('d/', { ...at, mode: 0o711 })), below);
  await apply(archiveOf(file('d/f')), above, { lowerdir: below });
  for (const name of ['', 'd']) {
    const [found, wanted] = [above, below].map((layer) => lstatSync(join(layer, name), { bigint: true }));
    for (const field of ['mode', 'uid', 'mtimeNs'] as const) t.is(found?.[field], wanted?.[field], `${name} ${field}`);
  }
});

kernelTest("layout 'plain': a directory without an entry keeps its time", async (t) => {
  let before: Tree = {};
  const { root } = await unpacked(t, [file('d/new')], { layout: 'plain' }, (path) => {
    mkdirSync(join(path, 'd'));
    before = describeTree(path);
  });
  const after = describeTree(root);
  for (const path of ['', 'd']) t.is(after[path]?.mtime, before[path]?.mtime, path);
});

// ------------------------------------------------------------------------------------------------------------ safety

refuses('the root as a file', () => [file('./', 'x', { type: 'file', name: '.' })], {
  rule: /the root of a layer is a directory/,
});
refuses('the root as a symbolic link', () => [symlink('.', '/etc')], { rule: /the root of a layer is a directory/ });
refuses('a hard link to the root', () => [link('a', '.')], { rule: /leads to the root/ });
for (const name of ['../outside', 'a/../../outside', '/../outside', '..', 'a/..']) {
  refuses(`the name ${name}`, () => [dir('a/'), file(name)], { rule: /'\.\.'/ });
  refuses(`a hard link to ${name}`, () => [dir('a/'), link('b', name)], { rule: /'\.\.'/ });
}

kernelTest('absolute names begin at the root', async (t) => {
  const { root } = await unpacked(t, [file('/etc/passwd', 'mine'), link('//b', '/etc//passwd')]);
  t.is(readFileSync(join(root, 'b'), 'utf8'), 'mine');
});

kernelTest('symbolic links that lead out, before and after what uses them: nothing outside is touched', async (t) => {
  const base = scratch(t);
  const root = join(base, 'layer');
  mkdirSync(join(base, 'directory'));
  writeFileSync(join(base, 'outside'), 'outside');
  await apply(
    archiveOf(
      symlink('up', '..'),
      file('up/outside', 'inside'),
      symlink('abs', join(base, 'directory')),
      file('abs/file', 'inside'),
      file('abs/.wh.gone', ''),
      file('up/directory/.wh..wh..opq', ''),
      dir('later/'),
      file('later/x', 'x'),
      symlink('later', base),
      file('later/y', 'y'),
      link('abs/hard', 'up/outside'),
      symlink('exact', join(base, 'outside')),
      file('exact', 'replaced'),
      symlink('hard', join(base, 'outside')),
      link('hard2', 'hard'),
    ),
    root,
  );
  t.deepEqual(readdirSync(base).sort(), ['directory', 'layer', 'outside']);
  t.deepEqual(readdirSync(join(base, 'directory')), []);
  t.is(readFileSync(join(base, 'outside'), 'utf8'), 'outside');
  t.is(opaque(join(base, 'directory')), undefined);
  t.is(readFileSync(join(root, 'outside'), 'utf8'), 'inside');
  t.is(readFileSync(join(root, base, 'directory/file'), 'utf8'), 'inside');
  t.is(readFileSync(join(root, base, 'y'), 'utf8'), 'y');
  t.is(readFileSync(join(root, 'exact'), 'utf8'), 'replaced');
});

refuses('a file that leads to an entry', () => [file('a'), file('a/b')], {
  rule: /'a', which leads to it, is no directory/,
});
refuses('a name of 256 bytes', () => [file('n'.repeat(256))], { rule: /256 bytes; at most 255/ });
refuses(
  'a chain of 10,000 symbolic links',
  () => [...Array.from({ length: 10_000 }, (_, i) => symlink(`l${i}`, `l${i + 1}`)), file('l0/x')],
  { rule: /more than 40 symbolic links/ },
);
refuses(
  'long chains of symbolic links on the way to every entry',
  () => [
    ...Array.from({ length: 39 }, (_, i) => symlink(`l${i}`, `${'d/../'.repeat(800)}l${i + 1}`)),
    symlink('l39', 'd'),
    ...Array.from({ length: 10_000 }, () => file('l0/x')),
  ],
  { rule: /symbolic links on the way to it .* bytes/, reason: 'archive-limit' },
);
refuses('a symbolic link that leads deeper than maxPathDepth', () => [symlink('a', 'd/'.repeat(2000)), file('a/x')], {
  rule: /maxPathDepth/,
  reason: 'archive-limit',
});
refuses('a circle of symbolic links', () => [symlink('a', 'b'), symlink('b', 'a'), file('a/x')], {
  rule: /symbolic links/,
});
refuses('a symbolic link without a target', () => [symlink('a', '')], { rule: /no target/ });
refuses('a symbolic link with a target of 4,096 bytes', () => [symlink('a', 'x'.repeat(4096))], { rule: /4096 bytes/ });
refuses('an id that is none', () => [file('a', '', { uid: 2 ** 32 - 1 })], { rule: /is no id/ });
refuses(
  'an attribute with a name of 256 bytes',
  () => [file('a', '', { xattrs: new Map([[`user.${'x'.repeat(251)}`, Buffer.from('')]]) })],
  { rule: /256 bytes/ },
);
refuses('too many entries', () => [file('a'), file('b'), file('c')], {
  rule: /maxEntries/,
  reason: 'archive-limit',
  options: { maxEntries: 2 },
});
refuses('too many bytes', () => [file('a', 'x'.repeat(2000))], {
  rule: /maxBytes/,
  reason: 'archive-limit',
  options: { maxBytes: 1000 },
});
refuses('a hole of 2 TiB', () => [packTar({ name: 'h', segments: [], size: 2 ** 41 })], {
  rule: /maxBytes/,
  reason: 'archive-limit',
});
refuses('too deep', () => [file('a/b/c/d')], {
  rule: /maxPathDepth/,
  reason: 'archive-limit',
  options: { maxPathDepth: 3 },
});
refuses(
  'what another program puts where the archive says nothing is',
  () => [file('a'), rawHeader({ 0: 'b', 156: 'Q' })],
  { rule: /type 'Q'/ },
);

kernelTest('names of 4,096 bytes and more', async (t) => {
  const name = Array.from({ length: 20 }, (_, i) => String(i).repeat(255).slice(0, 250)).join('/');
  const { root } = await unpacked(t, [file(name, 'deep')]);
  t.is(execFileSync('find', ['.', '-type', 'f'], { cwd: root, encoding: 'utf8' }).trim(), `./${name}`);
  execFileSync('rm', ['-rf', root]);
});

// ------------------------------------------------------------------------------------------------- sources, digests

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

for (const [what, make] of [
  ['a path', (path: string) => path],
  ['a URL', (path: string) => new URL(`file://${path}`)],
  ['a Buffer', (path: string) => readFileSync(path)],
  ['a Readable', (path: string) => Readable.from([...readFileSync(path)].map((byte) => Buffer.from([byte])))],
  [
    'an async iterable',
    async function* (path: string) {
      yield readFileSync(path);
    },
  ],
] as const) {
  for (const compression of ['none', 'gzip'] as const) {
    kernelTest(`source: ${what}, compression ${compression}`, async (t) => {
      const base = scratch(t);
      const plain = Buffer.concat([archiveOf(dir('d/'), file('d/f', 'data'.repeat(1000))), Buffer.from('trailing')]);
      // Several members, as pigz and eStargz write them.
      const bytes =
        compression === 'none'
          ? plain
          : Buffer.concat([gzipSync(plain.subarray(0, 700)), gzipSync(plain.subarray(700))]);
      writeFileSync(join(base, 'archive'), bytes);
      const before = countDescriptors();
      const summary = await apply(make(join(base, 'archive')), join(base, 'out'), {
        expectedDigest: sha256(bytes),
        expectedDiffId: sha256(plain),
      });
      t.like(summary, {
        entries: 2,
        bytes: 4000,
        size: bytes.length,
        compression,
        diffId: sha256(plain),
        digest: sha256(bytes),
        whiteouts: 0,
      });
      t.is(readFileSync(join(base, 'out/d/f'), 'utf8'), 'data'.repeat(1000));
      t.is(countDescriptors(), before);
    });
  }
}

refuses('another digest', () => [file('a')], {
  rule: /expectedDigest/,
  reason: 'digest-mismatch',
  options: { expectedDigest: sha256(Buffer.from('')) },
});
refuses('another diffID', () => [file('a')], {
  rule: /expectedDiffId/,
  reason: 'digest-mismatch',
  options: { expectedDiffId: sha256(Buffer.from('')) },
});

kernelTest('a plain archive whose first name begins like gzip', async (t) => {
  const { root, summary } = await unpacked(t, [file('\x1f\x8b', 'x')]);
  t.is(summary.compression, 'none');
  t.is(readdirSync(root, 'latin1')[0], '\x1f\x8b');
});

kernelTest('damaged compressed data', async (t) => {
  const base = scratch(t);
  const bytes = gzipSync(archiveOf(file('a', 'x'.repeat(5000))));
  const damaged = Buffer.from(bytes);
  damaged[bytes.length - 6] = (damaged[bytes.length - 6] as number) ^ 1;
  for (const source of [bytes.subarray(0, bytes.length - 5), damaged, bytes.subarray(0, 12)]) {
    const error = await t.throwsAsync(apply(source, join(base, 'out')), { instanceOf: OverlayError });
    t.is(error?.reason, 'archive-invalid');
    t.deepEqual(readdirSync(base), []);
  }
  for (const [magic, name] of [
    [[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], 'compressed with xz'],
    [[0x42, 0x5a, 0x68, 0x39], 'compressed with bzip2'],
    [[0x50, 0x4b, 0x03, 0x04], 'a zip archive'],
  ] as const) {
    const error = await t.throwsAsync(apply(Buffer.from(magic), join(base, 'out')), { instanceOf: OverlayError });
    t.regex(error?.message ?? '', new RegExp(name));
  }
});

kernelTest('a compression bomb ends with an error', async (t) => {
  const base = scratch(t);
  const header = rawHeader({ 0: 'zeros', 124: `${(2 ** 32).toString(8).padStart(11, '0')}\0` });
  const zeros = gzipSync(Buffer.alloc(2 ** 26));
  const bomb = Buffer.concat([gzipSync(header), ...new Array(64).fill(zeros)]);
  const error = await t.throwsAsync(apply(bomb, join(base, 'out')), { instanceOf: OverlayError });
  t.is(error?.reason, 'archive-limit');
  t.regex(error?.message ?? '', /maxRatio/);
  t.deepEqual(readdirSync(base), []);
});

kernelTest('an abort ends it at once, even where the source sends no more', async (t) => {
  const base = scratch(t);
  const source = new Readable({ read() {} });
  source.push(file('a', 'x'.repeat(3000)));
  const controller = new AbortController();
  const { signal } = controller;
  setTimeout(() => controller.abort(), 100);
  await t.throwsAsync(apply(source, join(base, 'out'), { signal }), { code: 'ABORT_ERR' });
  t.true(source.destroyed);
  t.deepEqual(readdirSync(base), []);
  await t.throwsAsync(apply(archiveOf(), join(base, 'out'), { signal: AbortSignal.abort() }), {
    code: 'ABORT_ERR',
  });
});

kernelTest('a symbolic link that leads to nothing, in the place of the directory', async (t) => {
  const base = scratch(t);
  symlinkSync('nowhere', join(base, 'out'));
  const refused = { code: 'EEXIST', message: /leads to nothing/ };
  await t.throwsAsync(apply(archiveOf(file('a')), join(base, 'out')), refused);
  t.deepEqual(readdirSync(base), ['out']);
});

kernelTest('a source that fails', async (t) => {
  const base = scratch(t);
  async function* failing(): AsyncGenerator<Buffer> {
    yield file('a');
    throw new Error('the network is gone');
  }
  await t.throwsAsync(apply(failing(), join(base, 'out')), { message: 'the network is gone' });
  const unread = new Readable({ read() {} });
  await t.throwsAsync(apply(unread, join(base, 'nowhere/out')), { code: 'ENOENT' });
  t.true(unread.destroyed);
  await t.throwsAsync(apply(join(base, 'missing'), join(base, 'out')), { code: 'ENOENT', message: /the archive/ });
  await t.throwsAsync(apply(base, join(base, 'out')), { code: 'EISDIR' });
  t.deepEqual(readdirSync(base), []);
});

kernelTest('owners: ignored, or mapped', async (t) => {
  const entries = [file('a', '', { uid: 5, gid: 6 })];
  const ignored = await unpacked(t, entries, { owners: 'ignore' });
  t.is(describeTree(ignored.root)['a']?.owner, '0:0');
  const map = (host: number) => [{ container: 0, host, size: 10 }];
  const mapped = await unpacked(t, entries, { owners: { uidMap: map(1000), gidMap: map(2000) } });
  t.is(describeTree(mapped.root)['a']?.owner, '1005:2006');
});
refuses('an owner outside the maps', () => [file('a', '', { uid: 50 })], {
  rule: /does not map its user 50/,
  options: { owners: { uidMap: [{ container: 0, host: 0, size: 10 }], gidMap: [{ container: 0, host: 0, size: 10 }] } },
});

kernelTest('wrong arguments', async (t) => {
  const call = (...args: unknown[]) => apply(...(args as Parameters<typeof apply>));
  const wrong = [
    [[5, '/x'], /"source" must be a path, bytes, or a stream/],
    [[archiveOf(), 5], /"dir"/],
    [[archiveOf(), '/x', { layout: 'flat' }], /"layout"/],
    [[archiveOf(), '/x', { Layout: 'plain' }], /did you mean "layout"/],
    [[archiveOf(), '/x', { maxEntries: 0 }], /"maxEntries"/],
    [[archiveOf(), '/x', { expectedDigest: 'md5:1' }], /"expectedDigest"/],
    [[archiveOf(), '/x', { owners: {} }], /"owners.uidMap"/],
    [[archiveOf(), '/x', { owners: { uidMap: [{ container: -1, host: 0, size: 1 }], gidMap: [] } }], /`container`/],
    [[archiveOf(), '/x', { onProgress: 1 }], /"onProgress"/],
    [[archiveOf(), '/x', { signal: 1 }], /"signal"/],
    [[archiveOf(), '/x', { userxattr: 1 }], /"userxattr"/],
  ] as const;
  for (const [args, message] of wrong) await t.throwsAsync(call(...args), { message });
  const base = scratch(t);
  await t.throwsAsync(apply(Readable.from(['text']), join(base, 'out')), { message: /stream of bytes/ });
  t.deepEqual(readdirSync(base), []);
});

kernelTest('an abort ends the wait for a program that writes to a pipe, and the thread that waits', async (t) => {
  const base = scratch(t);
  const before = countDescriptors();
  // More than Node has threads.
  for (let i = 0; i < 6; i++) {
    const pipe = join(base, `pipe-${i}`);
    execFileSync('mkfifo', [pipe]);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 5);
    const { signal } = controller;
    await t.throwsAsync(apply(pipe, join(base, 'out'), { signal }), { code: 'ABORT_ERR' });
  }
  while (countDescriptors() > before) await new Promise((resolve) => setTimeout(resolve, 5));
  t.is(readdirSync(base).length, 6, 'nothing but the pipes');
});

kernelTest('a lower layer that does not exist is an error, though no entry needs it', async (t) => {
  const base = scratch(t);
  const applying = apply(archiveOf(dir('d/')), join(base, 'out'), { lowerdir: join(base, 'lower') });
  const error = await t.throwsAsync(applying, { instanceOf: OverlayError });
  t.is(error?.reason, 'path-missing');
  t.deepEqual(readdirSync(base), []);
});

kernelTest('a value that the kernel does not take: the error names the attribute', async (t) => {
  const base = scratch(t);
  for (const [name, value] of [
    ['security.capability', Buffer.from('no capability')],
    ['user.large', Buffer.alloc(70_000)],
  ] as const) {
    const entry = file('f', '', { xattrs: new Map([[name, value]]) });
    const error = await t.throwsAsync(apply(archiveOf(entry), join(base, 'out')), { instanceOf: OverlayError });
    t.is(error?.reason, 'xattr-denied');
    t.regex(
      error?.message ?? '',
      new RegExp(`does not take the value of the attribute ${name} of '.*/f', of the entry`),
    );
  }
});

kernelTest('progress counts up to the end', async (t) => {
  const base = scratch(t);
  const seen: number[] = [];
  const archive = archiveOf(...Array.from({ length: 50 }, (_, i) => file(`f${i}`, 'x'.repeat(200_000))));
  await apply(archive, join(base, 'out'), {
    sync: 'end',
    onProgress: ({ bytes, totalBytes }) => {
      seen.push(bytes);
      t.is(totalBytes, archive.length);
    },
  });
  t.true(seen.length >= 4);
  t.is(seen.at(-1), archive.length);
});

kernelTest('userxattr: the marks of users', async (t) => {
  const root = join(scratch(t, 'disk'), 'layer');
  await apply(archiveOf(dir('d/'), file('d/.wh..wh..opq', ''), file('.wh.x', '')), root, { userxattr: true });
  t.is(getAttribute(join(root, 'd'), 'user.overlay.opaque'), 'y');
  t.true(isWhiteout(join(root, 'x')));
});

kernelTest('onto a layer that exists: its whiteouts, opaque directories and links count', async (t) => {
  const { root } = await unpacked(
    t,
    [file('hidden/.wh.x', ''), file('link/y', 'y'), file('whiteout/z', 'z')],
    {},
    (path) => {
      mkdirSync(join(path, 'hidden'));
      setAttribute(join(path, 'hidden'), 'trusted.overlay.opaque', 'y');
      symlinkSync('hidden', join(path, 'link'));
      execFileSync('mknod', [join(path, 'whiteout'), 'c', '0', '0']);
    },
  );
  t.deepEqual(readdirSync(join(root, 'hidden')), ['y']);
  t.is(opaque(join(root, 'whiteout')), 'y');
});

kernelTest('onto a layer that exists: what its directories hold, however deep', async (t) => {
  const deep = (path: string): string => join(path, 'd/e/f');
  const before = (path: string): void => {
    for (const name of ['d/e/f', 'other/g', 'linked/h']) mkdirSync(join(path, name), { recursive: true });
    for (const name of ['deep', 'd/e/old', 'linked/whiteout']) {
      execFileSync('mknod', [join(name === 'deep' ? deep(path) : path, name), 'c', '0', '0']);
    }
    writeFileSync(join(path, 'linked/h/target'), 'target');
    symlinkSync('../linked/h', join(path, 'other/link'));
    for (const name of ['d', 'd/e', 'other', 'other/g']) utimesSync(join(path, name), 5, 5);
  };
  const entries = [
    file('other/first', ''),
    file('d/.wh..wh..opq', ''),
    packTar({ name: 'hard', type: 'link', linkname: 'other/link/target' }),
    file('other/link/new', 'new'),
    file('linked/whiteout/in', 'in'),
  ];
  const { root } = await unpacked(t, entries, {}, before);
  const tree = describeTree(root);
  t.deepEqual(readdirSync(deep(root)), [], 'whiteouts in an opaque directory are gone');
  t.false('d/e/old' in tree);
  t.is(tree['linked/h/target']?.linkedTo, 'hard');
  t.is(tree['linked/h/new']?.size, 3);
  t.is(opaque(join(root, 'linked/whiteout')), 'y');
  for (const name of ['d', 'd/e', 'other', 'other/g']) t.is(tree[name]?.mtime, 5_000_000_000n, name);

  const plain = await unpacked(t, entries, { layout: 'plain' }, before);
  t.deepEqual(readdirSync(join(plain.root, 'd')), []);
});

mountTest('a root that may hold no more subdirectories', { needs: ['mkfs.ext4 and debugfs(8)'] }, async (t) => {
  const made = scratch(t);
  crowded('fs', 'full')((path) => join(made, path), t);
  const error = await t.throwsAsync(apply(archiveOf(dir('sub/')), join(made, 'fs/full')));
  t.like(error, { code: 'EMLINK', reason: 'too-many-subdirectories', syscall: 'mkdir' });
});

kernelTest('global records of pax apply to all', async (t) => {
  const { root } = await unpacked(t, [
    rawExtended(formatRecord('uid', '77'), 'g'),
    rawHeader({ 0: 'a' }),
    rawHeader({ 0: 'b' }),
  ]);
  t.is(describeTree(root)['b']?.owner, '77:0');
});

kernelTest('a plain user applies and marks what is opaque with the attributes that he can set', (t) => {
  const place = scratch(t, 'disk');
  writeFileSync(join(place, 'layer.tar'), archiveOf(dir('d'), file('d/.wh..wh..opq', ''), file('d/new')));
  mkdirSync(join(place, 'marked'));
  for (const path of [place, join(place, 'marked')]) giveTo(path);
  const outcome = evaluateAsNobody(
    `const { apply } = await import('overlayfs/layers');
    const [place] = args;
    await apply(join(place, 'layer.tar'), join(place, 'applied'));
    await overlayfs.makeOpaque(join(place, 'marked'));
    return await overlayfs.isOpaque(join(place, 'marked')) && fs.readdirSync(join(place, 'applied/d'));`,
    place,
  );
  t.deepEqual(outcome, ['new']);
  for (const path of ['applied/d', 'marked']) t.is(getAttribute(join(place, path), 'user.overlay.opaque'), 'y', path);
});
