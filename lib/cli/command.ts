/** The description of a command, for the program that runs it. */
import { type Flag, kebab } from './flags.js';
import type { Parsed } from './parse.js';

/** The result of a command. */
export interface Outcome {
  /** The text for people; mostly empty on success. */
  readonly text?: string;
  /** The result for --json. */
  readonly json: Readonly<Record<string, unknown>>;
  /** The whole output, of a command that has too much for one text; of the form that was asked for. */
  readonly parts?: AsyncIterable<string>;
  /** The errors of a command that does several things, the others being done. */
  readonly errors?: readonly unknown[];
  /** The exit code of a program that was run. */
  readonly exitCode?: number;
}

export interface Command {
  readonly about: string;
  /** The forms of the arguments after the command's name, a line each. */
  readonly usage: readonly string[];
  readonly groups: readonly FlagGroup[];
  readonly notes?: string;
  readonly examples: readonly string[];
  /** True if the operands are not paths but the arguments of a program, which may be empty. */
  readonly hasArguments?: boolean;
  run(parsed: Parsed): Promise<Outcome>;
}

export interface FlagGroup {
  readonly title: string;
  readonly flags: readonly Flag[];
}

/** Returns a flag that belongs to the command line alone, not to the library. */
export function ownFlag(name: string, about: string, more: Partial<Flag> = {}): Flag {
  const plain = { kind: 'boolean', isList: false, hasNegative: false, words: [], default: 'false' } as const;
  return { name, spellings: [kebab(name)], ...plain, about, ...more };
}

/** The flags that every command takes. */
export const commonFlags: readonly Flag[] = [
  ownFlag('json', 'one JSON document on standard output, for results and errors'),
  ownFlag('help', 'this text', { short: 'h' }),
];

export const flagsOfCommand = ({ groups }: Command): Flag[] => [
  ...groups.flatMap(({ flags }) => flags),
  ...commonFlags,
];

/** Returns the options without those of the command line itself. */
export function libraryOptions<T>(options: Parsed['options'], own: readonly string[] = []): T {
  const left = Object.entries(options).filter(([name]) => !own.includes(name) && name !== 'json' && name !== 'help');
  return Object.fromEntries(left) as T;
}
