/**
 * `features`, in processes that may do less and less. Imports internals: plans depend on a record that the public one
 * does not show in full.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import { cameSince } from '#lib/features/probe-before-6.5.js';
import { type ProbedOption, probedOptions } from '#lib/features/record.js';
import { optionTable, overlayOptionNames } from '#lib/options/table.js';
import { linux61, linux510, linux612 } from '../support/features.js';
import { mountTest, packageRoot } from '../support/index.js';
import { asNobody } from '../support/plain-user.js';

const release = () =>
  readFileSync('/proc/sys/kernel/osrelease', 'latin1').split('.').slice(0, 2).map(Number) as [number, number];
const atLeast = (major: number, minor: number) => {
  const [a, b] = release();
  return a > major || (a === major && b >= minor);
};

mountTest('the record is what this kernel is known to have', (t) => {
  const features = kernelFeaturesSync();
  t.is(features.fsContext, atLeast(6, 5));
  t.is(features.lowerdirAppend, atLeast(6, 7));
  t.is(features.layerDescriptors !== false, atLeast(6, 13));
  t.is(features.uniqueMountId, atLeast(6, 8));
  t.is(kernelFeaturesSync(), features, 'asked once');
});

/** The probe of `context` answers for them: all came with SELinux. */
const answeredByContext: readonly string[] = ['fscontext', 'defcontext', 'rootcontext'];

test("each of overlayfs' options has a probe", (t) => {
  const without = overlayOptionNames.map((name) => optionTable[name].kernel).filter((name) => !(name in probedOptions));
  t.deepEqual(without.toSorted(), answeredByContext.toSorted());
});

for (const { release, options } of [linux612, linux61, linux510]) {
  test(`the record of ${release} lacks each option that came later (test/support/features.ts)`, (t) => {
    const [major = 0, minor = 0] = release.split('.').map(Number);
    const later = Object.keys(probedOptions).filter((name) => cameSince(name, major, minor + 1));
    t.true(later.length > 1);
    t.deepEqual(
      later.filter((name) => options[name as ProbedOption]),
      [],
    );
  });
}

mountTest('what could not be asked for want of descriptors is asked again', (t) => {
  const script = `
    import { closeSync, openSync } from 'node:fs';
    import { whiteoutSync } from '${join(packageRoot, 'dist-test/lib/index.js')}';
    import { kernelFeaturesSync } from '${join(packageRoot, 'dist-test/lib/features/probe.js')}';
    whiteoutSync([]);
    const open = [];
    try { for (;;) open.push(openSync('/dev/null', 'r')); } catch {}
    const records = [0, 1, 1, 1, 1].map((more) => {
      if (more) closeSync(open.pop());
      return kernelFeaturesSync();
    });
    for (const fd of open) closeSync(fd);
    const whole = kernelFeaturesSync();
    const wrong = records.flatMap((record) => Object.entries(record).filter(
      ([name, value]) => value !== 'unknown' && typeof value !== 'object' && value !== whole[name]));
    console.log(JSON.stringify({ wrong, first: records[0].mayMount, whole: whole.mayMount }));`;
  const limited = ['--nofile=100', process.execPath, '--input-type=module', '-e', script];
  const { stdout, stderr } = spawnSync('prlimit', limited, { encoding: 'utf8' });
  if (stdout === '') return t.fail(stderr);
  t.deepEqual(JSON.parse(stdout), { wrong: [], first: 'unknown', whole: true });
});

test('a process that may not ask gets no for an answer only where it is one, and does not remember', (t) => {
  const script = `
    import { kernelFeaturesSync } from '${join(packageRoot, 'dist-test/lib/features/probe.js')}';
    const first = kernelFeaturesSync();
    console.log(JSON.stringify({ ...first, isRemembered: kernelFeaturesSync() === first }));`;
  const [command = '', ...args] = [...asNobody, process.execPath, '--input-type=module', '-e', script];
  const { stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (stdout === '') return t.fail(stderr);
  t.like(JSON.parse(stdout), {
    mayMount: false,
    fsContext: 'unknown',
    lowerdirAppend: 'unknown',
    layerDescriptors: 'unknown',
    isRemembered: false,
  });
});
