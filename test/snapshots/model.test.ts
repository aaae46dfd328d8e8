/**
 * Random verbs on one root by this process and another one, compared with a plain model of the rules. Snapshotters are
 * closed and opened again in between.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { SnapshotInfo, Snapshotter } from 'overlayfs/snapshots';
import { generator, scaled, scratch } from '../support/index.js';
import { checkRoot } from './check-root.js';
import type { Reply } from './helper.js';
import { chooseStep, Model, type Outcome } from './model.js';
import { codeOf, openRoot, perform } from './verbs.js';

const STEPS = scaled(20_000);

/** The other process. */
class Other {
  readonly #child: ChildProcess;
  #last = 0;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static async start(root: string, options: object): Promise<Other> {
    const child = fork(join(import.meta.dirname, 'helper.js'), [root, JSON.stringify(options)], {
      serialization: 'advanced',
      execArgv: [],
    });
    await once(child, 'message');
    return new Other(child);
  }

  async perform(verb: string, args: readonly unknown[]): Promise<Outcome> {
    this.#child.send({ id: ++this.#last, verb, args });
    const [{ value, code }] = (await once(this.#child, 'message')) as [Reply];
    return code === undefined ? { value } : { code };
  }

  async end(): Promise<void> {
    await this.perform('close', []);
    this.#child.disconnect();
    await once(this.#child, 'exit');
  }
}

async function performHere(snapshotter: Snapshotter, verb: string, args: readonly unknown[]): Promise<Outcome> {
  try {
    return { value: await perform(snapshotter, verb, args) };
  } catch (error) {
    return { code: codeOf(error) };
  }
}

const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);

/** Compares all that can be seen with the model. */
async function compare(
  t: ExecutionContext,
  root: string,
  model: Model,
  walk: Outcome,
  isClean: boolean,
): Promise<void> {
  const expected = Array.from(model.records, ([name, record]) => ({ name, ...record })).sort(byName);
  const plain = ({
    name,
    kind,
    parent,
    labels,
  }: Omit<SnapshotInfo, 'id' | `${'created' | 'updated'}${'' | 'Ns'}`>) => ({
    name,
    kind,
    parent,
    labels,
  });
  const walked = (walk as { value: SnapshotInfo[] }).value;
  t.deepEqual(walked.map(plain).sort(byName), expected);
  const { records, problems } = await checkRoot(root, isClean);
  t.deepEqual(problems, []);
  t.deepEqual([...records.values()].map(plain).sort(byName), expected);
}

for (const asyncRemove of [false, true]) {
  test(`random verbs by two processes agree with the model${asyncRemove ? ', with asyncRemove' : ''}`, async (t) => {
    t.timeout(900_000);
    const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);
    t.log(`seed ${seed}`);
    const random = generator(seed);
    const root = join(scratch(t), 'root');
    const options = { asyncRemove, fsync: 'none' } as const;
    const model = new Model();
    let here = await openRoot(root, options);
    let other = await Other.start(root, options);
    const used = new Set<number>();
    for (let step = 0; step < STEPS / 2; step++) {
      const [verb, args] = chooseStep(random);
      const expected = model.perform(verb, args);
      const isHere = random(2) === 0;
      const outcome = await (isHere ? performHere(here, verb, args) : other.perform(verb, args));
      const shown = `step ${step} of seed ${seed}: ${verb} ${JSON.stringify(args).slice(0, 200)}`;
      const code = (result: Outcome) => ('code' in result ? result.code : undefined);
      if (code(outcome) !== code(expected)) {
        t.fail(`${shown}: ${JSON.stringify(outcome)} instead of ${JSON.stringify(expected)}`);
        break;
      }
      if ((verb === 'prepare' || verb === 'view') && code(outcome) === undefined) {
        const { id } = await here.stat(args[0] as string);
        if (used.has(id)) t.fail(`${shown}: the number ${id} was used before`);
        used.add(id);
      }
      if (random(STEPS / 20) === 0) {
        await here.close();
        here = await openRoot(root, options);
      }
      if (random(STEPS / 5) === 0) {
        await other.end();
        other = await Other.start(root, options);
      }
      if (step % 100 === 99) {
        const walk = await (isHere ? other.perform('list', []) : performHere(here, 'list', []));
        await compare(t, root, model, walk, false);
      }
    }
    await other.end();
    await here.close();
    here = await openRoot(root, options);
    t.deepEqual((await here.cleanup()).kept, []);
    const walk = await performHere(here, 'list', []);
    await here.close();
    await compare(t, root, model, walk, true);
  });
}
