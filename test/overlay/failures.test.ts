/** Tables of mounts that are refused: on many file systems, each with its reason, its path, and what mends it. */
import { hasFeature, mountTest } from '../support/index.js';
import { ways } from '../support/ways.js';
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

function isPossible(way: string): boolean {
  const needs = ways[way]?.needs;
  return needs === undefined || hasFeature(needs);
}

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
