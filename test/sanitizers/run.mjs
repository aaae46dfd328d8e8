// The addon under sanitizers: npm run test:sanitizers [-- --tsan | --asan | --suite] [OPTION…] [FILE…]
//
// --tsan   hammer.cc under ThreadSanitizer
// --asan   hammer.cc under AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer
// --suite  the test suite with an addon that is built for the latter three
//
// --seconds N       how long a hammer runs   [30]
// --every N         the first test of each file, and every Nth of the others; of the FILEs all
// --seed N          chooses which of them
// --only FILE --match TITLE   one test of the suite
// --tap             prints the results of the suite's tests, and each report as one that failed
//
// FILE is a compiled one: dist-test/test/mounts/bind.test.js. The addon is built in a temporary copy. Needs g++ and make, and
// npm ci before.
import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ASAN, compile, cxx, mustRun, nodeDirectory, prefix, root, run, temporary } from './compile.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tsan: { type: 'boolean' },
    asan: { type: 'boolean' },
    suite: { type: 'boolean' },
    seconds: { type: 'string', default: '30' },
    every: { type: 'string', default: '1' },
    seed: { type: 'string', default: '0' },
    only: { type: 'string' },
    match: { type: 'string' },
    tap: { type: 'boolean' },
  },
});

/** Prints a failure that is none of a test as TAP. */
const printCrash = (title) => values.tap && console.log(`not ok 0 - ${title}`);

async function hammer(name, sanitizers) {
  const dir = join(temporary, name.replace(' ', '-'));
  const tmp = join(dir, 'tmp');
  mkdirSync(tmp, { recursive: true });
  const program = await compile(dir, 'test/sanitizers/hammer.cc', sanitizers, ['-Wl,--wrap=pthread_create']);

  const command = [...prefix, program, '--seconds', values.seconds];
  const { status, output } = await run(command, {
    env: { TMPDIR: tmp },
    seconds: Number(values.seconds) + 150,
  });
  console.log(output.trimEnd());
  console.log(`${name}: ${status === 0 ? 'ok' : `FAILED, the hammer ended with ${status}`}`);
  if (values.tap) console.log(`${status === 0 ? '' : 'not '}ok 0 - ${name}`);
  return status === 0;
}

/** The reports of the sanitizers about the addon; the other leaks are Node's and of the programs that tests run. */
function reports(dir) {
  return readdirSync(dir).flatMap((name) => {
    const report = readFileSync(join(dir, name), 'utf8');
    // The leaks of a program cannot be looked for if its test forbids it ptrace(2), clone(2) or /proc.
    const isUnable = !report.includes('ERROR:') && report.includes('LeakSanitizer has encountered a fatal error');
    if (isUnable) return [];
    if (!report.includes('LeakSanitizer: detected memory leaks')) return report.trim() === '' ? [] : [report];
    return report
      .split('\n\n')
      .filter((block) => /^(Direct|Indirect) leak/m.test(block) && /^ *#1 .*overlayfs\.node/m.test(block));
  });
}

async function suite() {
  const copy = join(temporary, 'copy');
  const logs = join(temporary, 'logs');
  const tmp = join(temporary, 'tmp');
  mkdirSync(copy);
  for (const dir of [logs, tmp]) {
    mkdirSync(dir);
    chmodSync(dir, 0o1777); // for tests that go on as another user
  }
  const left = new Set(['node_modules', 'build', 'dist-bench', 'coverage', 'prebuilds', 'release', '.git']);
  // Links as they are: dist-test/build has to lead to the copy's addon.
  for (const name of readdirSync(root)) {
    if (!left.has(name)) cpSync(join(root, name), join(copy, name), { recursive: true, verbatimSymlinks: true });
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));

  // Left out are tests that pack or look at the binary, that start many processes around the same calls, or that repeat
  // the same calls for many random trees; the one that kills children which share the sanitizer's memory, and with it its
  // locks; the times of the event loop; and mount(8), which gives its helper no LD_PRELOAD. The rest gets more time.
  const manifest = JSON.parse(readFileSync(join(copy, 'package.json'), 'utf8'));
  const leftOut = [
    'package',
    'cli',
    'docs',
    'snapshots',
    'containerd',
    'images',
    'tar',
    'mount-helper/helper*',
    'mounts/event-loop*',
    'overlay/rootless/killed-child*',
    'layers/{apply,changes,event,conflicts,create,fold,merge,programs,split}*',
  ];
  manifest.ava.files.push(...leftOut.map((name) => `!dist-test/test/${name}${name.includes('*') ? '' : '/**'}`));
  manifest.ava.timeout = '4m';
  writeFileSync(join(copy, 'package.json'), JSON.stringify(manifest));

  const bin = (name) => join(root, 'node_modules/.bin', name);
  await mustRun(
    [bin('node-gyp'), 'rebuild', '--loglevel=warn', `--nodedir=${nodeDirectory()}`, '--', `-Dsanitize=${ASAN}`],
    { cwd: copy, env: { CXXFLAGS: '-fno-sanitize-recover=all' } },
  );
  const library = execFileSync(cxx, ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
  const chosen = values.only === undefined ? [] : [values.only, `--match=${values.match}`];
  const { status, output } = await run([...prefix, process.execPath, bin('ava'), '--tap', ...chosen], {
    cwd: copy,
    seconds: 800,
    env: {
      TMPDIR: tmp,
      OVERLAYFS_TEST_EVERY: `${values.every}/${Number(values.seed) % Number(values.every)}`,
      OVERLAYFS_TEST_WHOLE: positionals.join(),
      LD_PRELOAD: library,
      // With the module in each line, by which the addon's leaks are told from others.
      ASAN_OPTIONS: `log_path=${logs}/report:detect_leaks=1:stack_trace_format="    #%n %p in %f %S (%m)"`,
      LSAN_OPTIONS: 'exitcode=0',
      UBSAN_OPTIONS: `log_path=${logs}/report:print_stacktrace=1:halt_on_error=1`,
    },
  });
  const found = reports(logs);
  const passed = (output.match(/^ok (?!.* # SKIP$)/gm) ?? []).length;
  const ok = status === 0 && passed > 0 && found.length === 0;
  if (values.tap) console.log(output.trim());
  else if (!ok) console.log(output.replace(/^ok .*\n/gm, '').trim());
  for (const report of found) {
    printCrash(report.match(/^.*(?:ERROR|SUMMARY|runtime error|leak of).*$/m)?.[0] ?? 'a report of a sanitizer');
    console.log(report);
  }
  console.log(`suite: ${passed} passed${ok ? '' : `, FAILED: ava ended with ${status}, ${found.length} reports`}`);
  return ok;
}

const checks = [
  ['tsan', () => hammer('tsan', 'thread')],
  ['asan', () => hammer('asan', ASAN)],
  ['suite', suite],
];
const isAll = checks.every(([name]) => !values[name]);
for (const [name, check] of checks) {
  if (!isAll && !values[name]) continue;
  try {
    if (!(await check())) process.exitCode = 1;
  } catch (error) {
    printCrash(`${name} did not run`);
    console.log(error.message);
    process.exitCode = 1;
  }
}
