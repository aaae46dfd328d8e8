/** Parses a command line into options and operands, by a list of flags. Pure. */
import { parseArgs } from 'node:util';
import type { Path } from '../paths.js';
import { type Bytes, toPath, toText } from './command-line.js';
import type { Flag } from './flags.js';
import { UsageError, unknownWord } from './usage-error.js';

/** The value of an option; a time is in milliseconds. */
export type Value = boolean | number | string | Path | (string | Path)[];

export interface Parsed {
  /** The options by the library's names. */
  readonly options: Readonly<Record<string, Value>>;
  readonly operands: readonly Path[];
}

interface Spelling {
  readonly flag: Flag;
  readonly isNegative: boolean;
}

function spellingsOf(flags: readonly Flag[]): Map<string, Spelling> {
  const all = new Map<string, Spelling>();
  for (const flag of flags) {
    for (const spelling of flag.spellings) {
      all.set(spelling, { flag, isNegative: false });
      if (flag.hasNegative) all.set(`no-${spelling}`, { flag, isNegative: true });
    }
  }
  return all;
}

const show = (bytes: Bytes): string => Buffer.from(bytes, 'latin1').toString();

const units = { ms: 1, s: 1000, m: 60_000 } as const;

/**
 * Converts `500ms`, `5s` or `1.5m` to milliseconds. A number alone is refused: some users would mean seconds, others
 * milliseconds.
 */
function toMilliseconds(written: string, text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m)$/.exec(text) ?? [];
  if (number !== undefined) return Number(number) * units[unit as keyof typeof units];
  throw new UsageError(`${written} cannot be '${text}'`, 'Give the time a unit: 500ms, 5s or 2m.');
}

function toValue(flag: Flag, written: string, bytes: Bytes): number | string | Path {
  if (bytes === '') throw new UsageError(`${written} must not be empty`);
  if (flag.kind === 'path') return toPath(bytes);
  const text = toText(bytes);
  if (text === undefined) throw new UsageError(`the value of ${written} is not UTF-8: '${show(bytes)}'`);
  if (flag.kind === 'word' && !flag.words.includes(text)) {
    throw unknownWord(`${written} cannot be`, text, flag.words);
  }
  if (flag.kind === 'time') return toMilliseconds(written, text);
  return text;
}

export function parse(args: readonly Bytes[], flags: readonly Flag[], hasArguments = false): Parsed {
  const spellings = spellingsOf(flags);
  const config = Object.fromEntries(
    [...spellings].map(([spelling, { flag }]) => {
      const short = flag.short !== undefined && spelling === flag.spellings[0] ? { short: flag.short } : {};
      return [spelling, { type: flag.kind === 'boolean' ? ('boolean' as const) : ('string' as const), ...short }];
    }),
  );
  // Not strict: the code below reports the errors, with the name that was meant.
  const { tokens } = parseArgs({ args: [...args], options: config, strict: false, tokens: true });
  const options: Record<string, Value> = {};
  const operands: Path[] = [];
  for (const token of tokens) {
    if (token.kind === 'option-terminator') continue;
    if (token.kind === 'positional') {
      if (token.value === '' && !hasArguments) throw new UsageError('a path must not be empty');
      operands.push(toPath(token.value));
      continue;
    }
    const written = show(token.rawName);
    const known = spellings.get(token.name);
    if (known === undefined) {
      throw unknownWord(
        'unknown option',
        written,
        [...spellings.keys()].map((spelling) => `--${spelling}`),
      );
    }
    const { flag, isNegative } = known;
    if (!flag.isList && Object.hasOwn(options, flag.name)) throw new UsageError(`${written} is given twice`);
    if (flag.kind === 'boolean') {
      if (token.value !== undefined) throw new UsageError(`${written} takes no value`);
      options[flag.name] = !isNegative;
      continue;
    }
    const { value } = token;
    if (value === undefined) throw new UsageError(`${written} needs a value`);
    if (!token.inlineValue && value.length > 1 && value.startsWith('-')) {
      throw new UsageError(
        `${written} needs a value, but an option follows: ${show(value)}`,
        `Write a value that begins with a dash as ${written}=${show(value)}.`,
      );
    }
    const given = toValue(flag, written, value);
    const list = options[flag.name] as (string | Path)[] | undefined;
    options[flag.name] = flag.isList ? [...(list ?? []), given as string | Path] : given;
  }
  return { options, operands };
}
