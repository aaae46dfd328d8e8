/** A merge reports as conflicts the changes that others made in the base after the baseline, and nothing else. */
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, OverlayError } from 'overlayfs';
import { baseline, type Conflict, merge } from 'overlayfs/layers';
import { generator, makeTree, mountTest, scaled, scratch } from '../support/index.js';

const FILES = 40;

/** An action of one side on a path. */
type Act = 'nothing' | 'write' | 'chmod' | 'remove' | 'replace' | 'add' | 'touch' | 'link' | 'move';

function perform(root: string, path: string, act: Act, note: string): void {
  const file = join(root, path);
  if (act === 'write') appendFileSync(file, note);
  else if (act === 'chmod') chmodSync(file, 0o600);
  else if (act === 'touch') utimesSync(file, 1, 1);
  else if (act === 'link') linkSync(file, `${file}.link`);
  else if (act === 'move') renameSync(file, `${file}.moved`);
  else if (act === 'remove') unlinkSync(file);
  else if (act === 'add') writeFileSync(file, note);
  else if (act === 'replace') {
    writeFileSync(`${file}.${note}`, note);
    renameSync(`${file}.${note}`, file);
  }
}

const shown = (conflicts: readonly Conflict[]): string[] =>
  conflicts.map(({ path, ours, theirs }) => `${path} ${ours} ${theirs}`).sort();

for (const kind of ['tmpfs', 'disk'] as const) {
  mountTest(`all conflicts are found and none is invented (${kind})`, async (t) => {
    const dir = scratch(t, kind);
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
    const rounds = scaled(10_000 / FILES);
    t.log(`seeds from ${first}, ${rounds * FILES} paths`);
    let count = 0;
    for (let seed = first; seed < first + rounds; seed++) {
      const random = generator(seed);
      const pick = (acts: readonly Act[]): Act => acts[random(acts.length)] as Act;
      const own = join(dir, String(seed));
      const at = (name: string): string => join(own, name);
      const files = Array.from({ length: FILES }, (_, i) => `d${i % 3}/f${i}`);
      makeTree(own, {
        'upper/': '',
        'work/': '',
        'merged/': '',
        ...Object.fromEntries(files.map((f) => [`base/${f}`, f])),
      });
      for (let i = 0; i < 3; i++) makeTree(at(`base/gone${i}`), { 'deep/file': '', other: '' });
      const added = Array.from({ length: 10 }, (_, i) => `d${i % 3}/added${i}`);
      const ours = new Map<string, Act>();
      const theirs = new Map<string, Act>();
      const mount = mountOverlaySync({
        lowerdir: at('base'),
        upperdir: at('upper'),
        workdir: at('work'),
        target: at('merged'),
      });
      for (const file of files)
        ours.set(file, pick(['nothing', 'write', 'chmod', 'touch', 'remove', 'replace', 'link', 'move']));
      for (const file of added) ours.set(file, pick(['nothing', 'add']));
      for (const [file, act] of ours) perform(at('merged'), file, act, 'ours');
      for (let i = 0; i < 3; i++) rmSync(at(`merged/gone${i}`), { recursive: true });
      // Others change the base immediately before the baseline and immediately after it.
      for (const file of files)
        theirs.set(file, pick(['nothing', 'write', 'chmod', 'touch', 'link', 'remove', 'replace']));
      for (const file of added) theirs.set(file, pick(['nothing', 'add']));
      const earlier = files.filter((file) => theirs.get(file) === 'nothing');
      for (const file of earlier) perform(at('base'), file, pick(['write', 'chmod', 'touch']), 'before');
      const since = random(2) === 0 ? await baseline(at('base')) : await baseline(at('base'));
      for (const [file, act] of theirs) perform(at('base'), file, act, 'theirs');
      const changedInside = random(3);
      appendFileSync(at(`base/gone${changedInside}/deep/file`), 'theirs');
      mount.unmountSync();

      const expected = [`gone${changedInside} deleted changed`];
      for (const [file, act] of ours) {
        const other = theirs.get(file) as Act;
        if (act === 'nothing' || other === 'nothing') continue;
        const isGone = other === 'remove' || other === 'replace';
        if (act === 'move') expected.push(`${file}.moved changed ${isGone ? 'removed' : 'changed'}`);
        if (act === 'link') {
          // Others may have made a link of this name.
          expected.push(`${file}.link changed ${isGone ? 'removed' : 'changed'}`);
        }
        if (other === 'remove') {
          // No change of theirs is lost if both sides removed the file or if the upper has another file in its place.
          if (!['remove', 'replace', 'move'].includes(act)) expected.push(`${file} changed removed`);
        } else expected.push(`${file} ${act === 'remove' || act === 'move' ? 'deleted' : 'changed'} changed`);
      }
      count += expected.length;
      const found = await merge(at('upper'), { into: at('base'), since, dryRun: true, conflict: 'ours' });
      t.deepEqual(shown(found.conflicts), expected.sort(), `seed ${seed}`);
      const error = await t.throwsAsync(merge(at('upper'), { into: at('base'), since }), { instanceOf: OverlayError });
      t.is(error?.reason, 'layer-conflict');
      t.deepEqual(shown(error?.conflicts ?? []), expected);
      rmSync(own, { recursive: true });
    }
    t.log(`${count} conflicts`);
  });
}

