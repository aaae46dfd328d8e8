/** The parser of /proc/self/mountinfo. Imports internals: it takes lines that no kernel writes. */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { mountOverlaySync } from 'overlayfs';
import { findOption } from '#lib/mount-strings.js';
import { parseMountinfo, readMountinfo } from '#lib/mount-table/mountinfo.js';
import { escapeOctal, generator, layers, mountTest, native, scratch } from '../support/index.js';

const awkward = Buffer.from(' \t\n\\#-,:=/"\'0134x\r\x01\x7f\xff\xc3\x80', 'latin1');

const parseOne = (line: string) => {
  const entries = parseMountinfo(Buffer.from(line, 'latin1'));
  return entries.length === 1 ? entries[0] : undefined;
};

test('a line, field by field', (t) => {
  const line = '36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue';
  const entry = parseOne(`${line}\n`);
  t.deepEqual(
    { ...entry },
    {
      id: 36,
      parent: 35,
      device: '98:0',
      root: Buffer.from('/mnt1'),
      target: Buffer.from('/mnt2'),
      mountOptions: 'rw,noatime',
      type: 'ext3',
      source: Buffer.from('/dev/root'),
      superOptions: Buffer.from('rw,errors=continue'),
    },
  );
});

test('any number of tags', (t) => {
  for (const tags of [
    '',
    'shared:1 ',
    'shared:1 master:2 ',
    'shared:1 master:2 propagate_from:3 unbindable ',
    'new:- ',
  ]) {
    const entry = parseOne(`1 2 0:3 / /t rw ${tags}- tmpfs src rw`);
    t.is(entry?.type, 'tmpfs', tags);
    t.is(entry?.mountOptions, 'rw', tags);
    t.is(entry?.source.toString(), 'src', tags);
    t.is(entry?.superOptions.toString(), 'rw', tags);
  }
});

test('a dash is the separator only where one can be', (t) => {
  const source = parseOne('1 2 0:3 / /t rw - tmpfs - rw');
  t.is(source?.source.toString(), '-');
  t.is(source?.superOptions.toString(), 'rw');
  const type = parseOne('1 2 0:3 / /t rw shared:1 - - - -');
  t.like(type, { type: '-' });
  t.is(type?.superOptions.toString(), '-');
  const dashes = parseOne('1 2 0:3 - - - - tmpfs src rw');
  t.like(dashes, { mountOptions: '-', type: 'tmpfs' });
  t.is(dashes?.target.toString(), '-');
  t.is(dashes?.root.toString(), '-');
  t.is(parseOne('1 2 0:3 /- /a-b/- rw - fuse.x-y a-b rw')?.target.toString(), '/a-b/-');
  t.is(parseOne('1 2 0:3 / /t rw -- tmpfs src rw'), undefined, 'two are none');
});

test('an empty source is an empty field', (t) => {
  const entry = parseOne('1 2 0:3 / /t rw - overlay  rw,lowerdir=/l');
  t.is(entry?.source.length, 0);
  t.is(entry?.type, 'overlay');
  t.is(entry?.superOptions.toString(), 'rw,lowerdir=/l');
  t.is(parseOne('1 2 0:3 / /t rw shared:1 - tmpfs  rw')?.superOptions.toString(), 'rw');
});

test('octal escapes are taken away, but from the options of the file system', (t) => {
  const entry = parseOne('1 2 0:3 /\\134root /a\\040b\\011\\012\\134 rw - t \\043src rw,lowerdir=/a\\054b\\040');
  t.is(entry?.root.toString(), '/\\root');
  t.is(entry?.target.toString(), '/a b\t\n\\');
  t.is(entry?.source.toString(), '#src');
  t.is(entry?.superOptions.toString(), 'rw,lowerdir=/a\\054b\\040');
  t.is(parseOne('1 2 0:3 / /\\134040 rw - t s rw')?.target.toString(), '/\\040', 'once only');
});

test('bytes stay bytes', (t) => {
  const entry = parseOne('1 2 0:3 / /\xff\xc3 rw - t \x80 rw,x=\xfe');
  t.deepEqual(entry?.target, Buffer.from([0x2f, 0xff, 0xc3]));
  t.deepEqual(entry?.source, Buffer.from([0x80]));
  t.is(entry?.superOptions.toString('latin1'), 'rw,x=\xfe');
});

