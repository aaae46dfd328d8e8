/** Runs the program itself, or its commands in this process. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { main } from '#lib/cli/commands.js';
import { packageRoot } from '../support/package-root.js';

export const program = join(packageRoot, 'dist/cli/main.js');

export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly cwd?: string;
  readonly input?: string | Uint8Array;
  readonly env?: NodeJS.ProcessEnv;
  /** A command that runs the rest. */
  readonly command?: readonly string[];
}

export function run(args: readonly string[], { command = [], env, ...options }: RunOptions = {}): Ran {
  const [first = '', ...rest] = [...command, process.execPath, program, ...args];
  const { status, stdout, stderr } = spawnSync(first, rest, {
    ...options,
    env: { ...process.env, ...env },
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  return { code: status, stdout, stderr };
}

/** Runs a command in this process, which takes a hundredth of the time. Only one at a time. */
export async function overlayfs(...args: readonly string[]): Promise<Ran> {
  const streams = ['stdout', 'stderr'] as const;
  const printed = { stdout: '', stderr: '' };
  const writes = streams.map((name) => process[name].write);
  for (const name of streams) {
    process[name].write = (text: unknown) => {
      printed[name] += text;
      return true;
    };
  }
  try {
    return { code: await main(args), ...printed };
  } finally {
    streams.forEach((name, i) => {
      process[name].write = writes[i] as typeof process.stdout.write;
    });
  }
}

/** The documents of --json, one a line, and the last of them. */
export async function json(...args: string[]): Promise<{
  code: number | null;
  document: Record<string, unknown>;
  documents: Record<string, unknown>[];
}> {
  const { code, stdout, stderr } = await overlayfs(...args, '--json');
  if (stderr !== '') throw new Error(`with --json, nothing belongs on stderr: ${stderr}`);
  const documents = stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  return { code, document: documents.at(-1) ?? {}, documents };
}

/**
 * The program with arguments of any bytes, which Node cannot pass: by a shell, with `printf` for each, the bytes as
 * octal escapes.
 */
export function runBytes(args: readonly (string | Uint8Array)[], options: RunOptions = {}): Ran {
  const words = args.map((arg) => {
    const octal = Array.from(Buffer.from(arg), (byte) => `\\${byte.toString(8).padStart(3, '0')}`);
    return `"$(printf '${octal.join('')}')"`;
  });
  const script = `exec "$0" "$@" ${words.join(' ')}`;
  return run([], { ...options, command: [...(options.command ?? []), 'sh', '-c', script] });
}
