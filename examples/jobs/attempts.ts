/** `node attempts.js PROJECT COMMAND...`: each command has a copy; what the first good one did is kept. */
import { mountOverlay } from 'overlayfs';
import { merge } from 'overlayfs/layers';

const [project = '.', ...commands] = process.argv.slice(2);
const overlays = await Promise.all(commands.map(() => mountOverlay({ lowerdir: project, temporary: true })));
const ended = await Promise.all(overlays.map((overlay, i) => overlay.run('sh', ['-c', commands[i] ?? ''])));
const best = overlays[ended.findIndex(({ exitCode }) => exitCode === 0)];
if (best !== undefined) await merge(best, { into: project });
