/** The description of a command, for the program that runs it, its help, its man page and its completion. */
import type { Path } from '../paths.js';
import { type Flag, ownFlag } from './flags.js';

/** The value of an option: a time is in milliseconds, a size in bytes. */
export type Value = boolean | number | string | Path | (string | Path)[] | Record<string, string>;

export interface Parsed<O = Readonly<Record<string, Value>>> {
  /** The options by the library's names, without the common ones. */
  readonly options: O;
  readonly operands: readonly Path[];
  readonly isJson: boolean;
  readonly isQuiet: boolean;
}

/** A line of output, in both forms. */
export interface Row {
  readonly text: string;
  readonly json: unknown;
}

/** The result of a command. */
export interface Outcome {
  /** The rows of a list, which come first. */
  readonly rows?: AsyncIterable<Row> | Iterable<Row>;
  /** The text for people; mostly empty on success. */
  readonly text?: string;
  /** The result for --json. */
  readonly json?: Readonly<Record<string, unknown>>;
  /** The errors of a command that does several things, the others being done. */
  readonly errors?: readonly unknown[];
  /** The exit code of a program that was run, or of the answer no. Default: no for an empty list, if the command says so. */
  readonly exitCode?: number | undefined;
}

export interface FlagGroup {
  readonly title: string;
  readonly flags: readonly Flag[];
}

/** A command whose flags make the options O. */
export interface Command<O = Readonly<Record<string, Value>>> {
  readonly about: string;
  /** The operands in the words of commander: `<TARGET...>`, `<KEY> [PARENT]`. */
  readonly operands?: string;
  /** True if the operands are a program and its arguments, which end the flags and may be empty. */
  readonly runsProgram?: boolean;
  /** The forms of the arguments, where there are several; default: the operands after the flags. */
  readonly forms?: readonly string[];
  readonly groups?: readonly FlagGroup[];
  readonly notes?: string;
  /** The answer that exit code 1 stands for, of a command that has one. */
  readonly no?: string;
  /** True if an empty list is the answer no. */
  readonly isNoIfEmpty?: boolean;
  /** The words that its first operand may be. */
  readonly words?: readonly string[];
  readonly examples: readonly string[];
  run(parsed: Parsed<O>): Promise<Outcome>;
}

/** The commands by their names; some have two words. */
export type Commands = Readonly<Record<string, Command>>;

/** The first sentence on what a command does. */
export const summaryOf = ({ about }: Command): string => about.split(/(?<=[\w)]\.) (?=[A-Z])/)[0] as string;

/** The forms of the arguments as the documentation writes them. */
export const formsOf = ({ forms, operands = '' }: Pick<Command, 'forms' | 'operands'>): readonly string[] =>
  forms ?? [`[OPTION...] ${operands.replaceAll(/[<>]/g, '')}`.trimEnd()];

/** Commands that write files take it. */
export const syncFlag: Flag = ownFlag('sync', 'waits at the end until the disk has everything, or does not', {
  kind: 'word',
  words: ['none', 'end'],
  default: 'end',
});

export const userxattrFlag = ownFlag('userxattr', 'the marks begin with user., as those of rootless mounts');

export const namespaceFlag = ownFlag('namespace', 'works in another mount namespace: /proc/PID/ns/mnt', {
  short: 'N',
  kind: 'path',
  value: 'FILE',
});

/** The flags that every command takes. */
export const commonFlags: readonly Flag[] = [
  ownFlag('json', 'prints JSON documents, one a line, for results and errors', { short: 'J' }),
  ownFlag('quiet', 'prints no results: the exit code says it', { short: 'q' }),
  ownFlag('help', 'this text', { short: 'h' }),
];

export const flagsOfCommand = ({ groups = [] }: Command): Flag[] => [
  ...groups.flatMap(({ flags }) => flags),
  ...commonFlags,
];
