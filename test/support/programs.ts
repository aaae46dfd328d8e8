/** Children that evaluate a part of a test. */

import { execFileSync } from 'node:child_process';
import { packageRoot } from './package-root.js';

/**
 * Evaluates an expression of `overlayfs` and `args` in a child that a command starts, and returns its value, or the
 * fields of the error that it throws. The command may take things away from the child.
 */
export function evaluateIn(command: readonly string[], expression: string, ...args: readonly string[]): unknown {
  const script = `import * as overlayfs from 'overlayfs';
    import { remove } from 'overlayfs/layers';
    const args = process.argv.slice(1);
    const fields = ({ code, reason, syscall, path, message }) => ({ code, reason, syscall, path, message });
    const outcome = await (async () => ${expression})().catch(fields);
    console.log(JSON.stringify(outcome ?? null));`;
  const [program = '', ...rest] = [...command, process.execPath, '--input-type=module', '-e', script, ...args];
  return JSON.parse(execFileSync(program, rest, { cwd: packageRoot, encoding: 'utf8' }));
}

/** A command that runs another as root without capabilities, so that modes bind it. */
export const withoutCapabilities = ['setpriv', '--bounding-set=-all', '--inh-caps=-all'];
