/** Mounts: run by root, on a machine of its own. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { findHolders, isWhiteout, mountOverlay, mountOverlaySync, spawn, whiteout } from 'overlayfs';

assert.equal(process.arch, 'arm64');
const dir = '/tmp/overlayfs';
for (const name of ['lower', 'base', 'merged']) mkdirSync(`${dir}/${name}`, { recursive: true });
writeFileSync(`${dir}/lower/file`, 'lower');
writeFileSync(`${dir}/lower/gone`, '');
const set = {
  lowerdir: [`${dir}/lower`, `${dir}/base`],
  upperdir: `${dir}/upper`,
  target: `${dir}/merged`,
  create: true,
};

const overlay = await mountOverlay(set);
writeFileSync(`${overlay.path}/file`, 'changed');
rmSync(`${overlay.path}/gone`);
assert.deepEqual(readdirSync(overlay.path), ['file']);
assert.equal(readFileSync(`${dir}/lower/file`, 'utf8'), 'lower');
assert.equal(await isWhiteout(`${dir}/upper/gone`), true);
assert.equal((await overlay.effective()).lowerdir.length, 2);

const child = spawn('cat', [`${dir}/base/file`], {
  mounts: [{ source: overlay, target: `${dir}/base` }],
  stdio: ['ignore', 'pipe', 'inherit'],
});
let printed = '';
child.stdout.on('data', (data) => {
  printed += data;
});
await once(child, 'close');
assert.equal(printed, 'changed');

const holder = spawn('sleep', ['60'], { mounts: [{ source: overlay, target: `${dir}/base` }], cwd: `${dir}/base` });
await new Promise((resolve) => setTimeout(resolve, 2000));
assert.ok((await findHolders(overlay, { timeout: 60_000 })).holders.some(({ pid }) => pid === holder.pid));
holder.kill();
await once(holder, 'close');
await overlay.unmount();
assert.deepEqual(readdirSync(`${dir}/merged`), []);

await assert.rejects(mountOverlay({ ...set, lowerdir: `${dir}/none` }), { reason: 'lower-missing' });
const view = mountOverlaySync({ lowerdir: [`${dir}/upper`, `${dir}/lower`], rootless: 'auto' });
assert.deepEqual(readdirSync(view.path), ['file']);
view.unmountSync();
await whiteout(`${dir}/upper/file`, { replace: true });
assert.equal(await isWhiteout(`${dir}/upper/file`), true);
console.log('ok - mount, copy-up, whiteouts, spawn, holders, unmount, errors');
