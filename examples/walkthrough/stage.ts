/** The one temporary directory that all happens in, and the mount table as far as it is about it. */
import { mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { unmountSync } from 'overlayfs';
import { output, paint } from './terminal.js';

export interface Stage {
  readonly dir: string;
  /** Aborts when the walk is to end early. */
  readonly signal: AbortSignal;
  /** True if this is a user namespace: marks are kept in `user.overlay.*` there. */
  readonly userxattr: boolean;
}

export function openStage(signal: AbortSignal): Stage {
  // The mount table has paths without links in them.
  const dir = mkdtempSync(join(realpathSync(tmpdir()), 'overlayfs-walk-'));
  return { dir, signal, userxattr: isUserNamespace() };
}

/** Takes away all that is mounted there, then the directory. Does nothing the second time. */
export function closeStage({ dir }: Stage): void {
  for (const { target } of mountsUnder(dir).reverse()) unmountSync(target, { detach: true });
  rmSync(dir, { recursive: true, force: true });
}

export interface MountLine {
  readonly target: string;
  readonly line: string;
}

export function mountsUnder(dir: string): MountLine[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => ({ target: unescapeOctal(line.split(' ')[4] ?? ''), line }))
    .filter(({ target }) => target.startsWith(`${dir}/`));
}

/** The table writes blanks and backslashes as three octal digits. */
const unescapeOctal = (field: string): string =>
  field.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));

/** The line of a mount, folded where the overlay's own options begin and at each of them. */
export function showMountLine({ line }: MountLine): void {
  const [mount, overlay = ''] = line.split(' - ');
  const [type, source, options = ''] = overlay.split(' ');
  // Older kernels show all lower layers as one option.
  const folded = options.split(',').flatMap((option) => {
    return option.startsWith('lowerdir=') ? option.replace(/(?<!\\134):/g, '\n         :').split('\n') : option;
  });
  const lines = [mount, `  - ${type} ${source}`, ...folded.map((option) => `    ${option}`)];
  output(lines.map((text) => paint('green', text ?? '')));
}

/** user_namespaces(7): only the initial one has every id as it is. */
function isUserNamespace(): boolean {
  return readFileSync('/proc/self/uid_map', 'utf8').trim().split(/\s+/).join(' ') !== '0 0 4294967295';
}
