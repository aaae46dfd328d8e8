/** Which layers there have to be, and how many. */
import { conflict, fails, outOfRange } from './errors.js';
import { type Row, row, viewRow } from './row.js';
import { bind, dirs, file, link, overlay, tmpfs } from './setup.js';

const numbered = (count: number, prefix = 'n/'): string[] => Array.from({ length: count }, (_, i) => `${prefix}${i}`);
const overlap = (path: string) => fails('ELOOP', 'layers-overlap', /is inside/, path);
const twice = fails('ELOOP', 'layer-twice', /same directory/);
const inside = (text: RegExp, path: string) => fails('EINVAL', 'work-inside-upper', text, path);

export const structureRows: readonly Row[] = [
  row('upper and work without a lower', { lowerdir: [] }, outOfRange(/"lowerdir".*1 to 500.*0 paths/)),
  row('upper without work', { workdir: undefined }, conflict(/`upperdir` needs `workdir`.*create/)),
  row('work without upper', { upperdir: undefined }, conflict(/`workdir` has no effect without `upperdir`/)),
  viewRow(
    'two lowers and no upper',
    {},
    {
      lowerdir: [
        ['l1', 'l2'],
        ['l1', 'l2'],
      ],
      files: { one: 'l1', two: 'l2' },
    },
  ),
  viewRow('the order of the lowers counts', { lowerdir: ['l2', 'l1'] }, { files: { one: 'l2', two: 'l2' } }),
  viewRow(
    'one lower and one data-only layer',
    { lowerdir: 'l1', datadir: 'd1' },
    { datadir: [['d1'], ['d1']], files: { one: 'l1', data: undefined } },
  ),
  viewRow(
    'data-only layers keep their order',
    { lowerdir: 'l1', datadir: ['d2', 'd1'] },
    {
      datadir: [
        ['d2', 'd1'],
        ['d2', 'd1'],
      ],
      lowerdir: [['l1'], ['l1']],
    },
  ),
  row(
    'lower, data-only, upper and work',
    { lowerdir: ['l1', 'l2'], datadir: ['d1', 'd2'] },
    {
      lowerdir: [
        ['l1', 'l2'],
        ['l1', 'l2'],
      ],
      datadir: [
        ['d1', 'd2'],
        ['d1', 'd2'],
      ],
      files: { one: 'l1', two: 'l2', data: undefined },
    },
  ),
  row('data-only layers and no lower', { lowerdir: [], datadir: ['d1', 'd2'] }, outOfRange(/"lowerdir"/)),
  row('500 lowers', { lowerdir: numbered(500) }, { files: {} }, dirs(...numbered(500))),
  row('501 lowers', { lowerdir: numbered(501) }, outOfRange(/"lowerdir".*1 to 500.*501 paths/)),
  row(
    '499 lowers and one data-only layer',
    { lowerdir: numbered(499), datadir: 'd1' },
    { files: {} },
    dirs(...numbered(499)),
  ),
  row(
    '500 lowers and one data-only layer',
    { lowerdir: numbered(500), datadir: 'd1' },
    outOfRange(/"datadir".*at most 500.*501 layers/),
  ),
  row('501 data-only layers', { datadir: numbered(501) }, outOfRange(/"datadir".*1 to 500.*501 paths/)),
  viewRow(
    'one lower and 499 data-only layers',
    { lowerdir: 'l1', datadir: numbered(499) },
    { files: { one: 'l1' } },
    dirs(...numbered(499)),
  ),

  row('one lower twice', { lowerdir: ['l1', 'l1'] }, twice),
  row('one lower twice, by a link', { lowerdir: ['l1', 'again'] }, twice, link('again', 'l1')),
  row('one lower twice, by a bind mount', { lowerdir: ['l1', 'again'] }, twice, bind('l1', 'again')),
  row('a lower inside another', { lowerdir: ['l1', 'l1/sub'] }, overlap('l1/sub'), dirs('l1/sub')),
  row('a lower around another', { lowerdir: ['l1/sub', 'l1'] }, overlap('l1/sub'), dirs('l1/sub')),
  row('a data-only layer that is a lower', { datadir: 'l1' }, twice),
  row('a data-only layer inside a lower', { datadir: 'l1/sub' }, overlap('l1/sub'), dirs('l1/sub')),
  row('one data-only layer twice', { datadir: ['d1', 'd1'] }, twice),
  row('the lower is the upper', { lowerdir: 'u' }, twice),
  row('the lower is the work', { lowerdir: 'w' }, twice),
  row('a lower inside the upper', { lowerdir: 'u/l' }, overlap('u/l'), dirs('u/l')),
  row('a lower inside the work', { lowerdir: 'w/l' }, overlap('w/l'), dirs('w/l')),
  row('an upper inside the lower', { upperdir: 'l1/up' }, overlap('l1/up'), dirs('l1/up')),
  row('a target that is the lower', { target: 'l1' }, { files: {} }),
  row('work is upper', { workdir: 'u' }, inside(/are the same directory/, 'u')),
  row('work is upper, by a link', { workdir: 'again' }, inside(/are the same directory/, 'again'), link('again', 'u')),
  row('work inside upper', { workdir: 'u/x/w' }, inside(/'.*\/u\/x\/w' is inside/, 'u/x/w'), dirs('u/x/w')),
  row('upper inside work', { upperdir: 'w/x/u' }, inside(/'.*\/w\/x\/u' is inside/, 'w'), dirs('w/x/u')),
  row(
    'work on another file system',
    { workdir: 'other/w' },
    fails('EINVAL', 'work-on-other-mount', /another file system/, 'other/w'),
    tmpfs('other', 'w'),
  ),
  row(
    'upper and work in two clones of one file system',
    { workdir: 'clone/w' },
    fails('EINVAL', 'work-on-other-mount', /on the same file system as .*, but on another mount/, 'clone/w'),
    dirs('x'),
    bind('', 'clone'),
  ),
  row(
    'upper and work in one clone',
    { upperdir: 'clone/u', workdir: 'clone/w' },
    {},
    dirs('x/u', 'x/w'),
    bind('x', 'clone'),
  ),
  row('a lower that is missing', { lowerdir: 'none' }, fails('ENOENT', 'lower-missing', /does not exist/, 'none')),
  row('a lower that is a file', { lowerdir: 'l1/one' }, fails('ENOTDIR', 'lower-not-directory', /not a dir/, 'l1/one')),
  row(
    'the second lower is missing',
    { lowerdir: ['l1', 'none'] },
    fails('ENOENT', 'lower-missing', /lowerdir\[1\]/, 'none'),
  ),
  row('a data-only layer that is missing', { datadir: 'none' }, fails('ENOENT', 'lower-missing', /datadir/, 'none')),
  row(
    'the second data-only layer is a file',
    { datadir: ['d1', 'd2/data'] },
    fails('ENOTDIR', 'lower-not-directory', /datadir\[1\]/, 'd2/data'),
  ),
  row('an upper that is missing', { upperdir: 'none' }, fails('ENOENT', 'upper-missing', /upperdir/, 'none')),
  row(
    'an upper that is a file',
    { upperdir: 'f' },
    fails('ENOTDIR', 'upper-not-directory', /upperdir/, 'f'),
    file('f'),
  ),
  row('a work that is missing', { workdir: 'none' }, fails('ENOENT', 'work-missing', /workdir/, 'none')),
  row('a work that is a file', { workdir: 'f' }, fails('ENOTDIR', 'work-not-directory', /workdir/, 'f'), file('f')),
  row(
    'an overlay on an overlay as lower',
    { lowerdir: 'o1' },
    { files: { one: 'l2', two: 'l2' } },
    overlay('l2:d1', 'o1'),
  ),
  row(
    'overlays three deep',
    { lowerdir: 'o2' },
    fails('EINVAL', 'too-deep', /two deep|too deep|stacked/),
    overlay('l2:d1', 'o1'),
    overlay('o1:d2', 'o2'),
  ),
  viewRow(
    'overlays three deep, in a view',
    { lowerdir: ['o2', 'l1'] },
    fails('EINVAL', 'too-deep', /two deep|too deep|stacked/),
    overlay('l2:d1', 'o1'),
    overlay('o1:d2', 'o2'),
  ),
  row(
    'an upper on an overlay',
    { upperdir: 'o/u2', workdir: 'o/w2' },
    fails('EINVAL', 'upper-unsupported', /upperdir/, 'o/u2'),
    dirs('x/u', 'x/w'),
    overlay('l2,x/u,x/w', 'o'),
    dirs('o/u2', 'o/w2'),
  ),
];
