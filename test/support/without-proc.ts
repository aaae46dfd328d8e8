/** Programs that find nothing in /proc, in a mount namespace of their own. */

/** A command that runs another so, as root of its user namespace. Needs 'programs without /proc'. */
export const withoutProc: readonly string[] = [
  ...['unshare', '-m', 'sh', '-ec'],
  'mount -t tmpfs none /proc; exec "$@"',
  'sh',
];
