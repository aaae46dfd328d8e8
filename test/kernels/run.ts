/** Runs the compiled tests that use the kernel on older kernels, one after the other, each in a virtual machine. */

import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

/** The directory of package.json, from dist-test/test/kernels. */
const packageRoot = resolve(import.meta.dirname, '../../..');

const usage = `Usage: npm run test:kernels -- [OPTION…] [FILE…]

  --kernels LIST    of 5.10, 6.1, 6.12 and newest, separated by commas   [6.1,6.12]
  --share N         the first test of each file, and every Nth of the others; each file on one of the kernels only
  --part N          of the files that are not among FILE every Nth only
  --seed N          chooses which tests and files, and which kernel for a file   [0]
  --match TITLE     only tests of this title, * standing for anything; can be repeated
  --tap             print the tests that passed too
  --timeout S       seconds for each kernel   [3600]

FILE is a compiled one: dist-test/test/mounts/bind.test.js. Without one, all files run that use the kernel; with --part
too, and each FILE among them is taken.

Repetitions are those of npm test; OVERLAYFS_TEST_SCALE=1 makes them those of npm run test:long.
Ends with a line for each kernel: KERNEL: N passed, N failed, N skipped. Fails when a test does, or a machine.
What the machines need: test/kernels/boot --help.
`;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    kernels: { type: 'string', default: '6.1,6.12' },
    share: { type: 'string', default: '1' },
    part: { type: 'string' },
    seed: { type: 'string', default: '0' },
    tap: { type: 'boolean', default: false },
    match: { type: 'string', multiple: true, default: [] },
    timeout: { type: 'string', default: '3600' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

/**
 * Tests that say the same on each kernel: pure ones, the package, and the command line except for mount(8)'s helper. Those
 * of layers, archives and snapshots repeat so much that emulation takes too long, except for marks and removal. A program
 * that kills children at random moments is too slow there to meet them, and times measured there say nothing.
 */
const left =
  /^(package|docs|tar|snapshots|containerd|images|power-cuts|overlay\/rootless\/killed|mounts\/event|layers\/(?!whiteout|opaque|remove)|cli)(\/|[a-z-])/;

function testFiles(): string[] {
  const tests = 'dist-test/test';
  return readdirSync(join(packageRoot, tests), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.js') && !left.test(file))
    .map((file) => join(tests, file))
    .filter((file) => /\b(mount|kernel)Test\(/.test(readFileSync(join(packageRoot, file), 'utf8')))
    .sort();
}

/** Emulation is up to 18 times slower; ava's limit is on the time in which no test ends. */
const IDLE = '30m';

const share = Number(options.share);
const seed = Number(options.seed);

function chosenFiles(): string[] {
  if (options.part === undefined) return positionals.length > 0 ? positionals : testFiles();
  const part = Number(options.part);
  return testFiles().filter((file, i) => positionals.includes(file) || (i + seed) % part === 0);
}

/** By emulation, a file takes longer to start than a share of its tests: the kernels share the files then. */
function filesFor(kernel: string, kernels: readonly string[]): string[] {
  const files = chosenFiles();
  return share === 1 ? files : files.filter((_, i) => (i + seed) % kernels.length === kernels.indexOf(kernel));
}

function command(files: readonly string[]): string[] {
  // A share of the tests is a look at each: one repetition by emulation takes as long as ten without.
  const scale = process.env['OVERLAYFS_TEST_SCALE'] ?? (share === 1 ? undefined : '0.01');
  return [
    'env',
    'REQUIRE_MOUNT=1',
    ...(scale === undefined ? [] : [`OVERLAYFS_TEST_SCALE=${scale}`]),
    ...(share === 1 ? [] : [`OVERLAYFS_TEST_EVERY=${share}/${seed % share}`]),
    process.execPath,
    'node_modules/ava/entrypoints/cli.mjs',
    '--tap',
    `--timeout=${IDLE}`,
    ...options.match.map((title) => `--match=${title}`),
    ...files,
  ];
}

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Counts the tests and prints, of what the machine says, all but the tests that passed. */
async function run(kernel: string, files: readonly string[]): Promise<Counts> {
  console.log(`=== ${kernel}`);
  const boot = join(packageRoot, 'test/kernels/boot');
  const machine = spawn(boot, ['--timeout', options.timeout, kernel, ...command(files)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const status = new Promise<number | string | null>((resolve) => {
    machine.on('error', (error) => resolve(String(error)));
    machine.on('close', (code, signal) => resolve(code ?? signal));
  });
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for await (const line of createInterface({ input: machine.stdout })) {
    const [, not, skip] = /^(not )?ok \d+ .*?( # SKIP)?$/.exec(line) ?? [line];
    if (skip !== undefined) counts.skipped++;
    else if (not !== undefined) counts.failed++;
    else if (line.startsWith('ok ')) counts.passed++;
    const isOfInterest = options.tap || skip !== undefined || !/^(ok |TAP version|1\.\.|# |$)/.test(line);
    if (isOfInterest) console.log(line);
  }
  const ended = await status;
  if (ended !== 0 && counts.failed === 0) {
    console.log(`not ok 0 - no test failed, but the machine ended with ${ended}`);
    counts.failed++;
  }
  if (ended === 0 && counts.passed + counts.skipped === 0) counts.failed++;
  return counts;
}

if (options.help) {
  process.stdout.write(usage);
} else {
  const summary: string[] = [];
  const kernels = options.kernels.split(',');
  for (const kernel of kernels) {
    const { passed, failed, skipped } = await run(kernel, filesFor(kernel, kernels));
    summary.push(`${kernel}: ${passed} passed, ${failed} failed, ${skipped} skipped`);
    if (kernels.length > 1) console.log(`--- ${summary.at(-1)}`);
    if (failed > 0) process.exitCode = 1;
  }
  console.log(`\n${summary.join('\n')}`);
}
