/** Earlier mounts leave marks in upper and work; a later one meets them. */
import { accessSync } from 'node:fs';
import { fails } from './errors.js';
import { type Expected, type Row, row } from './row.js';
import { dirs, file, mode, overlay, readonlyBind, removed, type Setup, unmounted } from './setup.js';

/** An overlay that was there, and is not any more. */
const past = (...options: string[]): Setup[] => [overlay('l1,u,w', 'm', ...options), unmounted('m')];

const incompatible = (text: RegExp): Expected => fails('EINVAL', 'explained', text);
const readOnly = fails('EROFS', 'work-leftovers', /'.*w\/work\/a\/b'.*would mount read-only/, 'w');
const inUse = fails('EBUSY', 'upper-in-use', /in use.*overlay at '.*\/other'/, 'u');

export const lifecycleRows: readonly Row[] = [
  {
    ...row('volatile leaves a mark', { volatile: true }, { shown: ['volatile'] }),
    after: (at) => accessSync(at('w/work/incompat/volatile/dirty')),
  },
  row('a plain mount after a volatile one', {}, incompatible(/volatile/), ...past('volatile')),
  row('a volatile mount after a volatile one', { volatile: true }, incompatible(/volatile/), ...past('volatile')),
  row('readonly after a volatile one', { readonly: true }, incompatible(/volatile/), ...past('volatile')),
  row('a plain mount after a volatile one, the mark removed', {}, {}, ...past('volatile'), removed('w/work/incompat')),
  row(
    'a volatile mount after a volatile one, the mark removed',
    { volatile: true },
    { shown: ['volatile'] },
    ...past('volatile'),
    removed('w/work/incompat'),
  ),
  row('a mark of a feature to come', {}, incompatible(/incompat|to-come/), dirs('w/work/incompat/to-come')),
  row('a plain mount after a plain one', {}, {}, ...past()),
  row('a UUID that is there stays, and does not show', { uuid: 'auto' }, { notShown: ['uuid'] }, ...past()),
  row('a UUID can be turned off later', { uuid: 'null' }, { shown: ['uuid=null'] }, ...past()),
  row('a mount with index after one without', { index: true }, { shown: ['index=on'] }, ...past()),
  row('a mount without index after one with it', { index: false }, {}, ...past('index=on')),
  row(
    'the upper of other layers, with index',
    { lowerdir: 'l2', index: true },
    fails('ESTALE', 'stale', /made with another lowerdir, '.*\/l1'/, 'u'),
    ...past('index=on'),
  ),
  row('the upper of other layers, without index', { lowerdir: 'l2' }, { files: { one: 'l2' } }, ...past('index=on')),
  row(
    'the work of another upper, with index',
    { upperdir: 'x', index: true },
    fails('ESTALE', 'index-of-other-upper', /made with the upperdir '.*\/u'/, 'w'),
    dirs('x'),
    ...past('index=on'),
  ),
  row('the work of another upper, without index', { upperdir: 'x' }, {}, dirs('x'), ...past('index=on')),
  // Mounts of others are seen if the kernel has unique ids.
  { ...row('an upper in use', {}, inUse, overlay('l2,u,w', 'other')), needs: ['uniqueMountId'] },
  row('an upper in use is let through, where it may be', { exclusive: false }, {}, overlay('l2,u,w', 'other')),
  row('an upper in use, with index', { index: true }, inUse, overlay('l2,u,w', 'other')),
  row('an upper in use, with nfsExport', { nfsExport: true }, inUse, overlay('l2,u,w', 'other')),
  {
    ...row(
      'a work in use',
      { upperdir: 'x' },
      fails('EBUSY', 'work-in-use', /overlay at '.*\/other'/, 'w'),
      dirs('x'),
      overlay('l2,u,w', 'other'),
    ),
    needs: ['uniqueMountId'],
  },
  row(
    'a lower that is an upper in use, with index',
    { lowerdir: 'x/u', index: true },
    fails('EBUSY', 'lower-in-use', /overlay at '.*\/other'/, 'x/u'),
    dirs('x/u', 'x/w'),
    overlay('l2,x/u,x/w', 'other'),
  ),
  row(
    'a lower that is an upper in use is let through, without index',
    { lowerdir: 'x/u' },
    { files: {} },
    dirs('x/u', 'x/w'),
    overlay('l2,x/u,x/w', 'other'),
  ),
  row('what lies in the work two deep', {}, readOnly, file('w/work/a/b/f')),
  row('what lies in the work two deep, and readonly', { readonly: true }, readOnly, file('w/work/a/b/f')),
  row(
    'what lies in the work two deep does not matter where nothing is written',
    { readonlySuperblock: true },
    { superblock: 'ro' },
    file('w/work/a/b/f'),
  ),
  row("a file beside the kernel's own directory is kept", {}, { files: { one: 'l1' } }, file('w/kept')),
  row("a file in place of the kernel's own directory", {}, {}, file('w/work')),
  row("files one deep in the kernel's own directory", {}, {}, file('w/work/f'), file('w/work/a/f')),
  row('an empty directory two deep', {}, {}, dirs('w/work/a/b')),
  row('a work of mode 000, for root', {}, {}, mode('w', 0)),
  row(
    'an upper on a read-only mount',
    { upperdir: 'ro/u', workdir: 'ro/w' },
    fails('explained', 'upper-read-only', /upperdir.*read-only/, 'ro/u'),
    dirs('x/u', 'x/w'),
    readonlyBind('x', 'ro'),
  ),
  row(
    'a work on a read-only mount',
    { workdir: 'ro/w' },
    // It is on another mount, too.
    fails('EINVAL', 'explained', /workdir/, 'ro/w'),
    dirs('x/w'),
    readonlyBind('x', 'ro'),
  ),
  row('a lower on a read-only mount', { lowerdir: 'ro' }, {}, readonlyBind('l1', 'ro')),
];
