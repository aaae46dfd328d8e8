/** Layer directories packed: the rows of the rules, the same bytes each time, and the way back through the kernel. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { ExecutionContext } from 'ava';
import { mountOverlaySync, OverlayError, type OverlayOptions } from 'overlayfs';
import { apply } from '#lib/archives/apply.js';
import { type DirectoryStates, type PackOptions, pack } from '#lib/archives/create.js';
import type { Layers } from '#lib/trees/given.js';
import {
  countDescriptors,
  generator,
  kernelTest,
  layers,
  makeTree,
  mountTest,
  scaled,
  scratch,
  setAttribute,
} from '../support/index.js';
import { type Described, describeTree, type Tree } from '../support/trees.js';
import { readArchive, type Whole } from '../tar/archives.js';
import { changeTree } from './random-tree.js';

async function collect(source: Layers | DirectoryStates, options?: PackOptions): Promise<Buffer> {
  const stream = pack(source, options);
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  const bytes = Buffer.concat(chunks);
  const { size, digest } = await stream.summary;
  if (size !== bytes.length || digest !== sha256(bytes)) throw new Error('the summary is of another stream');
  return bytes;
}

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
const entriesOf = async (source: Layers, options?: PackOptions): Promise<Whole[]> =>
  readArchive(await collect(source, options));
const namesOf = async (source: Layers, options?: PackOptions): Promise<string[]> =>
  (await entriesOf(source, options)).map(({ entry }) => entry.name);
const whiteout = (path: string): void => void execFileSync('mknod', [path, 'c', '0', '0']);

async function refuses(
  t: ExecutionContext,
  source: Layers | DirectoryStates,
  options: PackOptions,
  what: RegExp,
  reason = 'layer-unpackable',
): Promise<void> {
  const before = countDescriptors();
  const stream = pack(source, options);
  const error = await t.throwsAsync(
    async () => {
      for await (const _ of stream);
    },
    { instanceOf: OverlayError },
  );
  t.is(error?.reason, reason as never, error?.message);
  t.regex(error?.message ?? '', what);
  t.is(await t.throwsAsync(stream.summary), error);
  t.is(countDescriptors(), before);
}

// ------------------------------------------------------------------------------------------------- rows of the table

kernelTest(
  'a character device 0:0: `.wh.NAME`, a file of size 0, mode 0600, owner 0, time 0; only where it hides something',
  async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'lower/hidden': '', 'upper/': '' });
    for (const name of ['hidden', 'orphan']) whiteout(join(dir, 'upper', name));
    t.deepEqual(await namesOf(join(dir, 'upper')), ['./', '.wh.hidden', '.wh.orphan']);
    const [, only, ...rest] = await entriesOf({ upperdir: join(dir, 'upper'), lowerdir: join(dir, 'lower') });
    t.deepEqual(rest, []);
    t.like(only?.entry, {
      name: '.wh.hidden',
      type: 'file',
      size: 0,
      mode: 0o600,
      uid: 0,
      gid: 0,
      mtime: { seconds: 0, nanoseconds: 0 },
    });
  },
);

kernelTest('an empty file with `overlay.whiteout` in a directory marked `x`: `.wh.NAME`', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'upper/marked/x': '', 'upper/marked/full': 'data', 'upper/plain/y': '' });
  setAttribute(join(dir, 'upper/marked'), 'trusted.overlay.opaque', 'x');
  for (const path of ['marked/x', 'marked/full'])
    setAttribute(join(dir, 'upper', path), 'trusted.overlay.whiteout', '');
  t.deepEqual(await namesOf(join(dir, 'upper')), ['./', 'marked/', 'marked/full', 'marked/.wh.x', 'plain/', 'plain/y']);
});

kernelTest('an opaque directory: its entry, then `.wh..wh..opq`; only where a lower has that directory', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/there/x': '', 'lower/file': '', 'upper/there/a': '', 'upper/new/b': '', 'upper/file/c': '' });
  for (const name of ['there', 'new', 'file']) setAttribute(join(dir, 'upper', name), 'trusted.overlay.opaque', 'y');
  const opaque = (names: readonly string[]): string[] => names.filter((name) => name.endsWith('.opq'));
  t.deepEqual(opaque(await namesOf(join(dir, 'upper'))), [
    'file/.wh..wh..opq',
    'new/.wh..wh..opq',
    'there/.wh..wh..opq',
  ]);
  const names = await namesOf({ upperdir: join(dir, 'upper'), lowerdir: join(dir, 'lower') });
  t.deepEqual(names, ['./', 'file/', 'file/c', 'new/', 'new/b', 'there/', 'there/.wh..wh..opq', 'there/a']);
});

mountTest(
  '`overlay.redirect`: with the layers below resolved, without them an error that names the directory',
  async (t) => {
    const paths = layers(scratch(t));
    makeTree(paths.lowerdir, { 'old/deep/file': 'data', 'old/gone': '' });
    const mount = mountOverlaySync({ ...paths, redirectDir: 'on' });
    renameSync(join(paths.target, 'old'), join(paths.target, 'new'));
    unlinkSync(join(paths.target, 'new/gone'));
    writeFileSync(join(paths.target, 'new/added'), 'x');
    mount.unmountSync();
    const names = await namesOf({ upperdir: paths.upperdir, lowerdir: paths.lowerdir });
    t.deepEqual(names, ['./', 'new/', 'new/added', 'new/deep/', 'new/deep/file', '.wh.old']);
    await refuses(t, paths.upperdir, {}, /upper\/new' was renamed/, 'layers-incomplete');
    t.deepEqual(await namesOf(mount), names, "a mount's own layers");
  },
);

mountTest('`overlay.metacopy`: with the layers below the data is theirs, without them an error', async (t) => {
  const paths = layers(scratch(t));
  makeTree(paths.lowerdir, { file: 'the data' });
  const mount = mountOverlaySync({ ...paths, metacopy: true, redirectDir: 'on' });
  chmodSync(join(paths.target, 'file'), 0o4711);
  renameSync(join(paths.target, 'file'), join(paths.target, 'moved'));
  mount.unmountSync();
  const [, , moved] = await entriesOf({ upperdir: paths.upperdir, lowerdir: paths.lowerdir });
  t.is(moved?.entry.name, 'moved');
  t.is(moved?.data.toString(), 'the data');
  t.is(moved?.entry.mode, 0o4711);
  await refuses(t, paths.upperdir, {}, /moved' is a metacopy/, 'layers-incomplete');
  writeFileSync(join(paths.lowerdir, 'file'), 'other data');
  await refuses(
    t,
    { upperdir: paths.upperdir, lowerdir: paths.lowerdir },
    {},
    /whose data is not in the layers/,
    'layers-incomplete',
  );
});

kernelTest(
  'other `overlay.*` attributes are not written; `overlay.overlay.*` comes out one level unescaped',
  async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(dir, { 'upper/file': '' });
    for (const name of ['origin', 'impure', 'overlay.opaque', 'overlay.overlay.x'])
      setAttribute(join(dir, 'upper/file'), `trusted.overlay.${name}`, 'v');
    setAttribute(join(dir, 'upper/file'), 'user.kept', 'v');
    const [, file] = await entriesOf(join(dir, 'upper'));
    t.deepEqual(
      [...(file?.entry.xattrs.keys() ?? [])],
      ['trusted.overlay.opaque', 'trusted.overlay.overlay.x', 'user.kept'],
    );
  },
);

kernelTest('a real file called `.wh.*`: an error', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/d/.wh.x': '' });
  await refuses(t, join(dir, 'upper'), {}, /d\/\.wh\.x' has a name that means a whiteout/);
});

kernelTest('a deleted file called `.wh.*`: an error', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/.wh..opq': '', 'upper/': '', 'empty/': '' });
  whiteout(join(dir, 'upper/.wh..opq'));
  const rule = /\.wh\.\.opq' is deleted, and its name means a whiteout/;
  await refuses(t, { upperdir: join(dir, 'upper'), lowerdir: join(dir, 'lower') }, {}, rule);
  await refuses(t, { before: join(dir, 'lower'), after: join(dir, 'empty') }, {}, rule);
});

mountTest('with `index`, a changed file that the upper does not have under all its names: an error', async (t) => {
  const paths = layers(scratch(t, 'disk'));
  makeTree(paths.lowerdir, { a: 'old', 'd/': '' });
  linkSync(join(paths.lowerdir, 'a'), join(paths.lowerdir, 'd/b'));
  const mount = mountOverlaySync({ ...paths, index: true });
  t.deepEqual(await namesOf(mount), ['./'], 'nothing is changed');
  writeFileSync(join(paths.target, 'a'), 'new');
  await refuses(t, mount, {}, /upper\/d\/b' is missing: only the index/, 'layers-incomplete');
  const { mode } = statSync(join(paths.target, 'd/b'));
  chmodSync(join(paths.target, 'd/b'), mode & 0o7777);
  const links = (await entriesOf(mount)).map(({ entry, data }) => [entry.name, entry.linkname, data.toString()]);
  t.deepEqual(links, [
    ['./', '', ''],
    ['a', '', 'new'],
    ['d/', '', ''],
    ['d/b', 'a', ''],
  ]);
  mount.unmountSync();
});

kernelTest('hard links: one entry with the data, links after it', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/b': 'data', 'upper/d/': '' });
  linkSync(join(dir, 'upper/b'), join(dir, 'upper/a'));
  linkSync(join(dir, 'upper/b'), join(dir, 'upper/d/c'));
  symlinkSync('x', join(dir, 'upper/s'));
  linkSync(join(dir, 'upper/s'), join(dir, 'upper/t'));
  const entries = (await entriesOf(join(dir, 'upper'))).map(({ entry: { name, type, linkname, size } }) => [
    name,
    type,
    linkname,
    size,
  ]);
  t.deepEqual(entries, [
    ['./', 'directory', '', 0],
    ['a', 'file', '', 4],
    ['b', 'link', 'a', 0],
    ['d/', 'directory', '', 0],
    ['d/c', 'link', 'a', 0],
    ['s', 'symlink', 'x', 0],
    ['t', 'link', 's', 0],
  ]);
});

kernelTest('attributes: all but security.selinux, by option', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'upper/file': '' });
  setAttribute(join(dir, 'upper/file'), 'security.selinux', 'u:r:t');
  setAttribute(join(dir, 'upper/file'), 'user.a', 'b');
  const xattrs = async (options?: PackOptions): Promise<string[]> => [
    ...((await entriesOf(join(dir, 'upper'), options))[1]?.entry.xattrs.keys() ?? []),
  ];
  t.deepEqual(await xattrs(), ['user.a']);
  t.deepEqual(await xattrs({ excludeXattrs: [] }), ['security.selinux', 'user.a']);
  t.deepEqual(await xattrs({ excludeXattrs: ['user.a'] }), ['security.selinux']);
});

kernelTest('sockets are left out and counted', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/file': '' });
  execFileSync('python3', [
    '-c',
    'import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])',
    join(dir, 'upper/socket'),
  ]);
  const stream = pack(join(dir, 'upper'));
  stream.resume();
  t.like(await stream.summary, { entries: 2, sockets: 1, whiteouts: 0 });
});

kernelTest('the same tree gives the same bytes: order, umask and time make no difference', async (t) => {
  const dir = scratch(t);
  const names = Array.from({ length: 300 }, (_, i) => `f${i}`);
  for (const [tree, order] of [
    ['a', names],
    ['b', [...names].reverse()],
  ] as const) {
    const umask = process.umask(tree === 'a' ? 0o077 : 0);
    mkdirSync(join(dir, tree));
    mkdirSync(join(dir, tree, 'd'));
    for (const name of order) writeFileSync(join(dir, tree, 'd', name), name);
    for (const name of order) {
      chmodSync(join(dir, tree, 'd', name), 0o644);
      utimesSync(join(dir, tree, 'd', name), 5.5, 5.5);
    }
    for (const at of ['d', '']) {
      chmodSync(join(dir, tree, at), 0o755);
      utimesSync(join(dir, tree, at), 6, 6);
    }
    process.umask(umask);
  }
  const first = await collect(join(dir, 'a'), { compression: 'gzip' });
  await new Promise((resolve) => setTimeout(resolve, 1100));
  t.true(first.equals(await collect(join(dir, 'b'), { compression: 'gzip' })));
});

kernelTest('times later than SOURCE_DATE_EPOCH are set back to it', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/old': '', 'upper/new': '' });
  utimesSync(join(dir, 'upper/old'), 1000.5, 1000.5);
  const times = (list: Whole[]): (number | undefined)[] => list.map(({ entry }) => entry.mtime.seconds);
  t.deepEqual(times(await entriesOf(join(dir, 'upper'), { sourceDateEpoch: 2000 })), [2000, 2000, 1000]);
  process.env['SOURCE_DATE_EPOCH'] = '3000';
  t.deepEqual(times(await entriesOf(join(dir, 'upper'))), [3000, 3000, 1000]);
  process.env['SOURCE_DATE_EPOCH'] = 'yesterday';
  t.throws(() => pack(join(dir, 'upper')), { message: /SOURCE_DATE_EPOCH/ });
  delete process.env['SOURCE_DATE_EPOCH'];
});

// ------------------------------------------------------------------------------------------------------- the stream

kernelTest('large files, empty ones, and compression', async (t) => {
  const dir = scratch(t);
  mkdirSync(join(dir, 'upper'));
  const random = generator(1);
  for (const size of [0, 1, 511, 512, 513, 2 ** 20 - 512, 2 ** 20, 5 * 2 ** 20 + 77]) {
    writeFileSync(
      join(dir, 'upper', `f${size}`),
      Buffer.from(
        Array.from({ length: size % 1000 }, () => random(256)).concat(new Array(size - (size % 1000)).fill(7)),
      ),
    );
  }
  const plain = await collect(join(dir, 'upper'));
  for (const { entry, data } of readArchive(plain)) {
    if (entry.type === 'file') t.true(data.equals(readFileSync(join(dir, 'upper', entry.name))), entry.name);
  }
  const stream = pack(join(dir, 'upper'), { compression: 'gzip', level: 9 });
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  t.true(gunzipSync(Buffer.concat(chunks)).equals(plain));
  t.like(await stream.summary, { diffId: sha256(plain), compression: 'gzip', entries: 9 });
});

kernelTest('a file that changes while it is packed', async (t) => {
  const dir = scratch(t);
  // More than is read ahead.
  makeTree(dir, { 'upper/a': 'a'.repeat(3e7), 'upper/b': 'b' });
  const stream = pack(join(dir, 'upper'), { onProgress: () => writeFileSync(join(dir, 'upper/a'), 'changed') });
  const error = await t.throwsAsync(
    async () => {
      for await (const _ of stream);
    },
    { instanceOf: OverlayError },
  );
  t.is(error?.reason, 'layer-changed');
});

kernelTest('a stream that is given up, or aborted, leaves nothing open', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/a': 'a'.repeat(2e7) });
  const before = countDescriptors();
  const stream = pack(join(dir, 'upper'));
  for await (const _ of stream) break;
  await t.throwsAsync(stream.summary);
  const controller = new AbortController();
  const aborted = pack(join(dir, 'upper'), { signal: controller.signal, onProgress: () => controller.abort() });
  await t.throwsAsync(
    async () => {
      for await (const _ of aborted);
    },
    { code: 'ABORT_ERR' },
  );
  await new Promise((resolve) => setTimeout(resolve, 50));
  t.is(countDescriptors(), before);
});

kernelTest('wrong arguments and directories', async (t) => {
  const wrong = [
    [{ compression: 'xz' }, /"compression"/],
    [{ level: 3 }, /`level` needs a compression/],
    [{ compression: 'gzip', level: 10 }, /"level"/],
    [{ sourceDateEpoch: 'x' }, /"sourceDateEpoch"/],
    [{ excludeXattrs: 'x' }, /"excludeXattrs"/],
    [{ layout: 'x' }, /"layout"/],
    [{ lowerdir: '/' }, /"lowerdir" is not one of/],
  ] as const;
  for (const [options, message] of wrong) t.throws(() => pack('/tmp', options as unknown as PackOptions), { message });
  const dir = scratch(t);
  await refuses(t, join(dir, 'missing'), {}, /missing' does not exist/, 'path-missing');
  writeFileSync(join(dir, 'file'), '');
  await refuses(t, join(dir, 'file'), {}, /is not a directory/, 'path-not-directory');
});

// ---------------------------------------------------------------------------------------------------- the way back

/** Without what no archive keeps. */
const comparable = (tree: Tree, hasLinks = true): Tree =>
  Object.fromEntries(
    Object.entries(tree).map(([path, described]): [string, Described] => {
      const { linkedTo, ...rest } = described;
      return [path, { ...rest, ...(hasLinks && linkedTo !== undefined && { linkedTo }) }];
    }),
  );