mountTest('a conflict is decided for one side or the other, path by path', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, {
    'base/a': 'base',
    'base/b': 'base',
    'base/c': 'base',
    'upper/a': 'ours',
    'upper/b': 'ours',
    'upper/new': 'ours',
  });
  const since = await baseline(at('base'));
  t.deepEqual(JSON.parse(JSON.stringify(since)), since);
  writeFileSync(at('base/a'), 'theirs');
  writeFileSync(at('base/b'), 'theirs');
  writeFileSync(at('base/c'), 'theirs');
  await t.throwsAsync(merge(at('upper'), { into: at('base'), since }), {
    message: /'a' and 1 more.*nothing was merged/,
  });
  t.false(existsSync(at('base/new')));
  const summary = await merge(at('upper'), {
    into: at('base'),
    since,
    conflict: ({ path }) => (path === 'a' ? 'ours' : 'theirs'),
  });
  t.deepEqual(
    summary.conflicts.map(({ path }) => path),
    ['a', 'b'],
  );
  const read = (name: string): string => readFileSync(at(`base/${name}`), 'utf8');
  t.deepEqual(['a', 'b', 'c', 'new'].map(read), ['ours', 'theirs', 'theirs', 'ours']);
  mkdirSync(at('other'));
  await t.throwsAsync(merge(at('upper'), { into: at('other'), since }), { message: /belongs to another directory/ });
  for (const bad of [{}, { ...since, links: 'AAAA' }, { ...since, links: 1 }]) {
    await t.throwsAsync(merge(at('upper'), { into: at('base'), since: bad as never }), { instanceOf: TypeError });
  }
});

for (const links of [true, false]) {
  mountTest(
    `a hard link that the view changed and others removed is a conflict, and a new file is none (${links})`,
    async (t) => {
      const dir = scratch(t, 'disk');
      const at = (name: string): string => join(dir, name);
      makeTree(dir, { 'base/e/x': '', 'upper/': '', 'work/': '', 'merged/': '' });
      for (const name of ['d/a', 'd/b', 'f/c', 'g/r']) {
        makeTree(at('base'), { [name]: 'x' });
        makeTree(at('base'), { [`${name}.single`]: 'x' });
        linkSync(at(`base/${name}`), at(`base/e/${name.at(-1)}`));
        utimesSync(at(`base/${name}`), 5, 5);
      }
      utimesSync(at('base/f'), 5, 5);
      const since = await baseline(at('base'), { links });
      t.deepEqual(JSON.parse(JSON.stringify(since)), since);
      const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
      const mount = mountOverlaySync(paths);
      appendFileSync(at('merged/d/a'), 'ours');
      chmodSync(at('merged/e/b'), 0o600);
      // Its times are those of a new file.
      appendFileSync(at('merged/f/c'), 'ours');
      readFileSync(at('merged/f/c'));
      for (const name of ['d', 'e']) writeFileSync(at(`merged/${name}/new`), 'ours');
      for (const name of ['d', 'e']) readFileSync(at(`merged/${name}/new`));
      // An unpacked file has times of its own, which look like those of a copy.
      if (links) utimesSync(at('merged/d/new'), 9, 9);
      // Nothing was copied up here, so this one is new.
      unlinkSync(at('merged/g/r'));
      writeFileSync(at('merged/g/r'), 'ours');
      mount.unmountSync();
      const conflicts = async (): Promise<string[]> =>
        shown((await merge(at('upper'), { into: at('base'), since, dryRun: true })).conflicts);
      t.deepEqual(await conflicts(), []);
      for (const name of ['d', 'e', 'f', 'g']) writeFileSync(at(`base/${name}/other`), 'theirs');
      t.deepEqual(await conflicts(), []);
      for (const name of ['d/a', 'e/b', 'f/c', 'g/r']) unlinkSync(at(`base/${name}`));
      t.deepEqual(await conflicts(), ['d/a changed removed', 'e/b changed removed', 'f/c changed removed']);
    },
  );
}

