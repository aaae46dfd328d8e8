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
import { Model, type Outcome } from './model.js';
import { codeOf, openRoot, perform } from './verbs.js';

const STEPS = scaled(20_000);
const NAMES = 24;

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

function chooseStep(random: (below: number) => number): [verb: string, args: unknown[]] {
  // Names of all lengths around the one from which keys are digests.
  const name = () => {
    const i = random(NAMES);
    return i % 6 === 5 ? `${'n'.repeat(476 + (i >> 2))}${i}` : `name ${i}`;
  };
  const maybe = <T>(make: () => T, none: T): T => (random(3) > 0 ? make() : none);
  const labels = () => Object.fromEntries(Array.from({ length: random(3) }, () => [`l${random(4)}`, `${random(5)}`]));
  const options = maybe<object | undefined>(() => ({ labels: labels() }), undefined);
  switch (random(12)) {
    case 0:
    case 1:
      return ['prepare', [name(), maybe(name, ''), options]];
    case 2:
      return ['view', [name(), maybe(name, ''), options]];
    case 3:
    case 4:
      return ['commit', [name(), name(), { ...options, parent: random(3) === 0 ? name() : '' }]];
    case 5:
    case 6:
    case 7:
      return ['remove', [name()]];
    case 8:
      return [
        'update',
        [{ name: name(), labels: labels() }, maybe(() => [`labels.l${random(4)}`, 'labels'].slice(random(2)), [])],
      ];
    case 9:
      return ['stat', [name()]];
    case 10:
      return ['mounts', [name()]];
    default:
      return random(4) === 0 ? ['cleanup', []] : ['usage', [name()]];
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
  const plain = ({ name, kind, parent, labels }: Omit<SnapshotInfo, 'id' | 'created' | 'updated'>) => ({
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
      const expected = (model[verb as keyof Model] as (...args: unknown[]) => Outcome)(...args);
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
        const walk = await (isHere ? other.perform('walk', []) : performHere(here, 'walk', []));
        await compare(t, root, model, walk, false);
      }
    }
    await other.end();
    await here.close();
    here = await openRoot(root, options);
    t.deepEqual((await here.cleanup()).kept, []);
    const walk = await performHere(here, 'walk', []);
    await here.close();
    await compare(t, root, model, walk, true);
  });
}
