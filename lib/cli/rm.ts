/** `overlayfs rm` */
import { type RemoveOptions, remove } from '../layers/remove.js';
import { formatBytes, type Path } from '../paths.js';
import type { Command, Outcome, Parsed } from './command.js';
import { isWrongUsage } from './errors.js';
import { ownFlag } from './flags.js';

/** Does something to one operand after the other. A failure does not keep it from the others; wrong usage does. */
export async function toEach<T>(
  operands: readonly T[],
  perform: (operand: T) => Promise<unknown>,
): Promise<{ readonly done: readonly T[]; readonly errors: readonly unknown[] }> {
  const [done, errors]: [T[], unknown[]] = [[], []];
  for (const operand of operands) {
    try {
      await perform(operand);
      done.push(operand);
    } catch (error) {
      if (isWrongUsage(error)) throw error;
      errors.push(error);
    }
  }
  return { done, errors };
}

type Options = Pick<RemoveOptions, 'dryRun'>;

async function run({ operands, options: { dryRun = false } }: Parsed<Options>): Promise<Outcome> {
  const { done, errors } = await toEach<Path>(operands, (dir) => remove(dir, { dryRun }));
  const text = dryRun ? done.map((dir) => `${formatBytes(dir)} would be removed\n`).join('') : '';
  return { text, json: { removed: dryRun ? [] : done }, errors };
}

export const rm: Command<Options> = {
  about:
    'Removes upper and work directories with all their contents, also where their modes or owners keep rm(1) out. Refuses ' +
    'one that a mounted overlay uses, and enters no other mount.',
  operands: '<DIR...>',
  groups: [{ title: 'options', flags: [ownFlag('dryRun', 'says what would be refused, and removes nothing')] }],
  notes: 'If one DIR fails, the others are still removed.',
  examples: ['overlayfs rm /srv/upper /srv/upper.work'],
  run,
};
