/** Other programs as judges: what GNU tar and bsdtar pack is read, and what is written they unpack. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  closeSync,
  ftruncateSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { TarEntry } from '#lib/tar/entry.js';
import { mountTest, scratch, setAttribute } from '../support/index.js';
import { type Described, describeTree } from '../support/trees.js';
import { archiveOf, packTar, readArchive, type Whole } from './archives.js';

const latin1 = (text: string): Buffer => Buffer.from(text, 'latin1');

/** All types and troubles that a file system can hold. */
function makeAll(dir: string): void {
  mkdirSync(dir);
  const at = (name: string): Buffer => latin1(`${dir}/${name}`);
  writeFileSync(at('plain'), 'plain');
  writeFileSync(at('empty'), '');
  writeFileSync(at('large'), Buffer.alloc(300_000, 'large'));
  linkSync(at('plain'), at('zlink'));
  symlinkSync('plain', at('symlink'));
  symlinkSync(`/${'long/'.repeat(60)}target`, at('long-symlink'));
  writeFileSync(at('caf\xe9 \xff\n"'), 'not UTF-8');
  mkdirSync(at('dir'));
  chmodSync(at('dir'), 0o1777);
  writeFileSync(at('dir/set-id'), '');
  chownSync(at('dir/set-id'), 1234, 5678);
  chmodSync(at('dir/set-id'), 0o6755);
  const deep = `dir/${'d'.repeat(90)}/${'e'.repeat(90)}/${'f'.repeat(90)}`;
  mkdirSync(at(deep), { recursive: true });
  writeFileSync(at(`${deep}/${'g'.repeat(250)}`), 'deep');
  linkSync(at(`${deep}/${'g'.repeat(250)}`), at(`${deep}/${'h'.repeat(250)}`));
  writeFileSync(at(`dir/${'n'.repeat(100)}`), 'n');
  writeFileSync(at(`dir/${'n'.repeat(101)}`), 'n');
  execFileSync('mkfifo', [join(dir, 'fifo')]);
  execFileSync('mknod', [join(dir, 'device'), 'b', '8', '300']);
  execFileSync('mknod', [join(dir, 'terminal'), 'c', '5', '1']);
  writeFileSync(at('attributes'), '');
  setAttribute(join(dir, 'attributes'), 'user.a=b%25', 'x=\n\xff');
  setAttribute(join(dir, 'attributes'), 'user.large', 'v'.repeat(1000));
  setAttribute(join(dir, 'dir'), 'trusted.of.root', 'y');
  for (const [name, parts, size] of [
    ['sparse', [0, 40, 80, 120, 160, 200, 240, 280], 300 * 4096],
    ['hole', [], 1 << 20],
    ['hole-last', [0], 1 << 20],
  ] as const) {
    const file = openSync(at(name), 'w');
    for (const part of parts) writeSync(file, Buffer.alloc(4096, name), 0, 4096, part * 4096);
    ftruncateSync(file, size);
    closeSync(file);
  }
  utimesSync(at('plain'), 1.25, 1.25);
  lutimesSync(at('symlink'), 1_500_000_000.125, 1_500_000_000.125);
  utimesSync(at('dir'), 2_000_000_000, 2_000_000_000);
}

interface Form {
  readonly command: readonly string[];
  /** The form keeps fractions of a second. */
  readonly hasNanoseconds?: boolean;
  readonly hasXattrs?: boolean;
  /** It cannot hold these. */
  readonly lacks?: readonly RegExp[];
}

const xattrs = ['--xattrs', '--xattrs-include=*'];
const long = [/^dir\/d{90}\/e/, /^dir\/n{101}/, /^long-symlink/];
const gnu = (...args: string[]): readonly string[] => ['tar', '--sort=name', '--numeric-owner', ...args];
const bsd = (...args: string[]): readonly string[] => ['bsdtar', '--numeric-owner', ...args];

