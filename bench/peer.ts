/** Drives the C program: one process for the whole run, which measures when told to and sleeps otherwise. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';

export interface PairTimes {
  /** Of one pair, in µs. */
  readonly median: number;
  /** Of all pairs, in µs. */
  readonly total: number;
}

export function packageRoot(): string {
  let directory = import.meta.dirname;
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory);
    if (parent === directory) throw new Error(`no package.json above ${import.meta.dirname}`);
    directory = parent;
  }
  return directory;
}

/** Compiles the program, and returns its path. */
export function compilePeer(directory: string): string {
  const program = join(directory, 'peer');
  const source = join(packageRoot(), 'bench', 'peer.c');
  execFileSync('cc', ['-O2', '-pthread', '-o', program, source], { stdio: ['ignore', 'ignore', 'inherit'] });
  return program;
}

export class Peer {
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #ended = new AbortController();

  /** Inherits the CPU and the mount namespace of this process. */
  constructor(program: string) {
    const child = spawn(program, ['serve'], { stdio: ['pipe', 'pipe', 'inherit'] });
    const end = () => this.#ended.abort(new Error('the C program has ended before its time'));
    child.on('exit', end);
    child.on('error', end);
    child.stdin.on('error', end);
    this.pid = child.pid ?? 0;
    this.#child = child;
    this.#lines = createInterface(child.stdout);
  }

  async sync(base: string, sets: number, pairs: number): Promise<PairTimes> {
    return toPairTimes(await this.#ask(`sync ${sets} ${pairs} ${base}`));
  }

  async handover(base: string, sets: number, pairs: number): Promise<PairTimes> {
    return toPairTimes(await this.#ask(`handover ${sets} ${pairs} ${base}`));
  }

  async rootless(base: string, sets: number, pairs: number): Promise<PairTimes> {
    return toPairTimes(await this.#ask(`rootless ${sets} ${pairs} ${base}`));
  }

  /** In µs, for all of them. */
  async whiteouts(by: 'mknod' | 'link', directory: string, count: number, each: number): Promise<number> {
    const [total = Number.NaN] = await this.#ask(`${by} ${count} ${each} ${directory}`);
    return total;
  }

  /** Unmounts all sets, one after the other; in µs, for all of them. */
  async unmount(base: string, sets: number): Promise<number> {
    const [total = Number.NaN] = await this.#ask(`unmount ${sets} ${base}`);
    return total;
  }

  /** In µs: the mount table read and split. */
  async table(): Promise<number> {
    const [total = Number.NaN] = await this.#ask('table');
    return total;
  }

  stop(): void {
    this.#child.kill('SIGKILL');
  }

  /** The numbers of the answer, in µs. */
  async #ask(line: string): Promise<number[]> {
    const { signal } = this.#ended;
    try {
      const answer = once(this.#lines, 'line', { signal });
      this.#child.stdin?.write(`${line}\n`);
      const [text] = await answer;
      return String(text)
        .split(' ')
        .map((nanoseconds) => Number(nanoseconds) / 1000);
    } catch (error) {
      signal.throwIfAborted(); // says what has happened
      throw error;
    }
  }
}

function toPairTimes([median = Number.NaN, total = Number.NaN]: number[]): PairTimes {
  return { median, total };
}
