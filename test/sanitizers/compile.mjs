// Compiles and runs programs under sanitizers. Needs g++ and make, and npm ci before.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';

export const root = resolve(import.meta.dirname, '../..');
export const ASAN = 'address,undefined';
export const cxx = process.env.CXX ?? 'g++';
export const temporary = mkdtempSync(join(tmpdir(), 'overlayfs-sanitizers-'));
chmodSync(temporary, 0o755);
process.on('exit', () => rmSync(temporary, { recursive: true, force: true }));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

/** The output of a command, and how it ended: its exit code, or the signal. */
export async function run([program, ...args], { env = {}, cwd = root, seconds = 300 } = {}) {
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

export async function mustRun(command, options) {
  const { status, output } = await run(command, options);
  if (status !== 0) throw new Error(`${command.join(' ')} ended with ${status}:\n${output}`);
  return output;
}

/**
 * The options with which a command is started. The sanitizers of GCC 12 expect nothing where a kernel may map things by
 * more than 28 random bits.
 */
export const prefix = (() => {
  const bits = existsSync('/proc/sys/vm/mmap_rnd_bits') ? Number(readFileSync('/proc/sys/vm/mmap_rnd_bits')) : 0;
  if (bits <= 28) return [];
  const command = ['setarch', execFileSync('uname', ['-m'], { encoding: 'utf8' }).trim(), '-R'];
  if (spawnSync(command[0], [...command.slice(1), 'true']).status === 0) return command;
  console.log(`note: vm.mmap_rnd_bits is ${bits} and setarch -R is not allowed: the sanitizers may not start`);
  return [];
})();

/** The directory of `include/node`, with Node's headers of this version. */
export function nodeDirectory() {
  const config = join(root, 'build/config.gypi');
  const nodedir = existsSync(config) && readFileSync(config, 'utf8').match(/"nodedir": "([^"]+)"/)?.[1];
  const candidates = [nodedir || '', dirname(dirname(process.execPath))];
  const found = candidates.find((dir) => existsSync(join(dir, 'include/node/node_api.h')));
  if (found === undefined) throw new Error('no node_api.h: build the addon first (npm ci)');
  return found;
}

/**
 * Compiles native/ and a program of its own that stands in for Node-API, as far as it uses it. Returns the program's path.
 */
export async function compile(dir, source, sanitizers, linking = []) {
  mkdirSync(dir, { recursive: true });
  // The program stands in for the C interface only, so nothing else is to be compiled.
  writeFileSync(join(dir, 'napi.h'), '#include <node_api.h>\n');
  const flags = [
    `-std=c++20 -O1 -g -fno-omit-frame-pointer -fno-exceptions -fno-rtti -DNAPI_VERSION=8`.split(' '),
    `-Wall -Wextra -Wshadow -Wconversion -Wno-unused-parameter -Werror`.split(' '),
    [`-fsanitize=${sanitizers}`, '-fno-sanitize-recover=all', '-isystem', dir],
    ['-isystem', join(nodeDirectory(), 'include/node')],
  ].flat();
  // The sanitizers bring the C++ runtime. The launcher is another program.
  const left = ['addon.cc', 'launch.cc', 'runtime.cc'];
  const names = readdirSync(join(root, 'native')).filter((name) => name.endsWith('.cc') && !left.includes(name));
  const sources = [source, ...names.map((name) => `native/${name}`)];
  const objects = sources.map((_, i) => join(dir, `${i}.o`));
  const compileOne = (i) => mustRun([cxx, ...flags, '-c', sources[i], '-o', objects[i]]);
  // The first one takes as long as the others together.
  const others = async () => {
    for (let i = 1; i < sources.length; i++) await compileOne(i);
  };
  if (availableParallelism() > 1) await Promise.all([compileOne(0), others()]);
  else await compileOne(0).then(others);
  const program = join(dir, basename(source, '.cc'));
  await mustRun([cxx, ...flags, ...objects, ...linking, '-o', program]);
  return program;
}
