/** A merge reports as conflicts the changes that others made in the base after the baseline, and nothing else. */
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, OverlayError } from 'overlayfs';
import { baseline, baselineSync, type Conflict, mergeLayer, mergeLayerSync } from 'overlayfs/layers';
import { generator, makeTree, mountTest, scaled, scratch } from '../support/index.js';

const FILES = 40;

/** An action of one side on a path. */
type Act = 'nothing' | 'write' | 'chmod' | 'remove' | 'replace' | 'add' | 'touch' | 'link';

function perform(root: string, path: string, act: Act, note: string): void {
  const file = join(root, path);
  if (act === 'write') appendFileSync(file, note);
  else if (act === 'chmod') chmodSync(file, 0o600);
  else if (act === 'touch') utimesSync(file, 1, 1);
  else if (act === 'link') linkSync(file, `${file}.link`);
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
      for (const file of files) ours.set(file, pick(['nothing', 'write', 'chmod', 'touch', 'remove', 'replace']));
      for (const file of added) ours.set(file, pick(['nothing', 'add']));
      for (const [file, act] of ours) perform(at('merged'), file, act, 'ours');
      for (let i = 0; i < 3; i++) rmSync(at(`merged/gone${i}`), { recursive: true });
      // Others change the base immediately before the baseline and immediately after it.
      for (const file of files)
        theirs.set(file, pick(['nothing', 'write', 'chmod', 'touch', 'link', 'remove', 'replace']));
      for (const file of added) theirs.set(file, pick(['nothing', 'add']));
      const earlier = files.filter((file) => theirs.get(file) === 'nothing');
      for (const file of earlier) perform(at('base'), file, pick(['write', 'chmod', 'touch']), 'before');
      const since = random(2) === 0 ? baselineSync(at('base')) : await baseline(at('base'));
      for (const [file, act] of theirs) perform(at('base'), file, act, 'theirs');
      const changedInside = random(3);
      appendFileSync(at(`base/gone${changedInside}/deep/file`), 'theirs');
      mount.unmountSync();

      const expected = [`gone${changedInside} deleted changed`];
      for (const [file, act] of ours) {
        const other = theirs.get(file) as Act;
        if (act === 'nothing' || other === 'nothing') continue;
        if (other === 'remove') {
          // No change of theirs is lost if both sides removed the file or if the upper has another file in its place.
          if (act !== 'remove' && act !== 'replace') expected.push(`${file} changed removed`);
        } else expected.push(`${file} ${act === 'remove' ? 'deleted' : 'changed'} changed`);
      }
      count += expected.length;
      const found = mergeLayerSync(at('upper'), at('base'), { since, dryRun: true, conflict: 'ours' });
      t.deepEqual(shown(found.conflicts), expected.sort(), `seed ${seed}`);
      const error = await t.throwsAsync(mergeLayer(at('upper'), at('base'), { since }), { instanceOf: OverlayError });
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
  await t.throwsAsync(mergeLayer(at('upper'), at('base'), { since }), {
    message: /'a' and 1 more.*nothing was merged/,
  });
  t.false(existsSync(at('base/new')));
  const summary = await mergeLayer(at('upper'), at('base'), {
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
  await t.throwsAsync(mergeLayer(at('upper'), at('other'), { since }), { message: /belongs to another directory/ });
  await t.throwsAsync(mergeLayer(at('upper'), at('base'), { since: {} as never }), { instanceOf: TypeError });
});

mountTest('a directory that was exchanged for another one is a conflict, whatever its times', (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'base/d/file': 'base', 'base/e/file': 'other', 'upper/': '', 'work/': '', 'merged/': '' });
  const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
  const mount = mountOverlaySync(paths);
  appendFileSync(at('merged/d/file'), 'ours');
  mount.unmountSync();
  const since = baselineSync(at('base'));
  renameSync(at('base/d'), at('base/kept'));
  renameSync(at('base/e'), at('base/d'));
  const { conflicts } = mergeLayerSync(at('upper'), at('base'), { since, dryRun: true });
  t.deepEqual(shown(conflicts), ['d changed changed']);
});