mountTest('a hard link that the view changed and renamed conflicts with changes, and not with a removal', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'base/linked': '', 'base/single': '', 'base/e/': '', 'upper/': '', 'work/': '', 'merged/': '' });
  linkSync(at('base/linked'), at('base/e/linked'));
  const since = await baseline(at('base'));
  const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
  const mount = mountOverlaySync(paths);
  for (const name of ['linked', 'single']) {
    appendFileSync(at(`merged/${name}`), 'ours');
    renameSync(at(`merged/${name}`), at(`merged/${name}.new`));
  }
  mount.unmountSync();
  const conflicts = async (): Promise<string[]> =>
    shown((await merge(at('upper'), { into: at('base'), since, dryRun: true })).conflicts);
  t.deepEqual(await conflicts(), []);
  appendFileSync(at('base/e/linked'), 'theirs');
  t.deepEqual(await conflicts(), ['linked deleted changed']);
  for (const name of ['linked', 'single']) unlinkSync(at(`base/${name}`));
  // The copy of a single file has a mark, and the other copy has none.
  t.deepEqual(await conflicts(), ['single.new changed removed']);
  await merge(at('upper'), { into: at('base'), since, conflict: 'ours' });
  t.deepEqual(readdirSync(at('base')).sort(), ['e', 'linked.new', 'single.new']);
  t.is(readFileSync(at('base/linked.new'), 'utf8'), 'ours');
});

mountTest('a directory that was exchanged for another one is a conflict, whatever its times', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'base/d/file': 'base', 'base/e/file': 'other', 'upper/': '', 'work/': '', 'merged/': '' });
  const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
  const mount = mountOverlaySync(paths);
  appendFileSync(at('merged/d/file'), 'ours');
  mount.unmountSync();
  const since = await baseline(at('base'));
  renameSync(at('base/d'), at('base/kept'));
  renameSync(at('base/e'), at('base/d'));
  const { conflicts } = await merge(at('upper'), { into: at('base'), since, dryRun: true });
  t.deepEqual(shown(conflicts), ['d changed changed']);
});

mountTest('names that the upper gives to files and directories are no conflicts', async (t) => {
  for (const options of [{}, { redirectDir: 'on' }, { redirectDir: 'on', metacopy: true }] as const) {
    const dir = scratch(t, 'disk');
    const at = (name: string): string => join(dir, name);
    makeTree(dir, { 'upper/': '', 'work/': '', 'merged/': '' });
    makeTree(at('base'), { a: 'a', b: 'b', c: 'c', 'd/x': 'x', 'd/y': 'y', 'e/x': 'x', 'f/x': 'x' });
    const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
    const mount = mountOverlaySync({ ...paths, ...options });
    chmodSync(at('merged/a'), 0o600);
    renameSync(at('merged/a'), at('merged/a2'));
    renameSync(at('merged/b'), at('merged/c'));
    renameSync(at('merged/f/x'), at('merged/x'));
    linkSync(at('merged/e/x'), at('merged/e/link'));
    const redirects = 'redirectDir' in options;
    if (redirects) {
      renameSync(at('merged/d'), at('merged/moved'));
      appendFileSync(at('merged/moved/x'), 'ours');
      rmSync(at('merged/moved/y'));
    }
    mount.unmountSync();
    const since = await baseline(at('base'));
    writeFileSync(at('base/other'), 'theirs');
    const conflicts = async (): Promise<string[]> =>
      shown((await merge(at('upper'), { into: at('base'), since, dryRun: true })).conflicts);
    t.deepEqual(await conflicts(), [], JSON.stringify(options));
    appendFileSync(at('base/d/x'), 'theirs');
    t.deepEqual(await conflicts(), redirects ? ['d deleted changed'] : [], JSON.stringify(options));
    mkdirSync(at('base/moved'));
    t.deepEqual(await conflicts(), redirects ? ['d deleted changed', 'moved changed changed'] : []);
  }
});

