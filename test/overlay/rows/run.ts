/** A row against the kernel: directories of its own, one mount, and what the mount table shows of it. */
import { closeSync, constants, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { OverlayOptions } from 'overlayfs';
import { MNT_DETACH, mountsBelow, native, scratch, withUserAttributes } from '../../support/index.js';
import { ways } from '../../support/ways.js';
import { effective, toMap } from './effective.js';
import { overlayAt } from './mount-table.js';
import { type Given, givenOptions, type Refusal, type Row, type Shows } from './row.js';
import { type At, base } from './setup.js';

/** The error is the one expected. */
export function assertRefused(t: ExecutionContext, error: unknown, refusal: Refusal, at: string, dir: string): void {
  const { name, code, message, reason, path } = error as Record<string, unknown>;
  const word = refusal.reason === 'explained' && reason !== 'unexplained' ? reason : refusal.reason;
  const expected = { name: refusal.name, code: refusal.code === 'explained' ? code : refusal.code, reason: word };
  t.deepEqual({ name, code, reason }, expected, `${at}: ${message}`);
  t.regex(String(message), refusal.text, at);
  if (refusal.path !== undefined) t.is(path, refusal.path.startsWith('/') ? refusal.path : join(dir, refusal.path), at);
}

function contentOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return undefined;
  }
}

function assertShown(t: ExecutionContext, row: Row, shows: Shows, way: string, dir: string): void {
  const isView = row.view === true;
  const line = overlayAt(
    join(dir, String(givenOptions({ ...row, relative: true }, dir)['target']).replace(/\/+\.?$/, '')),
  );
  if (line === undefined) {
    t.fail(`${way}: not in the mount table`);
    return;
  }
  const found = new Map(line.options);
  // A fresh upper gets a UUID of its own, which shows.
  if (!isView && ['auto', undefined].includes(row.options['uuid'] as string)) found.delete('uuid');
  t.deepEqual(effective(found, isView), effective(toMap(shows.shown ?? []), isView), way);
  for (const name of shows.notShown ?? []) t.false(line.options.has(name), `${way}: ${name}`);

  const attributes = new Set(shows.attributes ?? []);
  if (!attributes.has('ro')) attributes.add('rw');
  if (!attributes.has('noatime') && !attributes.has('strictatime')) attributes.add('relatime');
  attributes.delete('strictatime');
  t.deepEqual([...line.attributes].sort(), [...attributes].sort(), way);
  t.is(line.superblock, shows.superblock ?? (isView ? 'ro' : 'rw'), way);
  t.is(line.propagation, shows.propagation ?? 'private', way);
  t.is(line.source, shows.source ?? 'overlay', way);
  for (const name of ['lowerdir', 'datadir', 'upperdir', 'workdir'] as const) {
    const reads = shows[name];
    if (reads === undefined) continue;
    const [given, resolved] = reads.map((list) => list.map((path) => (path.startsWith('/') ? path : `${dir}/${path}`)));
    const isByText = ['by strings', 'by one string', 'by mount(2)'].includes(way);
    if (way === 'as it comes') {
      t.true([String(given), String(resolved)].includes(String(line[name])), `${way}: ${line[name]}`);
    } else {
      t.deepEqual(line[name], isByText ? given : resolved, way);
    }
  }
  for (const [path, content] of Object.entries(shows.files ?? { one: 'l1' })) {
    t.is(contentOf(join(dir, 'm', path)), content, `${way}: ${path}`);
  }
}

/** Runs a row by one of its ways. */
export async function runRow(t: ExecutionContext, row: Row, way: string): Promise<void> {
  const dir = scratch(t, row.options['userxattr'] === true ? withUserAttributes() : row.on);
  const at = (path: string) => join(dir, path);
  for (const step of [base, ...(row.setup ?? [])]) step(at);
  const before = mountsBelow(dir).length;
  const options = withDescriptor(t, row, at, givenOptions(row, dir)) as unknown as OverlayOptions;
  const outcome = await mountIn(row.relative ? dir : undefined, options, way);

  if ('error' in row.expect) {
    if (outcome !== undefined) assertRefused(t, outcome, row.expect.error, way, dir);
    else t.fail(`${way}: mounted, though it should be refused: ${JSON.stringify(overlayAt(join(dir, 'm')))}`);
    if (outcome !== undefined) t.is(mountsBelow(dir).length, before, `${way}: nothing is mounted`);
    return;
  }
  if (outcome !== undefined) {
    t.fail(`${way}: ${String(outcome)}`);
    return;
  }
  assertShown(t, row, row.expect, way, dir);
  row.after?.(at);
  native.umount(at('m'), MNT_DETACH);
}

/** The options with the number of the row's descriptor in them. */
function withDescriptor(t: ExecutionContext, row: Row, at: At, options: Record<string, unknown>): Given {
  if (row.descriptorOf === undefined) return options;
  const descriptor = openSync(at(row.descriptorOf), constants.O_DIRECTORY);
  t.teardown(() => closeSync(descriptor));
  row.opened?.(at);
  const put = (value: unknown) => (typeof value === 'string' ? value.replace('{fd}', String(descriptor)) : value);
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [name, put(value)]));
}

/** undefined, or the error. */
async function mountIn(dir: string | undefined, options: OverlayOptions, way: string): Promise<unknown> {
  const { mount } = ways[way] as (typeof ways)[string];
  const before = process.cwd();
  if (dir !== undefined) process.chdir(dir);
  try {
    await mount(options);
    return undefined;
  } catch (error) {
    return error;
  } finally {
    process.chdir(before);
  }
}
