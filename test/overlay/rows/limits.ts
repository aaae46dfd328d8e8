/** Lengths, depths and the odd ways in which a layer can be named. */
import { mkdirSync, rmdirSync } from 'node:fs';
import { fails, wrongValue } from './errors.js';
import { type Row, row } from './row.js';
import { bind, dirs, overlay, ramfs, tmpfs, unbindable } from './setup.js';

/** A path of as many bytes below the row's directory, of which the kernel takes 255 in a component. */
function deep(prefix: string, bytes: number): string {
  let path = prefix;
  while (path.length + 202 < bytes) path += `/${'x'.repeat(200)}`;
  return `${path}/${'y'.repeat(bytes - path.length - 1)}`;
}

const many = (count: number, name: number): string[] =>
  Array.from({ length: count }, (_, i) => `n/${String(i).padEnd(name, 'z')}`);

export const limitRows: readonly Row[] = [
  ...[200, 250, 255].map((length) =>
    row(
      `a lower with a name of ${length} bytes`,
      { lowerdir: 'z'.repeat(length) },
      { files: {} },
      dirs('z'.repeat(length)),
    ),
  ),
  ...['lowerdir', 'upperdir', 'workdir'].map((name) =>
    row(
      `${name} of 1,000 bytes`,
      { [name]: deep(name, 1000) },
      { files: name === 'lowerdir' ? {} : { one: 'l1' } },
      dirs(deep(name, 1000)),
    ),
  ),
  row('a data-only layer of 1,000 bytes', { datadir: deep('data', 1000) }, {}, dirs(deep('data', 1000))),
  row(
    'upper and work whose escapes take them over 255 bytes',
    { upperdir: `${':'.repeat(120)}/u`, workdir: `${','.repeat(120)}/w` },
    {},
    dirs(`${':'.repeat(120)}/u`, `${','.repeat(120)}/w`),
  ),
  row(
    'upper and work of 2,000 bytes each, which one page does not take',
    { upperdir: deep('up', 2000), workdir: deep('work', 2050) },
    {},
    dirs(deep('up', 2000), deep('work', 2050)),
  ),
  row(
    '20 lowers of 200 bytes, with an option',
    { lowerdir: many(20, 180), index: true },
    {
      shown: ['index=on'],
      files: {},
    },
    dirs(...many(20, 180)),
  ),
  row(
    '40 lowers and 40 data-only layers of 100 bytes, with an option',
    { lowerdir: many(80, 80).slice(0, 40), datadir: many(80, 80).slice(40), metacopy: true },
    { shown: ['metacopy=on', 'redirect_dir=on'], files: {} },
    dirs(...many(80, 80)),
  ),
  row(
    'a component of 256 bytes',
    { lowerdir: 'x'.repeat(256) },
    fails('ENAMETOOLONG', 'path-inaccessible', /too long/),
  ),
  row(
    'a path of 5,000 bytes',
    { lowerdir: deep('none', 5000) },
    wrongValue(/"lowerdir" must be a path of at most 4095 bytes/),
  ),
  row('layers on two file systems', { lowerdir: ['l1', 'other/l'] }, { files: { one: 'l1' } }, tmpfs('other', 'l')),
  row(
    'lower, upper and work on three file systems but for the work',
    { lowerdir: 'other/l', upperdir: 'third/u', workdir: 'third/w' },
    { files: {} },
    tmpfs('other', 'l'),
    tmpfs('third', 'u', 'w'),
  ),
  row(
    'a lower on a file system without file handles, with index',
    { lowerdir: 'ram/l' },
    { files: {} },
    ramfs('ram', 'l'),
  ),
  row('an overlay as data-only layer', { datadir: 'o' }, {}, overlay('l2:d2', 'o')),
  row(
    'an overlay as lower, and another beside it',
    { lowerdir: ['o1', 'o2', 'l1'] },
    { files: { one: 'l1' } },
    dirs('a1', 'a2', 'a3', 'a4'),
    overlay('a1:a2', 'o1'),
    overlay('a3:a4', 'o2'),
  ),
  row(
    'a lower on a mount that cannot be bound',
    { lowerdir: 'own/l' },
    fails('EINVAL', 'layer-unbindable', /unbindable.*own'/, 'own/l'),
    tmpfs('own', 'l'),
    unbindable('own'),
  ),
  row('a lower that is the root of a bind mount', { lowerdir: 'bound' }, {}, bind('l1', 'bound')),
  row('procfs as lower', { lowerdir: ['/proc', 'l1'] }, fails('EINVAL', 'layer-unsupported', /is on proc/)),
  row('sysfs as lower', { lowerdir: ['l1', '/sys'] }, {}),
  ...['lowerdir', 'upperdir'].map(
    (name): Row => ({
      ...row(`${name}: a descriptor's path`, { [name]: '/proc/self/fd/{fd}' }, { files: {} }, dirs('by-number')),
      descriptorOf: 'by-number',
    }),
  ),
  {
    ...row(
      "a lower that is a removed directory, by a descriptor's path",
      { lowerdir: '/proc/self/fd/{fd}' },
      fails('ENOENT', 'lower-missing', /has been removed/),
      dirs('gone'),
    ),
    descriptorOf: 'gone',
    opened: (at) => rmdirSync(at('gone')),
  },
  {
    ...row(
      "an upper that is a removed directory, by a descriptor's path",
      { upperdir: '/proc/self/fd/{fd}' },
      fails('ENOENT', 'upper-missing', /has been removed/),
      dirs('gone'),
    ),
    descriptorOf: 'gone',
    opened: (at) => rmdirSync(at('gone')),
  },
  {
    ...row(
      "a work that is a removed directory, by a descriptor's path",
      { workdir: '/proc/self/fd/{fd}' },
      fails('ENOENT', 'work-removed', /has been removed/),
      dirs('gone'),
    ),
    descriptorOf: 'gone',
    opened: (at) => rmdirSync(at('gone')),
  },
  {
    ...row(
      'a lower removed and made again is the new one',
      { lowerdir: 'again' },
      { files: { one: undefined } },
      dirs('again'),
    ),
    descriptorOf: 'again',
    opened: (at) => {
      rmdirSync(at('again'));
      mkdirSync(at('again'));
    },
  },
  {
    ...row(
      'relative paths',
      { lowerdir: ['l1', './l2'], upperdir: './u', workdir: 'x/../w', target: 'm', datadir: 'd1' },
      { files: { one: 'l1', two: 'l2' } },
      dirs('x'),
    ),
    relative: true,
  },
  {
    ...row(
      'relative paths that need escapes',
      { lowerdir: ['a:b', 'c,d'], upperdir: 'u', workdir: 'w' },
      { files: {} },
      dirs('a:b', 'c,d'),
    ),
    relative: true,
  },
  {
    ...row(
      'a relative path that leads nowhere',
      { lowerdir: 'none' },
      fails('ENOENT', 'lower-missing', /does not exist/),
    ),
    relative: true,
  },
  {
    ...row(
      'relative paths with create',
      { upperdir: 'x/u', workdir: undefined, create: true },
      {
        workdir: [['x/u.work'], ['x/u.work']],
      },
    ),
    relative: true,
  },
];
