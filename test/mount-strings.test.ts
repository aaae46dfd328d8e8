/**
 * Strings of mount(2) and of the mount table, against the kernel. Imports internals: the package does not export its
 * parsers.
 */
import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import test from 'ava';
import { type OverlayOptions, unmountSync } from 'overlayfs';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import {
  escapeLayer,
  findOption,
  parseLowerdir,
  type RawOption,
  shownLayers,
  splitArray,
  splitGiven,
  splitLowerdir,
  splitShown,
  unescapeLayer,
  unescapeOctal,
} from '#lib/mount-strings.js';
import { readMountinfo } from '#lib/mount-table/mountinfo.js';
import { mountOverlayWithSync } from '#lib/overlay/mount.js';
import { escapeOctal, generator, mountTest, scratch } from './support/index.js';

const awkward = Buffer.from('\\\\\\,,::=# \t\n01347a/\r\x01\x7f\xff\xc3\x80"', 'latin1');

function bytesOf(random: (below: number) => number, most: number, least = 0): Buffer {
  const length = least + random(most - least + 1);
  return Buffer.from(Array.from({ length }, () => awkward[random(awkward.length)] as number));
}

const escapeOption = (bytes: Uint8Array): Buffer => escapeOctal(bytes, ', \t\n\\');

const hex = (list: readonly Uint8Array[]) => list.map((bytes) => Buffer.from(bytes).toString('hex'));

test('what is escaped in a layer, and what is not', (t) => {
  for (const [plain, escaped] of [
    ['/plain', '/plain'],
    ['/a,b', '/a\\,b'],
    ['/a:b', '/a\\:b'],
    ['/a\\b', '/a\\\\b'],
    ['/a\\', '/a\\\\'],
    ['/a\\,b', '/a\\\\\\,b'],
    ['::,,', '\\:\\:\\,\\,'],
    ['/a b\t\n=#"\'%ö', '/a b\t\n=#"\'%ö'],
    ['', ''],
  ] as const) {
    t.is(escapeLayer(plain), escaped);
    t.is(Buffer.from(escapeLayer(Buffer.from(plain))).toString(), escaped);
    t.is(unescapeLayer(Buffer.from(escaped)).toString(), plain);
  }
});

test('a path that needs no escaping is not copied', (t) => {
  const bytes = Buffer.from([0x2f, 0xff, 0x61]);
  t.is(escapeLayer(bytes), bytes);
  const escaped = Buffer.from('/a,b');
  escapeLayer(escaped);
  t.is(escaped.toString(), '/a,b', 'nor one that does written to');
});

test('a lone backslash at the end, or before what needs none', (t) => {
  t.is(unescapeLayer(Buffer.from('a\\')).toString(), 'a\\');
  t.is(unescapeLayer(Buffer.from('a\\b')).toString(), 'ab');
  t.is(unescapeLayer(Buffer.from('\\\\')).toString(), '\\');
  t.deepEqual(splitLowerdir(Buffer.from('a\\')).map(String), ['a\\']);
});

test('escaping and its inverse, on any bytes', (t) => {
  const random = generator(7);
  for (let i = 0; i < 5000; i++) {
    const plain = bytesOf(random, 12);
    const escaped = Buffer.from(escapeLayer(plain) as Uint8Array);
    if (!unescapeLayer(escaped).equals(plain)) t.fail(plain.toString('hex'));
    // On strings the same as on their bytes.
    const text = plain.toString('latin1');
    const ofText = escapeLayer(text) as string;
    if (ofText !== escaped.toString('latin1')) t.fail(text);
  }
  t.pass();
});

test('lower layers, joined and split again', (t) => {
  const random = generator(11);
  for (let i = 0; i < 3000; i++) {
    const wanted = Array.from({ length: 1 + random(5) }, () => bytesOf(random, 8));
    const joined = wanted.flatMap((layer, j) => [Buffer.from(j === 0 ? '' : ':'), escapeLayer(layer) as Uint8Array]);
    const split = splitLowerdir(Buffer.concat(joined));
    if (String(hex(split)) !== String(hex(wanted))) t.deepEqual(hex(split), hex(wanted));
  }
  t.pass();
});

test('lower layers as they stand there', (t) => {
  const split = (text: string) => splitLowerdir(Buffer.from(text)).map(String);
  t.deepEqual(split('/a'), ['/a']);
  t.deepEqual(split('/a:/b:/c'), ['/a', '/b', '/c']);
  t.deepEqual(split('/a\\:b:/c\\\\:/d\\,'), ['/a:b', '/c\\', '/d,']);
  t.deepEqual(split('/a::/data'), ['/a', '', '/data']);
  t.deepEqual(split(''), ['']);
});

