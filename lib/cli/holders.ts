/** `overlayfs holders` */
import type { Holder } from '../holder.js';
import { unseenText, whatText } from '../holders/text.js';
import { type FoundHolders, findHolders } from '../mounts/find-holders.js';
import { quotePath } from '../paths.js';
import { printable } from '../text.js';
import { type Paint, paintFor } from './colour.js';
import type { Command, Outcome, Parsed } from './command.js';
import { NO } from './errors.js';

/** A user at a terminal waits longer than a program, in ms. */
const TIMEOUT = 30_000;

const headers = ['PID', 'HELD BY', 'PATH', 'COMMAND'] as const;

function cells(holder: Holder): string[] {
  const { pid, path, command, device, boundAt } = holder;
  return [String(pid ?? '-'), whatText(holder), quotePath(path), printable(command ?? device ?? boundAt ?? '-')];
}

/** Returns a table of the holders, and says what it does not cover. */
export function holdersTable(found: FoundHolders, paint: Paint): string {
  const unseen = unseenText(found);
  const note = unseen === '' ? '' : `${paint('yellow', unseen)}\n`;
  const { holders } = found;
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

async function run({ operands: [target = ''] }: Parsed<object>): Promise<Outcome> {
  const found = await findHolders(target, { timeout: TIMEOUT });
  return {
    text: holdersTable(found, paintFor(process.stdout.isTTY, process.env)),
    json: { ...found },
    exitCode: found.holders.length === 0 ? NO : 0,
  };
}

export const holders: Command<object> = {
  about: 'Lists what uses the mount at TARGET, or its file system: processes, mounts, loop devices, overlays.',
  operands: '<TARGET>',
  no: 'nothing uses it, as far as the search could see',
  notes: 'Only root sees the processes of other users.',
  examples: ['overlayfs holders /srv/merged', 'overlayfs holders --json /srv/merged'],
  run,
};
