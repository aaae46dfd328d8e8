// Loaded before a test file (node --require): puts the process into a mount namespace of its own, while it has
// one thread. libuv's pool, children and workers are then all in it, and with the process all its mounts go.
const { isMainThread } = require('node:worker_threads');
const { unshareMounts } = require('../../build/Release/test_support.node');

// A worker loads this too, and would leave the namespace of its process.
if (isMainThread) process.env.OVERLAYFS_TEST_UNSHARE_ERRNO = String(unshareMounts());
