/** Packs the package and installs it without scripts in an empty directory: once, for all tests of the process. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../support/index.js';

export interface Packed {
  /** The directory of a project that has the package among its dependencies. */
  readonly project: string;
  /** The directory of the package in it. */
  readonly overlayfs: string;
  readonly files: readonly { readonly path: string; readonly size: number }[];
  readonly unpackedSize: number;
}

export function run(cwd: string, command: string, ...args: string[]): string {
  const env = { ...process.env, HOME: tmpdir() }; // npm writes to it
  return execFileSync(command, args, { cwd, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}

/** Copies what a release has into a directory: with the addon in prebuilds, and no development build to shadow it. */
function stage(source: string): void {
  mkdirSync(source);
  for (const name of ['package.json', 'README.md', 'LICENSE', 'CHANGELOG.md', 'dist']) {
    cpSync(join(packageRoot, name), join(source, name), { recursive: true });
  }
  run(packageRoot, process.execPath, 'bundle.mjs', '--release', join(source, 'dist'));
  const released = join(packageRoot, 'prebuilds');
  if (existsSync(released)) cpSync(released, join(source, 'prebuilds'), { recursive: true });
  const own = join(source, `prebuilds/linux-${process.arch}`);
  mkdirSync(own, { recursive: true });
  cpSync(join(packageRoot, 'build/Release/launch/overlayfs-launch'), join(own, 'overlayfs-launch'));
  run(packageRoot, 'strip', '-o', join(own, 'overlayfs.node'), 'build/Release/overlayfs.node');
}

let packed: Packed | undefined;

export function packedPackage(): Packed {
  if (packed !== undefined) return packed;
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-packed-'));
  process.on('exit', () => rmSync(dir, { recursive: true, force: true }));
  stage(join(dir, 'source'));
  const [report] = JSON.parse(run(dir, 'npm', 'pack', '--ignore-scripts', '--json', './source'));

  const project = join(dir, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{ "private": true, "type": "module" }');
  const quiet = ['--ignore-scripts', '--offline', '--no-audit', '--no-fund', '--silent'];
  run(project, 'npm', 'install', ...quiet, join(dir, report.filename));
  mkdirSync(join(project, 'node_modules/@types'));
  for (const module of ['@types/node', 'undici-types']) {
    symlinkSync(join(packageRoot, 'node_modules', module), join(project, 'node_modules', module));
  }
  const overlayfs = join(project, 'node_modules/overlayfs');
  packed = { project, overlayfs, files: report.files, unpackedSize: report.unpackedSize };
  return packed;
}

/** A directory of a test's own in that project. */
export function directoryIn(project: string, name: string): string {
  const dir = join(project, name);
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir);
  return dir;
}
