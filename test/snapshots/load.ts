/**
 * A mixed load on one root, to be killed at any moment. Arguments: the root, a name for this process, the seed, the number
 * of callers, the options as JSON. It writes a line when a verb begins and one when it has been acknowledged. Each caller
 * has keys of its own, and parents that all share.
 */
import { writeSync } from 'node:fs';
import type { SnapshotMount } from 'overlayfs/snapshots';
import { generator } from '../support/random.js';
import { codeOf, openRoot } from './verbs.js';

const [root = '', name = '', seed = '1', callers = '4', options = '{}'] = process.argv.slice(2);
const snapshotter = await openRoot(root, JSON.parse(options));

export interface Line {
  readonly caller: string;
  readonly verb: string;
  readonly key: string;
  /** The name, for a commit. */
  readonly name?: string;
  readonly state: 'begun' | 'done' | 'refused';
}

const say = (line: Line): void => {
  writeSync(1, `${JSON.stringify(line)}\n`);
};

async function attempt(
  caller: string,
  verb: string,
  key: string,
  run: () => Promise<unknown>,
  to?: string,
): Promise<void> {
  const line = { caller, verb, key, ...(to !== undefined && { name: to }) };
  say({ ...line, state: 'begun' });
  try {
    await run();
    say({ ...line, state: 'done' });
  } catch (error) {
    if (!codeOf(error).startsWith('ERR_SNAPSHOT_')) throw error;
    say({ ...line, state: 'refused' });
  }
}

async function call(number: number): Promise<never> {
  const random = generator(Number(seed) * 1000 + number);
  const caller = `${name}-${number}`;
  for (;;) {
    const key = `${caller}-${random(6)}`;
    const committed = `${key}-committed`;
    const parent = random(3) === 0 ? `${caller}-${random(6)}-committed` : '';
    const steps: readonly (() => Promise<void>)[] = [
      () => attempt(caller, 'prepare', key, (): Promise<SnapshotMount[]> => snapshotter.prepare(key, parent)),
      () => attempt(caller, 'commit', key, () => snapshotter.commit(key, { name: committed }), committed),
      () => attempt(caller, 'remove', key, () => snapshotter.remove(key)),
      () => attempt(caller, 'remove', committed, () => snapshotter.remove(committed)),
      () => attempt(caller, 'cleanup', '', () => snapshotter.cleanup()),
    ];
    const choice = random(40);
    await steps[choice === 0 ? 4 : choice % 4]?.();
  }
}

say({ caller: name, verb: 'open', key: '', state: 'done' });
await Promise.all(Array.from({ length: Number(callers) }, (_, i) => call(i)));
