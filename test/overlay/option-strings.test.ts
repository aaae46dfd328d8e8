/**
 * Options as text: written, split, and read back from the kernel's spelling. Imports internals: the package does not
 * export its parsers.
 */
import { existsSync, mkdirSync } from 'node:fs';
import test from 'ava';
import { type OverlayOptions, unmountSync } from 'overlayfs';
import { escapeLayer, joinGiven, splitArray, splitGiven, splitShown } from '#lib/mount-strings.js';
import { readMountinfo } from '#lib/mount-table/mountinfo.js';
import { optionTable, overlayOptionNames } from '#lib/options/table.js';
import { type Choose, type NamedOptions, readGiven, readShown } from '#lib/options/text.js';
import { fromBytes, type Path, toBytes } from '#lib/paths.js';
import { escapeOctal, generator, mountTest, scaled, scratch } from '../support/index.js';
import { ways } from '../support/ways.js';

const awkward = Buffer.from('\\\\\\,,::=# \t\n01347a/\r\x01\x7f\xff\xc3\x80"', 'latin1');

type Random = (below: number) => number;

function bytesOf(random: Random, most: number, excluded = ''): Buffer {
  const bytes = Array.from({ length: 1 + random(most) }, () => awkward[random(awkward.length)] as number);
  return Buffer.from(bytes.filter((byte) => !excluded.includes(String.fromCharCode(byte))));
}

const pathOf = (random: Random): Path => fromBytes(Buffer.concat([Buffer.from('/'), bytesOf(random, 10)]));

const some = (random: Random, least: number): Path[] => Array.from({ length: least + random(4) }, () => pathOf(random));

/** An option's value and how the kernel writes it. */
function choose(random: Random, name: (typeof overlayOptionNames)[number]): [value: unknown, text: string] | undefined {
  const row = optionTable[name];
  if (!('kernel' in row)) return undefined;
  switch (row.form) {
    case 'flag':
      return 'off' in row && random(2) === 0 ? [false, row.off] : [true, row.kernel];
    case 'switch':
      return random(2) === 0 ? [true, `${row.kernel}=on`] : [false, `${row.kernel}=off`];
    case 'word': {
      const word = row.words[random(row.words.length)] as string;
      return [word, `${row.kernel}=${word}`];
    }
    case 'text':
      return ['u:r:t:s0:c1,c2', `${row.kernel}="u:r:t:s0:c1,c2"`];
    default:
      return undefined;
  }
}

interface RandomOptions {
  readonly options: NamedOptions;
  /** Overlayfs' own, as text. */
  readonly texts: readonly string[];
}

function randomOptions(random: Random): RandomOptions {
  const options: Record<string, unknown> = { lowerdir: some(random, 1), datadir: some(random, 0) };
  if (random(2) === 0) Object.assign(options, { upperdir: pathOf(random), workdir: pathOf(random) });
  const texts: string[] = [];
  for (const name of overlayOptionNames) {
    const chosen = random(3) === 0 ? choose(random, name) : undefined;
    // One and the same to the kernel.
    if (chosen === undefined || (name === 'fsync' && 'volatile' in options)) continue;
    options[name] = chosen[0];
    texts.push(chosen[1]);
  }
  return { options: options as unknown as NamedOptions, texts };
}

const bytes = (...pieces: Path[]): Buffer => Buffer.concat(pieces.map(toBytes));
const joined = (parts: readonly Buffer[], by: string): Buffer =>
  Buffer.concat(parts.flatMap((part, i) => (i === 0 ? [part] : [Buffer.from(by), part])));

function lowerdirOf({ lowerdir, datadir }: NamedOptions): Buffer {
  const list = joined(
    lowerdir.map((path) => bytes(escapeLayer(path))),
    ':',
  );
  return Buffer.concat([list, ...datadir.map((path) => bytes('::', escapeLayer(path)))]);
}

/** Each option a piece of its own, escaped as for mount(2). */
function escapedPieces({ options, texts }: RandomOptions): Buffer[] {
  const { upperdir, workdir } = options;
  return [
    bytes('lowerdir=', lowerdirOf(options)),
    ...(upperdir === undefined ? [] : [bytes('upperdir=', escapeLayer(upperdir))]),
    ...(workdir === undefined ? [] : [bytes('workdir=', escapeLayer(workdir))]),
    ...texts.map((text) => Buffer.from(text)),
  ];
}

/** The same with plain paths, as by descriptors. */
function plainPieces({ options, texts }: RandomOptions): Buffer[] {
  const { lowerdir, datadir, upperdir, workdir } = options;
  return [
    ...lowerdir.map((path) => bytes('lowerdir+=', path)),
    ...datadir.map((path) => bytes('datadir+=', path)),
    ...(upperdir === undefined ? [] : [bytes('upperdir=', upperdir)]),
    ...(workdir === undefined ? [] : [bytes('workdir=', workdir)]),
    ...texts.map((text) => Buffer.from(text)),
  ];
}

/** As the kernel shows a piece: octal in values, but for an LSM's context, which has its quotes. */
function shownPiece(piece: Buffer): Buffer {
  return /^[a-z]*context=/.test(piece.toString('latin1')) ? piece : escapeOctal(piece, ', \t\n\\');
}

