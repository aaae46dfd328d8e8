// Runs the steps, tries failed tests once more, compares the machine before and after, and prints what happened.
// .ci/run calls it, after npm ci.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { endStale, findLeft, MARK, newMark, takeStock } from './leftovers.mjs';
import { makeSteps } from './steps.mjs';
import { TapReader } from './tap.mjs';

const { values } = parseArgs({
  options: {
    long: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true, default: [] },
    begun: { type: 'string', default: '0' }, // the seconds that .ci/run has taken before
  },
});

/** A step that hangs must not take the time of the others. */
const MOST_SECONDS = values.long ? 7200 : 900;

/** How long the output is read after the end of a step. */
const MOST_SECONDS_OF_OUTPUT = 2;

process.env.REQUIRE_MOUNT = '1'; // a machine that cannot mount has not tested anything
process.env[MARK] = newMark();

/** The seconds of processor time of all children that have ended. */
function childSeconds() {
  const fields = readFileSync('/proc/self/stat', 'latin1')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[13]) + Number(fields[14])) / 100;
}

let running;

const endGroup = (signal) => {
  try {
    process.kill(-running.pid, signal);
  } catch {} // it has ended
};

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    if (running !== undefined) endGroup('SIGKILL');
    console.log(`ended by ${signal}`);
    process.exit(1);
  });
}

/** Runs a command and hands its lines to the reader, which tells what need not be shown. Returns how it ended. */
async function run([program, ...args], env, reader) {
  const child = spawn(program, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
    detached: true, // a group of its own, so that what it started can be ended with it
  });
  running = child;
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    endGroup('SIGKILL');
  }, MOST_SECONDS * 1000);
  const streams = [child.stdout, child.stderr].map((input) => createInterface({ input }));
  for (const lines of streams) {
    // ava writes its results to its output, and what a test itself writes to its error output.
    const isRead = lines.input === child.stdout;
    lines.on('line', (line) => {
      if (!isRead || !reader?.read(line)) console.log(line);
    });
  }
  const closed = Promise.all(streams.map((lines) => once(lines, 'close')));
  const status = await new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('exit', (code, signal) => resolve(code ?? signal));
  });
  // A process that it has left in a session of its own may hold the output open.
  await Promise.race([closed, sleep(MOST_SECONDS_OF_OUTPUT * 1000, undefined, { ref: false })]);
  child.stdout.destroy();
  child.stderr.destroy();
  clearTimeout(timer);
  running = undefined;
  return isLate ? `no end after ${MOST_SECONDS} s` : status;
}

const seconds = (since) => Math.round((Date.now() - since) / 1000);
const begun = Number(values.begun);
const start = Date.now() - begun * 1000;
const rows =
  begun === 0 ? [] : [{ title: 'npm ci', seconds: begun, cpu: childSeconds(), passed: 1, failed: 0, skipped: 0 }];

/** Failures by title, so that a test that fails in several steps is one failure. */
const failures = new Map();

function fail(title, step, message) {
  const place = failures.get(title) ?? { steps: [], message };
  if (!place.steps.includes(step)) place.steps.push(step);
  failures.set(title, place);
}

/** Tests that are tried once more at the end. */
const doubtful = [];

const nameOf = (step, { place }) => (place === undefined ? step.title : `${step.title}, ${place}`);

