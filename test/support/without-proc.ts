/** Programs that find nothing in /proc, in a mount namespace of their own. */

/**
 * A command that runs another so, as root of its user namespace. AddressSanitizer, where the addon is built with it,
 * cannot look for leaks then.
 */
export const withoutProc: readonly string[] = [
  ...['unshare', '-m', 'sh', '-ec'],
  'export ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0"; mount -t tmpfs none /proc; exec "$@"',
  'sh',
];
