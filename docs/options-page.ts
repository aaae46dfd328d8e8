/** docs/options.md, made from the tables that the code itself goes by. Pure, and the same on every machine. */

import { flagsOfCommand } from '#lib/cli/command.js';
import { dryRun } from '#lib/cli/dry-run.js';
import { type Flag, signature } from '#lib/cli/flags.js';
import { mount, mountGroups, toMountOptions } from '#lib/cli/mount.js';
import { parse } from '#lib/cli/parse.js';
import { type WayName, wayNames, ways } from '#lib/cli/ways.js';
import { conflicts } from '#lib/features/conflicts.js';
import { type OptionRow, optionRows } from '#lib/options/table.js';
import { newest } from '../test/support/features.js';

const cell = (text: string): string => text.replaceAll('|', '\\|');
const row = (cells: readonly string[]): string => `| ${cells.map(cell).join(' | ')} |\n`;
const code = (text: string): string => `\`${text}\``;

/** Columns that are empty for all are left out. */
function table(titles: readonly string[], rows: readonly (readonly string[])[]): string {
  const kept = titles.map((_, i) => rows.some((cells) => cells[i] !== ''));
  const only = (cells: readonly string[]) => cells.filter((_, i) => kept[i]);
  return row(only(titles)) + row(only(titles.map(() => '---'))) + rows.map((cells) => row(only(cells))).join('');
}

/** As it is sent where the kernel takes text. */
function toKernel({ kernel, ...option }: OptionRow): string {
  if (kernel === undefined) return '';
  if (option.form === 'flag') return [kernel, option.off].flatMap((name) => (name ? [code(name)] : [])).join(', ');
  return code(option.form === 'switch' ? `${kernel}=on|off` : `${kernel}=`);
}

function since(option: OptionRow): string {
  const later = new Map<string, string[]>();
  for (const [word, first] of Object.entries((option.form === 'word' && option.firstOf) || {})) {
    later.set(first, [...(later.get(first) ?? []), word]);
  }
  return [option.first ?? '', ...[...later].map(([first, words]) => `${words.join(', ')}: ${first}`)].join('; ');
}

function optionCells(name: string, flag?: Flag): string[] {
  const option = optionRows[name] as OptionRow;
  const line = flag === undefined ? '' : code(signature(flag));
  return [code(name), line, toKernel(option), since(option), option.default, option.about];
}

function optionTables(): string {
  const titles = ['option', 'command line', 'to the kernel', 'since Linux', 'default', 'meaning'];
  const groups = mountGroups.map(({ title, flags }) => {
    const rows = flags.map((flag) => optionCells(flag.name, flag));
    if (title === 'layers') rows.push(optionCells('target'));
    if (title === 'how it is mounted') {
      for (const name of ['idmap', 'rootless', 'subIds', 'signal'] as const) rows.push(optionCells(name));
    }
    return `### ${title.charAt(0).toUpperCase()}${title.slice(1)}\n\n${table(titles, rows)}`;
  });
  return groups.join('\n');
}

const outcomes = {
  refuses: 'refuses without a word',
  drops: 'mounts, and drops one without a word',
  lies: 'refuses, or mounts without it and shows it all the same',
} as const;

const conflictTable = (): string =>
  table(
    ['asked for', 'the kernel', 'instead'],
    conflicts.map(({ when, kernel, hint }) => [when, outcomes[kernel], hint]),
  );

const example =
  '--lower /srv/layers/app:v2 --lower /srv/layers/base --upper /srv/upper --work /srv/work --redirect-dir on /srv/merged';

function wayBlock(way: WayName): string {
  const calls = dryRun(toMountOptions(parse(example.split(' '), flagsOfCommand(mount))), newest, way);
  const shown = example.replace(/ (?=--upper)/, ' \\\n    ');
  return `\`\`\`\n$ overlayfs mount --dry-run --way ${way} \\\n    ${shown}\n${calls.join('\n')}\n\`\`\`\n`;
}

function waySections(): string {
  return wayNames
    .map(
      (way) =>
        `### ${code(`--way ${way}`)}\n\n${ways[way].about.replace(/^./, (c) => c.toUpperCase())}.\n\n${wayBlock(way)}`,
    )
    .join('\n');
}

export function optionsPage(): string {
  return `<!-- Made by \`npm run docs\` from lib/options/table.ts, lib/features/conflicts.ts and lib/cli/ways.ts. -->

# Options of a mount

What \`mountOverlay(options)\` and \`overlayfs mount\` take. Options are named in the library's way here; the second
column is the [command line](cli.md). An option that is left out is not sent, and the kernel's default holds: for
some, that of the overlay module, which \`features()\` and \`overlayfs features\` show.

## The options

${optionTables()}
## What does not go together

Refused before the kernel is asked, with reason \`conflicting-options\`. "Without" is said of what is not named. What is
left to the library fits by itself: \`metacopy: true\` is sent with \`redirect_dir=on\`, for one. What the kernel mounts
without is let pass where \`allowDegraded\` names it; where it can be either of two, both.

${conflictTable()}
## What a kernel lacks

An option that this kernel does not know is an error before anything is mounted, with reason \`option-unsupported\` and
the first release that has it. With its name in \`allowDegraded\` it is left out instead. Where the kernel does not tell
what it knows (before 6.5, or without the privilege to ask), it is sent, and the kernel decides.

## Ways down

How a mount is made depends on what the kernel has. \`overlayfs mount --dry-run\` prints the system calls, and makes none;
\`--way\` has it print those of one way, as on a kernel that has no better. Where fsopen(2) is forbidden (a seccomp filter
that knows mount(2) only), mount(2) follows on any kernel.

One layer below has a colon in its name, which descriptors and strings of one layer take as it is; where a string has
several layers, it is escaped.

${waySections()}`;
}