test('octal, whatever the bytes', (t) => {
  const random = generator(13);
  for (let i = 0; i < 5000; i++) {
    const plain = bytesOf(random, 16);
    if (!unescapeOctal(escapeOption(plain)).equals(plain)) t.fail(plain.toString('hex'));
  }
  const all = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
  t.deepEqual(unescapeOctal(escapeOption(all)), all);
  const written = Array.from(all, (byte) => `\\${byte.toString(8).padStart(3, '0')}`).join('');
  t.deepEqual(unescapeOctal(Buffer.from(written)), all);
});

test('what only looks octal', (t) => {
  const plain = (text: string) => unescapeOctal(Buffer.from(text)).toString('latin1');
  for (const same of [
    '\\',
    '\\0',
    '\\04',
    '\\08 ',
    '\\400',
    '\\777',
    '\\x41',
    '\\\\',
    'a\\',
    '\\ 40',
    '\\-40',
    '\\0 4',
  ]) {
    t.is(plain(same), same);
  }
  t.is(plain('\\\\040'), '\\ ');
  t.is(plain('\\1340'), '\\0');
  t.is(plain('\\134040'), '\\040');
  t.is(plain('\\0401'), ' 1');
  t.is(plain('\\377'), '\xff');
  t.is(plain('\\000'), '\0');
});

const show = (options: readonly RawOption[]) =>
  options.map(({ name, value }) => (value === null ? name : `${name}=${value.toString('latin1')}`));

test('lower layers and data-only ones', (t) => {
  const parse = (text: string) => {
    const parsed = parseLowerdir(Buffer.from(text));
    return parsed && `${parsed.lowers.join(' ')} | ${parsed.data.join(' ')}`;
  };
  t.is(parse('/a:/b::/c::/d\\:'), '/a /b | /c /d:');
  t.is(parse('/a\\::/b'), '/a: /b | ');
  t.is(parse(''), ' | ');
  for (const wrong of [':', ':/a', '::/a', '/a:', '/a::', '/a:::/b', '/a::/b:/c', '/a::::/b']) {
    t.is(parse(wrong), undefined, wrong);
  }
});

test('options as they are given: commas separate, a backslash protects, nothing else does', (t) => {
  const split = (text: string) => show(splitGiven(Buffer.from(text, 'latin1')));
  t.deepEqual(split('lowerdir=/a:/b,index=on,volatile'), ['lowerdir=/a:/b', 'index=on', 'volatile']);
  t.deepEqual(split('upperdir=/a\\,b\\\\,workdir=/w\\'), ['upperdir=/a\\,b\\\\', 'workdir=/w\\']);
  t.deepEqual(split(',,index=on,,=x,,'), ['index=on'], 'nothing to the kernel');
  t.deepEqual(split('upperdir="/a,b"'), ['upperdir="/a', 'b"'], 'a quote is a character of a path');
  t.deepEqual(split('upperdir==,x='), ['upperdir==', 'x=']);
  t.deepEqual(split(''), []);
  t.deepEqual(split('upperdir=\xff\x80'), ['upperdir=\xff\x80']);
  for (const context of ['context', 'fscontext', 'rootcontext', 'defcontext']) {
    t.deepEqual(split(`a,${context}="u:r:t:s0:c1,c2",b`), ['a', `${context}=u:r:t:s0:c1,c2`, 'b']);
  }
  t.deepEqual(split('context=u:r:t:s0'), ['context=u:r:t:s0']);
  t.deepEqual(split('context="open,b'), ['context="open', 'b']);
});

test('options as they are shown', (t) => {
  const split = (text: string) => show(splitShown(Buffer.from(text, 'latin1')));
  t.deepEqual(split('rw,lowerdir=/a\\134:b:/c\\040d,upperdir=/e\\054f,index=on'), [
    'rw',
    'lowerdir=/a\\:b:/c d',
    'upperdir=/e,f',
    'index=on',
  ]);
  t.deepEqual(split('lowerdir+=/a:b,lowerdir+=/c\\134d,datadir+=/e'), [
    'lowerdir+=/a:b',
    'lowerdir+=/c\\d',
    'datadir+=/e',
  ]);
  t.deepEqual(split('lowerdir+=/a\\072b'), ['lowerdir+=/a:b']);
  t.deepEqual(split('lowerdir=/a\\072b:/c\\054d::/e'), ['lowerdir=/a\\:b:/c\\,d::/e'], 'Linux 6.5');
  t.deepEqual(split('rw,rootcontext="u:r:t:s0:c1,c2",seclabel'), ['rw', 'rootcontext=u:r:t:s0:c1,c2', 'seclabel']);
});

