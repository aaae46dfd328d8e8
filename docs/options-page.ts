/** docs/options.md, made from the tables that the code itself goes by. Pure, and the same on every machine. */

import type { Parsed } from '#lib/cli/command.js';
import { type Flag, signature } from '#lib/cli/flags.js';
import { type MountFlags, moreGroup, mount, mountGroups, toMountOptions } from '#lib/cli/mount.js';
import { parse } from '#lib/cli/parse.js';
import { conflicts } from '#lib/features/conflicts.js';
import { type OptionRow, optionRows } from '#lib/options/table.js';
import { dryRun } from '#lib/overlay/dry-run.js';
import { type WayName, wayNames, ways } from '#lib/overlay/ways.js';
import { render } from '#lib/text.js';
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
  return [code(name), line, toKernel(option), since(option), render(option.default), render(option.about)];
}

function optionTables(): string {
  const titles = ['option', 'command line', 'to the kernel', 'since Linux', 'default', 'meaning'];
  const groups = mountGroups.map(({ title, flags }) => {
    const rows = flags.map((flag) => optionCells(flag.name, flag));
    if (title === 'layers') rows.push(optionCells('target'));
    if (title === 'how it is mounted') {
      for (const name of ['temporary', 'idmap', 'rootless', 'subIds', 'signal'] as const) {
        rows.push(
          optionCells(
            name,
            moreGroup.flags.find((flag) => flag.name === name),
          ),
        );
      }
    }
    return `### ${title.charAt(0).toUpperCase()}${title.slice(1)}\n\n${table(titles, rows)}`;
  });
  return groups.join('\n');
}

const outcomes = {
  refuses: 'refuses it without a message',
  drops: 'mounts and silently drops one',
  lies: 'refuses it, or mounts without it but shows it',
} as const;

const conflictTable = (): string =>
  table(
    ['options', 'the kernel', 'instead'],
    conflicts.map(({ when, kernel, hint }) => [when, outcomes[kernel], render(hint)]),
  );

const example =
  '--lowerdir /srv/layers/app:v2 --lowerdir /srv/layers/base --upperdir /srv/upper --workdir /srv/work --redirect-dir on /srv/merged';

function wayBlock(way: WayName): string {
  const calls = dryRun(toMountOptions(parse(example.split(' '), 'mount', mount) as Parsed<MountFlags>), newest, way);
  const shown = example.replace(/ (?=--upperdir)/, ' \\\n    ');
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
  return `<!-- Made by \`npm run docs\` from lib/options/table.ts, lib/features/conflicts.ts and lib/overlay/ways.ts. -->

# Options of a mount

The options of \`mountOverlay(options)\` and \`overlayfs mount\`. The first column has the names of the library, the second
those of the [command line](cli.md). The library does not send an option that you leave out. The kernel then uses its
default, for some options that of the overlay module, which \`features()\` and \`overlayfs features\` show.

## The options

${optionTables()}
## Conflicting options

The library refuses these combinations before it calls the kernel, with reason \`conflicting-options\`. "Without" means
that the caller does not name the option. The library chooses fitting values for options that you leave out: it sends
\`metacopy: true\` with \`redirect_dir=on\`, for example. If the kernel would drop an option, \`allowDegraded\` can name it; if
the kernel would drop one of two, it must name both.

${conflictTable()}
## Options that a kernel lacks

The library refuses an option that this kernel does not know before it mounts, with reason \`option-unsupported\` and the
first release that has it. If \`allowDegraded\` names the option, the library leaves it out instead. If the kernel does not
report what it knows (before 6.5, or without privilege), the library sends the option, and the kernel decides.

## Fallbacks

The library mounts in the best way that the kernel supports. \`overlayfs mount --dry-run\` prints the system calls without
making them; \`--way\` prints those of one way, as on a kernel that has no better one. If a seccomp filter forbids fsopen(2),
the library uses mount(2) on any kernel.

One layer below has a colon in its name. File descriptors and strings of one layer take it as it is; a string of several
layers contains it escaped.

${waySections()}`;
}
