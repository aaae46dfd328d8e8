/** Part 1: one lower directory, one upper, and what the kernel does with them. */
import { appendFile, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isOpaque, mountOverlay, unmount, whiteout } from 'overlayfs';
import { remove } from 'overlayfs/layers';
import { Place } from './place.js';
import { mountsUnder, type Stage, showMountLine } from './stage.js';
import { check, code, explain, part, showBlocks, step } from './terminal.js';
import { tree } from './tree.js';

interface Scene extends Stage {
  readonly place: Place;
  /** The trees of these directories, beside each other. */
  readonly showTrees: (...names: string[]) => Promise<void>;
}

export async function walkTwoLayers(stage: Stage): Promise<void> {
  const place = new Place(join(stage.dir, 'two-layers'));
  const showTrees = async (...names: string[]): Promise<void> =>
    showBlocks(await Promise.all(names.map((name) => tree(place.at(name), stage))));
  const scenes = [fourDirectories, ownWhiteout, mount, newFile, deletion, copyUp, newDirectory, endOfMount];

  part('Part 1: two layers');
  for (const play of scenes) {
    stage.signal.throwIfAborted();
    await play({ ...stage, place, showTrees });
  }
}

async function fourDirectories({ place, showTrees }: Scene): Promise<void> {
  step('Four directories');
  explain(
    `An overlay is made of plain directories. lower is only ever read, upper takes every change, work is the
    kernel's own scratch space, and in merged the two layers will appear as one tree.`,
  );
  await place.makeDirectories('lower', 'upper', 'work', 'merged');
  for (const name of ['in_lower.txt', 'in_both.txt', 'deleted.txt', 'hidden.txt', 'dir/l.txt']) {
    await place.write(`lower/${name}`, 'from lower\n');
  }
  for (const name of ['in_upper.txt', 'in_both.txt', 'dir/u.txt']) {
    await place.write(`upper/${name}`, 'from upper\n');
  }
  await showTrees('lower', 'upper', 'work', 'merged');
  await place.checkNames('merged', []);
}

async function ownWhiteout({ place }: Scene): Promise<void> {
  step('A whiteout of our own');
  explain(
    `A layer says "there is no such file" by a character device with the numbers 0, 0. One that is made in upper
    before the mount hides the file of that name in lower.`,
  );
  code(`await whiteout('upper/hidden.txt')`);
  await whiteout(place.at('upper/hidden.txt'));
  await place.showLines('upper/hidden.txt');
  await place.checkWhiteout('upper/hidden.txt');
}

async function mount({ place, dir, signal, userxattr, showTrees }: Scene): Promise<void> {
  step('The mount');
  explain('The library makes the system calls itself. No mount program is run, here or anywhere below.');
  code(`await mountOverlay({ lowerdir: 'lower', upperdir: 'upper', workdir: 'work',`, `  target: 'merged' })`);
  await mountOverlay({
    lowerdir: place.at('lower'),
    upperdir: place.at('upper'),
    workdir: place.at('work'),
    target: place.at('merged'),
    signal,
  });
  await showTrees('lower', 'upper', 'merged');
  await place.checkNames('merged', ['deleted.txt', 'dir', 'in_both.txt', 'in_lower.txt', 'in_upper.txt']);
  await place.checkText('merged/in_lower.txt', 'from lower\n');
  await place.checkText('merged/in_upper.txt', 'from upper\n');
  await place.checkText('merged/in_both.txt', 'from upper\n');
  await place.checkNames('merged/dir', ['l.txt', 'u.txt']);
  await place.checkAbsent('merged/hidden.txt');
  await place.checkText('lower/hidden.txt', 'from lower\n');

  explain('The mount table of this process, /proc/self/mountinfo, has a line for it:');
  const mounts = mountsUnder(dir);
  mounts.forEach(showMountLine);
  check(
    'it is the only one of this walk',
    mounts.map(({ target }) => target),
    [place.at('merged')],
  );
  const [, options = ''] = mounts[0]?.line.split(' - overlay ') ?? [];
  check('the file system is an overlay, with our upper', options.includes('/two-layers/upper'));
  if (userxattr) {
    check('userxattr is there by itself: marks that one may set in a user namespace', options.includes('userxattr'));
  }
}

