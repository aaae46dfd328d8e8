/** Packs the package and installs it without scripts in an empty directory: once, for all tests of the process. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
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

/** Makes what is published, with the binaries of this machine. */
function stage(source: string): void {
  run(packageRoot, process.execPath, 'release.mjs', source);
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
  const [report] = JSON.parse(run(dir, 'npm', 'pack', '--json', './source'));

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
