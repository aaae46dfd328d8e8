/** Drives a program: one process for the whole run, which measures when told to and sleeps otherwise. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { basename } from 'node:path';
import { createInterface, type Interface } from 'node:readline';

export interface PairTimes {
  /** For one pair, in µs. */
  readonly median: number;
  /** For all pairs, in µs. */
  readonly total: number;
}

/** As bench/peer/main.c has them; the other programs know `sync` alone. */
export type PairKind = 'sync' | 'guarded' | 'handover' | 'guarded-handover' | 'rootless';

export class Peer {
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #ended = new AbortController();

  /** Inherits the CPU and the mount namespace of this process. */
  constructor(program: string, args: readonly string[]) {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const end = () => this.#ended.abort(new Error(`${basename(program)} has ended before its time`));
    child.on('exit', end);
    child.on('error', end);
    child.stdin.on('error', end);
    this.pid = child.pid ?? 0;
    this.#child = child;
    this.#lines = createInterface(child.stdout);
  }

  /** Pairs of a mount and its unmount, on so many sets in turn. */
  async pairs(kind: PairKind, base: string, sets: number, pairs: number): Promise<PairTimes> {
    const [median = Number.NaN, total = Number.NaN] = await this.#ask(`${kind} ${sets} ${pairs} ${base}`);
    return { median, total };
  }

  /** In µs, for all of them. */
  async whiteouts(by: 'mknod' | 'link', directory: string, count: number, each: number): Promise<number> {
    const [total = Number.NaN] = await this.#ask(`${by} ${count} ${each} ${directory}`);
    return total;
  }

  /** In µs: a walk of a directory tree. */
  async walk(directory: string): Promise<number> {
    const [total = Number.NaN] = await this.#ask(`walk ${directory}`);
    return total;
  }

  /** In µs: an archive unpacked into a directory. */
  async apply(archive: string, directory: string): Promise<number> {
    const [total = Number.NaN] = await this.#ask(`apply ${archive} ${directory}`);
    return total;
  }

  /** Unmounts all sets, one after the other; in µs, for all of them. */
  async unmount(base: string, sets: number): Promise<number> {
    const [total = Number.NaN] = await this.#ask(`unmount ${sets} ${base}`);
    return total;
  }

  /** Makes snapshots beside those of the cycles. */
  async fill(count: number): Promise<void> {
    await this.#ask(`fill ${count}`);
  }

  /** In µs: the median of cycles over a socket. */
  async cycle(count: number): Promise<number> {
    const [median = Number.NaN] = await this.#ask(`cycle ${count}`);
    return median;
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
