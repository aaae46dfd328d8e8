/** `overlayfs explain`: what is in the way, without mounting. */
import { chmodSync, mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { makeOpaqueSync, mountOverlaySync } from 'overlayfs';
import { overlay } from '../overlay/rows/setup.js';
import {
  layers,
  MS_BIND,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scratch,
  withoutCapabilities,
} from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';
import { json, overlayfs, run } from './run.js';

const flags = ({ lowerdir, upperdir, workdir, target }: ReturnType<typeof layers>): string[] => [
  ...['--lowerdir', lowerdir, '--upperdir', upperdir, '--workdir', workdir],
  target,
];

mountTest('nothing in the way, and nothing done', async (t) => {
  const dir = scratch(t);
  const set = layers(dir);
  const { code, stdout, stderr } = await overlayfs('explain', ...flags(set));
  t.is(code, 0, stderr);
  t.is(
    stdout,
    `target '${set.target}': tmpfs\nlowerdir '${set.lowerdir}': tmpfs\nupperdir '${set.upperdir}': tmpfs\n` +
      `workdir '${set.workdir}': tmpfs\nNothing that can be seen beforehand is in the way of this mount.\n`,
  );
  t.is(mountsBelow(dir).length, 1);
});

mountTest('all that is in the way, not the first only', async (t) => {
  const dir = scratch(t);
  const set = layers(dir);
  makeTree(set.workdir, { 'work/a/b/leftover': '' });
  const { code, document } = await json(
    'explain',
    '--lowerdir',
    join(dir, 'none'),
    ...flags(set).slice(0, -1),
    set.lowerdir,
  );
  t.is(code, 1);
  const errors = document['findings'] as { reason: string; path: string }[];
  t.deepEqual(
    errors.map(({ reason, path }) => [reason, path]),
    [
      ['lower-missing', join(dir, 'none')],
      ['work-leftovers', set.workdir],
    ],
  );
  t.is((document['paths'] as unknown[]).length, 5);
});

mountTest('the mount that a path is on is text, as far as it can be', async (t) => {
  const dir = scratch(t);
  const { document } = await json('explain', ...flags(layers(dir)));
  t.deepEqual(
    (document['paths'] as { mount: unknown }[]).map(({ mount }) => mount),
    [dir, dir, dir, dir],
  );
});

mountTest('what makes a mount read-only is not in the way of one that is to be', async (t) => {
  const dir = scratch(t);
  const set = layers(dir);
  makeTree(set.workdir, { 'work/a/b/leftover': '' });
  t.is((await overlayfs('explain', ...flags(set))).code, 1);
  const { code, stderr } = await overlayfs('explain', '--readonly-superblock', ...flags(set));
  t.is(code, 0, stderr);
  mountOverlaySync({ ...set, readonlySuperblock: true }).unmountSync();
});

mountTest('an upper in use, and by whom', async (t) => {
  const dir = scratch(t);
  const set = layers(dir);
  overlay('lower,upper,work', 'other')((path) => join(dir, path));
  const { code, stdout } = await overlayfs('explain', ...flags(set));
  t.is(code, 1);
  t.regex(stdout, /in use as the upperdir of the overlay at '.*other'/);
  t.regex(stdout, /reason: upper-in-use/);
  t.is((await overlayfs('explain', '--no-exclusive', ...flags(set))).code, 0);
});

mountTest('an upper and a workdir that --create would make', async (t) => {
  const dir = scratch(t);
  const { lowerdir, target } = layers(dir);
  const { code, stderr } = await overlayfs(
    'explain',
    '--lowerdir',
    lowerdir,
    '--upperdir',
    join(dir, 'new'),
    '--create',
    target,
  );
  t.is(code, 0, stderr);
  const other = layers(join(dir, 'other'));
  mountOverlaySync(other);
  const used = await json(
    'explain',
    '--lowerdir',
    lowerdir,
    '--upperdir',
    other.upperdir,
    '--workdir',
    join(dir, 'new'),
    '--create',
    target,
  );
  t.like(used.document['findings'], [{ reason: 'upper-in-use' }]);
});

mountTest('overlaps, by number', async (t) => {
  const dir = scratch(t);
  const set = layers(dir);
  mkdirSync(join(set.lowerdir, 'inside'));
  const { code, stdout } = await overlayfs('explain', '--lowerdir', join(set.lowerdir, 'inside'), ...flags(set));
  t.is(code, 1);
  t.regex(stdout, /lowerdir\[0\] '.*inside' is inside the lowerdir\[1\]/);
});

const lowers = (...paths: string[]): string[] => paths.flatMap((path) => ['--lowerdir', path]);

mountTest('a layer on a mount of its own is in no other layer', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/sub/': '', 'a/bound/': '', 'else/': '', 'c/x/': '', 'm/': '' });
  const [a, sub, bound, c, x, m] = ['a', 'a/sub', 'a/bound', 'c', 'c/x', 'm'].map((path) => join(dir, path)) as [
    string,
    string,
    string,
    string,
    string,
    string,
  ];
  t.is(native.mount('own', sub, 'tmpfs', 0, ''), 0);
  t.is(native.mount(join(dir, 'else'), bound, '', MS_BIND, ''), 0);
  const { code, stderr } = await overlayfs('explain', ...lowers(sub, bound, a), m);
  t.is(code, 0, stderr);
  const error = t.throws(() => mountOverlaySync({ lowerdir: [sub, bound, a, x, c], target: m }));
  t.like(error, { code: 'ELOOP', reason: 'layers-overlap', path: x, dest: c });
  mountOverlaySync({ lowerdir: [sub, bound, a], target: m }).unmountSync();
});

