/**
 * Calls that need no privilege, run on another processor than the machine's. The emulation knows few new calls, and its
 * statx(2) returns no mount ids.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { features, isWhiteout, listMounts, mountOverlay, OverlayError } from 'overlayfs';
import { remove } from 'overlayfs/layers';

assert.equal(process.arch, 'arm64');
const dir = mkdtempSync('/tmp/overlayfs-arm64-');
try {
  const { release, overlay } = await features();
  assert.equal(release, readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim());
  assert.equal(typeof overlay, 'boolean');

  const mounts = await listMounts();
  assert.ok(mounts.some(({ target }) => target === '/'));

  mkdirSync(`${dir}/layer/below`, { recursive: true });
  writeFileSync(`${dir}/layer/below/file`, '');
  assert.equal(await isWhiteout(`${dir}/layer/below/file`), false);
  await remove(`${dir}/layer`);
  assert.throws(() => statSync(`${dir}/layer`), { code: 'ENOENT' });

  const options = { lowerdir: `${dir}/none`, upperdir: `${dir}/upper`, workdir: `${dir}/work`, target: dir };
  await assert.rejects(mountOverlay(options), (error) => OverlayError.is(error) && Number(error.errno) < 0);
  await assert.rejects(mountOverlay({ ...options, lowerdir: 3 as never }), { code: 'ERR_INVALID_ARG_TYPE' });

  // The launcher is a program: it refuses to do nothing.
  const launcher = new URL('./prebuilds/linux-arm64/overlayfs-launch', import.meta.url).pathname;
  assert.equal(readFileSync(launcher).readUInt16LE(18), 183); // EM_AARCH64
  const emulated = ['-L', '/usr/aarch64-linux-gnu', launcher, 'exec', 'true'];
  execFileSync('qemu-aarch64-static', emulated, { env: { PATH: process.env.PATH } });
} finally {
  rmSync(dir, { recursive: true, force: true });
}
console.log('ok - features, mount table, layers, errors, launcher');
