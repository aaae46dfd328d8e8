/**
 * The bench runs in a mount namespace of its own, in which all its mounts end with it, and on one CPU.
 * Both are had by starting it once more, from a process that stays outside and clears up when it is over,
 * however it ended.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const marker = 'OVERLAYFS_BENCH_ENCLOSURE';

export interface Enclosure {
  /** A directory to work in, which is removed afterwards. */
  readonly directory: string;
  /** The CPU on which both sides run. */
  readonly cpu: number;
  /** Another one, to be kept busy or given to both; none where there is but one. */
  readonly otherCpu: number | undefined;
}

function allowedCpus(): number[] {
  const list = /^Cpus_allowed_list:\s*(.*)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return list.split(',').flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** The enclosure of this process, or undefined when nothing does yet. */
export function enclosure(): Enclosure | undefined {
  const text = process.env[marker];
  return text === undefined ? undefined : JSON.parse(text);
}

/** Runs this program enclosed, and returns its exit code. */
export async function runEnclosed(script: string): Promise<number> {
  if (process.platform !== 'linux' || process.geteuid?.() !== 0) {
    console.error('The bench mounts file systems: it has to be run by root, on Linux.');
    return 1;
  }
  const [cpu = 0, otherCpu] = allowedCpus();
  const directory = mkdtempSync(join(tmpdir(), 'overlayfs-bench-'));
  const enclosed: Enclosure = { directory, cpu, otherCpu };
  try {
    const child = spawn(
      'unshare',
      [
        ...['--mount', '--propagation', 'private', 'taskset', '-c', String(cpu)],
        ...[process.execPath, ...process.execArgv, fileURLToPath(script), ...process.argv.slice(2)],
      ],
      { stdio: 'inherit', env: { ...process.env, [marker]: JSON.stringify(enclosed) } },
    );
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
    const [code] = await once(child, 'exit');
    return code ?? 1;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