mountTest('a layer that is bound onto itself is where it was', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/b/sub/': '', 'm/': '' });
  const [a, b, sub, m] = ['a', 'a/b', 'a/b/sub', 'm'].map((path) => join(dir, path)) as [
    string,
    string,
    string,
    string,
  ];
  for (const path of [b, b]) t.is(native.mount(path, path, '', MS_BIND, ''), 0);
  const { code, stdout } = await overlayfs('explain', ...lowers(sub, a), m);
  t.is(code, 1);
  t.regex(stdout, /lowerdir\[0\] '.*sub' is inside the lowerdir\[1\]/);
  const error = t.throws(() => mountOverlaySync({ lowerdir: [sub, a], target: m }));
  t.like(error, { code: 'ELOOP', reason: 'layers-overlap', path: sub, dest: a });
});

mountTest('what cannot be created is in the way', async (t) => {
  const dir = scratch(t);
  const { lowerdir, workdir, target } = layers(dir);
  const upperdir = join(dir, 'link');
  symlinkSync('nowhere', upperdir);
  const { code, stdout } = await overlayfs('explain', '--create', ...flags({ lowerdir, upperdir, workdir, target }));
  t.is(code, 1);
  t.regex(stdout, /to a missing path\.\n.*upper-missing\n {2}hint: Create the directory that the link points to, or/);
  const error = t.throws(() => mountOverlaySync({ lowerdir, upperdir, workdir, target, create: true }));
  t.regex(error.message, /to a missing path\. Create the directory/);
});

mountTest('a process that may not mount', (t) => {
  const dir = scratch(t);
  chmodSync(dir, 0o755);
  const set = layers(dir);
  const { code, stdout } = run(['explain', ...flags(set)], { command: withoutCapabilities });
  t.is(code, 1);
  t.regex(stdout, /lacks CAP_SYS_ADMIN/);
  t.is(stdout.match(/reason: no-privilege/g)?.length, 1);
  t.regex(
    stdout,
    /Start it by 'overlayfs unshare', or as root with CAP_SYS_ADMIN, or mount .* by --rootless, .*, or use 'overlayfs run', which needs neither\.\n/,
  );
});

test.serial('what is no mount at all is wrong usage', async (t) => {
  t.is((await overlayfs('explain')).code, 2);
  t.is((await overlayfs('explain', '--lowerdir', '/a', '--upperdir', '/u', '/m')).code, 2);
});

mountTest('--rootless: a layer that hides from mounts of root only', { needs: 'rootless' }, async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'lower/a/b/hidden': '', 'lower/c/hidden': '', 'over/a/b/': '', 'over/c/': '', 'upper/c/': '' });
  giveTo(dir);
  const [over, lower] = [join(dir, 'over'), join(dir, 'lower')];
  const line = ['explain', '--rootless', '--lowerdir', over, '--lowerdir', lower];
  t.is((await overlayfs(...line)).code, 0);
  for (const name of ['a/b', 'c']) makeOpaqueSync(join(over, name));
  const { code, document } = await json(...line, '--upperdir', join(dir, 'upper'), '--create');
  t.is(code, 1);
  const errors = document['findings'] as { reason: string; path: string; message: string }[];
  t.deepEqual(
    errors.map(({ reason }) => reason),
    ['mark-unseen'],
  );
  t.regex(errors[0]?.message ?? '', /lowerdir\[0\] '.*\/over' .* opaque only for mounts by root: '.*', and 1 more/);
  const shows = (name: string) =>
    evaluateAsNobody(
      `const mount = await overlayfs.mountOverlay({ lowerdir: args.slice(1), rootless: true });
      const names = fs.readdirSync(join(mount.path, args[0]));
      mount.unmountSync();
      return names;`,
      name,
      over,
      lower,
    );
  t.deepEqual(shows('c'), ['hidden'], 'the kernel says nothing');
  for (const name of ['a/b', 'c']) makeOpaqueSync(join(over, name), { marks: 'both' });
  t.is((await overlayfs(...line)).code, 0);
  t.deepEqual(shows('c'), [], 'a read-only mount reads the marks of users, too');
  t.is((await overlayfs(...line, dir)).code, 2, 'there is no place');
});
