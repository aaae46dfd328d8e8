/**
 * The bench: what the library takes beside the bare system calls, from C, on the same directories.
 *
 *   npm run bench -- [--quick | --once] [--only TEXT] [--json] [--check]
 *
 * `--quick` takes less time for each row. With `--once` each row runs, with a hundredth of its files, mounts and
 * snapshots: the figures mean nothing. `--only` leaves the rows whose first three columns, with a space between them,
 * contain the text. `--json` prints one document. With `--check` the exit code is 1 when a bound is exceeded, which
 * otherwise is just shown.
 */
import { parseArgs } from 'node:util';
import { type Enclosure, enclosure, runEnclosed } from './enclosure.js';
import type { Effort } from './interleave.js';
import type { Row } from './kind.js';
import { measure } from './measure.js';
import { Peers } from './peers.js';
import { rows } from './rows.js';
import { Stage } from './stage.js';
import { footerText, headerText, type Measured, resultText, skippedText, toJson } from './table.js';

const { values: flags } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    once: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
    json: { type: 'boolean', default: false },
    check: { type: 'boolean', default: false },
  },
});

const efforts = {
  once: { blocks: 1, seconds: 0.05, cycles: 100, share: 0.01 },
  quick: { blocks: 3, seconds: 0.3, cycles: 1_000, share: 1 },
  whole: { blocks: 15, seconds: 5, cycles: 10_000, share: 1 },
} as const satisfies Record<string, Effort>;
const effort: Effort = efforts[flags.once ? 'once' : flags.quick ? 'quick' : 'whole'];

function isWanted({ kind, fileSystem, spinner }: Row): boolean {
  return `${kind.what} ${fileSystem} ${spinner ? 'busy' : 'idle'}`.includes(flags.only);
}

async function run(enclosed: Enclosure): Promise<number> {
  const peers = new Peers(enclosed.directory);
  const stage = await Stage.setUp(enclosed, effort);
  const measured: Measured[] = [];
  const print = (text: string): void => {
    if (!flags.json) console.log(text);
  };

  const measureOrSkip = async (row: Row): Promise<Measured> => {
    const missing =
      stage.missing.get(row.fileSystem) ??
      (row.kind.needs && peers.lacks(row.kind.needs)) ??
      (row.spinner && enclosed.otherCpu === undefined ? 'this process may use one CPU only' : undefined);
    return { row, result: missing ?? (await measure(row, stage, peers, effort)) };
  };

  try {
    print(headerText());
    for (const row of rows.filter(isWanted)) {
      const one = await measureOrSkip(row);
      measured.push(one);
      print(typeof one.result === 'string' ? skippedText(row, one.result) : resultText(row, one.result));
    }
    if (flags.json) console.log(toJson(measured));
    print(footerText);
  } finally {
    await stage.spin(false, peers.program);
    peers.stop();
  }
  const isOver = measured.some(({ result }) => typeof result !== 'string' && result.isOver);
  return flags.check && isOver ? 1 : 0;
}

const enclosed = enclosure();
process.exitCode = enclosed === undefined ? await runEnclosed(import.meta.url) : await run(enclosed);
