/** The same mistakes on each file system that can hold an upper. */
import type { Feature } from '../../support/index.js';
import { fails } from '../rows/errors.js';
import {
  bind,
  dirs,
  file,
  link,
  overlay,
  readonlyBind,
  tmpfs,
  unbindable,
  unmounted,
  unshared,
} from '../rows/setup.js';
import { type FailureRow, refused, type Step } from './row.js';
import { attributed, made, remounted, without } from './steps.js';

const inside = ['l/sub', 'l2', 'u', 'w', 'u2', 'w2'];

const kinds: Readonly<Record<string, { readonly made: Step; readonly needs: readonly Feature[] }>> = {
  tmpfs: { made: tmpfs('fs', ...inside), needs: [] },
  ext4: { made: made('ext4', 'fs', ...inside), needs: ['mkfs.ext4'] },
  xfs: { made: made('xfs', 'fs', ...inside), needs: ['mkfs.xfs'] },
  btrfs: { made: made('btrfs', 'fs', ...inside), needs: ['mkfs.btrfs'] },
};

const onIt = { lowerdir: 'fs/l', upperdir: 'fs/u', workdir: 'fs/w' };

/** An overlay on it that was there, and is not any more. */
const past = (layers: string, ...options: string[]): Step[] => [overlay(layers, 'm', ...options), unmounted('m')];

