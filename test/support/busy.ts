/**
 * A program, or a worker, that ends with mounts and unmounts under way. Arguments: the directory with the sets
 * 0 to 3, and a number from which the moment of the end is made.
 */
import { join } from 'node:path';
import { parentPort } from 'node:worker_threads';
import { mountOverlay, type OverlayOptions, unmount } from 'overlayfs';

const [dir = '', round = '0'] = process.argv.slice(2);
const sets = Array.from({ length: 4 }, (_, i): OverlayOptions => {
  const at = (name: string) => join(dir, String(i), name);
  return { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
});

// Each is undone when the end comes before its promise is kept; those that are kept are unmounted here.
const settled = sets.map(async (options) => {
  const mounted = await mountOverlay(options);
  mounted.unmountSync();
});
if (Number(round) % 2) void unmount(join(dir, '0/upper')).catch(() => {});
parentPort?.postMessage('under way');

const turns = Number(round) % 5;
for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate);
void Promise.allSettled(settled);
process.exit(0);
