// The addon under sanitizers: npm run test:sanitizers [-- --tsan | --asan] [--seconds N]
//
// --tsan  hammer.cc under ThreadSanitizer
// --asan  hammer.cc, and the test suite with an addon that is built for it, under AddressSanitizer,
//         LeakSanitizer and UndefinedBehaviorSanitizer
//
// Everything is built in a temporary copy. Needs g++ and make, and npm ci before.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

const root = resolve(import.meta.dirname, '../..');
const { values } = parseArgs({
  options: { tsan: { type: 'boolean' }, asan: { type: 'boolean' }, seconds: { type: 'string', default: '30' } },
});
const ASAN = 'address,undefined';
const cxx = process.env.CXX ?? 'g++';
const temporary = mkdtempSync(join(tmpdir(), 'overlayfs-sanitizers-'));
chmodSync(temporary, 0o755);
process.on('exit', () => rmSync(temporary, { recursive: true, force: true }));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

/** The output of a command, and how it ended: its exit code, or the signal. */
async function run([program, ...args], { env = {}, cwd = root, seconds = 300 } = {}) {
  const child = spawn(program, args, {
    cwd,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true, // a group of its own, so that what it started can be ended with it
  });
  const end = () => {
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {} // there is none left
  };
  process.on('exit', end);
  const timer = setTimeout(end, seconds * 1000);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output += text;
    });
  }
  const status = await new Promise((done, failed) => {
    child.on('error', failed).on('close', (code, signal) => done(code ?? signal));
  });
  clearTimeout(timer);
  process.off('exit', end);
  return { status, output };
}

async function mustRun(command, options) {
  const { status, output } = await run(command, options);
  if (status !== 0) throw new Error(`${command.join(' ')} ended with ${status}:\n${output}`);
  return output;
}

/**
 * The options with which a command is started. The sanitizers of GCC 12 expect nothing where a kernel may map things by
 * more than 28 random bits.
 */
const prefix = (() => {
  const bits = existsSync('/proc/sys/vm/mmap_rnd_bits') ? Number(readFileSync('/proc/sys/vm/mmap_rnd_bits')) : 0;
  if (bits <= 28) return [];
  const command = ['setarch', execFileSync('uname', ['-m'], { encoding: 'utf8' }).trim(), '-R'];
  if (spawnSync(command[0], [...command.slice(1), 'true']).status === 0) return command;
  console.log(`note: vm.mmap_rnd_bits is ${bits} and setarch -R is not allowed: the sanitizers may not start`);
  return [];
})();

/** The directory of `include/node`, with Node's headers of this version. */
function nodeDirectory() {
  const config = join(root, 'build/config.gypi');
  const nodedir = existsSync(config) && readFileSync(config, 'utf8').match(/"nodedir": "([^"]+)"/)?.[1];
  const candidates = [nodedir || '', dirname(dirname(process.execPath))];
  const found = candidates.find((dir) => existsSync(join(dir, 'include/node/node_api.h')));
  if (found === undefined) throw new Error('no node_api.h: build the addon first (npm ci)');
  return found;
}

