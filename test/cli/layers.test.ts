/** `overlayfs changes`, `lookup`, `merge`, `check` and `du`, for real. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, whiteoutSync } from 'overlayfs';
import { layers, makeTree, mountTest, scratch } from '../support/index.js';
import { json, overlayfs } from './run.js';

mountTest('changes and lookup take the layers from a mount point, or from flags', async (t) => {
  const set = layers(scratch(t));
  const { lowerdir, upperdir, target } = set;
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
  t.like(await overlayfs('changes', '--lower', lowerdir, upperdir), { code: 0, stdout: lines });
  t.like(await overlayfs('lookup', '--lower', upperdir, '--lower', lowerdir, 'new'), { code: 0 });
  const { document } = await json('changes', '--lower', lowerdir, upperdir);
  const { changes } = document as { changes: Record<string, unknown>[] };
  t.like(changes[2], { path: 'new', kind: 'added', type: 'file', mode: 0o644, size: 3, what: [] });
  t.regex(String(changes[2]?.['mtime']), /^\d{19}$/);
  t.like((await json('lookup', '--lower', upperdir, 'new')).document, { layer: 0, type: 'file' });
});

mountTest('an upper without changes prints an empty list', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/': '' });
  t.deepEqual(await json('changes', '--lower', join(dir, 'upper'), join(dir, 'upper')), {
    code: 0,
    document: { changes: [] },
  });
  const { code, document } = await json('changes', join(dir, 'none'));
  t.is(code, 1);
  t.like(document, { errors: [{ reason: 'path-missing' }] });
});

mountTest('check exits with 1 if it finds something, and du measures', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'layer/file': 'x', 'base/': '' });
  const layer = join(dir, 'layer');
  t.deepEqual(await overlayfs('check', '--lowest', layer), { code: 0, stdout: '', stderr: '' });
  whiteoutSync(join(layer, 'gone'));
  t.deepEqual(await overlayfs('check', layer), { code: 0, stdout: '', stderr: '' });
  const found = await overlayfs('check', '--lower', join(dir, 'base'), layer);
  t.is(found.code, 1);
  t.regex(found.stdout, /^gone: a whiteout hides nothing.* To mend it: remove it\.\n$/);
  t.like(await json('check', '--lowest', layer), { code: 1 });
  t.regex((await overlayfs('du', layer)).stdout, /^\d+\t3\t.*layer\n$/);
  t.like(await json('du', layer), { code: 0, document: { usage: [{ path: layer, inodes: 3 }] } });
  const mixed = await overlayfs('du', layer, join(dir, 'none'));
  t.is(mixed.code, 1);
  t.regex(mixed.stdout, /layer\n$/);
  t.regex(mixed.stderr, /none/);
});

mountTest('wrong command lines are told as such', async (t) => {
  const dir = scratch(t);
  for (const args of [
    ['changes'],
    ['du'],
    ['check'],
    ['lookup', dir],
    ['lookup', dir, 'a'],
    ['check', dir, dir],
    ['check', '--lowest', '--lower', dir, dir],
  ]) {
    t.is((await overlayfs(...args)).code, 2, args.join(' '));
  }
});

mountTest('merge exits with 1 for conflicts that nothing decides, also for a dry run', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/f\tile': 'ours', 'base/f\tile': 'base' });
  const at = (name: string): string => join(dir, name);
  writeFileSync(at('since'), (await overlayfs('baseline', at('base'))).stdout);
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
