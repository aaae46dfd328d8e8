/** The option `sync`: its calls, its words, and directories that their user may not read. */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { apply, merge, squash } from 'overlayfs/layers';
import { evaluateIn, makeTree, mountTest, scratch } from '../support/index.js';
import { evaluateAsNobody, giveTo } from '../support/plain-user.js';

mountTest('a plain user applies into a directory that it may write to and not read', (t) => {
  const dir = scratch(t);
  for (const name of ['place', 'merged']) mkdirSync(join(dir, name));
  makeTree(join(dir, 'source'), { 'a/b': 'x' });
  giveTo(dir, ...['place', 'merged', 'source', 'source/a', 'source/a/b'].map((name) => join(dir, name)));
  const body = `
    const [dir] = args;
    const { apply, pack, squash, merge } = await import('overlayfs/layers');
    fs.chmodSync(join(dir, 'place'), 0o300);
    await apply(pack(join(dir, 'source')), join(dir, 'place/applied'));
    await squash({ lowerdir: [join(dir, 'source')] }, { into: join(dir, 'merged/flat'), plain: true });
    await merge(join(dir, 'source'), { into: join(dir, 'merged') });
    return fs.existsSync(join(dir, 'place/applied/a/b')) && fs.existsSync(join(dir, 'merged/a/b'));`;
  t.is(evaluateAsNobody(body, dir), true);
});

test('sync takes two words, and names them', async (t) => {
  const message = /sync/;
  for (const call of [
    () => apply(Buffer.alloc(1024), '/nonexistent', { sync: 'all' as 'end' }),
    () => merge('/nonexistent', { into: '/nonexistent', sync: true as unknown as 'end' }),
    () => squash({ lowerdir: ['/nonexistent'] }, { into: '/nonexistent', plain: true, sync: '' as 'end' }),
  ]) {
    await t.throwsAsync(call, { message });
  }
  t.false(existsSync('/nonexistent'));
});

/** All that writes, with the same policy everywhere. Each gets directories of its own. */
const writing = `(async ([dir, sync]) => {
  const fs = await import('node:fs');
  const layers = await import('overlayfs/layers');
  const { commitImage, createImage, createLayout, unpack } = await import('overlayfs/images');
  const { Snapshotter } = await import('overlayfs/snapshots');
  const { execFileSync } = await import('node:child_process');
  const at = (name) => dir + '/' + name;
  const upper = (name) => (fs.cpSync(at('source'), at(name), { recursive: true }), at(name));
  const { pack } = layers;
  const options = { sync };
  await layers.apply(pack(at('source')), at('applied'), options);
  await layers.apply(pack(at('source')), at('existing'), options);
  await layers.squash({ lowerdir: [at('source')] }, { into: at('flat'), plain: true, ...options });
  await layers.squash({ upperdir: [at('source')] }, { into: at('squashed'), ...options });
  for (const move of [false, true])
    await layers.merge(upper(move ? 'move' : 'copy'), { into: at('existing'), ...options, move });
  const snapshotter = await Snapshotter.open(at('deep/store'), { fsync: sync === 'none' ? 'none' : 'all' });
  const layout = await createLayout(at('deep/layout'), options);
  const image = await createImage(layout, [pack(at('source'))], { tag: 'one' });
  const { chainId } = await unpack(image, snapshotter, options);
  await snapshotter.prepare('key', chainId);
  await commitImage(image, snapshotter, 'key', { tag: 'two' });
  await snapshotter.prepare('other');
  await snapshotter.commit('other', { name: 'name', ...options });
  await snapshotter.remove('name');
  await snapshotter.cleanup();
  await snapshotter.close();
  const given = ['--sync', sync];
  for (const args of [
    ['pack', ...given, '--layout', 'plain', at('source'), at('made.tar.gz')],
    ['apply', ...given, at('made.tar.gz'), at('command-applied')],
    ['squash', '--plain', ...given, at('source'), at('command-flat')],
    ['squash', ...given, at('source'), at('command-squashed')],
    ['merge', ...given, upper('command-upper'), at('existing')],
  ]) {
    execFileSync(process.execPath, ['dist/cli/main.js', ...args]);
  }
  return true;
})(args)`;

for (const sync of ['none', 'end'] as const) {
  mountTest(`sync '${sync}' in all that writes: the calls that sync`, { needs: ['strace'] }, (t) => {
    const dir = scratch(t);
    makeTree(join(dir, 'source'), { 'a/b': 'x', c: 'y' });
    mkdirSync(join(dir, 'existing'));
    const calls = 'trace=fsync,fdatasync,sync,syncfs,msync,sync_file_range';
    const trace = join(dir, 'trace');
    t.is(evaluateIn(['strace', '-f', '-qq', '-e', 'signal=none', '-e', calls, '-o', trace], writing, dir, sync), true);
    const made: readonly string[] = readFileSync(trace, 'utf8').match(/\b\w*sync\w*(?=\()/g) ?? [];
    if (sync === 'none') t.deepEqual(made, []);
    else t.true(made.includes('syncfs') && made.includes('fsync'));
  });
}