const variants: Readonly<Record<string, Partial<OverlayOptions>>> = {
  'no options': {},
  redirect_dir: { redirectDir: 'on' },
  'redirect_dir and metacopy': { redirectDir: 'on', metacopy: true },
  userxattr: { userxattr: true },
};

for (const [title, options] of Object.entries(variants)) {
  mountTest(
    `random uppers, packed and unpacked, show the same merged view: ${title}`,
    { needs: title === 'userxattr' ? 'userxattr' : undefined },
    async (t) => {
      const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
      const marks = { userxattr: options.userxattr === true };
      for (let seed = first; seed < first + scaled(10, 2); seed++) {
        t.log(`seed ${seed}`);
        const random = generator(seed);
        const dir = scratch(t, 'tmpfs');
        const [base, target] = [join(dir, 'base'), join(dir, 'merged')];
        for (const path of [base, target, join(dir, 'flat')]) mkdirSync(path);
        changeTree(base, random, 100);
        let lowers = [base];
        let unpacked = [base];
        await apply(pack(base, { layout: 'plain' }), join(dir, 'flat'), { layout: 'plain' });
        for (const level of [1, 2, 3]) {
          const [upperdir, workdir, out] = [
            join(dir, `upper${level}`),
            join(dir, `work${level}`),
            join(dir, `out${level}`),
          ];
          mkdirSync(upperdir);
          mkdirSync(workdir);
          const mount = mountOverlaySync({ lowerdir: lowers, upperdir, workdir, target, ...options });
          changeTree(target, random, 40 * level);
          const wanted = comparable(describeTree(target), options.redirectDir === undefined);
          mount.unmountSync();
          const archive = await collect({ upperdir, lowerdir: lowers, ...marks });
          const { diffId } = await apply(archive, out, marks);
          t.is(diffId, sha256(archive));
          unpacked = [out, ...unpacked];
          const again = mountOverlaySync({ lowerdir: unpacked, target, ...marks });
          const got = comparable(describeTree(target), options.redirectDir === undefined);
          again.unmountSync();
          t.deepEqual(got, wanted, `seed ${seed}, level ${level}`);
          // The same in a plain directory.
          await apply(archive, join(dir, 'flat'), { layout: 'plain' });
          t.deepEqual(
            comparable(describeTree(join(dir, 'flat')), options.redirectDir === undefined),
            wanted,
            `plain, seed ${seed}, level ${level}`,
          );
          // The unpacked layer packs to the same archive.
          t.is(
            sha256(await collect({ upperdir: out, lowerdir: unpacked.slice(1), ...marks })),
            diffId,
            `again, seed ${seed}, level ${level}`,
          );
          lowers = [upperdir, ...lowers];
        }
      }
    },
  );
}

