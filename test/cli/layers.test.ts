/** `overlayfs changes`, `lookup`, `merge` and `check`, for real. */
import { readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, type Reason, whiteoutSync } from 'overlayfs';
import { baseline } from 'overlayfs/layers';
import { commands } from '#lib/cli/commands.js';
import { look } from '../layers/look.js';
import { layers, makeTree, mountTest, scratch } from '../support/index.js';
import { json, overlayfs } from './run.js';

mountTest('changes and lookup take the layers from a mount point, or from flags', async (t) => {
  const set = layers(scratch(t));
  const { lowerdir, upperdir, target } = set;
  // The clock may not tick before the changes.
  for (const path of [join(lowerdir, 'from-lower'), lowerdir]) utimesSync(path, 1, 1);
  const mount = mountOverlaySync(set);
  writeFileSync(join(target, 'new'), 'new');
  writeFileSync(join(target, 'from-lower'), 'changed');
  const lines = 'M ./ (times)\nM from-lower (content, times)\nA new\n';
  t.like(await overlayfs('changes', target), { code: 0, stdout: lines });
  const { code, stdout } = await overlayfs('lookup', target, 'from-lower');
  t.is(code, 0);
  t.regex(stdout, /upper: answers, file\n.*lower: hidden, file by file from-lower in .*upper\n$/);
  t.like(await overlayfs('lookup', target, 'none'), { code: 1 });
  mount.unmountSync();
  t.like(await overlayfs('changes', '--lowerdir', lowerdir, upperdir), { code: 0, stdout: lines });
  t.like(await overlayfs('lookup', '--lowerdir', upperdir, '--lowerdir', lowerdir, 'new'), { code: 0 });
  const { documents: changes } = await json('changes', '--lowerdir', lowerdir, upperdir);
  t.like(changes[2], { path: 'new', kind: 'added', type: 'file', mode: 0o644, size: 3, what: [] });
  t.regex(String(changes[2]?.['mtime']), /^\d{19}$/);
  t.like((await json('lookup', '--lowerdir', upperdir, 'new')).document, { layer: 0, type: 'file' });
});

mountTest('an upper without changes prints nothing', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/': '' });
  const none = await json('changes', '--lowerdir', join(dir, 'upper'), join(dir, 'upper'));
  t.deepEqual(none, { code: 0, document: {}, documents: [] });
  const { code, document } = await json('changes', join(dir, 'none'));
  t.is(code, 2);
  t.like(document, { errors: [{ reason: 'path-missing' }] });
});

mountTest('check exits with 1 if it finds something', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'layer/file': 'x', 'base/': '' });
  const layer = join(dir, 'layer');
  t.deepEqual(await overlayfs('check', '--lowest', layer), { code: 0, stdout: '', stderr: '' });
  whiteoutSync(join(layer, 'gone'));
  t.deepEqual(await overlayfs('check', layer), { code: 0, stdout: '', stderr: '' });
  const found = await overlayfs('check', '--lowerdir', join(dir, 'base'), layer);
  t.is(found.code, 1);
  t.regex(found.stdout, /^gone: a whiteout hides nothing.* To mend it: remove it\.\n$/);
  t.like(await json('check', '--lowest', layer), { code: 1 });
});

mountTest('wrong command lines are told as such', async (t) => {
  const dir = scratch(t);
  for (const args of [
    ['changes'],
    ['check'],
    ['lookup', dir],
    ['lookup', dir, 'a'],
    ['check', dir, dir],
    ['check', '--lowest', '--lowerdir', dir, dir],
  ]) {
    t.is((await overlayfs(...args)).code, 2, args.join(' '));
  }
});

mountTest('merge exits with 1 for conflicts that nothing decides, also for a dry run', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/f\tile': 'ours', 'base/f\tile': 'base' });
  const at = (name: string): string => join(dir, name);
  writeFileSync(at('since'), JSON.stringify(await baseline(at('base'))));
  writeFileSync(at('base/f\tile'), 'theirs');
  const merge = (...args: string[]) => overlayfs('merge', '--since', at('since'), ...args, at('upper'), at('base'));
  const line = /^conflict: f\\tile \(changed; by others changed\)\n1 entries would be merged/;
  const dry = await merge('--dry-run');
  t.is(dry.code, 1);
  t.regex(dry.stdout, line);
  const decided = await merge('--dry-run', '--conflict', 'ours');
  t.is(decided.code, 0);
  t.regex(decided.stdout, line);
  const refused = await merge();
  t.is(refused.code, 1);
  t.regex(refused.stderr, /conflict: f\\tile \(changed; by others changed\)/);
  t.regex(refused.stderr, /hint: .*--conflict ours/);
  t.is(readFileSync(at('base/f\tile'), 'utf8'), 'theirs');
  writeFileSync(at('empty'), 'null');
  t.is((await overlayfs('merge', '--since', at('empty'), at('upper'), at('base'))).code, 2);
  t.like(await merge('--conflict', 'ours'), { code: 0 });
  t.is(readFileSync(at('base/f\tile'), 'utf8'), 'ours');
});

