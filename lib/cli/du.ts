/** `overlayfs du` */
import { diskUsage } from '../layers/usage.js';
import { formatBytes } from '../paths.js';
import type { Command, Outcome } from './command.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

async function run({ operands }: Parsed): Promise<Outcome> {
  if (operands.length === 0) throw new UsageError('name the directories to measure');
  const usage = [];
  const errors: unknown[] = [];
  for (const path of operands) {
    try {
      usage.push({ path, ...(await diskUsage(path)) });
    } catch (error) {
      errors.push(error);
    }
  }
  const lines = usage.map(({ path, bytes, inodes }) => `${bytes}\t${inodes}\t${formatBytes(path)}\n`);
  return { text: lines.join(''), json: { usage }, errors };
}

export const du: Command = {
  about:
    'Prints the space that each DIR takes, in bytes, and the number of its inodes. An inode counts once; other mounts ' +
    'inside do not count.',
  usage: ['[OPTION...] DIR...'],
  groups: [],
  examples: ['overlayfs du /srv/upper', 'overlayfs du --json /srv/layers/*'],
  run,
};
