/**
 * Builds the binaries of a release: `prebuilds/linux-ARCH` with the addon and the launcher, for each architecture that is
 * named, or for all. Each is built in a directory of its own, so that `build`, the development build, stays as it is.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = import.meta.dirname;

/** Debian's compilers: `apt-get install g++-aarch64-linux-gnu` on an x64 machine, `g++-x86-64-linux-gnu` on an arm64 one. */
const prefixes = { x64: 'x86_64-linux-gnu-', arm64: 'aarch64-linux-gnu-' };

function build(arch) {
  const prefix = arch === process.arch ? '' : prefixes[arch];
  const env = { ...process.env, CC: `${prefix}gcc`, CXX: `${prefix}g++` };
  const dir = mkdtempSync(join(tmpdir(), 'overlayfs-prebuild-'));
  const run = (command, ...args) =>
    execFileSync(command, args, { cwd: dir, env, stdio: ['ignore', 'inherit', 'inherit'] });
  try {
    for (const name of ['package.json', 'binding.gyp', 'native', 'test/support/native.cc']) {
      cpSync(join(root, name), join(dir, name), { recursive: true });
    }
    symlinkSync(join(root, 'node_modules'), join(dir, 'node_modules'));
    run(join(root, 'node_modules/.bin/node-gyp'), 'rebuild', '--silent', `--arch=${arch}`, '--jobs=max');

    const release = join(root, `prebuilds/linux-${arch}`);
    rmSync(release, { recursive: true, force: true });
    mkdirSync(release, { recursive: true });
    for (const [built, mode] of Object.entries({ 'overlayfs.node': 0o644, 'launch/overlayfs-launch': 0o755 })) {
      const file = join(release, built.replace('launch/', ''));
      copyFileSync(join(dir, 'build/Release', built), file);
      run(`${prefix}strip`, file);
      chmodSync(file, mode);
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

const wanted = process.argv.slice(2);
for (const arch of wanted) {
  if (!Object.hasOwn(prefixes, arch))
    throw new Error(`No such architecture: ${arch}. There are ${Object.keys(prefixes)}.`);
}
for (const arch of wanted.length > 0 ? wanted : Object.keys(prefixes)) build(arch);
