/** `node table.js`: prints the number of overlays that are mounted, whenever it changes. */
import { watchMounts } from 'overlayfs';

const mounted = new Set<number>();
for await (const { type, id } of watchMounts({ type: 'overlay', existing: true })) {
  if (type === 'mounted') mounted.add(id);
  if (type === 'unmounted') mounted.delete(id);
  console.log(mounted.size);
}
