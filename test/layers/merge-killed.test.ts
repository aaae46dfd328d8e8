/** A merge that is killed at any moment and called again ends with the same result. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import type { OverlayError } from 'overlayfs';
import { merge } from 'overlayfs/layers';
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

mountTest('a merge that is killed and called again, in either mode, gives what the mount shows', async (t) => {
  t.timeout(3_600_000);
  const dir = scratch(t, 'disk');
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
  const count = scaled(scaled(300), 8);
  t.log(`seeds from ${first}`);
  let killed = 0;
  // A seed may meet no kill.
  for (let seed = first; seed < first + count || killed === 0; seed++) {
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
    let last: string = mode;
    for (let i = 0; i < 3 && !isDone(); i++) {
      // Every third seed goes on in the other mode.
      last = seed % 3 === 0 && i % 2 === 1 ? (mode === 'copy' ? 'move' : 'copy') : mode;
      if (await kill([upper, target, last], random(160) / 2)) killed++;
    }
    if (!isDone()) {
      last = mode;
      await merge(upper, { into: target, move: mode === 'move', root: true }).catch((error: OverlayError) => {
        // A copy does not finish a move that has separated hard links.
        if (mode === 'move' || error.reason !== 'layers-incomplete') throw error;
        last = 'move';
        return merge(upper, { into: target, move: true, root: true });
      });
    }
    const note = `seed ${seed} ${mode} ${JSON.stringify(options)}`;
    t.deepEqual(look(target), shown, note);
    t.false(existsSync(join(target, '.overlayfs-merge')), note);
    if (last === 'move') t.deepEqual(readdirSync(upper), [], note);
    rmSync(own, { recursive: true });
  }
  t.log(`${killed} merges were killed before their end`);
  t.true(killed > 0);
});

/** The calls by which a merge changes the directory and the upper, as strace knows them. */
const calls = [
  'mkdirat',
  'linkat',
  'symlinkat',
  'mknodat',
  'openat',
  'renameat2',
  'unlinkat',
  'fchownat',
  'lsetxattr',
  'lremovexattr',
  'utimensat',
];

// A kill at a random time rarely meets the first and the last calls.
mountTest('a merge that is killed at a system call and called again gives the same', { needs: 'strace' }, async (t) => {
  t.timeout(3_600_000);
  const dir = scratch(t);
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
  t.log(`seeds from ${first}`);
  let killed = 0;
  for (let seed = first; seed < first + scaled(scaled(300), 8) || killed === 0; seed++) {
    const random = generator(seed);
    const own = join(dir, String(seed));
    const options = kinds[random(kinds.length)] ?? {};
    const mode = (['copy', 'move'] as const)[random(2)] ?? 'copy';
    const shown = makeLayers(own, random, options);
    const [upper, target] = [join(own, 'upper'), join(own, 'target')];
    execFileSync('cp', ['-a', join(own, 'lower'), target]);
    let isDone = false;
    while (!isDone && random(4) > 0) {
      const call = calls[random(calls.length)] ?? '';
      const inject = `inject=${call}:signal=KILL:when=${1 + random(random(3) === 0 ? 60 : 8)}`;
      const args = ['-f', '-qq', '-o', '/dev/null', '-e', `trace=${call}`, '-e', inject];
      const command = [...args, process.execPath, program, upper, target, mode];
      // A process that collects coverage makes calls after the merge.
      const { signal, stdout } = spawnSync('strace', command, { encoding: 'utf8' });
      isDone = stdout.includes('done');
      if (!isDone && t.is(signal, 'SIGKILL', `seed ${seed}`)) killed++;
      t.log(`seed ${seed} ${mode} ${JSON.stringify(options)}: ${inject}, ${isDone ? 'done' : 'killed'}`);
    }
    if (!isDone) await merge(upper, { into: target, move: mode === 'move', root: true });
    t.deepEqual(look(target), shown, `seed ${seed}`);
    if (mode === 'move') t.deepEqual(readdirSync(upper), [], `seed ${seed}`);
    if (!t.passed) return;
    rmSync(own, { recursive: true });
  }
  t.log(`${killed} kills`);
  t.true(killed > 0);
});
