/** A process ends at any moment: what it has acknowledged is there, what it has begun is done or not, nothing else. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Snapshotter, type SnapshotterOptions } from 'overlayfs/snapshots';
import { generator, isLong, scaled, scratch } from '../support/index.js';
import { checkRoot, type FoundRoot } from './check-root.js';
import type { Line } from './load.js';

/** Few by default, since each round starts processes. */
const ROUNDS = isLong ? scaled(1_000) : 6;

const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

class Load {
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  #output = '';
  #errors = '';

  constructor(root: string, name: string, number: number, callers: number, options: SnapshotterOptions) {
    const args = [join(import.meta.dirname, 'load.js'), root, name, `${number}`, `${callers}`, JSON.stringify(options)];
    this.#child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#closed = once(this.#child, 'close');
    this.#child.stdout?.setEncoding('utf8').on('data', (text) => (this.#output += text));
    this.#child.stderr?.setEncoding('utf8').on('data', (text) => (this.#errors += text));
  }

  /** Waits until it has opened the root. */
  async begun(): Promise<void> {
    while (!this.#output.includes('\n') && this.#child.signalCode === null) {
      if (this.#child.exitCode !== null) throw new Error(`the load has ended: ${this.#errors}`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }

  async kill(): Promise<Line[]> {
    const wasRunning = this.#child.exitCode === null;
    this.#child.kill('SIGKILL');
    await this.#closed;
    if (!wasRunning) throw new Error(`the load has ended: ${this.#errors}`);
    return toLines(this.#output);
  }
}

/** A line that was cut off says nothing that was acknowledged. */
const toLines = (output: string): Line[] =>
  output
    .slice(0, output.lastIndexOf('\n') + 1)
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));

type State = 'active' | 'committed' | 'none';

/** For each key, the states that it may be in. */
function expectStates(states: Map<string, readonly State[]>, lines: readonly Line[]): void {
  const pending = new Map<string, Line>();
  const set = ({ verb, key, name }: Line, isCertain: boolean): void => {
    const change = (changed: string, state: State) => {
      const before = states.get(changed) ?? ['none'];
      states.set(changed, isCertain ? [state] : [...before, state]);
    };
    if (verb === 'prepare') change(key, 'active');
    if (verb === 'remove') change(key, 'none');
    if (verb === 'commit') {
      change(key, 'none');
      change(name as string, 'committed');
    }
  };
  for (const line of lines) {
    pending.delete(line.caller);
    if (line.state === 'begun') pending.set(line.caller, line);
    if (line.state === 'done') set(line, true);
  }
  for (const line of pending.values()) set(line, false);
}

function checkStates(t: ExecutionContext, states: ReadonlyMap<string, readonly State[]>, found: FoundRoot): void {
  for (const [key, possible] of states) {
    const state = found.records.get(key)?.kind ?? 'none';
    if (!possible.includes(state as State)) t.fail(`${key} is ${state}, and should be ${possible.join(' or ')}`);
  }
  for (const name of found.records.keys()) if (!states.has(name)) t.fail(`nobody has made ${name}`);
}

/** Checks what a crash has left, cleans up, and checks again. Returns the states as they are now. */
async function inspect(
  t: ExecutionContext,
  root: string,
  states: ReadonlyMap<string, readonly State[]>,
  options: SnapshotterOptions,
): Promise<Map<string, readonly State[]>> {
  const before = await checkRoot(root, false);
  t.deepEqual(before.problems, []);
  checkStates(t, states, before);
  const snapshotter = await Snapshotter.open(root, options);
  try {
    t.deepEqual((await snapshotter.cleanup()).kept, []);
  } finally {
    await snapshotter.close();
  }
  const after = await checkRoot(root, true);
  t.deepEqual(after.problems, []);
  checkStates(t, states, after);
  t.is(after.records.size, before.records.size);
  return new Map([...states.keys()].map((key) => [key, [(after.records.get(key)?.kind ?? 'none') as State]]));
}

for (const asyncRemove of [false, true]) {
  test.serial(
    `SIGKILL at random moments, two processes on one root${asyncRemove ? ', asyncRemove' : ''}`,
    async (t) => {
      t.timeout(3_600_000);
      t.log(`seed ${seed}, ${ROUNDS / 2} rounds`);
      const random = generator(seed);
      const root = join(scratch(t, 'disk'), 'root');
      const options = { asyncRemove, fsync: 'none' } as const;
      let states = new Map<string, readonly State[]>();
      for (let round = 0; round < ROUNDS / 2; round++) {
        const loads = ['a', 'b'].map((name, i) => new Load(root, name, seed + round * 2 + i, 4, options));
        const sleep = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));
        await Promise.race(loads.map((load) => load.begun()));
        const lines: Line[][] = [];
        for (const load of loads) {
          await sleep(random(1000) / 5);
          lines.push(await load.kill());
        }
        for (const those of lines) expectStates(states, those);
        states = await inspect(t, root, states, options);
        if (!t.passed) return t.fail(`round ${round} of seed ${seed}`);
      }
      return undefined;
    },
  );
}

