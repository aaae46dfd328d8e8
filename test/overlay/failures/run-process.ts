/** A row of another process against the kernel. */
import { execFileSync } from 'node:child_process';
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { packageRoot, scratch, withUserAttributes } from '../../support/index.js';
import { type Given, givenOptions } from '../rows/row.js';
import { assertRefused } from '../rows/run.js';
import { base } from '../rows/setup.js';
import { numbers, type ProcessRow } from './process.js';

/** Mounts by both forms; what fails is answered, what works is unmounted. */
const script = `
  import { createRequire } from 'node:module';
  const [root, options, filter, sandbox] = JSON.parse(process.argv[1]);
  const support = createRequire(root + '/')('./build/Release/test_support.node');
  const errno = (filter && support.denyCalls(filter.calls, filter.errno)) || (sandbox && support.restrictByLandlock());
  if (errno) throw new Error('the setup of the process failed: errno ' + errno);
  const { mountOverlay, mountOverlaySync } = await import(root + '/dist/index.js');
  const attempt = async (mount) => {
    try {
      (await mount(options)).unmountSync();
      return null;
    } catch ({ name, code, reason, path, message }) {
      return { name, code, reason, path, message };
    }
  };
  console.log(JSON.stringify([await attempt(mountOverlay), await attempt(mountOverlaySync)]));`;

interface Run {
  readonly command: readonly string[];
  readonly filter: ProcessRow['filter'];
  readonly sandbox: boolean | undefined;
  readonly options: Given;
}

function run({ command, filter, sandbox, options }: Run): unknown[] {
  const numbered = filter && { calls: filter.calls.map((name) => numbers[name]), errno: filter.errno };
  const argument = JSON.stringify([packageRoot, options, numbered, sandbox]);
  const [program = '', ...args] = [...command, process.execPath, '--input-type=module', '-e', script, argument];
  return JSON.parse(execFileSync(program, args, { encoding: 'utf8', cwd: '/' }));
}

export function runProcess(t: ExecutionContext, row: ProcessRow): void {
  const dir = scratch(t, withUserAttributes());
  chmodSync(dir, 0o755);
  const at = (path: string) => join(dir, path);
  for (const step of [base, ...(row.setup ?? [])]) step(at);
  const options = (more: Given = {}) => givenOptions({ ...row, options: { ...row.options, ...more } }, dir);
  for (const error of run({ ...row, filter: row.filter, sandbox: row.sandbox, options: options() })) {
    if (error === null) t.fail('mounted, though it should be refused');
    else assertRefused(t, error, row.expect.error, row.title, dir);
  }
  const { mend } = row;
  if (mend === undefined) return;
  for (const step of mend.steps ?? []) step(at);
  const filter = 'filter' in mend ? mend.filter : row.filter;
  const { command, sandbox } = { ...row, ...mend };
  const mended = run({ command, filter, sandbox, options: options(mend.options) });
  t.deepEqual(mended, [null, null], 'what the hint says mends it');
}