kernelTest('two states of a directory: the archive turns one into the other', async (t) => {
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
  for (let seed = first; seed < first + scaled(40, 8); seed++) {
    t.log(`seed ${seed}`);
    const random = generator(seed);
    const dir = scratch(t);
    const [before, after] = [join(dir, 'before'), join(dir, 'after')];
    mkdirSync(before);
    changeTree(before, random, 60);
    execFileSync('cp', ['-a', before, after]);
    changeTree(after, random, 30);
    const archive = await collect({ before, after });
    t.is(sha256(archive), sha256(await collect({ before, after })));
    await apply(archive, before, { layout: 'plain' });
    t.deepEqual(comparable(describeTree(before)), comparable(describeTree(after)), `seed ${seed}`);
    t.deepEqual(
      readArchive(await collect({ before, after: before })).filter(({ entry }) => entry.type !== 'link').length,
      readArchive(await collect({ before: after, after })).filter(({ entry }) => entry.type !== 'link').length,
      'only files with several links are in both',
    );
  }
});

kernelTest('two states of a directory: only what changed, and the directories that lead there', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/d/same': 'x', 'a/d/gone': 'x', 'a/d/sub/deep': 'x', 'a/other/x': 'x', 'a/file': 'x' });
  execFileSync('cp', ['-a', join(dir, 'a'), join(dir, 'b')]);
  const states = { before: join(dir, 'a'), after: join(dir, 'b') };
  t.deepEqual(readArchive(await collect(states)), []);
  // The time stays: only its bytes differ.
  const path = join(dir, 'b/d/sub/deep');
  const { mtime } = statSync(path);
  writeFileSync(path, 'y');
  utimesSync(path, mtime, mtime);
  utimesSync(join(dir, 'a/d/sub/deep'), mtime, mtime);
  rmSync(join(dir, 'b/file'));
  mkdirSync(join(dir, 'b/file'));
  rmSync(join(dir, 'b/other'), { recursive: true });
  const names = readArchive(await collect(states)).map(({ entry }) => entry.name);
  t.deepEqual(names, ['./', 'd/', 'd/sub/', 'd/sub/deep', 'file/', '.wh.other']);
  t.throws(() => pack(states, { layout: 'plain' }), { message: /two states/ });
  t.throws(() => pack({ before: '', after: dir }), { message: /"before"/ });
  t.throws(() => pack({ before: dir, after: '' }), { message: /"after"/ });
});