// -------------------------------------------------------------------------------- each system call cut off once

/** Each verb, with a parent, a mapped owner, a refusal and a stray directory to clean up. */
const script = `
import { writeSync } from 'node:fs';
import { Snapshotter } from 'overlayfs/snapshots';
const [root, how] = process.argv.slice(2);
const snapshotter = await Snapshotter[how](root, { fsync: 'all' });
const say = (verb, key, state, name) => writeSync(1, JSON.stringify({ caller: 'c', verb, key, state, name }) + '\\n');
async function attempt(verb, key, run, name) {
  say(verb, key, 'begun', name);
  try { await run(); say(verb, key, 'done', name); } catch (error) { say(verb, key, 'refused', name); }
}
await attempt('prepare', 'a', () => snapshotter.prepare('a'));
await attempt('commit', 'a', () => snapshotter.commit('a', { name: 'A' }), 'A');
await attempt('prepare', 'b', () => snapshotter.prepare('b', 'A'));
await attempt('prepare', 'b', () => snapshotter.prepare('b', 'A'));
await attempt('remove', 'b', () => snapshotter.remove('b'));
await attempt('prepare', 'c', () => snapshotter.prepare('c', 'A'));
await attempt('cleanup', '', () => snapshotter.cleanup());
await attempt('close', '', () => snapshotter.close());
`;

const calls = [
  'mkdirat',
  'mkdir',
  'openat',
  'unlink',
  'fcntl',
  'openat2',
  'flock',
  'fchownat',
  'fsync',
  'fdatasync',
  'renameat2',
  'unlinkat',
  'pwrite64',
  'pwritev',
  'ftruncate',
  'write',
  'close',
];

/** The most times that a thread makes one of the calls. */
const MOST = 400;

const hasStrace = spawnSync('strace', ['-V']).status === 0;

const straceTest = hasStrace ? test.serial : test.serial.skip;

const cutOff = test.macro(async (t: ExecutionContext, how: 'open' | 'openBlocking') => {
  t.timeout(3_600_000);
  const dir = scratch(t);
  const file = join(import.meta.dirname, `script-${process.pid}-${how}.js`);
  writeFileSync(file, script);
  t.teardown(() => rmSync(file));
  const random = generator(seed);
  t.log(`seed ${seed}`);
  let kills = 0;
  // By default a third of the calls, as the seed chooses them, and only some of the moments.
  const chosen = isLong ? undefined : random(3);
  for (const [i, call] of calls.entries()) {
    if (chosen !== undefined && i % 3 !== chosen) continue;
    for (let when = 1; when < MOST; when += isLong ? 1 : 1 + random(call === 'close' ? 300 : 60)) {
      const root = join(mkdtempSync(join(dir, 'run-')), 'root');
      mkdirSync(root);
      const [output, log] = [join(root, '../output'), join(root, '../log')];
      const inject = `inject=${call}:signal=KILL:when=${when}`;
      const command = `exec strace -f -qq -o ${log} -e trace=${call} -e ${inject} ${process.execPath} ${file} ${root} ${how} > ${output}`;
      spawnSync('sh', ['-c', command]);
      const lines = toLines(readFileSync(output, 'utf8'));
      const isWhole = lines.some(({ verb, state }) => verb === 'close' && state === 'done');
      if (!isWhole) kills++;
      if (lines.length > 0) {
        const states = new Map<string, readonly State[]>();
        expectStates(states, lines);
        await inspect(t, root, states, {});
      } else {
        // It has not come to the first verb: whatever there is can be opened, for reading if it is a store already.
        const reading = Snapshotter.open(root, { readonly: true });
        await reading.then(
          (snapshotter) => snapshotter.close(),
          ({ code }) => t.true(['ENOENT', 'ERR_SNAPSHOT_NOT_FOUND'].includes(code), `${inject}: ${code}`),
        );
        await (await Snapshotter.open(root)).close();
        t.deepEqual((await checkRoot(root, true)).problems, []);
      }
      if (!t.passed) return t.fail(`${inject}, seed ${seed}`);
      rmSync(join(root, '..'), { recursive: true });
      if (isWhole) break;
    }
  }
  t.log(`${kills} kills`);
  return t.true(kills > 0);
});

straceTest('SIGKILL at each system call of a script (needs strace)', cutOff, 'open');
straceTest(
  'SIGKILL at each system call of a script that writes on its own thread (needs strace)',
  cutOff,
  'openBlocking',
);