async function hammer(name, sanitizers) {
  const dir = join(temporary, name.replace(' ', '-'));
  mkdirSync(join(dir, 'tmp'), { recursive: true });
  // The C interface is all that is stood in for, so nothing else is to be compiled.
  writeFileSync(join(dir, 'napi.h'), '#include <node_api.h>\n');
  const flags = [
    `-std=c++20 -O1 -g -fno-omit-frame-pointer -fno-exceptions -fno-rtti -DNAPI_VERSION=8`.split(' '),
    `-Wall -Wextra -Wshadow -Wconversion -Wno-unused-parameter -Werror`.split(' '),
    [`-fsanitize=${sanitizers}`, '-fno-sanitize-recover=all', '-isystem', dir],
    ['-isystem', join(nodeDirectory(), 'include/node')],
  ].flat();
  // The hammer stands in for Node-API, and the sanitizers bring the C++ runtime. The launcher is another program.
  const left = ['addon.cc', 'launch.cc', 'runtime.cc'];
  const names = readdirSync(join(root, 'native')).filter((name) => name.endsWith('.cc') && !left.includes(name));
  const sources = ['test/sanitizers/hammer.cc', ...names.map((name) => `native/${name}`)];
  const objects = sources.map((source) => join(dir, `${basename(source, '.cc')}.o`));
  const compile = (i) => mustRun([cxx, ...flags, '-c', sources[i], '-o', objects[i]]);
  // The first one takes as long as the others together.
  const others = async () => {
    for (let i = 1; i < sources.length; i++) await compile(i);
  };
  if (availableParallelism() > 1) await Promise.all([compile(0), others()]);
  else await compile(0).then(others);
  const program = join(dir, 'hammer');
  await mustRun([cxx, ...flags, ...objects, '-Wl,--wrap=pthread_create', '-o', program]);

  const command = [...prefix, program, '--seconds', values.seconds];
  const { status, output } = await run(command, {
    env: { TMPDIR: join(dir, 'tmp') },
    seconds: Number(values.seconds) + 150,
  });
  console.log(output.trimEnd());
  console.log(`${name}: ${status === 0 ? 'ok' : `FAILED, the hammer ended with ${status}`}`);
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
  const left = new Set(['node_modules', 'build', 'dist', 'dist-bench', 'dist-test', 'coverage', 'prebuilds', '.git']);
  for (const name of readdirSync(root)) {
    if (!left.has(name)) cpSync(join(root, name), join(copy, name), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));

  // Left out are tests that pack or look at the binary, that start many processes around the same calls, or that repeat
  // the same calls for many random trees. The rest gets more time.
  const manifest = JSON.parse(readFileSync(join(copy, 'package.json'), 'utf8'));
  const leftOut = [
    'package',
    'cli',
    'docs',
    'snapshots',
    'tar',
    'layers/{apply,changes,conflicts,create,fold,merge,programs,split}*',
  ];
  manifest.ava.files.push(...leftOut.map((name) => `!dist-test/test/${name}${name.includes('*') ? '' : '/**'}`));
  manifest.ava.timeout = '4m';
  writeFileSync(join(copy, 'package.json'), JSON.stringify(manifest));

  const bin = (name) => join(root, 'node_modules/.bin', name);
  await mustRun(['npm', 'run', 'build:ts'], { cwd: copy });
  await mustRun(
    [bin('node-gyp'), 'rebuild', '--loglevel=warn', `--nodedir=${nodeDirectory()}`, '--', `-Dsanitize=${ASAN}`],
    { cwd: copy, env: { CXXFLAGS: '-fno-sanitize-recover=all' } },
  );
  const library = execFileSync(cxx, ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
  const { status, output } = await run([...prefix, process.execPath, bin('ava')], {
    cwd: copy,
    seconds: 600,
    env: {
      TMPDIR: tmp,
      LD_PRELOAD: library,
      // With the module in each line, by which the addon's leaks are told from others.
      ASAN_OPTIONS: `log_path=${logs}/report:detect_leaks=1:stack_trace_format="    #%n %p in %f %S (%m)"`,
      LSAN_OPTIONS: 'exitcode=0',
      UBSAN_OPTIONS: `log_path=${logs}/report:print_stacktrace=1:halt_on_error=1`,
    },
  });
  const found = reports(logs);
  const passed = Number(output.match(/^ *(\d+) tests? passed/m)?.[1] ?? 0);
  const ok = status === 0 && passed > 0 && found.length === 0;
  if (!ok) console.log(output.replace(/^ *✔.*\n/gm, '').trim());
  for (const report of found) console.log(report);
  console.log(`asan: ${passed} passed${ok ? '' : `, FAILED: ava ended with ${status}, ${found.length} reports`}`);
  return ok;
}

const both = !values.tsan && !values.asan;
const checks = [];
if (both || values.tsan) checks.push(() => hammer('tsan', 'thread'));
if (both || values.asan) checks.push(() => hammer('asan hammer', ASAN), suite);
for (const check of checks) {
  try {
    if (!(await check())) process.exitCode = 1;
  } catch (error) {
    console.log(error.message);
    process.exitCode = 1;
  }
}