const forms: Readonly<Record<string, Form>> = {
  'GNU tar, v7': { command: gnu('--format=v7'), lacks: [...long, /^dir\/n{100}/, /^fifo|^device|^terminal/] },
  'GNU tar, ustar': { command: gnu('--format=ustar'), lacks: long },
  'GNU tar, oldgnu': { command: gnu('--format=oldgnu') },
  'GNU tar, gnu': { command: gnu('--format=gnu') },
  'GNU tar, gnu, sparse': { command: gnu('--format=gnu', '-S') },
  'GNU tar, pax': { command: gnu('--format=pax', ...xattrs), hasNanoseconds: true, hasXattrs: true },
  'GNU tar, pax, sparse 0.0': { command: gnu('--format=pax', '-S', '--sparse-version=0.0'), hasNanoseconds: true },
  'GNU tar, pax, sparse 0.1': { command: gnu('--format=pax', '-S', '--sparse-version=0.1'), hasNanoseconds: true },
  'GNU tar, pax, sparse 1.0': {
    command: gnu('--format=pax', '-S', '--sparse-version=1.0', ...xattrs),
    hasNanoseconds: true,
    hasXattrs: true,
  },
  'bsdtar, pax': { command: bsd('--format=pax', '--xattrs'), hasNanoseconds: true, hasXattrs: true },
  'bsdtar, restricted pax': { command: bsd('--format=paxr', '--xattrs'), hasXattrs: true },
  'bsdtar, gnutar': { command: bsd('--format=gnutar') },
  'bsdtar, ustar': { command: bsd('--format=ustar'), lacks: long },
};

const digest = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex').slice(0, 16);

