/** What a command is to the program that runs it. */
import { type Flag, kebab } from './flags.js';
import type { Parsed } from './parse.js';

/** What a command comes to. */
export interface Outcome {
  /** For people; mostly nothing where all went well. */
  readonly text?: string;
  /** With --json. */
  readonly json: Readonly<Record<string, unknown>>;
  /** What failed of several things, the others being done. */
  readonly errors?: readonly unknown[];
  /** Of a program that was run. */
  readonly exitCode?: number;
}

export interface Command {
  readonly about: string;
  /** What follows the command's name, a line a form. */
  readonly usage: readonly string[];
  readonly groups: readonly FlagGroup[];
  readonly notes?: string;
  readonly examples: readonly string[];
  /** Whether what is left on the line are no paths but the arguments of a program, which may be empty. */
  readonly hasArguments?: boolean;
  run(parsed: Parsed): Promise<Outcome>;
}

export interface FlagGroup {
  readonly title: string;
  readonly flags: readonly Flag[];
}

/** A flag that is the command line's own. */
export function ownFlag(name: string, about: string, more: Partial<Flag> = {}): Flag {
  const plain = { kind: 'boolean', isList: false, hasNegative: false, words: [], default: 'false' } as const;
  return { name, spellings: [kebab(name)], ...plain, about, ...more };
}

/** What every command takes. */
export const commonFlags: readonly Flag[] = [
  ownFlag('json', 'one JSON document on standard output, for results and errors'),
  ownFlag('help', 'this text', { short: 'h' }),
];

export const flagsOfCommand = ({ groups }: Command): Flag[] => [
  ...groups.flatMap(({ flags }) => flags),
  ...commonFlags,
];

/** The options without those of the command line itself. */
export function libraryOptions<T>(options: Parsed['options'], own: readonly string[] = []): T {
  const left = Object.entries(options).filter(([name]) => !own.includes(name) && name !== 'json' && name !== 'help');
  return Object.fromEntries(left) as T;
}
