/** `node sandbox.js DIR COMMAND...`: a program without network changes at most 64 MiB, and one sees what. */
import { mountOverlay } from 'overlayfs';
import { changes, formatChange } from 'overlayfs/layers';

const [lowerdir = '.', command = 'true', ...args] = process.argv.slice(2);
await using overlay = await mountOverlay({ lowerdir, temporary: { size: 2 ** 26 } });
await overlay.run(command, args, { unshare: ['net', 'pid'], stdio: 'inherit', timeout: 60_000 });
for await (const change of changes(overlay)) console.log(formatChange(change));
