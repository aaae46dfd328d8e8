/** `listMounts` and `findMount`. Imports internals: it forces each way of reading the table. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  findMount,
  findMountSync,
  listMounts,
  listMountsSync,
  type MountEntry,
  type MountFilter,
  mountOverlaySync,
  OverlayError,
} from 'overlayfs';
import { findMountWith, listMountsWith } from '#lib/mount-table/list.js';
import type { TableWay } from '#lib/mount-table/table.js';
import {
  countDescriptors,
  countThreads,
  evaluateIn,
  eventually,
  forms,
  generator,
  layers,
  makeNamespace,
  makeTree,
  mountTest,
  native,
  scaled,
  scratch,
  withoutCapabilities,
} from '../support/index.js';

const MS = {
  RDONLY: 1,
  NOSUID: 2,
  NODEV: 4,
  NOEXEC: 8,
  SYNCHRONOUS: 16,
  REMOUNT: 32,
  DIRSYNC: 128,
  NOATIME: 1024,
  NODIRATIME: 2048,
  BIND: 4096,
  UNBINDABLE: 1 << 17,
  PRIVATE: 1 << 18,
  SLAVE: 1 << 19,
  SHARED: 1 << 20,
  STRICTATIME: 1 << 24,
  LAZYTIME: 1 << 25,
} as const;

const ways: readonly TableWay[] = ['statmount', 'mountinfo'];

/** The line that the kernel would write of an entry, but for the unique id, which no line has. */
function toLine(entry: MountEntry<string | Buffer>): string {
  const bytes = (value: string | Buffer) => Buffer.from(value).toString('latin1');
  const octal = (text: string, what: RegExp) =>
    text.replace(what, (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`);
  const { flags, propagation } = entry;
  const words = [
    flags.readonly ? 'ro' : 'rw',
    flags.nosuid && 'nosuid',
    flags.nodev && 'nodev',
    flags.noexec && 'noexec',
    flags.atime === 'noatime' && 'noatime',
    flags.nodiratime && 'nodiratime',
    flags.atime === 'relatime' && 'relatime',
    flags.nosymfollow && 'nosymfollow',
    flags.idmapped && 'idmapped',
  ].filter((word) => word !== false);
  const tags = [
    propagation.peerGroup !== undefined && `shared:${propagation.peerGroup}`,
    propagation.master !== undefined && `master:${propagation.master}`,
    propagation.propagateFrom !== undefined && `propagate_from:${propagation.propagateFrom}`,
    propagation.unbindable && 'unbindable',
  ].filter((tag) => tag !== false);
  return [
    entry.mountinfoId,
    entry.parentMountinfoId,
    entry.device,
    octal(bytes(entry.root), /[ \t\n\\]/g),
    octal(bytes(entry.target), /[ \t\n\\]/g),
    words.join(','),
    ...tags,
    '-',
    entry.type,
    octal(bytes(entry.source), /[ \t\n\\#]/g),
    entry.superblockOptions.map((option) => octal(bytes(option), /[ \t\n\\,]/g)).join(','),
  ].join(' ');
}

const table = (path = '/proc/thread-self/mountinfo'): string[] => readFileSync(path, 'latin1').split('\n').slice(0, -1);

const oddNames = ['a b', 'tab\tnew\nline', 'back\\slash', '\\040', '#hash', '-', 'ö', ' - ', 'a,b', 'a:b', '日本'];

/** Mounts of many kinds below a directory. */
function makeMounts(t: ExecutionContext, dir: string, count: number): void {
  const random = generator(5);
  const pick = <T>(values: readonly T[]): T => values[random(values.length)] as T;
  makeTree(dir, { 'source/deep/er/': '', 'source/file': '', 'lower/': '', 'second/': '' });
  const some = (...flags: number[]) => flags.reduce((all, flag) => (random(3) === 0 ? all | flag : all), 0);
  /** The directory for mounts: private, or each mount in them would be many. */
  const places = [dir, ...oddNames.map((name) => join(dir, name))];
  for (const place of places.slice(1)) {
    mkdirSync(place);
    t.is(native.mount('place', place, 'tmpfs', 0, ''), 0);
  }
  const targets: string[] = [];
  for (let i = 0; i < count; i++) {
    const isStacked = targets.length > 0 && random(6) === 0;
    const name = `${random(4) === 0 ? pick(oddNames) : 'plain'}-${i}`;
    const target = isStacked ? pick(targets) : join(pick(places), name);
    if (!isStacked) mkdirSync(target);
    const flags =
      some(MS.RDONLY, MS.NOSUID, MS.NODEV, MS.NOEXEC, MS.NODIRATIME) | pick([0, MS.NOATIME, MS.STRICTATIME]);
    const superFlags = some(MS.SYNCHRONOUS, MS.DIRSYNC, MS.LAZYTIME);
    const source = random(5) === 0 ? pick(['', ...oddNames]) : 'source';
    const kinds: readonly (() => number)[] = [
      () => native.mount(source, target, 'tmpfs', flags | superFlags, pick(['', 'size=1m', 'mode=700,nr_inodes=5'])),
      () => native.mount(pick([`${dir}/source`, `${dir}/source/deep`]), target, '', MS.BIND, ''),
      () => native.mount(pick([`${dir}/source`, ...targets]), target, '', MS.BIND, ''),
      () => native.mount(source, target, 'overlay', flags, `lowerdir=${dir}/lower:${dir}/second`),
      () => native.mount(source, target, 'proc', flags, ''),
    ];
    // An unbindable mount has to be something else.
    if (pick(kinds)() !== 0) t.is(native.mount('other', target, 'tmpfs', 0, ''), 0);
    if (random(3) === 0) t.is(native.mount('', target, '', MS.REMOUNT | MS.BIND | flags, ''), 0);
    if (random(3) === 0) t.is(native.mount('', target, '', pick([MS.SHARED, MS.UNBINDABLE, MS.PRIVATE]), ''), 0);
    if (random(8) === 0) {
      // A mount in it shows in its slave as well, and in the slave's slave.
      t.is(native.mount('master', target, 'tmpfs', 0, ''), 0);
      t.is(native.mount('', target, '', MS.SHARED, ''), 0);
      let from = target;
      for (const copy of [`${dir}/source/${i}`, `${dir}/source/${i}-again`]) {
        mkdirSync(copy);
        t.is(native.mount(from, copy, '', MS.BIND, ''), 0);
        t.is(native.mount('', copy, '', MS.SLAVE, ''), 0);
        if (from === target) t.is(native.mount('', copy, '', MS.SHARED, ''), 0);
        from = copy;
      }
      mkdirSync(join(target, 'inside'));
      t.is(native.mount('inside', join(target, 'inside'), 'tmpfs', 0, ''), 0);
    } else targets.push(target);
  }
}

mountTest('a thousand mounts of many kinds, as the kernel writes them down, by every way', async (t) => {
  const dir = scratch(t);
  makeMounts(t, dir, scaled(1000, 100));
  const lines = table();
  const unique = listMountsSync();
  const readings: Record<string, MountEntry<string | Buffer>[]> = {
    promise: await listMounts(),
    'synchronous form': unique,
    bytes: await listMounts({ encoding: 'buffer' }),
    statmount: listMountsWith('statmount'),
    mountinfo: listMountsWith('mountinfo', { encoding: 'buffer' }),
  };
  for (const [name, entries] of Object.entries(readings)) {
    t.deepEqual(entries.map(toLine), lines, name);
    t.deepEqual(
      entries.map(({ id }) => id),
      unique.map(({ id }) => id),
      name,
    );
  }
  t.is(JSON.parse(JSON.stringify(unique)).length, unique.length, 'it can be logged');
  const kinds = new Set(unique.map(({ propagation }) => Object.keys(propagation).sort().join()));
  t.true(kinds.size >= 4, [...kinds].join('; '));
});

mountTest('each has the id that statx(2) calls unique', { needs: 'uniqueMountId' }, (t) => {
  const dir = scratch(t);
  for (let i = 0; i < 20; i++) {
    const options = layers(join(dir, String(i)));
    const mounted = mountOverlaySync(options);
    for (const way of ways) {
      const entries = listMountsWith(way, { target: options.target });
      t.deepEqual(
        entries.map(({ id }) => id),
        [mounted.id],
        way,
      );
      t.is(findMountWith(way, options.target)?.id, mounted.id, way);
    }
  }
});

mountTest('unique ids while mounts come and go', { needs: 'uniqueMountId' }, async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'churn/': '', 'stays/': '' });
  native.mount('stays', join(dir, 'stays'), 'tmpfs', 0, '');
  const id = findMountSync(join(dir, 'stays'))?.id;
  const script = `while :; do mount -t tmpfs churn ${dir}/churn; umount ${dir}/churn; done`;
  const child = spawn('sh', ['-c', script], { stdio: 'ignore' });
  try {
    for (let i = 0; i < scaled(200, 20); i++) {
      const entries = await listMounts({ target: join(dir, 'stays') });
      t.deepEqual(
        entries.map(({ id }) => id),
        [id],
      );
      const all = await listMounts();
      t.is(new Set(all.map(({ id }) => id)).size, all.length);
    }
  } finally {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
});

for (const { form, suffix, of } of forms) {
  const list = of('listMounts');
  mountTest(`filters (${form})`, async (t) => {
    const dir = scratch(t);
    const a = layers(join(dir, 'a'));
    const ab = layers(join(dir, 'ab'));
    const targets = async (filter: MountFilter & { encoding?: 'utf8' }) =>
      (await list(filter)).map(({ target }) => target);
    const [first, second] = [mountOverlaySync(a), mountOverlaySync({ ...ab, lowerdir: [ab.lowerdir, a.lowerdir] })];
    const dirs = { type: 'tmpfs', target: dir };
    t.deepEqual(await targets(dirs), [dir]);
    t.deepEqual(await targets({ target: dir, type: ['overlay', 'tmpfs'] }), [dir, a.target, ab.target]);
    t.deepEqual(await targets({ target: join(dir, 'a') }), [a.target], 'not what merely begins alike');
    t.deepEqual(await targets({ target: `${a.target}//` }), [a.target]);
    t.deepEqual(await targets({ target: dir, type: 'ext4' }), []);
    t.deepEqual(await targets({ target: dir, type: [] }), []);
    t.true((await targets({ target: '/' })).includes(dir));
    t.is((await list()).length, table().length);
    t.is((await list({})).length, table().length);

    t.deepEqual(await targets({ layer: a.lowerdir }), [a.target, ab.target]);
    t.deepEqual(await targets({ layer: ab.lowerdir }), [ab.target]);
    t.deepEqual(await targets({ layer: `${a.upperdir}/` }), [a.target]);
    t.deepEqual(await targets({ layer: a.workdir }), [a.target]);
    t.deepEqual(await targets({ layer: dir }), []);
    t.deepEqual(await targets({ layer: join(dir, 'missing') }), []);
    symlinkSync('a/lower', join(dir, 'link'));
    t.deepEqual(await targets({ layer: join(dir, 'link') }), [a.target, ab.target], 'the same directory');
    makeTree(dir, { 'bound/': '' });
    native.mount(a.lowerdir, join(dir, 'bound'), '', MS.BIND, '');
    t.deepEqual(await targets({ layer: join(dir, 'bound'), target: ab.target }), [ab.target]);
    second.unmountSync();
    first.unmountSync();
    t.deepEqual(await targets({ layer: a.lowerdir }), []);
  });

  mountTest(`layers of awkward names (${form})`, async (t) => {
    const dir = scratch(t);
    for (const name of ['a,b', 'a:b', 'a\\b', 'a b', '\\,', 'ö', 'x='.repeat(60)]) {
      const options = layers(join(dir, name));
      mountOverlaySync({ ...options, target: options.target });
      for (const layer of [options.lowerdir, options.upperdir, options.workdir]) {
        const found = await list({ layer });
        t.deepEqual(
          found.map(({ target }) => target),
          [options.target],
          layer,
        );
      }
    }
  });

  mountTest(`of another mount namespace, by path and by descriptor (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'there/inside/': '' });
    const script = `mount -t tmpfs theirs ${dir}/there && mkdir ${dir}/there/in && echo ready && read line`;
    const child = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    t.teardown(async () => {
      child.kill('SIGKILL');
      await once(child, 'close');
    });
    await once(child.stdout, 'data');
    const path = `/proc/${child.pid}/ns/mnt`;
    const fd = openSync(path, 'r');
    t.teardown(() => closeSync(fd));
    const descriptors = countDescriptors();
    const before = table();
    const lines = table(`/proc/${child.pid}/mountinfo`);
    for (const namespace of [path, Buffer.from(path), fd]) {
      t.deepEqual((await list({ namespace })).map(toLine), lines);
      t.deepEqual(
        (await list({ namespace, target: join(dir, 'there') })).map(({ source }) => source),
        ['theirs'],
      );
      for (const way of ways) t.deepEqual(listMountsWith(way, { namespace }).map(toLine), lines, way);
      for (const way of ways) {
        t.is(findMountWith(way, join(dir, 'there/in'), { namespace })?.source, 'theirs', way);
        t.is(findMountWith(way, join(dir, 'there'), { namespace, exact: true })?.source, 'theirs', way);
        t.is(findMountWith(way, join(dir, 'there/in'), { namespace, exact: true }), undefined, way);
      }
      t.is((await findMount(join(dir, 'there/in'), { namespace }))?.source, 'theirs');
      t.throws(() => findMountSync(join(dir, 'there/inside'), { namespace }), { code: 'ENOENT' });
    }
    t.is(findMountSync(join(dir, 'there/inside'))?.target, dir, 'nobody has gone there');
    t.deepEqual(table(), before);
    await eventually(t, () => countDescriptors() === descriptors);
  });

  mountTest(`namespaces that are none (${form})`, async (t) => {
    const dir = scratch(t);
    writeFileSync(join(dir, 'file'), '');
    const fd = openSync(join(dir, 'file'), 'r');
    t.teardown(() => closeSync(fd));
    const descriptors = countDescriptors();
    const fails = async (namespace: string | number, expected: object) => {
      const error = await t.throwsAsync(list({ namespace }), { instanceOf: OverlayError });
      t.like(error, expected);
      t.throws(() => findMountSync('/', { namespace }), { instanceOf: OverlayError });
    };
    await fails(join(dir, 'missing'), { code: 'ENOENT', reason: 'namespace-missing', path: join(dir, 'missing') });
    await fails(join(dir, 'file'), { reason: 'namespace-missing' });
    await fails('/proc/self/ns/uts', { reason: 'namespace-missing' });
    await fails(fd, { reason: 'namespace-missing' });
    await fails(2 ** 20, { code: 'EBADF', reason: 'namespace-missing' });
    await eventually(t, () => countDescriptors() === descriptors);
  });

  mountTest(`without a capability (${form})`, (t) => {
    const { target } = layers(scratch(t));
    mountOverlaySync({ ...layers(join(target, '..')), source: 'mine' });
    const shown = evaluateIn(
      withoutCapabilities,
      `(await overlayfs.listMounts${suffix}({ target: args[0] })).map(({ source }) => source)`,
      target,
    );
    t.deepEqual(shown, ['mine']);
    t.is(
      evaluateIn(
        withoutCapabilities,
        `(await overlayfs.findMount${suffix}(args[0])).source`,
        join(target, 'from-lower'),
      ),
      'mine',
    );
    const error = evaluateIn(
      ['unshare', '--user', '--map-root-user', '--mount'],
      `overlayfs.listMounts${suffix}({ namespace: Number(args[0]) })`,
      '0',
    );
    t.like(error, { reason: 'namespace-missing' });
  });

  mountTest(`of a namespace that only a descriptor holds (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const namespace = makeNamespace();
    mountOverlaySync({ ...options, namespace, source: 'there' });
    const there = await list({ namespace, target: options.target });
    t.deepEqual(
      there.map(({ source }) => source),
      ['there'],
    );
    t.deepEqual(await list({ target: options.target }), []);
    t.deepEqual(findMountSync(options.target, { namespace }), there[0]);
    t.is(findMountSync(options.target)?.target, dir);
    closeSync(namespace);
  });
}

