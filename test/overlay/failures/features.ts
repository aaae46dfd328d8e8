/** Features that the kernel drops without a word, since a layer lacks what they need. */
import { fails } from '../rows/errors.js';
import { dirs, ramfs, tmpfs } from '../rows/setup.js';
import { type FailureRow, refused } from './row.js';
import { squashed, squashedAgain } from './steps.js';

const dropped = (option: string, path: string, more = '') =>
  fails('ENOTSUP', 'feature-dropped', new RegExp(`silently mounted without \`${option}\`${more}`), path);
const noHandles = (layer: string) =>
  `, because the file system of the ${layer.replace(/[[\]]/g, '\\$&')} '.*' has no file handles`;

export const featureRows: readonly FailureRow[] = [
  refused(
    'index, with a lower without file handles',
    { lowerdir: 'ram/l', index: true },
    dropped('index: true', 'ram/l', noHandles('lowerdir')),
    [ramfs('ram', 'l')],
    { instead: { allowDegraded: ['index'] } },
  ),
  refused(
    'index, with one lower of several without file handles',
    { lowerdir: ['l1', 'l2', 'ram/l'], index: true },
    dropped('index: true', 'ram/l', noHandles('lowerdir[2]')),
    [ramfs('ram', 'l')],
    { instead: { index: undefined } },
  ),
  refused(
    'nfsExport, with a lower without file handles',
    { lowerdir: 'ram/l', nfsExport: true },
    dropped('nfsExport: true', 'ram/l', noHandles('lowerdir')),
    [ramfs('ram', 'l')],
    { instead: { allowDegraded: ['nfsExport'] } },
  ),
  refused(
    'index and nfsExport, with a lower without file handles',
    { lowerdir: ['l1', 'ram/l'], index: true, nfsExport: true },
    dropped('index: true', 'ram/l', noHandles('lowerdir[1]')),
    [ramfs('ram', 'l')],
    { instead: { allowDegraded: ['index', 'nfsExport'] } },
  ),
  refused(
    'nfsExport in a view, with a lower without file handles',
    { lowerdir: ['l1', 'ram/l'], nfsExport: true, redirectDir: 'nofollow' },
    dropped('nfsExport: true', 'ram/l', noHandles('lowerdir[1]')),
    [ramfs('ram', 'l')],
    { instead: { allowDegraded: ['nfsExport'] }, view: true },
  ),
  refused(
    'what may fall away is not what else does',
    { lowerdir: 'ram/l', index: true, nfsExport: true, allowDegraded: ['nfsExport'] },
    dropped('index: true', 'ram/l', noHandles('lowerdir')),
    [ramfs('ram', 'l')],
    { instead: { allowDegraded: ['index', 'nfsExport'] } },
  ),
  refused(
    'index, with two lowers of one UUID',
    { lowerdir: ['sq/a', 'again/b'], index: true },
    dropped('index: true', 'm'),
    [dirs('from/a', 'from/b'), squashed('from', 'sq'), squashedAgain('sq', 'again')],
    { instead: { allowDegraded: ['index'] }, needs: ['mksquashfs'] },
  ),
  ...[false, true].map((view) =>
    refused(
      `uuid off, with layers of two file systems${view ? ', in a view' : ''}`,
      { lowerdir: ['l1', 'other/l'], uuid: 'off', ...(view && { upperdir: 'u', workdir: 'w' }) },
      dropped("uuid: 'off'", 'm'),
      [tmpfs('other', 'l')],
      { instead: { allowDegraded: ['uuid'] }, needs: ['uuid=off over one file system only'] },
    ),
  ),
  refused(
    'index, with what create makes: nothing of it is left',
    { lowerdir: 'ram/l', index: true, create: true, upperdir: 'new/u', workdir: 'new/w', target: 'new/m' },
    dropped('index: true', 'ram/l', noHandles('lowerdir')),
    [ramfs('ram', 'l')],
    { instead: { index: undefined } },
  ),
];
