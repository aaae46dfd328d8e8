/** `mount` and `ensure`: one builder for a name, whatever processes fail or are killed. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { listMountsSync } from 'overlayfs';
import { Snapshotter } from 'overlayfs/snapshots';
import { generator, mountTest, scaled, scratch } from '../support/index.js';
import { addDependency, asNobody, evaluateAs, giveTo } from '../support/plain-user.js';
import { checkRoot } from './check-root.js';

async function open(t: ExecutionContext): Promise<Snapshotter> {
  const snapshotter = await Snapshotter.open(join(scratch(t), 'root'), { fsync: 'none' });
  t.teardown(() => snapshotter.close());
  return snapshotter;
}

const write = 'echo "$0" > "$0"; rm -f gone; ls';

mountTest('mount: programs see a snapshot of any depth in their working directory, and change it', async (t) => {
  const snapshotter = await open(t);
  for (const [i, name] of ['one', 'two', 'three'].entries()) {
    await snapshotter.prepare(`${name} active`, ['', 'one', 'two'][i]);
    await using overlay = await snapshotter.mount(`${name} active`);
    const { stdout } = await overlay.run('sh', ['-ec', write, name], { check: true });
    t.is(stdout.split('\n').length - 1, i + 1);
    t.is(readFileSync(join(overlay.path, name), 'utf8'), `${name}\n`);
    await snapshotter.commit(`${name} active`, { name });
  }
  await snapshotter.view('view', 'three');
  await snapshotter.view('of one', 'one');
  await snapshotter.view('empty');
  for (const [key, names] of Object.entries({ view: ['one', 'three', 'two'], 'of one': ['one'], empty: [] })) {
    await using overlay = await snapshotter.mount(key);
    t.deepEqual(readdirSync(overlay.path).sort(), names);
    t.throws(() => writeFileSync(join(overlay.path, 'new'), ''), { code: 'EROFS' });
    const { exitCode, stdout } = await overlay.run('ls');
    t.deepEqual([exitCode, stdout.trim()], [0, names.join('\n')]);
  }
  await t.throwsAsync(snapshotter.mount('three'), { code: 'ERR_SNAPSHOT_FAILED_PRECONDITION' });
  await t.throwsAsync(snapshotter.mount('view', { options: [] } as object), { code: 'ERR_INVALID_ARG_VALUE' });
  t.deepEqual(listMountsSync({ type: 'overlay' }), []);
});

mountTest('ensure: makes once, says why it failed, and leaves nothing of that', async (t) => {
  const snapshotter = await open(t);
  const keys = async () => {
    const names: string[] = [];
    for await (const { name } of snapshotter.list()) names.push(name);
    return names;
  };
  t.is(await snapshotter.ensure('base', {}, (overlay) => overlay.run('sh', ['-c', write, 'base'])), 'base');
  t.is(await snapshotter.ensure('base', {}, () => t.fail('made again')), 'base');
  const failing = { code: 'ERR_PROGRAM_FAILED', message: /ended with 3/ };
  const parent = 'base';
  const bad = snapshotter.ensure('top', { parent }, (overlay) => overlay.run('sh', ['-c', 'echo why >&2; exit 3']));
  t.like(await t.throwsAsync(bad, failing), { exitCode: 3, stderr: 'why\n' });
  const error = new Error('mine');
  t.is(await t.throwsAsync(snapshotter.ensure('top', { parent }, () => Promise.reject(error))), error);
  t.deepEqual(await keys(), ['base']);
  await snapshotter.ensure('top', { parent, labels: { a: '1' } }, (overlay) => overlay.run('rm', ['base']));
  t.like(await snapshotter.stat('top'), { parent, labels: { a: '1' }, kind: 'committed' });
  await t.throwsAsync(
    snapshotter.ensure('top', {}, () => {}),
    { code: 'ERR_SNAPSHOT_FAILED_PRECONDITION', message: /parent 'base'/ },
  );
  await snapshotter.prepare('active');
  await t.throwsAsync(
    snapshotter.ensure('active', {}, () => {}),
    { code: 'ERR_SNAPSHOT_FAILED_PRECONDITION' },
  );
  for (const [name, options, make, code] of [
    ['', {}, () => {}, 'ERR_SNAPSHOT_INVALID_ARGUMENT'],
    ['new', { parent: 'none' }, () => {}, 'ERR_SNAPSHOT_NOT_FOUND'],
    ['new', { parents: 'base' }, () => {}, 'ERR_INVALID_ARG_VALUE'],
    ['new', {}, undefined, 'ERR_INVALID_ARG_TYPE'],
    ['new', { signal: AbortSignal.abort() }, () => {}, 'ABORT_ERR'],
  ] as const) {
    await t.throwsAsync(snapshotter.ensure(name, options as object, make as () => void), { code });
  }
  t.deepEqual(await keys(), ['active', 'base', 'top']);
});

mountTest('ensure: a plain user makes layers', (t) => {
  const dir = scratch(t);
  giveTo(dir);
  addDependency('@photostructure/sqlite');
  const body = `const { Snapshotter } = await import('overlayfs/snapshots');
    const snapshotter = await Snapshotter.open(args[0]);
    let parent;
    for (const name of ['a', 'b', 'c']) {
      parent = await snapshotter.ensure(name, { parent }, (overlay) => overlay.run('sh', ['-c', 'echo x > ' + name]));
    }
    await snapshotter.view('view', parent);
    const view = await snapshotter.mount('view');
    const { stdout } = await view.run('ls');
    await view.unmount();
    await snapshotter.close();
    return stdout;`;
  t.is(evaluateAs(asNobody, body, join(dir, 'root')), 'a\nb\nc\n');
});

mountTest('ensure: processes that fail and are killed at random have each name made by one', async (t) => {
  t.timeout(900_000);
  const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);
  const rounds = scaled(100, 5);
  t.log(`seed ${seed}, ${rounds} rounds`);
  const random = generator(seed);
  const dir = scratch(t);
  const root = join(dir, 'root');
  const problems: unknown[] = [];
  let [kills, failures, made] = [0, 0, 0];
  for (let round = 0; round < rounds && problems.length === 0; round++) {
    const marks = join(dir, `marks ${round}`);
    mkdirSync(marks);
    const start = (i: number) => {
      const child = fork(join(import.meta.dirname, 'builder.js'), [
        root,
        marks,
        `${round}`,
        `${seed + 10 * round + i}`,
      ]);
      child.on('message', (message: { failed?: string; made?: string; problem?: string }) => {
        if (message.failed !== undefined) failures++;
        if (message.made !== undefined) made++;
        if (message.problem !== undefined) problems.push(message.problem);
      });
      return child;
    };
    const children = [0, 1, 2, 3].map(start);
    const ends = children.map((child) => once(child, 'close'));
    await once(children[0] as (typeof children)[0], 'message');
    // The first is never killed, so that all names get made.
    for (const child of children.slice(1)) {
      if (random(2) === 0) continue;
      await sleep(random(60));
      if (child.kill('SIGKILL')) kills++;
    }
    for (const [code, signal] of await Promise.all(ends)) {
      if (code !== 0 && signal !== 'SIGKILL') problems.push(`a builder of round ${round} ended with ${code}`);
    }
    const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
    problems.push(...(await snapshotter.cleanup()).kept);
    await snapshotter.close();
    const found = await checkRoot(root, true);
    problems.push(...found.problems);
    for (const name of ['a', 'b', 'c'].map((each) => `${round} ${each}`)) {
      const record = found.records.get(name);
      const fs = join(root, 'snapshots', String(record?.id), 'fs');
      const [one, two] = ['one', 'two'].map((file) => readFileSync(join(fs, `${name} ${file}`), 'utf8'));
      if (record?.kind !== 'committed' || one !== two || one === '') problems.push(`${name}: ${one} ${two}`);
    }
    if (found.records.size !== 3 * (round + 1)) problems.push([...found.records.keys()].join());
    t.deepEqual(listMountsSync({ type: 'overlay' }), []);
  }
  t.log(`${kills} kills, ${failures} failures, ${made} made`);
  t.deepEqual(problems, [], `seed ${seed}`);
  t.true(made <= 3 * rounds && existsSync(root));
});
