/** Layers and targets at places where they cannot be: other namespaces, links, files, directories without permission. */
import { MNT_DETACH } from '../../support/index.js';
import { fails } from '../rows/errors.js';
import { dirs, file, link, mode, overlay, removed, runs, tmpfs, unmounted } from '../rows/setup.js';
import { type FailureRow, refused } from './row.js';
import { elsewhere, openedFile, removedOpen, without } from './steps.js';

/** A tmpfs that only a process elsewhere has. */
const hidden = elsewhere('mkdir hidden && mount -t tmpfs hidden hidden && mkdir hidden/l hidden/u hidden/w hidden/m');
const there = (name: string): string => `/proc/{pid}/root/{dir}/hidden/${name}`;
const dirWord = (at: (path: string) => string) => ({ dir: at('').replace(/^\/|\/$/g, '') });
const foreign = (text: RegExp) => fails('EINVAL', 'layer-foreign', text);

export const placeRows: readonly FailureRow[] = [
  refused(
    'a lower of another mount namespace',
    { lowerdir: there('l') },
    foreign(/lowerdir '.*' is on a mount of another/),
    [dirWord, hidden],
    {
      instead: { lowerdir: 'l1' },
    },
  ),
  refused(
    'one lower of several of another mount namespace',
    { lowerdir: ['l1', there('l')] },
    foreign(/lowerdir\[1\] '.*' is on a mount of another/),
    [dirWord, hidden],
    { instead: { lowerdir: ['l1', 'l2'] } },
  ),
  refused(
    'a data-only layer of another mount namespace',
    { datadir: there('l') },
    foreign(/datadir '.*' is on a mount/),
    [dirWord, hidden],
    {
      instead: { datadir: 'd1' },
      needs: ['data-only layers without metacopy'],
    },
  ),
  refused(
    'upper and work of another mount namespace',
    { upperdir: there('u'), workdir: there('w') },
    foreign(/upperdir '.*' is on a mount of another/),
    [dirWord, hidden],
    { instead: { upperdir: 'u', workdir: 'w' } },
  ),
  ...(
    [
      [
        'an upper in use in another mount namespace, with index',
        { workdir: 'w2', index: true },
        fails(
          'EBUSY',
          'upper-in-use',
          /upperdir '.*\/u' is in use.* an overlay that still exists, although this mount namespace does not/,
          'u',
        ),
        { instead: { index: undefined, exclusive: false } },
      ],
      [
        'a work in use in another mount namespace, with index',
        { upperdir: 'u2', index: true },
        fails(
          'EBUSY',
          'work-in-use',
          /workdir '.*\/w' is in use.* an overlay that still exists, although this mount namespace does not/,
          'w',
        ),
        { instead: { workdir: 'w2' } },
      ],
      [
        'a lower that is an upper in use in another mount namespace, with index',
        { lowerdir: ['l1', 'u'], upperdir: 'u2', workdir: 'w2', index: true },
        fails(
          'EBUSY',
          'lower-in-use',
          /one of 2 lower layers is the upperdir or workdir.*the kernel does not say which/,
        ),
        { instead: { lowerdir: 'l1' } },
      ],
    ] as const
  ).map(([title, options, expect, mend]) =>
    refused(
      title,
      options,
      expect,
      [dirs('u2', 'w2'), elsewhere('mkdir other && mount -t overlay other -o lowerdir=l2,upperdir=u,workdir=w other')],
      mend,
    ),
  ),
  refused(
    'an upper of an overlay that was detached and is still used, with index',
    { workdir: 'w2', index: true },
    fails('EBUSY', 'upper-in-use', /still exists, although this mount namespace does not show it/, 'u'),
    [dirs('w2'), overlay('l2,u,w', 'other'), openedFile('other/one'), unmounted('other', MNT_DETACH)],
    { instead: { index: undefined, exclusive: false } },
  ),
  refused(
    'a target of another mount namespace',
    { target: there('m') },
    fails('EINVAL', 'target-foreign', /target '.*' is on a mount of another mount namespace/),
    [dirWord, hidden],
    { instead: { target: 'm' } },
  ),
  refused(
    'a lower that is missing',
    { lowerdir: ['l1', 'none'] },
    fails('ENOENT', 'lower-missing', /lowerdir\[1\]/, 'none'),
    [],
    {
      remedy: [dirs('none')],
    },
  ),
  refused(
    'an upper that is missing',
    { upperdir: 'none' },
    fails('ENOENT', 'upper-missing', /does not exist/, 'none'),
    [],
    {
      instead: { create: true },
    },
  ),
  refused(
    'a work that is missing',
    { workdir: 'none' },
    fails('ENOENT', 'work-missing', /does not exist/, 'none'),
    [],
    {
      instead: { create: true },
    },
  ),
  refused(
    'a target that is missing',
    { target: 'none' },
    fails('ENOENT', 'target-missing', /does not exist/, 'none'),
    [],
    {
      instead: { create: true },
    },
  ),
  refused(
    'a lower that is a link to nowhere',
    { lowerdir: 'link' },
    fails('ENOENT', 'lower-missing', /is a symbolic link to a missing path/, 'link'),
    [link('link', 'none')],
    {
      remedy: [dirs('none')],
    },
  ),
  refused(
    'an upper that is a file',
    { upperdir: 'file' },
    fails('ENOTDIR', 'upper-not-directory', /not a directory/, 'file'),
    [file('file')],
    {
      remedy: [removed('file'), dirs('file')],
    },
  ),
  refused(
    'a work that is a file',
    { workdir: 'file' },
    fails('ENOTDIR', 'work-not-directory', /not a directory/, 'file'),
    [file('file')],
    {
      remedy: [removed('file'), dirs('file')],
    },
  ),
  refused(
    'a target that is a file',
    { target: 'file' },
    fails('ENOTDIR', 'target-not-directory', /not a directory/, 'file'),
    [file('file')],
    {
      remedy: [removed('file'), dirs('file')],
    },
  ),
  refused(
    'a lower below a file',
    { lowerdir: 'file/l' },
    fails('ENOTDIR', 'path-inaccessible', /component of it/, 'file/l'),
    [file('file')],
    {
      remedy: [removed('file'), dirs('file/l')],
    },
  ),
  refused(
    'links in a circle',
    { upperdir: 'a' },
    fails('ELOOP', 'path-inaccessible', /circle/, 'a'),
    [link('a', 'b'), link('b', 'a')],
    {
      remedy: [removed('b'), dirs('b')],
    },
  ),
  refused(
    'a lower that has been removed, by a descriptor',
    { lowerdir: '/proc/self/fd/{fd}' },
    fails('ENOENT', 'lower-missing', /has been removed, and only a descriptor still leads to it/),
    [removedOpen('gone')],
    { instead: { lowerdir: 'l1' } },
  ),
  refused(
    'one lower of several that has been removed, by a descriptor',
    { lowerdir: ['l1', '/dev/fd/{fd}'] },
    fails('ENOENT', 'lower-missing', /lowerdir\[1\] '\/dev\/fd\/.*has been removed/),
    [removedOpen('gone')],
    { instead: { lowerdir: 'l1' } },
  ),
  refused(
    'a data-only layer that has been removed, by a descriptor',
    { datadir: '/proc/self/fd/{fd}' },
    fails('ENOENT', 'lower-missing', /datadir '.*has been removed/),
    [removedOpen('gone')],
    { instead: { datadir: 'd1' }, needs: ['data-only layers without metacopy'] },
  ),
  refused(
    'an upper that has been removed, by a descriptor',
    { upperdir: '/proc/self/fd/{fd}' },
    fails('ENOENT', 'upper-missing', /has been removed, and only a descriptor still leads to it/),
    [removedOpen('gone')],
    { instead: { upperdir: 'u' } },
  ),
  refused(
    'a work that has been removed, by a descriptor',
    { workdir: '/proc/self/fd/{fd}' },
    fails('ENOENT', 'work-removed', /has been removed, and only a descriptor still leads to it/),
    [removedOpen('gone')],
    { instead: { workdir: 'w' } },
  ),
  refused(
    'a target that is a link',
    { target: 'link' },
    fails('ENOTDIR', 'target-symlink', /symbolic link/, 'link'),
    [link('link', 'm')],
    {
      instead: { target: 'm' },
    },
  ),
  refused(
    'a target that is a mount point',
    {},
    fails('EBUSY', 'target-mounted', /already a mount point/, 'm'),
    [tmpfs('m')],
    {
      remedy: [unmounted('m')],
    },
  ),
  refused(
    'a target that is an overlay',
    { upperdir: 'u2', workdir: 'w2' },
    fails('EBUSY', 'target-mounted', /already a mount point/, 'm'),
    [dirs('u2', 'w2'), overlay('l1:l2', 'm')],
    {
      instead: { stack: true },
    },
  ),
  refused(
    'a FIFO as lower',
    { lowerdir: 'pipe' },
    fails('ENOTDIR', 'lower-not-directory', /not a directory/, 'pipe'),
    [runs('mkfifo', 'pipe')],
    {
      remedy: [without('pipe'), dirs('pipe'), mode('pipe', 0o755)],
    },
  ),
];
