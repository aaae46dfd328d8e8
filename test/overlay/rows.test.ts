/** Tables of mounts, each row with what comes of it: on this kernel, by a record of another one, in a user namespace. */
import test from 'ava';
import { type Feature, mountTest, optionNeeds } from '../support/index.js';
import { isPossible, ways } from '../support/ways.js';
import { attributeRows } from './rows/attributes.js';
import { conflictRows } from './rows/conflicts.js';
import { lifecycleRows } from './rows/lifecycle.js';
import { limitRows } from './rows/limits.js';
import { eachOptionRows } from './rows/options.js';
import { pathRows } from './rows/paths.js';
import { recordRows } from './rows/record-rows.js';
import { runRecord } from './rows/records.js';
import { allWays, type Row } from './rows/row.js';
import { runRow } from './rows/run.js';
import { structureRows } from './rows/structure.js';
import { runInUserNamespace } from './rows/user-namespace.js';
import { userRows } from './rows/user-rows.js';
import { valueRows } from './rows/values.js';

const tables: Readonly<Record<string, readonly Row[]>> = {
  options: eachOptionRows,
  conflicts: conflictRows,
  values: valueRows,
  structure: structureRows,
  'life cycle': lifecycleRows,
  limits: limitRows,
  paths: pathRows,
  attributes: attributeRows,
};

function needsOf({
  options,
  ways: own = allWays,
  needs: more = [],
}: Pick<Row, 'options' | 'ways' | 'needs'>): Feature[] {
  const needs = [...more, ...Object.keys(options).flatMap((name) => optionNeeds[name] ?? [])];
  return own.some(isPossible) ? needs : [...needs, ...own.flatMap((way) => ways[way]?.needs ?? [])];
}

for (const [table, rows] of Object.entries(tables)) {
  for (const row of rows) {
    // The library refuses wrong values before it asks the kernel.
    const needs = table === 'values' ? [] : needsOf(row);
    mountTest(`${table}: ${row.title}`, { needs }, async (t) => {
      for (const way of (row.ways ?? allWays).filter(isPossible)) await runRow(t, row, way);
    });
  }
}

for (const row of recordRows) test(`by a record: ${row.title}`, (t) => runRecord(t, row));

for (const row of userRows) {
  // userxattr came with overlays in user namespaces.
  mountTest(`in a user namespace: ${row.title}`, { needs: ['userxattr', ...needsOf(row)] }, (t) =>
    runInUserNamespace(t, row),
  );
}

test('there are 200 rows and more', (t) => {
  const counts = Object.entries(tables).map(([table, rows]) => [table, rows.length] as const);
  const all = [...counts, ['by a record', recordRows.length], ['in a user namespace', userRows.length]] as const;
  t.log(all.map(([table, count]) => `${table}: ${count}`).join(', '));
  t.true(all.reduce((sum, [, count]) => sum + Number(count), 0) >= 200);
});
