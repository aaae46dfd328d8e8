/** The man pages, from the descriptions of the commands: man(7). Pure. */
import { readFileSync } from 'node:fs';
import { type Command, formsOf, summaryOf } from '#lib/cli/command.js';
import { groups } from '#lib/cli/commands.js';
import { signature } from '#lib/cli/flags.js';
import { aboutFlag, exitCodes, exitCodesOf, flagGroups } from '#lib/cli/parser.js';
import { spellingOf } from '#lib/cli/spelling.js';

/** The date of a page: that of the build, or SOURCE_DATE_EPOCH if the environment has it. */
const date = new Date(Number(process.env['SOURCE_DATE_EPOCH'] ?? Date.now() / 1000) * 1000).toISOString().slice(0, 10);
const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));

/** Escapes text for roff: a backslash, a hyphen that is copied as one, and what begins a line of its own. */
const roff = (text: string): string =>
  text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll(/^[.']/gm, '\\&$&')
    .replaceAll(/[^\x20-\x7e\n]/g, (one) => `\\[u${one.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0')}]`);

const section = (title: string, body: string): string => `.SH ${title.toUpperCase()}\n${body}`;
const item = (term: string, body: string): string => `.TP\n\\fB${roff(term)}\\fR\n${roff(body)}\n`;
/** A sentence a line, as roff has it: it then sets the space between sentences. */
const paragraph = (text: string): string => `${roff(text.replaceAll(/(?<=[a-z)]\.) (?=[A-Z])/g, '\n'))}\n`;

const pageName = (name: string): string => `overlayfs${name === '' ? '' : `-${name.replace(' ', '-')}`}`;
const reference = (name: string): string => `.BR ${roff(pageName(name))} (1)`;

const start = (name: string, about: string): string =>
  `.TH ${roff(pageName(name)).toUpperCase()} 1 ${date} "overlayfs ${version}" "User Commands"\n` +
  section(
    'name',
    `${roff(pageName(name))} \\- ${roff(`${about.charAt(0).toLowerCase()}${about.slice(1)}`.replace(/\.$/, ''))}\n`,
  );

/** The forms of a command line: words in capitals are for the user to fill in. */
const synopsis = (name: string, forms: readonly string[]): string =>
  section(
    'synopsis',
    forms
      .map((form) => {
        const shown = roff(form).replaceAll(/[A-Z]+/g, '\\fI$&\\fR');
        return `\\fB${roff(`overlayfs ${name}`.trimEnd())}\\fR ${shown}\n`;
      })
      .join('.br\n'),
  );

const exitStatus = (codes: readonly (readonly [string, string])[]): string =>
  section('exit status', codes.map(([code, meaning]) => item(code, `${meaning}.`)).join(''));

function commandPage(name: string, command: Command): string {
  const { about, notes, examples } = command;
  const spelling = spellingOf(command);
  const options = flagGroups(command).map(
    ({ title, flags }) =>
      `.SS ${title.charAt(0).toUpperCase()}${title.slice(1)}\n` +
      flags.map((flag) => item(signature(flag), `${aboutFlag(flag, spelling)}.`)).join(''),
  );
  const sameStart = Object.values(groups)
    .flatMap((commands) => Object.keys(commands))
    .filter((other) => other !== name && name.includes(' ') && other.startsWith(`${name.split(' ')[0]} `));
  return [
    start(name, summaryOf(command)),
    synopsis(name, formsOf(command)),
    section('description', [about, ...(notes === undefined ? [] : [notes])].map(paragraph).join('.PP\n')),
    section('options', options.join('')),
    exitStatus(exitCodesOf(command)),
    section('examples', `.nf\n${examples.map((example) => `${roff(example)}\n`).join('')}.fi\n`),
    section('see also', `${['', ...sameStart].map(reference).join(',\n')}\n`),
  ].join('');
}

function programPage(): string {
  const list = Object.entries(groups).map(
    ([title, commands]) =>
      `.SS ${title.charAt(0).toUpperCase()}${title.slice(1)}\n` +
      Object.entries(commands)
        .map(([name, command]) => `.TP\n${reference(name)}\n${roff(summaryOf(command))}\n`)
        .join(''),
  );
  return [
    start('', 'mounts, inspects and prepares overlay file systems'),
    synopsis('', ['COMMAND [OPTION...] [PATH...]', 'help [COMMAND]', '--version']),
    section('commands', list.join('')),
    exitStatus(exitCodes),
    section('see also', '.BR mount (8),\n.BR unshare (1)\n'),
  ].join('');
}

/** Returns the pages by the names of their files. */
export function manPages(): Record<string, string> {
  const pages = Object.values(groups).flatMap((commands) =>
    Object.entries(commands).map(([name, command]): [string, string] => [
      `${pageName(name)}.1`,
      commandPage(name, command),
    ]),
  );
  return { 'overlayfs.1': programPage(), ...Object.fromEntries(pages) };
}
