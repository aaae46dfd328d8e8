/** The reader alone: each form of header, and each way in which an archive can be wrong. */
import test from 'ava';
import { OverlayError } from 'overlayfs';
import { formatRecord } from '#lib/tar/pax.js';
import { generator, scaled } from '../support/index.js';
import { archiveOf, packTar, rawExtended, rawHeader, readArchive, type Whole } from './archives.js';

const one = (...parts: readonly Uint8Array[]): Whole => {
  const [first, ...rest] = readArchive(archiveOf(...parts));
  if (first === undefined || rest.length > 0) throw new Error('not one entry');
  return first;
};

function rejects(title: string, make: () => Uint8Array, rule: RegExp, reason = 'archive-invalid'): void {
  test(title, (t) => {
    const archive = make();
    for (const size of [archive.length, 512, 100, 1]) {
      const error = t.throws(() => readArchive(archive, size), { instanceOf: OverlayError });
      t.is(error?.reason, reason as never);
      t.regex(error?.message ?? '', rule);
      t.regex(error?.message ?? '', /at byte \d+/);
    }
  });
}

const octal = (value: number, size: number): string => `${value.toString(8).padStart(size - 1, '0')}\0`;
const base256 = (bytes: readonly number[]): string => String.fromCharCode(...bytes);

test('an archive without entries', (t) => {
  t.deepEqual(readArchive(archiveOf()), []);
  t.deepEqual(readArchive(Buffer.alloc(512)), [], 'one block of zeros is an end');
});

test('v7: a name with a slash at its end is a directory', (t) => {
  t.is(one(rawHeader({ 0: 'dir/', 156: '\0', 257: '\0\0\0\0\0\0\0\0' })).entry.type, 'directory');
  t.is(one(rawHeader({ 0: 'file', 156: '\0', 257: '\0\0\0\0\0\0\0\0' })).entry.type, 'file');
  // GNU tar and bsdtar pass over what its header counts.
  const [named, next] = readArchive(
    archiveOf(
      rawHeader({ 0: 'dir/', 124: '00000000004\0' }),
      Buffer.concat([Buffer.from('data')], 512),
      packTar({ name: 'next' }),
    ),
  );
  t.like(named?.entry, { type: 'directory', size: 0 });
  t.is(next?.entry.name, 'next');
});

test('ustar: a prefix; star keeps times behind its own', (t) => {
  t.is(one(rawHeader({ 0: 'name', 345: 'some/where' })).entry.name, 'some/where/name');
  t.is(
    one(rawHeader({ 0: 'name', 345: 'some/where', 476: '12345670123\0', 508: 'tar\0' })).entry.name,
    'some/where/name',
  );
  t.is(one(rawHeader({ 0: 'name', 257: 'ustar  \0', 345: '12345670123' })).entry.name, 'name', "GNU tar's times");
});

test('names that fill their fields have no NUL', (t) => {
  const { entry } = one(rawHeader({ 0: 'n'.repeat(100), 156: '2', 157: 'l'.repeat(100), 345: 'p'.repeat(155) }));
  t.is(entry.name, `${'p'.repeat(155)}/${'n'.repeat(100)}`);
  t.is(entry.linkname, 'l'.repeat(100));
});

