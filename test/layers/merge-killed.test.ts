/** A merge that is killed at any moment and called again ends with the same result. */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { mergeLayer } from 'overlayfs/layers';
import { generator, mountTest, scaled, scratch } from '../support/index.js';
import { look } from './look.js';
import { kinds, makeLayers } from './merged-layers.js';

const program = fileURLToPath(new URL('merge-and-die.js', import.meta.url));

/** Kills a merge after `wait` ms. Returns true if the merge was still running. */
function kill(args: readonly string[], wait: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.on('error', reject);
    child.stdout.on('data', (text) => {
      if (output === '') setTimeout(() => child.kill('SIGKILL'), wait);
      output += text;
    });
    child.on('close', () => resolve(!output.includes('done')));
  });
}

mountTest('a merge that is killed and called again gives what the mount shows', async (t) => {
  const dir = scratch(t, 'disk');
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
  const count = scaled(300);
  t.log(`seeds from ${first}`);
  let killed = 0;
  for (let seed = first; seed < first + count; seed++) {
    const random = generator(seed);
    const own = join(dir, String(seed));
    const options = kinds[seed % kinds.length] ?? {};
    const mode = seed % 2 === 0 ? 'copy' : 'move';
    const shown = makeLayers(own, generator(seed), options, { more: 300 });
    const [upper, target] = [join(own, 'upper'), join(own, 'target')];
    execFileSync('cp', ['-a', join(own, 'lower'), target]);
    // A merge that was killed after its last step is not called again: nothing tells a later call that it is complete.
    const isDone = (): boolean =>
      !existsSync(join(target, '.overlayfs-merge')) && isDeepStrictEqual(look(target), shown);
    for (let i = 0; i < 3 && !isDone(); i++) {
      if (await kill([upper, target, mode, i % 2 === 0 ? 'promise' : 'sync'], random(160) / 2)) killed++;
    }
    if (!isDone()) await mergeLayer(upper, target, { mode, root: true });
    const note = `seed ${seed} ${mode} ${JSON.stringify(options)}`;
    t.deepEqual(look(target), shown, note);
    t.false(existsSync(join(target, '.overlayfs-merge')), note);
    if (mode === 'move') t.deepEqual(readdirSync(upper), [], note);
    rmSync(own, { recursive: true });
  }
  t.log(`${killed} merges were killed before their end`);
  t.true(killed > 0);
});
