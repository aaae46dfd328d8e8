/** Part 2: a root file system of six layers, made from files of this machine, and Node running in it. */
import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isOpaque, makeOpaque, mountOverlay, unmount, whiteout } from 'overlayfs';
import { runInside } from './chroot.js';
import { findNodeFiles, putFiles } from './machine.js';
import { Place } from './place.js';
import { closeStage, mountsUnder, type Stage, showMountLine } from './stage.js';
import { check, code, explain, output, part, shell, showBlocks, step } from './terminal.js';
import { tree } from './tree.js';

/** The topmost first, as `lowerdir` wants them. */
const LAYERS = ['6-app-v2', '5-tidy', '4-app-v1', '3-node', '2-libraries', '1-system'] as const;

/** The second version of the app. */
const APP = `const fs = require('node:fs');
console.log('app, version 2, of the user ' + process.getuid());
for (const dir of ['/', '/app', '/etc']) console.log(dir + ': ' + fs.readdirSync(dir).sort().join(' '));
fs.writeFileSync('/hello.txt', 'hello from inside\\n');
fs.appendFileSync('/etc/release', 'and one on top\\n');
`;

interface Scene extends Stage {
  readonly place: Place;
}

export async function walkContainer(stage: Stage): Promise<void> {
  const place = new Place(join(stage.dir, 'container'));
  part('Part 2: a container of six layers');
  for (const play of [sixLayers, hiding, mount, versionInside, appInside, removal]) {
    stage.signal.throwIfAborted();
    await play({ ...stage, place });
  }
}

async function sixLayers({ place }: Scene): Promise<void> {
  step('A root file system in pieces');
  explain(
    `The Node that runs this, its loader and the shared libraries that it is linked with go to the paths they have
    on this machine, but in three directories. Two more hold two versions of an app, and one will only tidy up.`,
  );
  const { program, loader, system, libraries } = findNodeFiles();
  await place.makeDirectories(...LAYERS);
  await putFiles(place.at('1-system'), system);
  await putFiles(place.at('2-libraries'), libraries);
  await putFiles(place.at('3-node'), [program]);
  await place.write('4-app-v1/etc/release', 'six layers\n');
  await place.write('4-app-v1/etc/motd', 'under construction\n');
  await place.write('4-app-v1/app/main.js', `console.log('app, version 1');\n`);
  await place.write('4-app-v1/app/old.js', '');
  await place.write('6-app-v2/app/main.js', APP);

  await place.showLines(...[program].map((path) => `3-node${path}`));
  const { size } = await stat(place.at(`3-node${program}`));
  check('it is as long as the one outside', size, (await stat(program)).size);
  if (loader !== undefined) {
    check(`${loader}, the loader that it asks for, is in 1-system`, existsSync(place.at(`1-system${loader}`)));
  }
}

async function hiding({ place, userxattr }: Scene): Promise<void> {
  step('A whiteout and an opaque directory');
  explain(
    `Layers can take away as well as add. The fifth hides a single file of the fourth. In the sixth, /app is marked
    as opaque: it replaces the older /app instead of being merged with it.`,
  );
  const options = userxattr ? ', { userxattr: true }' : '';
  code(`await whiteout('5-tidy/etc/motd')`, `await makeOpaque('6-app-v2/app'${options})`);
  await place.makeDirectories('5-tidy/etc');
  await whiteout(place.at('5-tidy/etc/motd'));
  await makeOpaque(place.at('6-app-v2/app'), { userxattr });
  showBlocks(await Promise.all(LAYERS.map((name) => tree(place.at(name), { userxattr }))));
  await place.checkWhiteout('5-tidy/etc/motd');
  check(`isOpaque('6-app-v2/app') says that it is`, await isOpaque(place.at('6-app-v2/app'), { userxattr }));
}

async function mount({ place, dir, signal, userxattr }: Scene): Promise<void> {
  step('The mount');
  explain('All six as lower layers, the topmost first, and a fresh upper: what the container changes goes there.');
  const names = LAYERS.map((name) => `'${name}'`);
  code(
    'await mountOverlay({',
    `  lowerdir: [${names.slice(0, 3).join(', ')},`,
    `             ${names.slice(3).join(', ')}],`,
    `  upperdir: 'upper', target: 'root', create: true })`,
  );
  await mountOverlay({
    lowerdir: LAYERS.map((name) => place.at(name)),
    upperdir: place.at('upper'),
    target: place.at('root'),
    // Makes upper, the upper.work that goes with it, and root.
    create: true,
    signal,
  });
  mountsUnder(dir).forEach(showMountLine);
  check(
    'the mount table has it',
    mountsUnder(dir).map(({ target }) => target),
    [place.at('root')],
  );
  showBlocks([await tree(place.at('root'), { userxattr })]);
  await place.checkAbsent('root/etc/motd');
  await place.checkText('root/etc/release', 'six layers\n');
  await place.checkNames('root/app', ['main.js']);
  check('root/app/main.js is that of the sixth layer', await readFile(place.at('root/app/main.js'), 'utf8'), APP);
  await place.checkNames('upper', []);
}

async function versionInside(scene: Scene): Promise<void> {
  step('Node inside');
  explain('Another root directory, and the kernel finds the program, its loader and its libraries in the layers.');
  const lines = await runNodeInside(scene, '--version');
  check('it is the version of the Node outside', lines, [process.version]);
}

async function appInside(scene: Scene): Promise<void> {
  const { place, userxattr } = scene;
  step('The app inside');
  explain('It looks around, writes a new file, and appends to one that is in the fourth layer.');
  const [first, , app, etc = ''] = await runNodeInside(scene, '/app/main.js');
  check('it is version 2, run as root', first, 'app, version 2, of the user 0');
  check('it sees nothing in /app of what version 1 had there', app, '/app: main.js');
  check('it sees the release in /etc, and no motd', [etc.includes(' release'), etc.includes(' motd')], [true, false]);

  explain('All that it wrote is in upper, and the layers are as they were:');
  showBlocks([await tree(place.at('upper'), { userxattr })]);
  await place.checkNames('upper', ['etc', 'hello.txt']);
  await place.checkText('upper/hello.txt', 'hello from inside\n');
  await place.checkNames('upper/etc', ['release']);
  await place.checkText('upper/etc/release', 'six layers\nand one on top\n');
  await place.checkText('4-app-v1/etc/release', 'six layers\n');
  const layersWithIt = LAYERS.filter((name) => existsSync(place.at(`${name}/hello.txt`)));
  check('no layer has a hello.txt', layersWithIt, []);
}

/** The lines that Node prints when it is run with the overlay as its root. */
async function runNodeInside({ place, signal }: Scene, argument: string): Promise<string[]> {
  shell(`chroot root ${process.execPath} ${argument}`);
  const finished = await runInside(place.at('root'), [process.execPath, argument], signal);
  const lines = finished.output.trimEnd().split('\n');
  output(lines);
  check('it ends well', finished.ended, 'exit status 0');
  return lines;
}

async function removal(scene: Scene): Promise<void> {
  step('Nothing stays');
  explain('With the mount gone, these are plain files again, to be removed as such.');
  code(`await unmount('root')`, `await rm('${scene.dir}', { recursive: true })`);
  await unmount(scene.place.at('root'));
  check('the mount table has no line for it any more', mountsUnder(scene.dir), []);
  closeStage(scene);
  check(`${scene.dir} is gone`, existsSync(scene.dir), false);
}
