/** A row in a child that is root of a user namespace of its own: unshare(1). */
import { execFileSync } from 'node:child_process';
import { chmodSync } from 'node:fs';
import type { ExecutionContext } from 'ava';
import { evaluateIn, scratch, withUserAttributes } from '../../support/index.js';
import { effective, toMap } from './effective.js';
import { parseLine } from './mount-table.js';
import { givenOptions, type UserRow } from './row.js';
import { assertRefused } from './run.js';
import { base } from './setup.js';

const expression = `{
  const { readFileSync } = await import('node:fs');
  const options = JSON.parse(args[0]);
  const failed = await overlayfs.mountOverlay(options).then(() => undefined, (error) => error);
  if (failed) {
    const { name, code, reason, path, message } = failed;
    return { failed: { name, code, reason, path, message } };
  }
  const lines = readFileSync('/proc/self/mountinfo', 'latin1').split('\\n');
  return { line: lines.find((line) => line.split(' ')[4] === options.target) };
}`;

interface Outcome {
  readonly failed?: unknown;
  readonly line?: string;
}

/** The answer of a child that needs a user namespace, if there are any. */
const canUnshare = ((): boolean => {
  try {
    execFileSync('unshare', ['-Ur', '-m', 'true'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
})();

export function runInUserNamespace(t: ExecutionContext, row: UserRow): void {
  if (!canUnshare) {
    t.log('this machine allows no user namespaces');
    t.pass();
    return;
  }
  const dir = scratch(t, withUserAttributes());
  // The parent of what is another's, which root there is not.
  chmodSync(dir, 0o755);
  base((path) => `${dir}/${path}`);
  const options = givenOptions(row, dir);
  const outcome = evaluateIn(['unshare', '-Ur', '-m'], expression, JSON.stringify(options)) as Outcome;
  if ('error' in row.expect) {
    if (outcome.failed === undefined) {
      t.fail(`mounted: ${outcome.line}`);
      return;
    }
    assertRefused(t, outcome.failed, row.expect.error, row.title, dir);
    return;
  }
  if (outcome.line === undefined) {
    t.fail(JSON.stringify(outcome));
    return;
  }
  const isView = row.view === true;
  const found = new Map(parseLine(outcome.line).options);
  if (!isView && options['uuid'] === undefined) found.delete('uuid');
  t.deepEqual(effective(found, isView), effective(toMap(row.expect.shown), isView));
}
