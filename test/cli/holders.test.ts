/**
 * `overlayfs holders`, and the holders that `overlayfs umount` names. Imports internals: the text of a table of
 * holders that no test can cause.
 */
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { mountOverlaySync } from 'overlayfs';
import { plain } from '#lib/cli/colour.js';
import { holdersTable } from '#lib/cli/holders.js';
import { layers, mountTest, scratch } from '../support/index.js';
import { json, overlayfs } from './run.js';

mountTest('holders are shown, and in JSON', async (t) => {
  const { target, ...options } = layers(scratch(t));
  const mounted = mountOverlaySync({ ...options, target });
  t.regex((await overlayfs('holders', target)).stdout, /^no process uses it/);
  const path = join(target, 'from-lower');
  const fd = openSync(path, 'r');
  const { code, stdout } = await overlayfs('holders', target);
  t.is(code, 0);
  t.regex(stdout, /^PID +HELD BY +PATH +COMMAND\n/);
  t.true(
    stdout.split('\n').some((line) => line.startsWith(`${process.pid} `) && line.includes(`open file  '${path}'`)),
  );
  const { document } = await json('holders', target);
  const holder = { pid: process.pid, what: 'file', path, descriptor: fd };
  t.like((document['holders'] as object[])[0], holder);
  t.is(typeof document['hidden'], 'number');

  // On a busy machine the search of an error may be cut short.
  let failed = await json('umount', target);
  for (let tries = 0; tries < 20 && JSON.stringify(failed).includes('not complete'); tries++)
    failed = await json('umount', target);
  t.is(failed.code, 2);
  t.like(failed.document['errors'], [{ reason: 'mount-busy', holders: [holder] }]);
  closeSync(fd);
  mounted.unmountSync();
  t.like(await overlayfs('holders', target), { code: 2, stdout: '' });
  t.regex((await overlayfs('holders', target)).stderr, /reason: not-mounted/);
});

test('the table says what it does not cover', (t) => {
  const none = { holders: [], hidden: 2, complete: false };
  t.is(
    holdersTable(none, plain),
    'no process uses it, as far as this search could see\nthis process may not look at 2 processes; the search is not complete\n',
  );
  const holders = [{ what: 'loop', path: '/m/image', device: '/dev/loop0' }] as const;
  const some = { holders, hidden: 1, complete: true };
  t.is(
    holdersTable(some, plain),
    [
      'PID  HELD BY       PATH        COMMAND',
      "-    backing file  '/m/image'  /dev/loop0",
      'this process may not look at 1 process',
      '',
    ].join('\n'),
  );
});

test.serial('one mount point is named', async (t) => {
  for (const operands of [[], ['/a', '/b']]) {
    const { code, stderr } = await overlayfs('holders', ...operands);
    t.is(code, 2);
    t.regex(stderr, /missing operand 'TARGET'|too many arguments/);
  }
});