test('base-256 numbers, negative ones too', (t) => {
  const mtime = base256([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
  const uid = base256([0x80, 0, 0, 0, 0x80, 0, 0, 1]);
  const { entry } = one(rawHeader({ 108: uid, 136: mtime }));
  t.is(entry.uid, 0x80000001);
  t.deepEqual(entry.mtime, { seconds: -2, nanoseconds: 0 });
});

test('signed checksums', (t) => {
  const block = rawHeader({ 0: 'caf\xe9' });
  const sum = block.reduce((a, b, i) => a + (i >= 148 && i < 156 ? 0x20 : (b << 24) >> 24), 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  t.is(one(block).entry.name, 'caf\xe9');
});

test('pax: local records over global ones over the header; an empty one takes back', (t) => {
  const global = rawExtended(formatRecord('uid', '7') + formatRecord('gid', '8') + formatRecord('mtime', '1.5'), 'g');
  const local = rawExtended(formatRecord('uid', '9') + formatRecord('gid', ''));
  const [first, second] = readArchive(archiveOf(global, local, rawHeader({}), rawHeader({})));
  t.deepEqual([first?.entry.uid, first?.entry.gid], [9, 0]);
  t.deepEqual([second?.entry.uid, second?.entry.gid], [7, 8]);
  t.deepEqual(second?.entry.mtime, { seconds: 1, nanoseconds: 500_000_000 });
});

test('pax: times before 1970', (t) => {
  const { entry } = one(rawExtended(formatRecord('mtime', '-1.25')), rawHeader({}));
  t.deepEqual(entry.mtime, { seconds: -2, nanoseconds: 750_000_000 });
});

test('pax: the size is that of the record', (t) => {
  const whole = one(rawExtended(formatRecord('size', '3')), rawHeader({}), Buffer.from('abc'.padEnd(512, '\0')));
  t.is(whole.data.toString(), 'abc');
});

test('GNU tar: long names and links', (t) => {
  const long = 'x'.repeat(5000);
  const header = (type: string): Buffer => rawHeader({ 0: '././@LongLink', 124: octal(5001, 12), 156: type });
  const body = Buffer.from(`${long}\0`.padEnd(5120, '\0'));
  const { entry } = one(header('L'), body, header('K'), body, rawHeader({ 156: '2' }));
  t.is(entry.name, long);
  t.is(entry.linkname, long);
});

test('attributes: SCHILY, LIBARCHIVE, SELinux, ACLs in text', (t) => {
  const records = [
    ['SCHILY.xattr.user.a%3Db%25', 'x\0=\n'],
    ['SCHILY.xattr.user.empty', ''],
    ['LIBARCHIVE.xattr.user.c%20d', Buffer.from([0, 255]).toString('base64')],
    ['RHT.security.selinux', 'u:r:t'],
    ['SCHILY.acl.access', 'user::rwx,user:lisa:r-x:1000,group::r--,mask::r-x,other::---'],
    ['SCHILY.acl.default', 'user:nobody:rwx'],
  ] as const;
  const { entry } = one(
    rawExtended(records.map((record) => formatRecord(record[0], record[1])).join('')),
    rawHeader({}),
  );
  t.deepEqual(
    [...entry.xattrs.keys()],
    ['user.a=b%', 'user.empty', 'user.c d', 'security.selinux', 'system.posix_acl_access'],
  );
  t.is(entry.xattrs.get('user.a=b%')?.toString(), 'x\0=\n');
  t.deepEqual([...(entry.xattrs.get('user.c d') ?? [])], [0, 255]);
  const acl = '0200000001000700ffffffff02000500e803000004000400ffffffff10000500ffffffff20000000ffffffff';
  t.is(entry.xattrs.get('system.posix_acl_access')?.toString('hex'), acl);
  t.deepEqual(entry.unread, ['SCHILY.acl.default'], 'a user by name only is not known here');
});

test('links, devices and directories have no data, whatever their size says', (t) => {
  const sized = (type: string): Buffer => rawHeader({ 124: octal(512, 12), 156: type, 157: 'target' });
  const entries = readArchive(archiveOf(...[...'123456'].map(sized))).map(({ entry }) => entry);
  t.deepEqual(
    entries.map(({ type, size }) => [type, size]),
    ['link', 'symlink', 'character', 'block', 'directory', 'fifo'].map((type) => [type, 0]),
  );
});

test('labels of volumes and lists of names are passed over', (t) => {
  const list = Buffer.concat([
    rawHeader({ 0: 'd/', 124: octal(3, 12), 156: 'D' }),
    Buffer.from('abc'.padEnd(512, '\0')),
  ]);
  const [dir, file] = readArchive(archiveOf(rawHeader({ 0: 'label', 156: 'V' }), list, packTar({ name: 'f' }, 'data')));
  t.deepEqual([dir?.entry.type, file?.data.toString()], ['directory', 'data']);
});

test('bytes after the end mean nothing', (t) => {
  t.is(readArchive(Buffer.concat([archiveOf(packTar({}, 'x')), Buffer.alloc(9000, 7)]), 700).length, 1);
});

test('sparse: versions 0.0, 0.1 and 1.0', (t) => {
  const body = Buffer.from('headtail'.padEnd(512, '\0'));
  const head = rawHeader({ 124: octal(8, 12) });
  const parts = formatRecord('GNU.sparse.offset', '1') + formatRecord('GNU.sparse.numbytes', '4');
  const more = formatRecord('GNU.sparse.offset', '10') + formatRecord('GNU.sparse.numbytes', '4');
  const wanted = '\0head\0\0\0\0\0tail\0\0';
  const zero = rawExtended(
    formatRecord('GNU.sparse.size', '16') + formatRecord('GNU.sparse.numblocks', '2') + parts + more,
  );
  t.is(one(zero, head, body).data.toString(), wanted);
  const map = rawExtended(
    formatRecord('GNU.sparse.size', '16') +
      formatRecord('GNU.sparse.map', '1,4,10,4') +
      formatRecord('GNU.sparse.name', 'n'),
  );
  t.is(one(map, head, body).data.toString(), wanted);
  t.is(one(map, head, body).entry.name, 'n');
  const last = packTar({ name: 'm', segments: [1, 4, 10, 4] }, wanted);
  t.is(one(last).data.toString(), wanted);
  t.deepEqual(one(last).entry.segments, [1, 4, 10, 4]);
});

rejects('an empty input', () => Buffer.alloc(0), /ends before its first entry/);
rejects('text', () => Buffer.from('hello world '.repeat(100)), /checksum/);
rejects(
  'a lone block of zeros',
  () => Buffer.concat([Buffer.alloc(512), archiveOf(packTar({}))]),
  /block of zeros is followed/,
);
rejects('a negative size', () => archiveOf(rawHeader({ 124: '\xff'.repeat(12) })), /size is negative/);
rejects('a size beyond 2^53', () => archiveOf(rawHeader({ 124: `\x80${'\x7f'.repeat(11)}` })), /size is beyond 2\^53/);
rejects('a size that is no number', () => archiveOf(rawHeader({ 124: '0000000000x\0' })), /size is no number/);
rejects(
  'a pax size that is negative',
  () => archiveOf(rawExtended(formatRecord('size', '-1')), rawHeader({})),
  /no number of 0/,
);
rejects(
  'a pax size beyond 2^53',
  () => archiveOf(rawExtended(formatRecord('size', '9'.repeat(20))), rawHeader({})),
  /beyond/,
);
rejects(
  'a pax time that is none',
  () => archiveOf(rawExtended(formatRecord('mtime', '1e9')), rawHeader({})),
  /no time/,
);
for (const [what, records] of [
  ['too long', '99 path=x\n'],
  ['too short', '3 path=x\n'],
  ['without digits', ' path=x\n'],
  ['with a sign', '-9 path=x\n'],
  ['endless', `${'9'.repeat(40)} path=x\n`],
  ['without a value', '7 path\n'],
  ['without a newline', '9 path=xy'],
] as const) {
  rejects(
    `a pax record whose length lies: ${what}`,
    () => archiveOf(rawExtended(records), rawHeader({})),
    /extended header, /,
  );
}
rejects('an extended header without entry', () => archiveOf(rawExtended(formatRecord('path', 'x'))), /has no entry/);
rejects(
  'an extended header of 1 GiB',
  () => archiveOf(rawHeader({ 124: octal(2 ** 30, 12), 156: 'x' })),
  /at most \d+ are read/,
);
test('extended headers take bounded memory, however many there are', (t) => {
  const many = '6 a=b\n'.repeat(300_000);
  t.is(one(rawExtended(many), rawHeader({})).entry.name, 'raw');
  const large = (keyword: string): string => formatRecord(keyword, 'x'.repeat(6 * 2 ** 20));
  const refused = (...headers: readonly Buffer[]): string =>
    t.throws(() => readArchive(archiveOf(...headers, rawHeader({}))), { instanceOf: OverlayError })?.message ?? '';
  const local = rawExtended(large('a'));
  t.regex(refused(local, local, local), /at most 16777216 are read/);
  t.notThrows(() => readArchive(archiveOf(local, local, rawHeader({}), local, rawHeader({}))));
  t.regex(refused(...['a', 'b', 'c'].map((keyword) => rawExtended(large(keyword), 'g'))), /more than 16777216 bytes/);
  const same = rawExtended(large('a'), 'g');
  t.is(one(same, same, same, rawHeader({})).entry.name, 'raw', 'the last value of a keyword counts');
  const keywords = (count: number): Buffer =>
    rawExtended(Array.from({ length: count }, (_, i) => formatRecord(`k${i}`, 'v')).join(''), 'g');
  t.is(one(keywords(1024), keywords(1024), rawHeader({})).entry.name, 'raw');
  t.regex(refused(keywords(1025)), /more than 1024 keywords/);
});
rejects(
  'a long name of 1 GiB',
  () => archiveOf(rawHeader({ 124: octal(2 ** 30, 12), 156: 'L' })),
  /at most \d+ are read/,
);
rejects('a NUL in a name', () => archiveOf(rawExtended(formatRecord('path', 'a\0b')), rawHeader({})), /NUL/);
rejects('an unknown type', () => archiveOf(rawHeader({ 156: 'Q' })), /type 'Q' of an entry is unknown/);
rejects('the rest of a file in another volume', () => archiveOf(rawHeader({ 156: 'M' })), /type 'M'/);
const sparse = (map: string, data = 4): Buffer =>
  archiveOf(
    rawExtended(formatRecord('GNU.sparse.size', '16') + formatRecord('GNU.sparse.map', map)),
    rawHeader({ 124: octal(data, 12) }),
    Buffer.alloc(512),
  );
rejects('sparse: parts that overlap', () => sparse('4,2,5,2'), /overlap/);
rejects('sparse: parts out of order', () => sparse('8,2,0,2'), /overlap/);
rejects('sparse: a part beyond the end', () => sparse('13,4'), /beyond its end/);
rejects('sparse: another amount of data', () => sparse('0,3'), /differ in size/);
rejects('sparse: half a part', () => sparse('0,2,4'), /without a size/);

test('cut at each offset: an error, or no member is cut', (t) => {
  const entries = [
    packTar({ name: 'd/', type: 'directory' }),
    packTar({ name: 'x'.repeat(300), xattrs: new Map([['user.a', Buffer.from('b')]]) }, 'data'.repeat(200)),
    packTar({ name: 's', segments: [10, 4, 700, 9] }, '.'.repeat(1000)),
  ];
  const archive = archiveOf(...entries);
  const whole = readArchive(archive);
  // Some writers leave out the blocks of zeros at the end.
  const ends = entries.map((_, i) => Buffer.concat(entries.slice(0, i + 1)).length);
  ends.push(archive.length - 512);
  for (let size = 0; size < archive.length; size++) {
    const read = (): Whole[] => readArchive(archive.subarray(0, size), 4096);
    if (ends.includes(size)) t.deepEqual(read(), whole.slice(0, ends.indexOf(size) + 1));
    else t.is(t.throws(read, { instanceOf: OverlayError })?.reason, 'archive-invalid');
  }
});

test('damaged archives: an error of ours or other contents, at once', (t) => {
  const seed = Date.now() & 0xffffff;
  t.log(`seed ${seed}`);
  const random = generator(seed);
  const archive = archiveOf(
    rawExtended(formatRecord('comment', 'x'), 'g'),
    packTar({ name: 'd/', type: 'directory' }),
    packTar(
      { name: 'x'.repeat(300), uid: 2 ** 31, xattrs: new Map([['user.a', Buffer.from('b')]]) },
      'data'.repeat(200),
    ),
    packTar({ name: 's', segments: [10, 4, 700, 9] }, '.'.repeat(1000)),
    rawHeader({ 0: '././@LongLink', 124: octal(200, 12), 156: 'L' }),
    Buffer.from('n'.repeat(199).padEnd(512, '\0')),
    rawHeader({ 156: '1', 157: 'd' }),
  );
  for (let round = 0; round < scaled(4000, 400); round++) {
    const damaged = Buffer.from(archive);
    const at = random(archive.length);
    damaged[at] = random(256);
    // Half of the time in a header that says that it is whole.
    if (round % 2 === 0) {
      const header = damaged.subarray(at - (at % 512), at - (at % 512) + 512);
      header.write('        ', 148, 'latin1');
      header.write(
        `${header
          .reduce((a, b) => a + b, 0)
          .toString(8)
          .padStart(6, '0')}\0 `,
        148,
        'latin1',
      );
    }
    try {
      readArchive(damaged, 1 + random(2000));
    } catch (error) {
      // The test itself allocates the size that the entry names.
      if (error instanceof RangeError && /size|Array buffer/.test(error.message)) continue;
      t.true(error instanceof OverlayError, String((error as Error).stack));
    }
  }
  t.pass();
});
