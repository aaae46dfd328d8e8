/** All errors of the library share one class, one pattern and one form. */
import { readFileSync } from 'node:fs';
import { createContext, runInContext } from 'node:vm';
import test from 'ava';
import { mountOverlaySync, OverlayError } from 'overlayfs';
import { openLayout } from 'overlayfs/images';
import { SnapshotError } from 'overlayfs/snapshots';
import { layers, mountTest, packageRoot, scratch } from '../support/index.js';

const thrown = (call: () => unknown): unknown => {
  try {
    call();
  } catch (error) {
    return error;
  }
  return undefined;
};

test('one pattern catches all errors, those of wrong arguments with the classes of Node', async (t) => {
  const cases: [call: () => unknown, type: string, code: string, reason: string][] = [
    [() => mountOverlaySync({ lowerdir: 3 as never }), 'TypeError', 'ERR_INVALID_ARG_TYPE', 'invalid-argument'],
    [() => mountOverlaySync({ lowr: '/' } as never), 'TypeError', 'ERR_INVALID_ARG_VALUE', 'invalid-argument'],
    [
      () => mountOverlaySync({ lowerdir: '/', upperdir: '/u' }),
      'TypeError',
      'ERR_INVALID_ARG_VALUE',
      'conflicting-options',
    ],
    [() => openLayout('/none'), 'ImageError', 'ERR_IMAGE_NOT_FOUND', 'missing'],
    [
      () => {
        throw new SnapshotError({ code: 'ERR_SNAPSHOT_CLOSED', what: 'it is closed', hint: 'open it' });
      },
      'SnapshotError',
      'ERR_SNAPSHOT_CLOSED',
      'closed',
    ],
  ];
  for (const [call, type, code, reason] of cases) {
    const error = await (async () => call())().catch((error: unknown) => error);
    if (!OverlayError.is(error)) {
      t.fail(`${call}: ${error}`);
      continue;
    }
    t.like(error, { name: type, code, reason });
    t.regex(error.hint, /^[A-Z`].+\.$/);
    const json = JSON.parse(JSON.stringify(error));
    t.deepEqual(json, error.toJSON());
    t.like(json, { name: type, message: error.message, code, reason, hint: error.hint });
    t.false('stack' in json || 'cause' in json);
  }
  for (const other of [new Error('x'), undefined, null, 'x', {}, new TypeError('y')]) t.false(OverlayError.is(other));
});

mountTest('`role` names the layer that a failed mount is about', (t) => {
  const set = layers(scratch(t));
  for (const role of ['lowerdir', 'upperdir', 'workdir', 'target'] as const) {
    const error = thrown(() => mountOverlaySync({ ...set, [role]: `${set.target}/none-${role}` }));
    t.like(error, { role, path: `${set.target}/none-${role}` });
  }
});

mountTest('JSON of an error has what one would log', (t) => {
  const error = thrown(() => mountOverlaySync({ lowerdir: '/none', target: scratch(t) })) as OverlayError;
  t.deepEqual(
    Object.keys(JSON.parse(JSON.stringify(error))).sort(),
    Object.keys({ ...error, name: 0, message: 0 }).sort(),
  );
});

test('the errors of another copy of the package, in another realm, are known', async (t) => {
  // A class of another realm with the registered mark, as another copy of this file would make it.
  t.regex(readFileSync(`${packageRoot}/lib/errors.ts`, 'utf8'), /Symbol\.for\('overlayfs\.error'\)/);
  const other = runInContext(
    `class OverlayError extends Error {}; OverlayError.prototype[Symbol.for('overlayfs.error')] = true; new OverlayError('x')`,
    createContext(),
  );
  t.false(other instanceof OverlayError);
  t.true(OverlayError.is(other));
  const url = new URL('../../lib/errors.js?copy', import.meta.url).href;
  const copy = (await import(url)) as { OverlayError: typeof OverlayError; platformError(): OverlayError };
  t.not(copy.OverlayError, OverlayError);
  t.true(OverlayError.is(copy.platformError()));
});
