/** Tables of mounts that are refused: on many file systems, each with its reason, its path, and what mends it. */
import test from 'ava';
import { hasFeature, mountTest } from '../support/index.js';
import { isPossible } from '../support/ways.js';
import { featureRows } from './failures/features.js';
import { fileSystemRows } from './failures/file-systems.js';
import { placeRows } from './failures/places.js';
import { processRows } from './failures/process.js';
import type { FailureRow } from './failures/row.js';
import { runFailure } from './failures/run.js';
import { runProcess } from './failures/run-process.js';
import { specialRows } from './failures/special.js';

const tables: Readonly<Record<string, readonly FailureRow[]>> = {
  'file systems': fileSystemRows,
  'special file systems': specialRows,
  features: featureRows,
  places: placeRows,
};

for (const [table, rows] of Object.entries(tables)) {
  for (const row of rows.filter(({ where }) => where === undefined || hasFeature(where))) {
    mountTest(`failures, ${table}: ${row.title}`, { needs: row.needs }, async (t) => {
      for (const way of (row.ways ?? ['as it comes', 'by mount(2)']).filter(isPossible)) await runFailure(t, row, way);
    });
  }
}

for (const row of processRows) {
  mountTest(`failures, processes: ${row.title}`, { needs: ['user namespaces', ...(row.needs ?? [])] }, (t) =>
    runProcess(t, row),
  );
}

test('each refused mount has what mends it, and a reason of its own', (t) => {
  const rows = [
    ...Object.values(tables)
      .flat()
      .map(({ title, expect, remedy, instead }) => ({ title, expect, mend: remedy ?? instead })),
    ...processRows,
  ];
  const without = rows.filter(({ mend }) => mend === undefined).map(({ title }) => title);
  t.deepEqual(without, []);
  t.deepEqual(
    rows.filter(({ expect }) => expect.error.reason === 'unexplained').map(({ title }) => title),
    [],
  );
  const named = rows.filter(({ expect }) => expect.error.reason !== 'explained');
  const reasons = new Set(named.map(({ expect }) => expect.error.reason));
  t.log(`${rows.length} rows, ${named.length} with one reason (${reasons.size} different ones), the others with any`);
});
