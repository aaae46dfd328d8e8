/** Programs as a user without any privilege, from a copy of the package that this user can read. */
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from './index.js';
import { NOBODY } from './nobody.js';

/** Reports have the process's number in their names: one that had it before may have been another user's. */
const sanitizerOptions = process.env['ASAN_OPTIONS']?.replace(/log_path=[^:]*/, '$&-nobody');

/** A command that runs another as this user, who may not write where coverage is collected. */
export const asNobody: readonly string[] =
  process.getuid?.() === 0
    ? [
        ...['env', '-u', 'NODE_V8_COVERAGE', ...(sanitizerOptions ? [`ASAN_OPTIONS=${sanitizerOptions}`] : [])],
        ...['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups', '--inh-caps=-all'],
      ]
    : [];

let copy: string | undefined;

/** Made once for a test file, and gone with its process. */
export function readablePackage(): string {
  if (copy !== undefined) return copy;
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-package-'));
  chmodSync(dir, 0o755);
  for (const name of ['package.json', 'dist']) cpSync(join(packageRoot, name), join(dir, name), { recursive: true });
  const built = 'build/Release';
  mkdirSync(join(dir, built), { recursive: true });
  for (const name of ['overlayfs.node', 'launch', 'test_support.node']) {
    cpSync(join(packageRoot, built, name), join(dir, built, name), { recursive: true });
  }
  process.on('exit', () => rmSync(dir, { recursive: true, force: true }));
  copy = dir;
  return dir;
}

/** Copies a package that the library needs into the copy, with those that it needs itself. */
export function addDependency(name: string): void {
  const to = join(readablePackage(), 'node_modules', name);
  const from = join(packageRoot, 'node_modules', name);
  if (existsSync(to) || !existsSync(from)) return;
  cpSync(from, to, { recursive: true });
  const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(from, 'package.json'), 'utf8'));
  for (const each of Object.keys({ ...dependencies, ...optionalDependencies })) addDependency(each);
}

/** Has the directory, and all in it that is not meant to be another's, belong to this user. */
export function giveTo(path: string, ...rest: string[]): void {
  for (const each of [path, ...rest]) chownSync(each, NOBODY, NOBODY);
}

const prelude = `import * as overlayfs from 'overlayfs';
import { remove } from 'overlayfs/layers';
import * as fs from 'node:fs';
import { join } from 'node:path';
import * as childProcess from 'node:child_process';
const args = process.argv.slice(1);
const fields = ({ code, reason, syscall, path, message, hint }) => ({ code, reason, syscall, path, message, hint });
`;

/**
 * Runs a function's body in a child of this user that a command starts, and returns its result by way of JSON, or
 * the fields of the error that it throws. The body finds `args`, `overlayfs`, `fs`,
 * `childProcess`, `join` and `fields`.
 */
export function evaluateAs(command: readonly string[], body: string, ...args: readonly string[]): unknown {
  const script = `${prelude}
const outcome = await (async () => { ${body} })().catch(fields);
console.log(JSON.stringify(outcome ?? null));`;
  const [program = '', ...rest] = [...command, process.execPath, '--input-type=module', '-e', script, ...args];
  const printed = execFileSync(program, rest, {
    cwd: readablePackage(),
    encoding: 'utf8',
    env: { ...process.env, HOME: '/nonexistent' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return JSON.parse(printed.trimEnd().split('\n').at(-1) ?? '');
}

export const evaluateAsNobody = (body: string, ...args: readonly string[]): unknown =>
  evaluateAs(asNobody, body, ...args);