test('options as an array', (t) => {
  const split = (text: string) => show(splitArray(Buffer.from(text, 'latin1')));
  t.deepEqual(split('lowerdir+=/we,i:r d\n\\\xe9\0volatile\0'), ['lowerdir+=/we,i:r d\n\\\xe9', 'volatile']);
  t.deepEqual(split('a=b'), ['a=b']);
  t.deepEqual(split(''), []);
});

test('what a shown upperdir can stand for', (t) => {
  const readings = (text: string) => shownLayers(Buffer.from(text)).map(String);
  t.deepEqual(readings('/a:b,c'), ['/a:b,c']);
  t.deepEqual(readings('/a\\:b'), ['/a:b', '/a\\:b'], 'as escapeLayer writes it');
  t.deepEqual(readings('/a\\b'), ['/a\\b', '/ab'], 'as it does not');
  t.deepEqual(readings('/a\\\\'), ['/a\\', '/a\\\\']);
  t.deepEqual(readings('/a\\'), ['/a\\'], 'a backslash at the end escapes nothing');
});

test('one option among the others', (t) => {
  const options = Buffer.from(
    'rw,xworkdir=/x,work=/w,workdir=/a\\054b=c\\040,workdirs=/y,upperdir=,userxattr,workdir=/2',
  );
  const value = (name: string) => findOption(options, name)?.toString();
  t.is(value('workdir'), '/a,b=c ', 'the first, whole and unescaped');
  t.is(value('work'), '/w');
  t.is(value('upperdir'), '');
  t.is(value('userxattr'), undefined, 'has no value');
  t.is(value('lowerdir'), undefined);
  t.is(value('dir'), undefined);
  t.is(findOption(Buffer.alloc(0), 'workdir'), undefined);
  t.is(findOption(Buffer.from(','), 'workdir'), undefined);
  t.is(findOption(Buffer.from('workdir=/last'), 'workdir')?.toString(), '/last');
});

test('an option whose value holds what looks like another', (t) => {
  const random = generator(17);
  for (let i = 0; i < 3000; i++) {
    const upper = Buffer.concat([bytesOf(random, 6), Buffer.from(',workdir=/wrong,'), bytesOf(random, 6)]);
    const work = bytesOf(random, 10);
    const options = Buffer.concat([
      Buffer.from('rw,upperdir='),
      escapeOption(upper),
      Buffer.from(',workdir='),
      escapeOption(work),
      Buffer.from(',index=on'),
    ]);
    if (!findOption(options, 'upperdir')?.equals(upper)) t.fail(upper.toString('hex'));
    if (!findOption(options, 'workdir')?.equals(work)) t.fail(work.toString('hex'));
  }
  t.pass();
});

mountTest('the kernel takes and shows layers as they are escaped here', (t) => {
  const random = generator(19);
  for (let i = 0; i < 40; i++) {
    const dir = scratch(t);
    const at = (name: Buffer) => Buffer.concat([Buffer.from(`${dir}/`), name]);
    const name = (first: string) =>
      at(Buffer.concat([Buffer.from(first), bytesOf(random, 10, 1).filter((byte) => byte !== 0x2f)]));
    const [a, b, upperdir, workdir, target] = [name('a'), name('b'), name('u'), name('w'), name('m')] as const;
    const slash = Buffer.from('/');
    for (const path of [a, b, upperdir, workdir, target]) mkdirSync(path);
    writeFileSync(Buffer.concat([a, slash, Buffer.from('in-a')]), '');
    writeFileSync(Buffer.concat([b, slash, Buffer.from('in-b')]), '');
    const options: OverlayOptions = { lowerdir: [a, b], upperdir, workdir, target };
    mountOverlayWithSync(options, { ...kernelFeaturesSync(), mountApi: false });
    t.deepEqual(readdirSync(target).sort(), ['in-a', 'in-b']);
    writeFileSync(Buffer.concat([target, slash, Buffer.from('new')]), '');
    t.true(existsSync(Buffer.concat([upperdir, slash, Buffer.from('new')])));
    t.true(statSync(Buffer.concat([workdir, slash, Buffer.from('work')])).isDirectory());

    const entry = readMountinfo().find((candidate) => candidate.target.equals(target));
    const shown = (option: string) => findOption(entry?.superOptions ?? Buffer.alloc(0), option) ?? Buffer.alloc(0);
    t.deepEqual(hex(splitLowerdir(shown('lowerdir'))), hex([a, b]));
    t.deepEqual(hex([unescapeLayer(shown('upperdir')), unescapeLayer(shown('workdir'))]), hex([upperdir, workdir]));
    unmountSync(target);
  }
});