function rowsOn(kind: string): FailureRow[] {
  const { made: make, needs } = kinds[kind] as (typeof kinds)[string];
  const row = (
    title: string,
    options: FailureRow['options'],
    expect: FailureRow['expect'],
    setup: readonly Step[],
    mend: Pick<FailureRow, 'remedy' | 'instead'> & { readonly needs?: readonly Feature[] } = {},
  ): FailureRow =>
    refused(`${kind}: ${title}`, { ...onIt, ...options }, expect, [make, ...setup], {
      ...mend,
      needs: [...needs, ...(mend.needs ?? [])],
    });
  return [
    row(
      'what lies in the work two deep',
      {},
      fails('EROFS', 'work-leftovers', /fs\/w\/work\/a\/b'/, 'fs/w'),
      [file('fs/w/work/a/b/f')],
      { remedy: [without('fs/w/work/a/b')] },
    ),
    row(
      'what lies in the work two deep, where the mount is to be read-only',
      { readonly: true },
      fails('EROFS', 'work-leftovers', /fs\/w\/work\/x\/y'/, 'fs/w'),
      [dirs('fs/w/work/x/y/z')],
      { instead: { workdir: 'fs/w2' } },
    ),
    row(
      'after a volatile mount',
      {},
      fails('EINVAL', 'volatile-leftover', /mounted volatile.*work\/incompat'/, 'fs/w'),
      past('fs/l,fs/u,fs/w', 'volatile'),
      { remedy: [without('fs/w/work/incompat')] },
    ),
    row(
      'the mark of a feature to come',
      {},
      fails('EINVAL', 'feature-unknown', /with the feature 'to-come', which this kernel does not know/, 'fs/w'),
      [dirs('fs/w/work/incompat/to-come')],
      { instead: { upperdir: 'fs/u2', workdir: 'fs/w2' } },
    ),
    row(
      'an upper that was made with another lower, with index',
      { lowerdir: 'fs/l2', index: true },
      fails('ESTALE', 'stale', /made with another lowerdir, '.*fs\/l', not with '.*fs\/l2'/, 'fs/u'),
      past('fs/l,fs/u,fs/w', 'index=on'),
      { instead: { lowerdir: 'fs/l' } },
    ),
    row(
      'an upper that was made with another lower, which is gone, with index',
      { lowerdir: 'fs/l2', index: true },
      fails('ESTALE', 'stale', /made with other layers, not with '.*fs\/l2'/, 'fs/u'),
      [...past('fs/l,fs/u,fs/w', 'index=on'), without('fs/l')],
      { instead: { index: undefined } },
    ),
    row(
      'a work that holds the index of another upper',
      { upperdir: 'fs/u2', index: true },
      fails('ESTALE', 'index-of-other-upper', /made with the upperdir '.*fs\/u', not with '.*fs\/u2'/, 'fs/w'),
      past('fs/l,fs/u,fs/w', 'index=on'),
      { remedy: [without('fs/w/index')] },
    ),
    row(
      'an index that is a file',
      { index: true },
      fails('explained', 'index-stray', /contains '.*fs\/w\/index', which is not an index/, 'fs/w'),
      [file('fs/w/index')],
      { remedy: [without('fs/w/index')] },
    ),
    row(
      'an index that holds something else',
      { nfsExport: true },
      fails('explained', 'index-stray', /contains '.*fs\/w\/index\/notes', which is not an index/, 'fs/w'),
      [...past('fs/l,fs/u,fs/w', 'index=on'), file('fs/w/index/notes')],
      { instead: { nfsExport: undefined } },
    ),
    row(
      'an upper in use',
      { workdir: 'fs/w2' },
      fails(
        'EBUSY',
        'upper-in-use',
        /upperdir '.*fs\/u' is in use as the upperdir of the overlay at '.*other'/,
        'fs/u',
      ),
      [overlay('fs/l,fs/u,fs/w', 'other')],
      { remedy: [unmounted('other')], needs: ['uniqueMountId'] },
    ),
    row(
      'a work in use',
      { upperdir: 'fs/u2' },
      fails('EBUSY', 'work-in-use', /workdir '.*fs\/w' is in use as the workdir of the overlay at '.*other'/, 'fs/w'),
      [overlay('fs/l,fs/u,fs/w', 'other')],
      { instead: { workdir: 'fs/w2' }, needs: ['uniqueMountId'] },
    ),
    row(
      "a work that is another overlay's upper",
      { upperdir: 'fs/u2', workdir: 'fs/u' },
      fails('EBUSY', 'work-in-use', /workdir '.*fs\/u' is in use as the upperdir/, 'fs/u'),
      [overlay('fs/l,fs/u,fs/w', 'other')],
      { instead: { workdir: 'fs/w2' }, needs: ['uniqueMountId'] },
    ),
    row(
      "an upper that is another overlay's work, by a bind mount",
      { upperdir: 'bound/w', workdir: 'bound/w2' },
      fails('EBUSY', 'upper-in-use', /bound\/w' is in use as the workdir/, 'bound/w'),
      [overlay('fs/l,fs/u,fs/w', 'other'), bind('fs', 'bound')],
      { remedy: [unmounted('other')], needs: ['uniqueMountId'] },
    ),
    row(
      'a lower that is an upper in use, with index',
      { lowerdir: 'fs/u', upperdir: 'fs/u2', workdir: 'fs/w2', index: true },
      fails('EBUSY', 'lower-in-use', /lowerdir '.*fs\/u' is in use/, 'fs/u'),
      [overlay('fs/l,fs/u,fs/w', 'other')],
      { instead: { index: undefined } },
    ),
    row(
      'a work inside the upper',
      { workdir: 'fs/u/w' },
      fails('EINVAL', 'work-inside-upper', /fs\/u\/w' is inside the upperdir/, 'fs/u/w'),
      [dirs('fs/u/w')],
      { instead: { workdir: 'fs/w' } },
    ),
    row(
      'an upper inside the work',
      { upperdir: 'fs/w/u' },
      fails('EINVAL', 'work-inside-upper', /fs\/w\/u' is inside the workdir/, 'fs/w'),
      [dirs('fs/w/u')],
      { instead: { upperdir: 'fs/u' } },
    ),
    row(
      'a work on another file system',
      { workdir: 'w' },
      fails('EINVAL', 'work-on-other-mount', /on another file system/, 'w'),
      [],
      { instead: { workdir: 'fs/w' } },
    ),
    row(
      'a work through another mount of it',
      { workdir: 'bound/w' },
      fails('EINVAL', 'work-on-other-mount', /but on another mount/, 'bound/w'),
      [bind('fs', 'bound')],
      { instead: { workdir: 'fs/w' } },
    ),
    row(
      'a file system that is read-only',
      {},
      fails('EINVAL', 'upper-read-only', /fs\/u' is on a read-only file system/, 'fs/u'),
      [remounted('fs', 'ro')],
      { remedy: [remounted('fs', 'rw')] },
    ),
    row(
      'a mount that is read-only',
      { upperdir: 'ro/u', workdir: 'ro/w' },
      fails('explained', 'upper-read-only', /ro\/u' is on a read-only file system or mount, at '.*\/ro'/, 'ro/u'),
      [readonlyBind('fs', 'ro')],
      { instead: { upperdir: 'fs/u', workdir: 'fs/w' } },
    ),
    row(
      'one lower twice, by a bind mount',
      { lowerdir: ['fs/l', 'fs/l2', 'bound/l'] },
      fails('ELOOP', 'layer-twice', /lowerdir\[2\] '.*bound\/l' and the lowerdir\[0\] '.*fs\/l'/, 'bound/l'),
      [bind('fs', 'bound')],
      { instead: { lowerdir: ['fs/l', 'fs/l2'] } },
    ),
    row(
      'a lower inside another',
      { lowerdir: ['fs/l2', 'fs/l/sub', 'fs/l'] },
      fails('ELOOP', 'layers-overlap', /lowerdir\[1\] '.*fs\/l\/sub' is inside the lowerdir\[2\]/, 'fs/l/sub'),
      [],
      { instead: { lowerdir: ['fs/l2', 'fs/l'] } },
    ),
    row(
      'an upper and a work inside a lower',
      { lowerdir: 'fs/l', upperdir: 'fs/l/u', workdir: 'fs/l/w' },
      fails('ELOOP', 'layers-overlap', /(upperdir|workdir) '.*fs\/l\/.' is inside the lowerdir '.*beside/, 'fs/l/u'),
      [dirs('fs/l/u', 'fs/l/w')],
      { instead: { lowerdir: 'fs/l2' } },
    ),
    row(
      'a work inside a lower, by a symbolic link',
      { lowerdir: 'fs/l', upperdir: 'fs/l/sub', workdir: 'inside/w' },
      fails('ELOOP', 'layers-overlap', /is inside the lowerdir '.*beside/),
      [dirs('fs/l/w'), link('inside', 'fs/l')],
      { instead: { lowerdir: 'fs/l2' } },
    ),
    row(
      'an upper and a work inside a lower, by a bind mount of a directory in it',
      { lowerdir: 'fs/l', upperdir: 'bound/u', workdir: 'bound/w' },
      fails('ELOOP', 'layers-overlap', /inside the lowerdir '.*through a mount.*beside/, 'fs/l'),
      [dirs('fs/l/in/u', 'fs/l/in/w'), bind('fs/l/in', 'bound')],
      { instead: { lowerdir: 'fs/l2' } },
    ),
    row(
      'a mount that is unbindable',
      {},
      fails('EINVAL', 'layer-unbindable', /unbindable mount at '.*fs'/, 'fs/l'),
      [unbindable('fs')],
      { remedy: [unshared('fs')] },
    ),
  ];
}

/** A file system without chattr(1) lacks this. */
const immutableOn = (kind: string): FailureRow => {
  const { made: make, needs } = kinds[kind] as (typeof kinds)[string];
  return refused(
    `${kind}: a work that is immutable`,
    onIt,
    fails('EROFS', 'work-immutable', /fs\/w' is immutable/, 'fs/w'),
    [make, attributed('+i', 'fs/w')],
    { remedy: [attributed('-i', 'fs/w')], needs },
  );
};

/** An upper in which nothing, or not everything, can be changed: the mount would be there, and refuse changes. */
const frozenOn = (kind: string, change: 'i' | 'a', more: FailureRow['options'] = {}): FailureRow => {
  const { made: make, needs } = kinds[kind] as (typeof kinds)[string];
  const title = `an upper that ${change === 'i' ? 'is immutable' : 'may be appended to only'}`;
  return refused(
    `${kind}: ${title}${Object.keys(more).map((name) => `, ${name}`)}`,
    { ...onIt, ...more },
    fails('EPERM', 'upper-not-writable', /fs\/u' is immutable or append-only/, 'fs/u'),
    [make, attributed(`+${change}`, 'fs/u')],
    { remedy: [attributed(`-${change}`, 'fs/u')], needs },
  );
};

export const fileSystemRows: readonly FailureRow[] = [
  ...Object.keys(kinds).flatMap(rowsOn),
  ...['ext4', 'xfs', 'btrfs'].flatMap((kind) => [immutableOn(kind), frozenOn(kind, 'i'), frozenOn(kind, 'a')]),
  frozenOn('ext4', 'i', { readonly: true }),
];