/** Chooses the given path among those that a shown one can stand for. The upper is asked for before the work. */
function given({ upperdir, workdir }: NamedOptions): Choose {
  const rest = [upperdir, workdir];
  return (readings) => {
    const wanted = rest.shift();
    return readings.find((path) => wanted && bytes(wanted).equals(bytes(path))) ?? readings[0];
  };
}

test('any options, written as for mount(2) and as the kernel shows them, come out as they went in', (t) => {
  const random = generator(23);
  for (let i = 0; i < 3000; i++) {
    const made = randomOptions(random);
    const { options } = made;
    const [escaped, plain] = [escapedPieces(made), plainPieces(made)];
    const array = (pieces: Buffer[]) => Buffer.concat(pieces.map((piece) => bytes(piece, '\0')));
    const readings = [
      readGiven(splitGiven(joined(escaped, ','))),
      readShown(splitShown(joined(escaped.map(shownPiece), ','))),
      readShown(splitShown(joined(plain.map(shownPiece), ',')), given(options)),
      readShown(splitArray(array(escaped))),
      readShown(splitArray(array(plain)), given(options)),
    ];
    for (const { options: read, others } of readings) t.deepEqual({ read, others }, { read: options, others: [] });
    t.deepEqual(joinGiven(splitGiven(joined(escaped, ','))), joined(escaped, ','));
  }
});

const readText = (text: string) => readGiven(splitGiven(Buffer.from(text)));

test('the last of several counts, as for the kernel', (t) => {
  t.deepEqual(readText('lowerdir=/a,upperdir=/u,index=on,lowerdir=/b:/c,index=off,upperdir=/v').options, {
    lowerdir: ['/b', '/c'],
    datadir: [],
    upperdir: '/v',
    index: false,
  });
  t.deepEqual(readText('lowerdir+=/a,datadir+=/d,lowerdir=/b').options, { lowerdir: ['/b'], datadir: [] });
  t.deepEqual(readText('lowerdir=/a,lowerdir=,lowerdir+=/b').options, { lowerdir: ['/b'], datadir: [] });
  t.deepEqual(readText('volatile,fsync=strict').options, { lowerdir: [], datadir: [], fsync: 'strict' });
  t.deepEqual(readText('fsync=strict,fsync=volatile').options, { lowerdir: [], datadir: [], volatile: true });
  t.deepEqual(readText('ro,rw').options, { lowerdir: [], datadir: [] });
  t.deepEqual(readText('rw,ro').options, { lowerdir: [], datadir: [], readonlySuperblock: true });
  t.deepEqual(readText('override_creds,nooverride_creds').options, { lowerdir: [], datadir: [], overrideCreds: false });
});

test('what is none of them, or would be refused, is kept as it stands', (t) => {
  for (const text of [
    'bogus',
    'bogus=1',
    'index=maybe',
    'index',
    'volatile=on',
    'redirect_dir=ON',
    'xino',
    'uuid=',
    'context=',
    'upperdir=',
    'workdir',
    'lowerdir=:/a',
    'lowerdir+=',
    'fsync=ordered',
    'nfs_export=1',
    'nouserxattr',
    'sync',
  ]) {
    const { options, others } = readText(text);
    t.deepEqual(options, { lowerdir: [], datadir: [] }, text);
    const [name = '', ...value] = text.split('=');
    t.deepEqual(others, [{ name, value: value.length === 0 ? null : Buffer.from(value.join('=')) }], text);
  }
  t.is(readText('lowerdir=/a,lowerdir+=/b').others.length, 1);
  t.is(readText('lowerdir+=/a,datadir+=/b,lowerdir+=/c').others.length, 1);
});

for (const [way, { mountSync, needs }] of Object.entries(ways)) {
  mountTest(`what the kernel shows is what was given (${way})`, { needs }, (t) => {
    const random = generator(29);
    // The table shows the number, if a comma has a layer sent as a number.
    const excluded = way === 'by one string' || way === 'as it comes' ? '/,' : '/';
    for (let i = 0; i < scaled(30, 5); i++) {
      const dir = scratch(t);
      const [a, b, upperdir, workdir, target] = ['a', 'b', 'u', 'w', 'm'].map((first) => {
        const path = fromBytes(bytes(`${dir}/${first}`, bytesOf(random, 10, excluded)));
        mkdirSync(toPathLike(path));
        return path;
      }) as [Path, Path, Path, Path, Path];
      const own = { redirectDir: 'on', index: true, volatile: true, defaultPermissions: true } as const;
      const options: OverlayOptions = { lowerdir: [a, b], upperdir, workdir, target, ...own };
      mountSync(options);
      const entry = readMountinfo().find((candidate) => candidate.target.equals(bytes(target)));
      const exists: Choose = (readings) => readings.find((path) => existsSync(toPathLike(path))) ?? readings[0];
      const { options: shown } = readShown(splitShown(entry?.superOptions ?? Buffer.alloc(0)), exists);
      t.like(shown, { lowerdir: [a, b], datadir: [], upperdir, workdir, ...own });
      unmountSync(target);
    }
  });
}

const toPathLike = (path: Path): string | Buffer => (typeof path === 'string' ? path : Buffer.from(path));
