/** The directory of the snapshots where the caller names none. */
import { homedir } from 'node:os';
import { join } from 'node:path';

/** The XDG base directory specification ignores a relative path in the variable. */
export function defaultRoot(): string {
  if (process.geteuid?.() === 0) return '/var/lib/overlayfs';
  const { XDG_DATA_HOME: data = '' } = process.env;
  return join(data.startsWith('/') ? data : join(homedir(), '.local/share'), 'overlayfs');
}
