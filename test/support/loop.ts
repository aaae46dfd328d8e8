/** A worker that mounts and unmounts, four at once. Arguments: the directory with the sets 0 to 3; how often. */
import { join } from 'node:path';
import { mountOverlay } from 'overlayfs';

const [dir = '', count = '0'] = process.argv.slice(2);
await Promise.all(
  Array.from({ length: 4 }, async (_, i) => {
    const at = (name: string) => join(dir, String(i), name);
    const options = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
    for (let n = i; n < Number(count); n += 4) await (await mountOverlay(options)).unmount();
  }),
);
