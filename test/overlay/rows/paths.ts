/** The shapes of paths, the characters in them, and how the mount table shows them. */
import { mkdirSync } from 'node:fs';
import { fails } from './errors.js';
import { type Reads, type Row, row } from './row.js';
import { dirs, file, link, type Setup, tmpfs } from './setup.js';

const layer = (name: string): Setup => file(`${name}/one`, 'awkward');
const both = (path: string): Reads => [[path], [path]];

/** Names that a rule of escaping could get wrong; beside each, the directory that would then be taken. */
const names: readonly (readonly [name: string, decoy?: string])[] = [
  ['a:b', 'a'],
  ['a::b', 'a'],
  [':ab', 'ab'],
  ['ab:', 'ab'],
  ['a,b', 'a'],
  [',ab'],
  ['ab,', 'ab'],
  ['a\\b', 'ab'],
  ['a\\:b', 'a:b'],
  ['a\\,b', 'a,b'],
  ['a\\\\b', 'a\\b'],
  ['ab\\', 'ab'],
  ['a b'],
  [' ab '],
  ['a\tb'],
  ['a\nb'],
  ['a\rb'],
  ['a"b', 'ab'],
  ['"ab"', 'ab'],
  ["a'b", 'ab'],
  ['a#b', 'a'],
  ['a=b'],
  ['a%20b', 'a b'],
  ['a\\040b', 'a b'],
  ['$HOME'],
  ['*'],
  ['ro', 'rw'],
  ['x,index=on', 'x'],
  ['äöü 層'],
];

const shown = (name: string): string => JSON.stringify(name);

/** The table shows upper and work as text in the form that was sent, with its escapes. */
const sent = (name: string): string => name.replace(/[\\:,]/g, '\\$&');

export const pathRows: readonly Row[] = [
  ...names.flatMap(([name, decoy]): Row[] => {
    const others = decoy === undefined ? [] : [file(`${decoy}/one`, 'the wrong one')];
    return [
      row(
        `a lower ${shown(name)}`,
        { lowerdir: name },
        { lowerdir: both(name), files: { one: 'awkward' } },
        ...others,
        layer(name),
      ),
      row(
        `a lower ${shown(name)}, with a data-only one, upper and work in it`,
        { lowerdir: `${name}/l`, datadir: `${name}/d`, upperdir: `${name}/u`, workdir: `${name}/w` },
        {
          datadir: both(`${name}/d`),
          files: { one: 'awkward' },
        },
        ...others,
        layer(`${name}/l`),
        dirs(`${name}/d`, `${name}/u`, `${name}/w`),
      ),
    ];
  }),
  ...['a,b', 'a\\b', 'a b', 'a\\:b'].map((name) =>
    row(
      `upper and work ${shown(name)}, read back`,
      { upperdir: `${name}/u`, workdir: `${name}/w` },
      {
        upperdir: [[`${sent(name)}/u`], [`${name}/u`]],
        workdir: [[`${sent(name)}/w`], [`${name}/w`]],
      },
      dirs(`${name}/u`, `${name}/w`),
    ),
  ),
  row(
    'bytes that are no UTF-8, as Buffers',
    { lowerdir: Buffer.from([0x61, 0xff, 0x3a, 0x62]), upperdir: Buffer.from('u'), workdir: Buffer.from('w/') },
    { files: {} },
    (at) => mkdirSync(Buffer.concat([Buffer.from(`${at('')}/`), Buffer.from([0x61, 0xff, 0x3a, 0x62])])),
  ),

  ...['/', '//', '/.', '/./', '/x/..', '/x/../'].map((end) =>
    row(
      `layers that end in ${end}`,
      { lowerdir: `l1${end}`, upperdir: `u${end}`, workdir: `w${end}` },
      {
        lowerdir: [[`l1${end}`], ['l1']],
        upperdir: [[`u${end}`], ['u']],
        workdir: [[`w${end}`], ['w']],
      },
      dirs('l1/x', 'u/x', 'w/x'),
    ),
  ),
  row('a target that ends in slashes', { target: 'm//' }, {}),
  row('a target that ends in /.', { target: 'm/.' }, {}),
  row('a lower by way of ..', { lowerdir: 'x/../l1' }, { lowerdir: [['x/../l1'], ['l1']] }, dirs('x')),
  row('slashes in a row within a path', { lowerdir: './/l1' }, { lowerdir: [['.//l1'], ['l1']] }),
  row(
    'links as layers are followed',
    { lowerdir: 'to-l', upperdir: 'to-u', workdir: 'to-w' },
    {
      lowerdir: [['to-l'], ['l1']],
      upperdir: [['to-u'], ['u']],
      workdir: [['to-w'], ['w']],
    },
    link('to-l', 'l1'),
    link('to-u', 'u'),
    link('to-w', 'w'),
  ),
  row(
    'links that end in a slash are followed',
    { lowerdir: 'to-l/', upperdir: 'to-u/', workdir: 'to-w/' },
    { lowerdir: [['to-l/'], ['l1']] },
    link('to-l', 'l1'),
    link('to-u', 'u'),
    link('to-w', 'w'),
  ),
  row('a link to a link', { lowerdir: 'two' }, { lowerdir: [['two'], ['l1']] }, link('one', 'l1'), link('two', 'one')),
  row('a link on the way', { lowerdir: 'here/l1' }, { lowerdir: [['here/l1'], ['l1']] }, link('here', '.')),
  row(
    'a link that leads nowhere',
    { lowerdir: 'link' },
    fails('ENOENT', 'lower-missing', /symbolic link to a missing path/, 'link'),
    link('link', 'none'),
  ),
  row(
    'a link to a file',
    { lowerdir: 'link' },
    fails('ENOTDIR', 'lower-not-directory', /is not a directory/, 'link'),
    link('link', 'l1/one'),
  ),
  row(
    'links in a circle',
    { lowerdir: 'link' },
    fails('ELOOP', 'path-inaccessible', /circle/, 'link'),
    link('link', 'link'),
  ),
  row(
    'a file with a slash at its end',
    { lowerdir: 'l1/one/' },
    fails('ENOTDIR', 'path-inaccessible', /is not a directory/, 'l1/one/'),
  ),
  row(
    'a target that is a link',
    { target: 'link' },
    fails('ENOTDIR', 'target-symlink', /symbolic link/, 'link'),
    link('link', 'm'),
  ),
  row(
    'a target that is a link with a slash at its end',
    { target: 'link/' },
    fails('ENOTDIR', 'target-symlink', /symbolic link/, 'link/'),
    link('link', 'm'),
  ),
  row('a target that is a file', { target: 'l1/one' }, fails('ENOTDIR', 'target-not-directory', /not a directory/)),
  row('a target that is missing', { target: 'none' }, fails('ENOENT', 'target-missing', /does not exist/, 'none')),
  row(
    'a mount inside a lower is not crossed',
    { lowerdir: 'l2' },
    { files: { one: 'l2', 'sub/over': undefined, 'sub/under': 'under' } },
    file('l2/sub/under', 'under'),
    tmpfs('l2/sub'),
    file('l2/sub/over', 'over'),
  ),
  row(
    'a mount inside the upper is not crossed',
    {},
    { files: { one: 'l1', 'sub/over': undefined, 'sub/under': 'under' } },
    file('u/sub/under', 'under'),
    tmpfs('u/sub'),
    file('u/sub/over', 'over'),
  ),
  row(
    'a mount on a lower is the layer',
    { lowerdir: 'l2' },
    { files: { one: undefined, over: 'over' } },
    tmpfs('l2'),
    file('l2/over', 'over'),
  ),
];
