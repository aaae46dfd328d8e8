/**
 * A process that makes a chain of snapshots beside others, and fails at random. Arguments: the root, a directory for
 * marks, a prefix of the names, a seed. It reports a name that two make at a time, or that is made again.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { OverlayMount } from 'overlayfs';
import { Snapshotter } from 'overlayfs/snapshots';
import { generator } from '../support/random.js';

const [root = '', marks = '', prefix = '', seed = ''] = process.argv.slice(2);
const random = generator(Number(seed));
const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
const send = (message: object): unknown => process.send?.(message);
send({});

function isAlive(pid: number): boolean {
  try {
    // A killed one that nobody has waited for yet is dead.
    return !readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ');
  } catch {
    return false;
  }
}

async function make(name: string, overlay: OverlayMount): Promise<unknown> {
  const busy = join(marks, `busy ${name}`);
  if (existsSync(join(marks, `done ${name}`))) send({ problem: `${name} is made again` });
  const other = existsSync(busy) ? Number(readFileSync(busy, 'utf8')) : 0;
  if (other !== 0 && isAlive(other)) send({ problem: `${other} and ${process.pid} make ${name}` });
  writeFileSync(busy, `${process.pid}`);
  try {
    writeFileSync(join(overlay.path, `${name} one`), `${process.pid}`);
    await sleep(random(20));
    if (random(5) === 0) throw new Error('at random');
    const script = `printf ${process.pid} > "$0 two"; exit ${random(6) === 0 ? 1 : 0}`;
    return await overlay.run('sh', ['-c', script, name]);
  } finally {
    rmSync(busy);
  }
}

let parent = '';
for (const each of ['a', 'b', 'c']) {
  const name = `${prefix} ${each}`;
  for (;;) {
    let isOwn = false;
    try {
      const below = parent;
      parent = await snapshotter.ensure(name, { parent: below }, (overlay) => {
        isOwn = true;
        return make(name, overlay);
      });
      if (isOwn) writeFileSync(join(marks, `done ${name}`), '');
      send(isOwn ? { made: name } : {});
      break;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== 'ERR_PROGRAM_FAILED' && message !== 'at random') send({ problem: `${code} ${message}` });
      send({ failed: name });
    }
  }
}
await snapshotter.close();
process.disconnect?.();
