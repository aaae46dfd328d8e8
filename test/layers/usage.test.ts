/** The space that a tree takes, as snapshots count it. */
import { execFileSync } from 'node:child_process';
import { linkSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { run } from '#lib/kernel/task.js';
import { measure } from '#lib/layers/usage.js';
import { generator, kernelTest, scratch } from '../support/index.js';
import { changeTree } from './random-tree.js';

const usageOf = (dir: string) => run(measure(dir));

kernelTest('the count goes on when directories are removed meanwhile', async (t) => {
  const dir = scratch(t);
  const names = Array.from({ length: 300 }, (_, i) => join(dir, `${i}`));
  for (const name of names) mkdirSync(name);
  for (let round = 0; round < 20; round++) {
    let isDone = false;
    const usage = usageOf(dir).finally(() => {
      isDone = true;
    });
    for (let i = 0; !isDone; i++) {
      const name = names[i % names.length] as string;
      rmSync(name, { recursive: true });
      mkdirSync(name);
      if (i % 10 === 0) await new Promise(setImmediate);
    }
    t.true((await usage).inodes >= 1);
  }
});

kernelTest('the count is that of du', async (t) => {
  for (const kind of ['tmpfs', 'disk'] as const) {
    const dir = scratch(t, kind);
    changeTree(dir, generator(7), 300);
    const count = (...options: string[]): number =>
      Number(execFileSync('du', ['-s', '-x', ...options, dir], { encoding: 'utf8' }).split('\t')[0]);
    const expected = { bytes: count('-B1'), inodes: count('--inodes') };
    t.deepEqual(await usageOf(dir), expected);
  }
});

test('an inode counts once, and a sparse file by its blocks', async (t) => {
  const dir = scratch(t, 'disk');
  const before = await usageOf(dir);
  writeFileSync(join(dir, 'file'), 'x'.repeat(10_000));
  const once = await usageOf(dir);
  linkSync(join(dir, 'file'), join(dir, 'link'));
  execFileSync('truncate', ['-s', '1G', join(dir, 'sparse')]);
  t.is(once.inodes, before.inodes + 1);
  t.is((await usageOf(dir)).inodes, before.inodes + 2);
  t.true((await usageOf(dir)).bytes < once.bytes + 2 ** 20);
});
