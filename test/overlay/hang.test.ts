/** A file system that does not answer: the look is given up, and the error comes all the same. */
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay } from 'overlayfs';
import { layers, mountTest, native, scratch } from '../support/index.js';

const O_RDWR = 2;
const MNT_FORCE_DETACH = 3;

/** A FUSE file system whose server has opened the door and says nothing. */
function mountSilent(target: string): () => void {
  const server = openSync('/dev/fuse', O_RDWR);
  const data = `fd=${server},rootmode=40000,user_id=0,group_id=0`;
  const errno = native.mount('silent', target, 'fuse', 0, data);
  if (errno !== 0) throw new Error(`no FUSE: errno ${errno}`);
  return () => {
    native.umount(target, MNT_FORCE_DETACH);
    closeSync(server);
  };
}

mountTest('a diagnosis does not wait for a file system that hangs', { needs: 'FUSE' }, async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  mkdirSync(join(dir, 'silent'));
  const end = mountSilent(join(dir, 'silent'));
  try {
    const lowerdir = [options.lowerdir, join(dir, 'silent')];
    const error = await t.throwsAsync(mountOverlay({ ...options, lowerdir, target: join(dir, 'none') }));
    t.like(error, { code: 'ENOENT', reason: 'target-missing', path: join(dir, 'none') });
  } finally {
    end();
  }
});
