/**
 * `overlayfs features`: the table, the verdict, and colour. Imports internals: the text for kernels that this machine
 * does not run.
 */
import test from 'ava';
import { featuresSync } from 'overlayfs';
import { paintFor, plain } from '#lib/cli/colour.js';
import { featuresText, forbids } from '#lib/cli/features.js';
import * as records from '../support/features.js';
import { mountTest, withoutCapabilities } from '../support/index.js';
import { json, overlayfs, run } from './run.js';

const newest = { ...records.newest, rootless: true, rootlessForbidden: undefined };
const linux61 = { ...records.linux61, rootless: true, rootlessForbidden: undefined };

test('a kernel that has everything', (t) => {
  const text = featuresText(newest, plain);
  t.regex(text, /^Linux 7\.0\.0, pages of 4096 bytes\n\nThis process can mount overlays\.\n/);
  t.regex(text, /^ {2}layers by descriptor +yes, path$/m);
  t.regex(text, /^ {2}verity +yes$/m);
  t.regex(text, /^the module's defaults$[\s\S]*^ {2}index +no$/m);
});

test('what forbids mounting is said in words', (t) => {
  t.regex(featuresText(linux61, plain), /^ {2}verity +no$/m);
  const may = featuresText({ ...newest, mayMount: false }, plain);
  t.regex(
    may,
    /^This process cannot mount: the process may not mount\. Start it by 'overlayfs unshare', or as root .*\.$/m,
  );
  t.regex(may, /^It can still mount without a target: with rootless in a program, or by overlayfs run\.$/m);
  const forbidden = { ...newest, mayMount: false, rootless: false, rootlessForbidden: 'user.x is 0: set it' } as const;
  t.regex(featuresText(forbidden, plain), /^It cannot mount without a target either: user\.x is 0: set it\.$/m);
  t.regex(featuresText(forbidden, plain), /^ {2}detached mounts without privilege +no$/m);
  const none = { ...newest, mayMount: 'unknown', overlay: false } as const;
  t.regex(featuresText(none, plain), /^This process cannot mount: the kernel has no overlay file system\. Load /m);
  t.deepEqual(forbids(none), ['overlay-unavailable']);
  t.regex(featuresText({ ...newest, mayMount: 'unknown' }, plain), /^Only an attempt shows if this process can mount/m);
});

test('colour is for terminals, and NO_COLOR takes it away', (t) => {
  t.is(paintFor(true, {})('red', 'no'), '\x1b[31mno\x1b[0m');
  t.is(paintFor(true, { NO_COLOR: '' })('green', 'yes'), '\x1b[32myes\x1b[0m', 'empty counts as not set');
  for (const paint of [paintFor(false, {}), paintFor(true, { NO_COLOR: '1' }), paintFor(true, { TERM: 'dumb' })]) {
    t.is(paint('red', 'no'), 'no');
  }
});

test.serial('of this kernel: as a table, as JSON, and with colour on a terminal', async (t) => {
  const { code, stdout, stderr } = await overlayfs('features');
  t.deepEqual([code, stderr], [0, '']);
  t.true(stdout.startsWith(`Linux ${featuresSync().release}`));
  t.false(stdout.includes('\x1b'));
  const { document } = await json('features');
  t.deepEqual(document['features'], JSON.parse(JSON.stringify(featuresSync())));
  t.deepEqual(
    (document['forbids'] as { reason: string }[]).map(({ reason }) => reason),
    forbids(featuresSync()),
  );
  // script(1) has a terminal.
  const onTerminal = (env: NodeJS.ProcessEnv) =>
    run([], { command: ['sh', '-c', 'script -qec "$* features" /dev/null', 'sh'], env }).stdout;
  t.true(onTerminal({ NO_COLOR: '', TERM: 'xterm' }).includes('\x1b[32myes\x1b[0m'));
  t.false(onTerminal({ NO_COLOR: '1', TERM: 'xterm' }).includes('\x1b'));
});

mountTest('without privilege: what is not told is unknown', (t) => {
  const { code, stdout } = run(['features'], { command: withoutCapabilities });
  t.is(code, 0);
  t.regex(stdout, /^This process cannot mount: the process may not mount\./m);
  t.regex(stdout, /^ {2}layers by descriptor +unknown$/m);
});
