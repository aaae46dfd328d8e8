/** The process into which faults are injected: it does what its parent says, a line of JSON each, and answers so. */
import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { mountsBelow } from '../support/mount-table.js';
import { countDescriptors, openPaths } from '../support/process.js';
import { type Operation, operations, removeAll } from './operations.js';

const [base = '', name = ''] = process.argv.slice(2);
const operation = operations[name] as Operation;
let dir = '';
let descriptors = 0;
let outcome: { failed: boolean; error?: object } = { failed: false };

const describe = (error: unknown): object => {
  const { name: type, message, code, reason, hint, stack, isOfProgram } = error as Record<string, unknown>;
  return { type, message, code, reason, hint, stack, isOfProgram };
};

/** Some descriptors are closed by other threads, a moment later. */
async function settledDescriptors(most: number): Promise<number> {
  for (let i = 0; i < 100 && countDescriptors() > most; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  return countDescriptors();
}

const steps: Readonly<Record<string, () => Promise<void>>> = {
  prepare: async () => {
    dir = mkdtempSync(join(base, 'try-'));
    await operation.prepare(dir);
    descriptors = countDescriptors();
  },
  perform: async () => {
    outcome = { failed: false };
    try {
      await operation.perform(dir);
    } catch (error) {
      outcome = { failed: true, error: describe(error) };
    }
  },
  /** The descriptors do not count. */
  forgive: async () => {
    descriptors = Number.POSITIVE_INFINITY;
  },
  check: async () => {
    if (outcome.failed) {
      const now = await settledDescriptors(descriptors);
      if (now > descriptors)
        throw new Error(`${now - descriptors} descriptors are left after the failure, of ${openPaths()}`);
      await operation.expectWhole?.(dir);
      await operation.perform(dir);
    }
    await operation.expectDone(dir);
    await operation.release?.(dir);
    const left = mountsBelow(dir);
    if (left.length > 0) throw new Error(`mounts are left: ${left.map(({ target }) => target).join(', ')}`);
    removeAll(dir);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  try {
    await steps[line]?.();
    process.stdout.write(`${JSON.stringify({ outcome })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ outcome, wrong: describe(error) })}\n`);
  }
}