async function newFile({ place }: Scene): Promise<void> {
  step('A new file');
  explain('What is written in merged lands in upper.');
  code(`await writeFile('merged/new.txt', 'new\\n')`);
  await writeFile(place.at('merged/new.txt'), 'new\n');
  await place.showLines('merged/new.txt', 'upper/new.txt');
  await place.checkText('upper/new.txt', 'new\n');
  await place.checkAbsent('lower/new.txt');
}

async function deletion({ place, showTrees }: Scene): Promise<void> {
  step('A deletion');
  explain('A file of lower cannot be taken from there. The kernel puts a whiteout in upper, like ours above.');
  code(`await rm('merged/deleted.txt')`);
  await rm(place.at('merged/deleted.txt'));
  await place.showLines('lower/deleted.txt', 'upper/deleted.txt');
  await place.checkAbsent('merged/deleted.txt');
  await place.checkWhiteout('upper/deleted.txt');
  await place.checkText('lower/deleted.txt', 'from lower\n');
  await showTrees('lower', 'upper', 'merged');
}

async function copyUp({ place }: Scene): Promise<void> {
  step('A change: copy-up');
  explain('When a file of lower is opened for writing, the kernel first copies the whole of it to upper.');
  await place.checkAbsent('upper/in_lower.txt');
  code(`await appendFile('merged/in_lower.txt', 'and more\\n')`);
  await appendFile(place.at('merged/in_lower.txt'), 'and more\n');
  await place.showLines('lower/in_lower.txt', 'upper/in_lower.txt', 'merged/in_lower.txt');
  await place.checkText('lower/in_lower.txt', 'from lower\n');
  await place.checkText('upper/in_lower.txt', 'from lower\nand more\n');
  await place.checkText('merged/in_lower.txt', 'from lower\nand more\n');
}

async function newDirectory({ place, userxattr, showTrees }: Scene): Promise<void> {
  step('A directory removed');
  explain('A directory goes like a file. What upper had in it is gone, what lower has is behind one whiteout.');
  code(`await rm('merged/dir', { recursive: true })`);
  await rm(place.at('merged/dir'), { recursive: true });
  await place.showLines('lower/dir', 'upper/dir');
  await place.checkAbsent('merged/dir');
  await place.checkWhiteout('upper/dir');

  step('The directory made again');
  explain(
    `It must not show again what lower has in it, and where a directory is to be seen there can be no whiteout. The
    kernel marks the new one in upper as opaque, in an extended attribute.`,
  );
  code(`await mkdir('merged/dir')`);
  await mkdir(place.at('merged/dir'));
  await showTrees('lower', 'upper', 'merged');
  check(`isOpaque('upper/dir') says that it is`, await isOpaque(place.at('upper/dir'), { userxattr }));
  await place.checkNames('merged/dir', []);
  await place.checkNames('lower/dir', ['l.txt']);
}

async function endOfMount({ place, dir, showTrees }: Scene): Promise<void> {
  step('The unmount');
  explain('The changes stay in upper. In work the kernel leaves a directory of its own; remove takes both away.');
  await place.checkNames('work', ['work']);
  code(`await unmount('merged')`);
  await unmount(place.at('merged'));
  code(`await remove('work')`);
  await remove(place.at('work'));
  await showTrees('lower', 'upper', 'merged');
  check('the mount table has no line for it any more', mountsUnder(dir), []);
  await place.checkNames('merged', []);
  await place.checkAbsent('work');
  await place.checkText('upper/in_lower.txt', 'from lower\nand more\n');
}