mountTest('a file that others moved is a conflict, also if the kernel does not know its path', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  const mountImage = (): void => void execFileSync('mount', ['-o', 'loop', at('image'), at('fs')]);
  const unmountImage = (): void => void execFileSync('umount', [at('fs')]);
  writeFileSync(at('image'), '');
  truncateSync(at('image'), 2 ** 24);
  execFileSync('mkfs.ext4', ['-q', '-F', at('image')]);
  for (const name of ['fs', 'merged']) mkdirSync(at(name));
  mountImage();
  t.teardown(unmountImage);
  const files = { 'base/a': 'a', 'base/b': 'b', 'base/c': 'c', 'base/d': 'd', 'base/inside/': '', 'other/': '' };
  makeTree(at('fs'), { ...files, 'upper/': '', 'work/': '' });
  const paths = { lowerdir: at('fs/base'), upperdir: at('fs/upper'), workdir: at('fs/work'), target: at('merged') };
  const mount = mountOverlaySync(paths);
  for (const name of ['a', 'b', 'c']) appendFileSync(at(`merged/${name}`), 'ours');
  renameSync(at('merged/d'), at('merged/d2'));
  mount.unmountSync();
  const since = await baseline(at('fs/base'));
  renameSync(at('fs/base/a'), at('fs/base/inside/new'));
  unlinkSync(at('fs/base/b'));
  // A new mount knows no names.
  unmountImage();
  mountImage();
  const { conflicts } = await merge(at('fs/upper'), { into: at('fs/base'), since, dryRun: true });
  t.deepEqual(shown(conflicts), ['a changed changed', 'b changed removed']);
});

mountTest('a baseline is not taken for that of a new directory with the same inode', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  writeFileSync(at('image'), '');
  truncateSync(at('image'), 2 ** 24);
  // Smaller inodes have no time of birth.
  execFileSync('mkfs.ext4', ['-q', '-F', '-I', '256', at('image')]);
  mkdirSync(at('fs'));
  execFileSync('mount', ['-o', 'loop', at('image'), at('fs')]);
  t.teardown(() => void execFileSync('umount', [at('fs')]));
  makeTree(at('fs'), { 'x/other/sub/file': 'theirs', 'x/base/sub/file': 'base', 'upper/sub/file': 'ours' });
  const since = await baseline(at('fs/x/base'));
  rmSync(at('fs/x/base'), { recursive: true });
  mkdirSync(at('fs/x/base'));
  t.is(String(statSync(at('fs/x/base')).ino), since.inode);
  // The times of the file inside do not change.
  renameSync(at('fs/x/other/sub'), at('fs/x/base/sub'));
  const attempt = () => merge(at('fs/upper'), { into: at('fs/x/base'), since, unmarked: true });
  await t.throwsAsync(attempt, { message: /baseline belongs to another directory/ });
  t.is(readFileSync(at('fs/x/base/sub/file'), 'utf8'), 'theirs');
});

for (const mode of ['copy', 'move'] as const) {
  mountTest(`a directory whose metadata both sides changed keeps the entries of both (${mode})`, async (t) => {
    const dir = scratch(t);
    const at = (name: string): string => join(dir, name);
    makeTree(dir, { 'base/d/x': 'x', 'base/d/y': 'y', 'upper/': '', 'work/': '', 'merged/': '' });
    const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
    const mount = mountOverlaySync(paths);
    chmodSync(at('merged/d'), 0o700);
    makeTree(at('merged/d'), { x: 'ours', new: 'ours' });
    unlinkSync(at('merged/d/y'));
    mount.unmountSync();
    const since = await baseline(at('base'));
    chmodSync(at('base/d'), 0o711);
    makeTree(at('base/d'), { x: 'theirs', other: 'theirs' });
    const { conflicts } = await merge(at('upper'), {
      into: at('base'),
      since,
      conflict: 'theirs',
      move: mode === 'move',
    });
    t.deepEqual(shown(conflicts), ['d changed changed', 'd/x changed changed']);
    t.is(statSync(at('base/d')).mode & 0o777, 0o711);
    const read = (name: string): string => `${name} ${readFileSync(at(`base/d/${name}`), 'utf8')}`;
    t.deepEqual(readdirSync(at('base/d')).sort().map(read), ['new ours', 'other theirs', 'x theirs']);
    if (mode === 'move') t.deepEqual(readdirSync(at('upper')), []);
  });
}
