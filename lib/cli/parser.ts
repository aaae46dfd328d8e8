/** Commander's description of the program and of each command: it parses the flags, and prints the help. */
import { CommanderError, type Help, Option, Command as Parser } from 'commander';
import { render, type Spelling, text } from '../text.js';
import { type Command, type Commands, commonFlags, formsOf, summaryOf } from './command.js';
import type { Bytes } from './command-line.js';
import { commanderForms, type Flag, signature } from './flags.js';
import { spellingOf } from './spelling.js';
import { UsageError } from './usage-error.js';

type Code = readonly [code: string, meaning: string];

const ofFailure: Code = ['2', 'failed, or wrong usage: the error says why'];
/** The exit codes of commands that run a program; all others are those of the program. */
const ofPrograms: readonly Code[] = [
  ['125', 'the command itself failed, or wrong usage: the error says why'],
  ['126', 'the program cannot be executed'],
  ['127', 'the program was not found'],
  ['128+N', 'signal N ended the program'],
];
export const exitCodes: readonly Code[] = [
  ['0', 'yes, or done'],
  ['1', 'no: findings, conflicts, nothing found'],
  ofFailure,
  ...ofPrograms,
];

/** The exit codes of one command. */
export function exitCodesOf({ runsProgram, no }: Command): readonly Code[] {
  if (runsProgram) return ofPrograms;
  return no === undefined ? [['0', 'done'], ofFailure] : [['0', 'yes, or done'], ['1', `no: ${no}`], ofFailure];
}

const codesText = (codes: readonly Code[]): string =>
  `Exit codes:\n${codes.map(([code, meaning]) => `  ${code.padEnd(5)}  ${meaning}\n`).join('')}`;

/** Returns what a flag does. Appends the default if it says more than that nothing happens. */
export function aboutFlag({ about, default: standard }: Flag, spelling: Spelling): string {
  const goesWithoutSaying = standard === 'false' || standard === 'none' || standard === 'required';
  return render(goesWithoutSaying ? about : text`${about}; default: ${standard}`, spelling).replaceAll('`', '');
}

const COLUMN = 22;

/** Returns a row of the help. A long term has a line of its own, which leaves the texts their width. */
function formatItem(term: string, _width: number, about: string, help: Help): string {
  const indent = ' '.repeat(COLUMN + 2);
  const text = help.boxWrap(about, (help.helpWidth ?? 80) - indent.length).replaceAll('\n', `\n${indent}`);
  return term.length < COLUMN ? `  ${term.padEnd(COLUMN)}${text}` : `  ${term}\n${indent}${text}`;
}

const toTitle = (title: string): string => `${title.charAt(0).toUpperCase()}${title.slice(1)}:`;

/** Returns a parser that neither prints errors nor ends the process: it throws them. */
const newParser = (name: string, about: string): Parser =>
  new Parser(name)
    .description(about)
    .helpOption(false)
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ outputError: () => {} });

/** The groups of flags in the help. */
export const flagGroups = ({ groups = [] }: Command) => [...groups, { title: 'output', flags: commonFlags }];

/** A flag that is on the command line, and whether as `--no-…`. */
export interface Found {
  readonly flag: Flag;
  readonly isNegative: boolean;
}

/** Returns the parser of a command, which calls `found` for each flag with its value. */
export function parserOf(
  name: string,
  command: Command,
  found: (flag: Found, written: string, value: string | undefined) => void = () => {},
): Parser {
  const { about, operands, notes, examples, runsProgram } = command;
  const spelling = spellingOf(command);
  const terms = new Map<Option, string>();
  const parser = newParser(`overlayfs ${name}`, about)
    .usage(formsOf(command).join(`\n       overlayfs ${name} `))
    .allowExcessArguments(false)
    .passThroughOptions(runsProgram === true)
    .configureHelp({
      formatItem,
      optionTerm: (option) => terms.get(option) ?? option.flags,
      visibleArguments: () => [],
    })
    .action(() => {});
  if (operands !== undefined) parser.arguments(operands);
  for (const { title, flags } of flagGroups(command)) {
    for (const flag of flags) {
      commanderForms(flag).forEach((form, i) => {
        const option = new Option(form, aboutFlag(flag, spelling)).helpGroup(toTitle(title));
        terms.set(option, signature(flag));
        if (flag.name === 'help') {
          parser.addHelpOption(option);
          return;
        }
        parser.addOption(i > 0 ? option.hideHelp() : option); // the help shows both forms in one line
        parser.on(`option:${option.name()}`, (value?: string) =>
          found({ flag, isNegative: i > 0 }, option.long as string, value),
        );
      });
    }
  }
  const more = [
    ...(notes === undefined ? [] : [`${parser.createHelp().boxWrap(notes, process.stdout.columns ?? 80)}\n`]),
    codesText(exitCodesOf(command)),
    `Examples:\n${examples.map((example) => `  ${example}\n`).join('')}`,
  ];
  return parser.addHelpText('after', `\n${more.join('\n').trimEnd()}`);
}

/** Returns the parser of the program, or of the commands that begin with a word: it knows their names. */
export function programParser(groups: Readonly<Record<string, Commands>>, start = ''): Parser {
  const program = newParser(
    `overlayfs ${start}`.trimEnd(),
    start === '' ? 'Mounts, inspects and prepares overlay file systems.' : '',
  )
    .usage('COMMAND [OPTION...] [PATH...]')
    .option('-h, --help', 'this text')
    .configureHelp({ formatItem, subcommandTerm: (command) => command.name() })
    .addHelpText(
      'after',
      `\n${codesText(exitCodes)}\n'overlayfs help ${start === '' ? '' : `${start} `}COMMAND' describes a command.`,
    );
  if (start === '') program.option('-V, --version', 'the version of the program');
  for (const [title, commands] of Object.entries(groups)) {
    for (const [name, command] of Object.entries(commands)) {
      if (!name.startsWith(start)) continue;
      program.addCommand(newParser(name.slice(start.length).trimStart(), summaryOf(command)).helpGroup(toTitle(title)));
    }
  }
  return program;
}

/** Parses. Returns undefined if the parser has printed the help. An error has a first line, and often one with what was meant. */
export function parseBy(parser: Parser, args: readonly Bytes[]): Bytes[] | undefined {
  try {
    return parser.parse([...args], { from: 'user' }).args;
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return undefined;
    const shown = Buffer.from(error.message, 'latin1').toString();
    const [, what = '', hint] = /^(?:error: )?(.*?)(?:\n\((.*)\))?$/s.exec(shown) ?? [];
    if (/^commander\.(missing|excess)Argument/.test(error.code)) {
      throw new UsageError(
        what.replace('required argument', 'operand'),
        `Usage: ${parser.name()} ${parser.usage().split('\n')[0]}`,
      );
    }
    const [, given] = /^unknown option '(--[^=]+).*'$/s.exec(what) ?? [];
    const start = given?.replaceAll('_', '-');
    const begun = start === undefined ? undefined : parser.options.find(({ long }) => long?.startsWith(start))?.long;
    throw new UsageError(what, begun == null ? hint : `Did you mean ${begun}?`);
  }
}