for (const way of [undefined, ...ways]) {
  const find = (...[path, options]: Parameters<typeof findMountSync>) =>
    way === undefined ? findMountSync(path, options) : findMountWith(way, path, options);

  mountTest(`the mount of a path (${way ?? 'the best way'})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const mounted = mountOverlaySync({ ...options, source: 'first' });
    const { target } = options;
    for (const path of [target, `${target}/`, join(target, 'from-lower'), Buffer.from(target)]) {
      const entry = find(path);
      t.like(entry, { target, type: 'overlay', source: 'first', root: '/' });
      if (way === undefined) t.deepEqual(await findMount(path), entry);
      t.deepEqual(listMountsSync({ target }), [entry]);
    }
    t.like(find(target, { exact: true }), { target });
    t.is(find(join(target, 'from-lower'), { exact: true }), undefined);
    t.is(find(options.lowerdir, { exact: true }), undefined);
    t.is(find(options.lowerdir)?.target, dir);
    t.is(find(options.lowerdir)?.type, 'tmpfs');

    symlinkSync('merged/from-lower', join(dir, 'link'));
    t.is(find(join(dir, 'link'))?.target, target, 'a link is followed');
    native.mount('second', target, 'tmpfs', 0, '');
    t.is(find(target)?.source, 'second', 'the top one');
    native.umount(target, 0);
    mounted.unmountSync();
    t.is(find(target)?.target, dir);

    for (const [path, code, reason] of [
      [join(dir, 'missing'), 'ENOENT', 'path-missing'],
      [join(dir, 'lower/from-lower/x'), 'ENOTDIR', 'path-inaccessible'],
      [join(dir, 'x'.repeat(300)), 'ENAMETOOLONG', 'path-inaccessible'],
    ] as const) {
      const error = t.throws(() => find(path), { instanceOf: OverlayError });
      t.like(error, { code, reason, path, syscall: 'statx' });
      await t.throwsAsync(findMount(path, { exact: true }), { code });
    }
  });

  mountTest(`names of any bytes (${way ?? 'the best way'})`, (t) => {
    const dir = scratch(t);
    const name = Buffer.from('\xff \n\\\x01', 'latin1');
    const target = Buffer.concat([Buffer.from(`${dir}/`), name]);
    mkdirSync(target);
    const options = layers(dir);
    mountOverlaySync({ ...options, target, source: '#' });
    const entry = find(target, { encoding: 'buffer' });
    t.deepEqual(entry?.target, target);
    t.deepEqual(entry?.source, Buffer.from('#'));
    t.true(
      entry?.superblockOptions.some((option) => Buffer.from(`upperdir=${options.upperdir}`).equals(option as Buffer)),
    );
    t.is(find(target)?.target, target.toString());
    const listed = listMountsWith(way ?? 'mountinfo', { target, encoding: 'buffer' });
    t.deepEqual(
      listed.map((one) => one.target),
      [target],
    );
    const empty = join(dir, 'empty');
    mkdirSync(empty);
    native.mount('', empty, 'tmpfs', 0, '');
    t.is(find(empty)?.source, '');
  });
}

mountTest('a relative path is that of the moment of the call', async (t) => {
  const dir = scratch(t);
  const before = process.cwd();
  t.teardown(() => process.chdir(before));
  process.chdir(dir);
  const pending = findMount('.');
  process.chdir('/');
  t.is((await pending)?.target, dir);
  await t.throwsAsync(findMount('.', { namespace: '/proc/self/ns/mnt' }), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /"path" must be an absolute path/,
  });
});

mountTest('many at once, and many failures, leave nothing', async (t) => {
  const dir = scratch(t);
  const descriptors = countDescriptors();
  for (let i = 0; i < scaled(20); i++) {
    await Promise.all([
      ...Array.from({ length: 10 }, () => listMounts({ target: dir })),
      ...Array.from({ length: 10 }, () => listMounts({ namespace: '/proc/self/ns/mnt' })),
      ...Array.from({ length: 10 }, () => findMount(join(dir, 'missing')).catch(() => {})),
      ...Array.from({ length: 10 }, () => findMount('/', { namespace: '/proc/self/ns/mnt' })),
    ]);
  }
  await eventually(t, () => countDescriptors() === descriptors);
  t.true(countThreads() <= 17);
});

test('arguments are checked before anything is asked', async (t) => {
  const refused = async (call: () => unknown, code: string, message: RegExp) => {
    const error = await t.throwsAsync(async () => await call());
    t.like(error, { code });
    t.regex(error?.message ?? '', message);
  };
  for (const list of [listMounts, listMountsSync] as ((filter: unknown) => unknown)[]) {
    await refused(() => list(null), 'ERR_INVALID_ARG_TYPE', /"filter"/);
    await refused(() => list('overlay'), 'ERR_INVALID_ARG_TYPE', /"filter"/);
    await refused(() => list({ types: 'overlay' }), 'ERR_INVALID_ARG_VALUE', /did you mean "type"\?/);
    await refused(() => list({ type: 5 }), 'ERR_INVALID_ARG_TYPE', /"type"/);
    await refused(() => list({ type: ['overlay', 5] }), 'ERR_INVALID_ARG_TYPE', /"type"/);
    await refused(() => list({ target: 5 }), 'ERR_INVALID_ARG_TYPE', /"target"/);
    await refused(() => list({ layer: '' }), 'ERR_INVALID_ARG_VALUE', /"layer"/);
    await refused(() => list({ namespace: -1 }), 'ERR_INVALID_ARG_TYPE', /"namespace"/);
    await refused(() => list({ namespace: 1.5 }), 'ERR_INVALID_ARG_TYPE', /"namespace"/);
    await refused(() => list({ namespace: {} }), 'ERR_INVALID_ARG_TYPE', /"namespace"/);
    await refused(() => list({ encoding: 'latin1' }), 'ERR_INVALID_ARG_VALUE', /"encoding"/);
  }
  for (const find of [findMount, findMountSync] as ((path: unknown, options?: unknown) => unknown)[]) {
    await refused(() => find(undefined), 'ERR_INVALID_ARG_TYPE', /"path"/);
    await refused(() => find('a\0b'), 'ERR_INVALID_ARG_VALUE', /"path"/);
    await refused(() => find('/', { exakt: true }), 'ERR_INVALID_ARG_VALUE', /did you mean "exact"\?/);
    await refused(() => find('/', { exact: 1 }), 'ERR_INVALID_ARG_TYPE', /"exact"/);
    await refused(() => find('/', []), 'ERR_INVALID_ARG_TYPE', /"options"/);
  }
});
