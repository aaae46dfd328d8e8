/** Another process removes a layer or the workdir at a random moment of a mount. */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { mountOverlay, mountOverlaySync, OverlayError, type OverlayMount } from 'overlayfs';
import { generator, mountsBelow, mountTest, scaled, scratch } from '../support/index.js';

/** Removes the path of each line after some µs, by rm(1)'s calls or by remove. */
const remover = `
  import { rmSync } from 'node:fs';
  import { createInterface } from 'node:readline';
  const { remove } = await import(process.argv[1]);
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) {
    const [path, delay, isPlain] = JSON.parse(line);
    for (const end = performance.now() + delay / 1000; performance.now() < end; );
    try { isPlain ? rmSync(path, { recursive: true }) : await remove(path); } catch {} // it is mounted by now
    console.log('done');
  }`;

mountTest('a layer that is removed during a mount is named, or the mount shows all the others', async (t) => {
  t.timeout(600_000);
  const dir = scratch(t, 'disk');
  const at = (...names: string[]): string => join(dir, ...names);
  const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
  const random = generator(seed);
  const layers = new URL('../../lib/layers/index.js', import.meta.url).href;
  const child = spawn(process.execPath, ['--input-type=module', '-e', remover, layers], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill());
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  const lowers = ['l0', 'l1', 'l2'];
  const names = [...lowers, 'upper', 'work', 'target'];
  const counts = { mounted: 0, failed: 0, between: 0 };
  for (let i = 0; i < scaled(1000, 40); i++) {
    for (const name of names) mkdirSync(at(name));
    for (const name of lowers) writeFileSync(at(name, `file-${name}`), name);
    const victim = names[random(5)] as string;
    child.stdin.write(`${JSON.stringify([at(victim), random(1500), random(2) === 0])}\n`);
    for (const end = performance.now() + 0.3; performance.now() < end; );
    const [upperdir, workdir, target] = ['upper', 'work', 'target'].map((name) => at(name)) as [string, string, string];
    const options = { lowerdir: lowers.map((name) => at(name)), upperdir, workdir, target };
    let mounted: OverlayMount | undefined;
    try {
      mounted = random(2) === 0 ? mountOverlaySync(options) : await mountOverlay(options);
      counts.mounted++;
    } catch (error) {
      if (!t.true(error instanceof OverlayError)) return;
      const { reason, path, message } = error as OverlayError;
      const role = lowers.includes(victim) ? 'lower' : victim;
      const expected = [`${role}-missing`, 'work-removed', 'layer-changed'];
      t.true(expected.includes(reason), `seed ${seed}, ${i}, ${victim}: ${reason}: ${message}`);
      counts.failed++;
      if (reason === 'layer-changed') counts.between++;
      else t.is(path, at(victim));
      t.deepEqual(mountsBelow(dir), []);
    }
    await lines.next();
    if (mounted !== undefined) {
      for (const name of lowers) if (name !== victim) t.true(existsSync(at('target', `file-${name}`)), `seed ${seed}`);
      mounted.unmountSync();
    }
    for (const name of names) rmSync(at(name), { recursive: true, force: true });
  }
  t.log(`seed ${seed}`, counts);
});