mountTest(
  'merge refuses its two operands in the wrong order, unless --unmarked says that they are right',
  async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'base/f': 'base', 'upper/': '' });
    whiteoutSync(join(dir, 'upper/f'));
    const merge = (...args: string[]) => overlayfs('merge', ...args, join(dir, 'base'), join(dir, 'upper'));
    const refused = await merge();
    t.is(refused.code, 2);
    t.regex(
      refused.stderr,
      /base' has no overlay marks, and '.*upper' looks like an upper of it: it has a mark at 'f'\./,
    );
    t.regex(refused.stderr, /hint: .*--unmarked/);
    t.like(await merge('--unmarked'), { code: 0 });
    t.is(readFileSync(join(dir, 'upper/f'), 'utf8'), 'base');
  },
);

/** By command: the forms with the mount point of an overlay in the place of a layer, and how each ends. */
const forms: Readonly<Record<string, readonly (readonly [ends: 0 | Reason, ...args: string[]])[]>> = {
  mount: [
    [0, '--lowerdir', 'view', '--lowerdir', 'lower', 'to'],
    ['upper-unsupported', '--lowerdir', 'lower', '--upperdir', 'view/u', '--workdir', 'view/w', 'to'],
  ],
  umount: [],
  run: [],
  unshare: [],
  ls: [],
  watch: [],
  holders: [],
  changes: [
    [0, 'view'],
    ['merged-mount', '--lowerdir', 'lower', 'view'],
  ],
  lookup: [
    [0, 'view', 'new'],
    ['merged-mount', '--lowerdir', 'view', '--lowerdir', 'lower', 'new'],
  ],
  check: [
    [0, 'view'],
    ['merged-mount', '--lowerdir', 'lower', 'view'],
    ['merged-mount', '--lowest', 'view'],
  ],
  merge: [
    [0, 'view', 'to'],
    [0, 'upper', 'view'],
  ],
  squash: [
    ['merged-mount', 'view', 'lower', 'out'],
    [0, 'upper', 'view', 'out'],
    [0, '--plain', 'view', 'out'],
    ['merged-mount', '--plain', 'view', 'lower', 'out'],
  ],
  rm: [[0, 'to']],
  apply: [
    ['merged-mount', 'layer.tar', 'view'],
    [0, '--layout', 'plain', 'layer.tar', 'view'],
    ['permission-denied', 'layer.tar', 'view/in'],
  ],
  pack: [
    [0, 'view', 'packed.tar'],
    [0, '--layout', 'plain', 'view', 'packed.tar'],
    ['merged-mount', '--lowerdir', 'lower', 'view', 'packed.tar'],
  ],
  whiteout: [['merged-mount', 'view/new']],
  serve: [],
  completion: [],
  explain: [],
  features: [],
};

mountTest('each command that takes a layer resolves the path of a mounted overlay or refuses it', async (t) => {
  const others = Object.keys(commands).filter((name) => !/^(snapshot|image) /.test(name));
  t.deepEqual(Object.keys(forms).sort(), others.sort());
  for (const [command, rows] of Object.entries(forms)) {
    for (const [ends, ...args] of rows) {
      const dir = scratch(t);
      makeTree(dir, { 'lower/old': 'old', 'lower/gone': '', 'upper/': '', 'work/': '', 'view/': '', 'to/': '' });
      const at = (name: string): string => join(dir, name);
      mountOverlaySync({ lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('view') });
      makeTree(dir, { 'view/new': 'new', 'view/u/': '', 'view/w/': '', 'view/in/': '' });
      rmSync(at('view/gone'));
      t.is((await overlayfs('pack', at('view'), at('layer.tar'))).code, 0);
      const before = [look(at('upper')), look(at('to'))];
      const shown = `${command} ${args.join(' ')}`;
      const { code, document } = await json(
        command,
        ...args.map((word) =>
          /^(view|lower|upper|work|to|out)/.test(word) || word.endsWith('.tar') ? at(word) : word,
        ),
      );
      const [error] = (document['errors'] as { reason: string }[] | undefined) ?? [];
      t.is(error?.reason ?? 0, ends, `${shown}: ${JSON.stringify(error)}`);
      t.is(code === 0, ends === 0, shown);
      if (ends === 'merged-mount') t.deepEqual([look(at('upper')), look(at('to'))], before, `${shown} writes nothing`);
    }
  }
});
