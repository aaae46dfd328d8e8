/** `node build-cache.js ROOT COMMAND...`: builds in steps, each made once, and prints the name of the last. */
import { hash } from 'node:crypto';
import { Snapshotter } from 'overlayfs/snapshots';

await using cache = await Snapshotter.open(process.argv[2] ?? 'cache');
let parent = '';
for (const step of process.argv.slice(3))
  parent = await cache.ensure(hash('md5', parent + step), { parent }, (overlay) => overlay.run('sh', ['-ec', step]));
console.log(parent);
