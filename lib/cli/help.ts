/** The texts of `--help`. */
import { render, text } from '../text.js';
import { type Command, commonFlags } from './command.js';
import { type Flag, signature } from './flags.js';
import { inFlags } from './spelling.js';

const WIDTH = 80;
const COLUMN = 24;

function wrap(given: string, indent: number): string {
  const lines: string[] = [];
  let line = '';
  for (const word of given.split(' ')) {
    if (line !== '' && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line].join(`\n${' '.repeat(indent)}`);
}

function row(term: string, about: string): string {
  const start = `  ${term}`;
  const gap = start.length < COLUMN - 1 ? ' '.repeat(COLUMN - start.length) : `\n${' '.repeat(COLUMN)}`;
  return `${start}${gap}${wrap(about, COLUMN)}\n`;
}

export const exitCodes = [
  ['0', 'done'],
  ['1', 'failed: the error says why'],
  ['2', 'wrong usage: nothing was done'],
] as const;

/** Appends the default if it says more than that nothing happens. */
function withDefault({ about, default: standard }: Flag): string {
  const goesWithoutSaying = standard === 'false' || standard === 'none' || standard === 'required';
  return render(goesWithoutSaying ? about : text`${about}; default: ${standard}`, inFlags).replaceAll('`', '');
}

export function commandHelp(name: string, command: Command): string {
  const { about, usage, groups, notes, examples } = command;
  const parts = [
    usage.map((form, i) => `${i === 0 ? 'usage:' : '      '} overlayfs ${name} ${form}\n`).join(''),
    `${wrap(about, 0)}\n`,
    ...[...groups, { title: 'output', flags: commonFlags }].map(
      ({ title, flags }) => `${title}:\n${flags.map((flag) => row(signature(flag), withDefault(flag))).join('')}`,
    ),
    ...(notes === undefined ? [] : [`${wrap(notes, 0)}\n`]),
    `exit codes:\n${exitCodes.map(([code, meaning]) => row(code, meaning)).join('')}`,
    `examples:\n${examples.map((example) => `  ${example}\n`).join('')}`,
  ];
  return parts.join('\n');
}

export function programHelp(commands: readonly (readonly [name: string, about: string])[]): string {
  return [
    'usage: overlayfs COMMAND [OPTION...] [PATH...]\n       overlayfs --help | --version\n',
    'Mounts, unmounts and prepares overlay file systems.\n',
    `commands:\n${commands.map(([name, about]) => row(name, about)).join('')}`,
    `exit codes:\n${exitCodes.map(([code, meaning]) => row(code, meaning)).join('')}`,
    "'overlayfs COMMAND --help' describes a command.\n",
  ].join('\n');
}