test('what is no line is left out', (t) => {
  t.deepEqual(parseMountinfo(Buffer.alloc(0)), []);
  t.deepEqual(parseMountinfo(Buffer.from('\n\n\n')), []);
  t.deepEqual(parseMountinfo(Buffer.from('1 2 0:3 / /t rw\n')), []);
  const good = '1 2 0:3 / /t rw - tmpfs src rw';
  t.is(parseMountinfo(Buffer.from(`\n${good}\nnonsense\n${good}`)).length, 2);
});

test('nor is one that ends too early', (t) => {
  for (const cut of ['1 2 0:3 / /t rw -', '1 2 0:3 / /t rw - tmpfs', '1 2 0:3 / /t rw - tmpfs src']) {
    t.deepEqual(parseMountinfo(Buffer.from(cut)), [], cut);
  }
});

test('what the kernel would write comes back, whatever the bytes', (t) => {
  const random = generator(20240607);
  const bytes = (most: number) =>
    Buffer.from(Array.from({ length: random(most + 1) }, () => awkward[random(awkward.length)] as number));
  const path = () => Buffer.concat([Buffer.from('/'), bytes(12)]);
  const wanted = Array.from({ length: 2000 }, () => ({
    id: random(1e9),
    parent: random(1e9),
    root: path(),
    target: path(),
    source: bytes(8),
    option: bytes(12),
    tags: Array.from({ length: random(4) }, () => `shared:${random(1000)} `).join(''),
  }));
  const text = Buffer.concat(
    wanted.map(({ id, parent, root, target, source, option, tags }) =>
      Buffer.concat([
        Buffer.from(`${id} ${parent} 0:${random(300)} `),
        escapeOctal(root, ' \t\n\\'),
        Buffer.from(' '),
        escapeOctal(target, ' \t\n\\'),
        Buffer.from(` rw,relatime ${tags}- overlay `),
        escapeOctal(source, ' \t\n\\#'),
        Buffer.from(' rw,workdir='),
        escapeOctal(option, ', \t\n\\'),
        Buffer.from(',userxattr\n'),
      ]),
    ),
  );
  const entries = parseMountinfo(text);
  t.is(entries.length, wanted.length);
  const differing = wanted.filter(({ id, parent, root, target, source, option }, i) => {
    const entry = entries[i];
    return !(
      entry !== undefined &&
      entry.id === id &&
      entry.parent === parent &&
      entry.root.equals(root) &&
      entry.target.equals(target) &&
      entry.source.equals(source) &&
      findOption(entry.superOptions, 'workdir')?.equals(option)
    );
  });
  t.deepEqual(differing, []);
});

mountTest('the table of this process', (t) => {
  const dir = scratch(t);
  const names = ['plain', 'a b', 'tab\tnew\nline', 'back\\slash', '\\040', '#hash', '-', 'ö', ' - ', 'a,b'];
  for (const name of names) {
    const target = join(dir, name);
    mkdirSync(target);
    t.is(native.mount(name, target, 'tmpfs', 0, ''), 0);
  }
  const empty = join(dir, 'empty');
  mkdirSync(empty);
  t.is(native.mount('', empty, 'tmpfs', 0, ''), 0);

  const table = readMountinfo();
  t.is(table.length, readFileSync('/proc/self/mountinfo', 'latin1').split('\n').length - 1);
  for (const name of names) {
    const entry = table.find(({ target }) => target.equals(Buffer.from(join(dir, name))));
    t.is(entry?.source.toString(), name);
    t.is(entry?.type, 'tmpfs');
    t.is(entry?.root.toString(), '/');
  }
  t.is(table.find(({ target }) => target.equals(Buffer.from(empty)))?.source.toString(), '');
});

mountTest('an overlay whose source and target are awkward', (t) => {
  const dir = scratch(t);
  const target = Buffer.concat([Buffer.from(`${dir}/`), awkward.filter((byte) => byte !== 0x2f)]);
  mkdirSync(target);
  const mounted = mountOverlaySync({ ...layers(dir), target, source: '# - \t\n\\ö' });
  const entry = readMountinfo().find((candidate) => candidate.target.equals(target));
  t.is(entry?.type, 'overlay');
  t.is(entry?.source.toString(), '# - \t\n\\ö');
  t.is(findOption(entry?.superOptions ?? Buffer.alloc(0), 'upperdir')?.toString(), join(dir, 'upper'));
  mounted.unmountSync();
});
