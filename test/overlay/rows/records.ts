/** A row against a record of what a kernel can do: what would be sent to it, or the error. */
import type { ExecutionContext } from 'ava';
import type { OverlayOptions } from 'overlayfs';
import { checkConflicts } from '#lib/features/conflicts.js';
import { checkOptions } from '#lib/options/check.js';
import { sentOptions } from '#lib/overlay/plan.js';
import { givenOptions, type RecordRow } from './row.js';
import { assertRefused } from './run.js';

export function runRecord(t: ExecutionContext, row: RecordRow): void {
  const options = givenOptions(row, '/dir') as unknown as OverlayOptions;
  let sent: string[];
  try {
    const checked = checkConflicts(checkOptions(options), row.record);
    sent = sentOptions(checked, row.record).map(([name, value]) => (value === null ? name : `${name}=${value}`));
  } catch (error) {
    if ('sent' in row.expect) {
      t.fail(String(error));
      return;
    }
    assertRefused(t, error, row.expect.error, row.title, '/dir');
    return;
  }
  if ('error' in row.expect) {
    t.fail(`should be refused, and this would be sent: ${sent.join(',')}`);
    return;
  }
  t.deepEqual(sent.sort(), [...row.expect.sent].sort());
}
