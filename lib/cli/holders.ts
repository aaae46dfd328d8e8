/** `overlayfs holders` */
import type { Holder, Holders } from '../holder.js';
import { unseenText, whatText } from '../holders/text.js';
import { findHolders } from '../mounts/find-holders.js';
import { quotePath } from '../paths.js';
import { type Paint, paintFor } from './colour.js';
import type { Command, Outcome } from './command.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

/** A user at a terminal waits longer than a program, in ms. */
const TIMEOUT = 30_000;

const headers = ['PID', 'HELD BY', 'PATH', 'COMMAND'] as const;

function cells(holder: Holder): string[] {
  const { pid, path, command, device, boundAt } = holder;
  return [String(pid ?? '-'), whatText(holder), quotePath(path), command ?? device ?? boundAt ?? '-'];
}

/** Returns a table of the holders, and says what it does not cover. */
export function holdersTable(holders: Holders, paint: Paint): string {
  const unseen = unseenText(holders);
  const note = unseen === '' ? '' : `${paint('yellow', unseen)}\n`;
  if (holders.length === 0)
    return `no process uses it${unseen === '' ? '' : ', as far as this search could see'}\n${note}`;
  const rows = holders.map(cells);
  const widths = headers.map((header, i) => Math.max(header.length, ...rows.map((row) => (row[i] ?? '').length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return `${paint('bold', line(headers))}\n${rows.map((row) => `${line(row)}\n`).join('')}${note}`;
}

async function run({ operands }: Parsed): Promise<Outcome> {
  const [target, ...more] = operands;
  if (target === undefined || more.length > 0) throw new UsageError('name one mount point');
  const holders = await findHolders(target, { timeout: TIMEOUT });
  const { hidden, complete } = holders;
  return {
    text: holdersTable(holders, paintFor(process.stdout.isTTY, process.env)),
    json: { holders: [...holders], hidden, complete },
  };
}

export const holders: Command = {
  about: 'Lists what uses the mount at TARGET, or its file system: processes, mounts, loop devices, overlays.',
  usage: ['[OPTION...] TARGET'],
  groups: [],
  notes: 'Only root sees the processes of other users.',
  examples: ['overlayfs holders /srv/merged', 'overlayfs holders --json /srv/merged'],
  run,
};
