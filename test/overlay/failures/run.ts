/** A row of the failures against the kernel: refused for its reason, as foreseen, nothing left, mended as the hint says. */
import type { ExecutionContext } from 'ava';
import { explain, type OverlayOptions } from 'overlayfs';
import {
  countDescriptors,
  eventually,
  MNT_DETACH,
  mountsBelow,
  native,
  scratch,
  withUserAttributes,
} from '../../support/index.js';
import { ways } from '../../support/ways.js';
import { givenOptions } from '../rows/row.js';
import { assertRefused } from '../rows/run.js';
import { type At, base } from '../rows/setup.js';
import type { FailureRow, Step } from './row.js';

function fill(value: unknown, words: ReadonlyMap<string, string>): unknown {
  if (Array.isArray(value)) return value.map((one) => fill(one, words));
  if (typeof value !== 'string') return value;
  return value.replace(/\{(\w+)\}/g, (whole, name) => words.get(name) ?? whole);
}

export async function runFailure(t: ExecutionContext, row: FailureRow, way: string): Promise<void> {
  const dir = scratch(t, row.options['userxattr'] === true ? withUserAttributes() : row.on);
  const at: At = (path) => `${dir}/${path}`;
  const words = new Map<string, string>();
  const perform = (steps: readonly Step[]) => {
    for (const step of steps) for (const [name, word] of Object.entries(step(at, t) ?? {})) words.set(name, word);
  };
  const given = (change: FailureRow['options'] = {}) => {
    const options = givenOptions({ ...row, options: { ...row.options, ...change } }, dir);
    return Object.fromEntries(
      Object.entries(options).map(([name, value]) => [name, fill(value, words)]),
    ) as unknown as OverlayOptions;
  };
  perform([base, ...row.setup]);
  const { mount, mountSync } = ways[way] as (typeof ways)[string];
  const before = mountsBelow(dir).length;
  // The kernel chooses one of several reasons for some.
  const { reason: expected } = row.expect.error;
  const { findings } = await explain(given());
  const foreseen = expected === 'explained' ? [] : findings.map(({ reason }) => String(reason));

  for (const form of [mount, mountSync]) {
    const descriptors = countDescriptors();
    let error: unknown;
    try {
      await form(given());
    } catch (thrown) {
      error = thrown;
    }
    if (error === undefined) {
      t.fail(`${way}: mounted, though it should be refused`);
      return;
    }
    assertRefused(t, error, row.expect.error, way, dir);
    if (foreseen.length > 0) t.true(foreseen.includes(String(expected)), `${way}: explain finds ${foreseen}`);
    t.is(mountsBelow(dir).length, before, `${way}: nothing is mounted`);
    // Descriptors that earlier steps have left are closed meanwhile.
    await eventually(t, () => countDescriptors() <= descriptors);
  }

  if (row.remedy === undefined && row.instead === undefined) return;
  perform(row.remedy ?? []);
  const options = given(row.instead);
  t.deepEqual((await explain(options)).findings, [], `${way}: explain finds nothing once it is mended`);
  try {
    await mount(options);
  } catch (error) {
    t.fail(`${way}: what the hint says does not mend it: ${error}`);
    return;
  }
  t.is(native.umount(String(options.target), MNT_DETACH), 0, way);
}
