// Loaded before a test file (node --require): puts the process into a mount namespace of its own, while it has
// one thread. libuv's pool, children and workers are then all in it, and with the process all its mounts go.
const { unshareMounts } = require('../../build/Release/test_support.node');

const errno = unshareMounts();
process.env.OVERLAYFS_TEST_UNSHARE_ERRNO = String(errno);
