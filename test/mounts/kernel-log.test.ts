/** The kernel's log is for what is wrong: what succeeds again and again leaves no line in it. */
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { type CycleSet, cycles } from '../support/cycles.js';
import { type Feature, layers, mountTest, scaled, scratch } from '../support/index.js';

/** A cycle needs these besides mounts. */
const needs: Readonly<Record<string, readonly Feature[]>> = {
  replace: ['mountBeneath'],
  clone: ['uniqueMountId'],
  rootless: ['rootless'],
  'rootless keep': ['rootless'],
  spawn: ['uniqueMountId'],
};

/** The lines of overlayfs that are in the log since the last call, by whomever they were caused. */
class KernelLog {
  readonly #file = openSync('/dev/kmsg', constants.O_RDONLY | constants.O_NONBLOCK);
  readonly #record = Buffer.alloc(8192);

  takeLines(): string[] {
    const lines: string[] = [];
    for (;;) {
      try {
        const size = readSync(this.#file, this.#record);
        const line = this.#record.toString('utf8', 0, size);
        if (line.includes(';overlayfs: ')) lines.push(line.slice(line.indexOf(';') + 1).trimEnd());
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // EPIPE: the kernel has dropped what was to be read next.
        if (code === 'EAGAIN') return lines;
        if (code !== 'EPIPE') throw error;
      }
    }
  }

  close(): void {
    closeSync(this.#file);
  }
}

/** Cycles between two looks at the log. */
const FEW = 2;
/** The log is the whole machine's, and other tests write to it. So a few cycles are tried again until they find it quiet, in ms. */
const PATIENCE = 30_000;

for (const [name, start] of Object.entries(cycles)) {
  mountTest(`${name}: no line in the kernel's log`, { needs: needs[name] }, async (t) => {
    const cycle = start(layers(scratch(t)) as CycleSet);
    const log = new KernelLog();
    t.teardown(() => log.close());
    for (let done = 0; done < scaled(1000); done += FEW) {
      let lines: string[] = [];
      const end = performance.now() + PATIENCE;
      do {
        log.takeLines();
        for (let i = 0; i < FEW; i++) await cycle();
        lines = log.takeLines();
      } while (lines.length > 0 && performance.now() < end);
      if (lines.length > 0) {
        t.deepEqual([...new Set(lines)], []);
        return;
      }
    }
    t.pass();
  });
}