/** Performs a step, and looks at what it leaves. */
async function perform(step, before) {
  console.log(`\n=== ${step.title} (after ${seconds(start)} s)`);
  const [begin, cpu] = [Date.now(), childSeconds()];
  const reader = step.files && new TapReader(step.files);
  const status = await run(step.command, step.env, reader);
  const row = {
    title: step.title,
    seconds: seconds(begin),
    cpu: childSeconds() - cpu,
    passed: 0,
    failed: 0,
    skipped: 0,
  };
  if (reader === undefined) {
    if (status !== 0) fail(step.title, step.title, `ended with ${status}`);
    row[status === 0 ? 'passed' : 'failed'] = 1;
  } else {
    row.passed = reader.passed;
    row.skipped = reader.skipped.length;
    row.failed = reader.failures.length + reader.unmeant.length;
    for (const title of reader.unmeant) fail(title, step.title, 'skipped without a feature that the machine lacks');
    for (const failure of reader.failures) {
      if (failure.file === undefined) fail(failure.title, nameOf(step, failure), failure.message);
      else doubtful.push({ step, failure, row });
    }
    const isSilent = row.failed === 0 && (status !== 0 || row.passed === 0);
    // A second try of the tests that failed would not run those that have not run at all.
    const isCut = reader.unended !== 0 || typeof status === 'string';
    if (isSilent || isCut) {
      const how = isCut ? 'not all tests ran' : 'no test failed';
      fail(step.title, step.title, `${how}, ${row.passed} passed, and it ended with ${status}`);
      row.failed++;
    }
  }
  for (const words of await findLeft(before)) {
    fail(`left behind: ${words}`, step.title);
    row.failed++;
  }
  if (row.failed > 0) console.log(`FAILED: ${step.title}`);
  rows.push(row);
}

/** Runs a failed test again, alone, from its file. */
async function tryAgain({ step, failure, row }) {
  console.log(`\n=== again: ${failure.title} (${nameOf(step, failure)}, after ${seconds(start)} s)`);
  const reader = new TapReader([failure.file]);
  const status = await run(step.again(failure), step.env, reader);
  if (status === 0 && reader.failures.length === 0 && reader.passed > 0) {
    row.failed--;
    row.passed++;
    return true;
  }
  fail(failure.title, nameOf(step, failure), failure.message);
  return false;
}

function printTable() {
  const width = Math.max(...rows.map(({ title }) => title.length));
  console.log(`\n${'step'.padEnd(width)}  seconds  processors  passed  failed  skipped`);
  for (const { title, seconds, cpu, passed, failed, skipped } of rows) {
    const used = (cpu / Math.max(seconds, 1)).toFixed(1);
    const cells = [
      [seconds, 7],
      [used, 10],
      [passed, 6],
      [failed, 6],
      [skipped, 7],
    ];
    console.log(`${title.padEnd(width)}  ${cells.map(([cell, size]) => String(cell).padStart(size)).join('  ')}`);
  }
  console.log(`${'all'.padEnd(width)}  ${String(seconds(start)).padStart(7)}`);
}

const ended = await endStale();
if (ended > 0) console.log(`ended ${ended} processes that an earlier run has left`);
const packages = mkdtempSync(join(tmpdir(), 'overlayfs-ci-'));
chmodSync(packages, 0o755);
process.on('exit', () => rmSync(packages, { recursive: true, force: true }));
const { steps, chosen } = makeSteps({ isLong: values.long, packages });
const unknown = values.only.filter((name) => !steps.some(({ title }) => title === name));
if (unknown.length > 0) {
  console.error(`no step ${unknown.join(', ')}; the steps: ${steps.map(({ title }) => title).join(', ')}`);
  process.exit(2);
}
for (const step of steps) {
  if (values.only.length === 0 || values.only.includes(step.title)) await perform(step, takeStock());
}
const flaky = [];
const before = takeStock();
for (const each of doubtful)
  if (await tryAgain(each)) flaky.push(`${each.failure.title} (${nameOf(each.step, each.failure)})`);
for (const words of doubtful.length === 0 ? [] : await findLeft(before)) fail(`left behind: ${words}`, 'again');

printTable();
console.log(`\n${chosen.map((line) => `chosen: ${line}`).join('\n')}`);
for (const title of flaky) console.log(`flaky: ${title}`);
for (const [title, { steps: where, message }] of failures) {
  console.log(`failed: ${title} (${where.join('; ')})${message ? `: ${message}` : ''}`);
}
const passed = rows.reduce((sum, row) => sum + row.passed, 0);
console.log(`\n${passed} passed, ${failures.size} failed`);
process.exitCode = failures.size === 0 ? 0 : 1;