/** An entry as describeTree tells of the file that it comes from. */
function describeEntry({ entry, data }: Whole, { hasNanoseconds = false, hasXattrs = false }: Form): Described {
  const { type, linkname, major, minor } = entry;
  const isDevice = type === 'block' || type === 'character';
  const device = (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
  return {
    type,
    mode: entry.mode,
    owner: `${entry.uid}:${entry.gid}`,
    size: entry.size,
    content: type === 'file' ? digest(data) : isDevice ? String(device) : type === 'symlink' ? linkname : '',
    mtime: BigInt(entry.mtime.seconds) * 1_000_000_000n + (hasNanoseconds ? BigInt(entry.mtime.nanoseconds) : 0n),
    ...(type === 'link' && { linkedTo: clean(linkname) }),
    xattrs: hasXattrs
      ? Object.fromEntries([...entry.xattrs].map(([name, value]) => [name, value.toString('hex')]))
      : {},
  };
}

/** To compare entries: AVA compares large data byte by byte, which takes seconds. */
const withDigests = (entries: readonly Whole[]) => entries.map(({ entry, data }) => ({ entry, digest: digest(data) }));

const clean = (name: string): string => name.replace(/^\.\/?/, '').replace(/\/+$/, '');

/** Drops from both sides the properties that a form loses. */
function asIn(form: Form, described: Described): Described {
  const { hasNanoseconds = false, hasXattrs = false } = form;
  return {
    ...described,
    mtime: hasNanoseconds ? described.mtime : described.mtime - (described.mtime % 1_000_000_000n),
    xattrs: hasXattrs ? described.xattrs : {},
  };
}

function pairs(t: ExecutionContext, dir: string, form: Form): void {
  const [program = '', ...args] = form.command;
  const archive = join(dir, '..', 'archive.tar');
  const all = describeTree(dir);
  const isLacking = (path: string): boolean => (form.lacks ?? []).some((lack) => lack.test(path));
  // The program reports an entry that the form cannot hold, and goes on.
  try {
    execFileSync(program, [...args, '-cf', archive, '.'], { cwd: dir, stdio: 'pipe' });
  } catch (error) {
    if (form.lacks === undefined) throw error;
  }
  const bytes = readFileSync(archive);
  const entries = readArchive(bytes);
  for (const size of [1 << 16, 4099]) {
    t.deepEqual(withDigests(readArchive(bytes, size)), withDigests(entries), `in chunks of ${size}`);
  }
  const found = new Map(entries.map((whole) => [clean(whole.entry.name), whole]));
  for (const [path, described] of Object.entries(all)) {
    if (isLacking(path)) continue;
    const whole = found.get(path);
    if (whole === undefined) {
      t.fail(`${path} is not there`);
      continue;
    }
    const wanted = asIn(form, described);
    const got = describeEntry(whole, form);
    if (got.type === 'link') {
      t.is(all[got.linkedTo ?? '']?.linkedTo, wanted.linkedTo, path);
      continue;
    }
    const { linkedTo: _, ...rest } = wanted;
    t.deepEqual(got, rest, path);
  }
}

for (const [title, form] of Object.entries(forms)) {
  mountTest(`read: ${title}`, { needs: form.command[0] === 'bsdtar' ? 'bsdtar' : [] }, (t) => {
    const dir = join(scratch(t, 'disk'), 'all');
    makeAll(dir);
    pairs(t, dir, form);
  });
}

/** Everything that an entry can say. */
const hard: readonly (readonly [Partial<TarEntry>, (string | Buffer)?])[] = [
  [{ name: 'd/', type: 'directory', mode: 0o2755 }],
  [{ name: 'd/plain', mode: 0o4755, uid: 12, gid: 34 }, 'plain'],
  [{ name: 'd/nano', mtime: { seconds: 1_700_000_000, nanoseconds: 123_456_789 } }, 'x'],
  [{ name: 'd/before', mtime: { seconds: -2, nanoseconds: 750_000_000 } }, 'x'],
  [{ name: 'd/ids', uid: 3_000_000_000, gid: 4_000_000_000 }, 'x'],
  [{ name: `d/${'n'.repeat(255)}` }, 'long'],
  [{ name: `d/${'p'.repeat(90)}/`, type: 'directory', mode: 0o755 }],
  [{ name: `d/${'p'.repeat(90)}/${'q'.repeat(60)}` }, 'prefix'],
  [{ name: 'd/caf\xe9\xff\n' }, 'bytes'],
  [{ name: `d/\xff${'n'.repeat(200)}` }, 'long bytes'],
  [{ name: 'd/sym', type: 'symlink', linkname: `/${'x'.repeat(200)}\xff`, mode: 0o777 }],
  [{ name: 'd/link', type: 'link', linkname: `d/${'n'.repeat(255)}` }],
  [{ name: 'd/fifo', type: 'fifo' }],
  [{ name: 'd/block', type: 'block', major: 259, minor: 300 }],
  [
    { name: 'd/sparse', segments: [512, 1024, 100_000, 7] },
    Buffer.alloc(200_000).fill('s', 512, 1536).fill('t', 100_000, 100_007),
  ],
  [{ name: 'd/hole', segments: [] }, Buffer.alloc(100_000)],
  [
    {
      name: 'd/attributes',
      xattrs: new Map([
        ['user.a=b%', latin1('\0\xff=\n')],
        ['user.b', latin1('plain')],
      ]),
    },
    'x',
  ],
];

for (const [program, ...args] of [
  ['tar', '-x', '-p', '--numeric-owner', '--xattrs', '--xattrs-include=*', '-f'],
  ['bsdtar', '-x', '-p', '--numeric-owner', '--xattrs', '-f'],
] as const) {
  mountTest(`written: ${program} unpacks it`, { needs: program === 'bsdtar' ? 'bsdtar' : [] }, (t) => {
    const dir = scratch(t, 'disk');
    const archive = archiveOf(...hard.map(([entry, data = '']) => packTar(entry, data)));
    const entries = readArchive(archive);
    const file = join(dir, 'archive.tar');
    writeFileSync(file, archive);
    mkdirSync(join(dir, 'out'));
    execFileSync(program, [...args, file], { cwd: join(dir, 'out'), stdio: 'pipe' });
    const tree = describeTree(join(dir, 'out'));
    for (const whole of entries) {
      const { name, type } = whole.entry;
      const { linkedTo, ...got } = tree[clean(name)] as Described;
      if (type === 'link') {
        t.is(linkedTo, clean(name), 'both names lead to one file');
        continue;
      }
      const wanted = describeEntry(whole, { command: [], hasNanoseconds: true, hasXattrs: true });
      // bsdtar takes the names of attributes as they are, and adds the fraction to a time before 1970.
      if (program === 'bsdtar' && ['d/attributes', 'd/before'].includes(name)) continue;
      t.deepEqual(got, wanted, name);
    }
    const joined = Buffer.concat(hard.map(([entry, data = '']) => packTar(entry, data)).concat(archiveOf()));
    t.deepEqual(withDigests(readArchive(joined)), withDigests(entries));
  });
}
