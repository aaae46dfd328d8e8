// Loaded before a test file (node --require): puts the process into a mount namespace of its own, while it has
// one thread. libuv's pool, children and workers are then all in it, and with the process all its mounts go.
const { execFileSync } = require('node:child_process');
const { closeSync, openSync, statSync } = require('node:fs');
const { dirname, resolve } = require('node:path');
const { isMainThread } = require('node:worker_threads');
const { unshareMounts } = require('../../build/Release/test_support.node');

const contains = (dir, path) => `${path}/`.startsWith(`${dir}/`);

/** The uppermost directory above a path that only its owner can pass, as /root often is. */
function closedAbove(path) {
  const dir = dirname(path);
  if (dir === path) return undefined;
  return closedAbove(dir) ?? ((statSync(dir).mode & 0o001) === 0 ? dir : undefined);
}

/** Covers a directory with one that every user can pass, in which the paths given are what they were. */
function open(dir, paths) {
  const fds = paths.map((path) => openSync(path, 'r'));
  const covered = 'mount -t tmpfs -o mode=755 open "$1"; shift; fd=3';
  // A canonical path would lead into the cover.
  const each = 'for path; do mkdir -p "$path"; mount -c --bind "/proc/self/fd/$fd" "$path"; fd=$((fd + 1)); done';
  const stdio = ['ignore', 'inherit', 'inherit', ...fds];
  execFileSync('sh', ['-e', '-c', `${covered}; ${each}`, 'sh', dir, ...paths], { stdio });
  fds.forEach(closeSync);
}

/** Programs that tests run as a plain user have to reach the package and Node. */
function openForAll() {
  const paths = [resolve(__dirname, '../..'), dirname(dirname(process.execPath))];
  const here = process.cwd();
  for (const dir of new Set(paths.map(closedAbove))) {
    if (dir === undefined || contains(dir, process.env.TMPDIR ?? '/tmp')) continue;
    const within = paths.filter((path) => contains(dir, path));
    open(dir, within);
  }
  process.chdir(here); // not in what is covered
}

// A worker loads this too, and would leave the namespace of its process.
if (isMainThread) {
  const errno = unshareMounts();
  process.env.OVERLAYFS_TEST_UNSHARE_ERRNO = String(errno);
  if (errno === 0 && process.getuid() === 0) openForAll();
}
