/** Parses a command line into options and operands. */
import type { Path } from '../paths.js';
import type { Command, Parsed, Value } from './command.js';
import { type Bytes, toPath, toText } from './command-line.js';
import type { Flag } from './flags.js';
import { parseBy, parserOf } from './parser.js';
import { UsageError, unknownWord } from './usage-error.js';

const show = (bytes: Bytes): string => Buffer.from(bytes, 'latin1').toString();

const times = { ms: 1, s: 1000, m: 60_000 } as const;
/** The units of dd(1) and truncate(1) without their powers of ten. */
const sizes = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 } as const;

type Convert = (text: string, flag: Flag, written: string) => Value;

/** Returns the conversion of a number with a unit. */
function withUnit(units: Readonly<Record<string, number>>, pattern: RegExp, remedy: string): Convert {
  return (text, _flag, written) => {
    const [, number, unit = ''] = pattern.exec(text) ?? [];
    if (number === undefined) throw new UsageError(`${written} cannot be '${text}'`, remedy);
    return Number(number) * (units[unit.toUpperCase()] ?? units[unit] ?? Number.NaN);
  };
}

const convert: Readonly<Record<Exclude<Flag['kind'], 'boolean' | 'path'>, Convert>> = {
  text: (text) => text,
  word(text, { words }, written) {
    if (!words.includes(text)) throw unknownWord(`${written} cannot be`, text, words);
    return text;
  },
  // A time without a unit is refused: some users would mean seconds, others milliseconds.
  time: withUnit(times, /^(\d+(?:\.\d+)?)(ms|s|m)$/, 'Give the time a unit: 500ms, 5s or 2m.'),
  size: withUnit(sizes, /^(\d+(?:\.\d+)?)([KMGT]?)$/i, 'Write bytes, or a number with a unit: 64K, 512M, 2G or 1T.'),
  number(text, _flag, written) {
    if (!/^\d+(\.\d+)?(e\d+)?$/i.test(text)) throw new UsageError(`${written} takes a number, not '${text}'`);
    return Number(text);
  },
  pair(text, _flag, written) {
    const at = text.indexOf('=');
    if (at < 1) throw new UsageError(`${written} cannot be '${text}'`, `Write it as ${written} NAME=VALUE.`);
    return { [text.slice(0, at)]: text.slice(at + 1) };
  },
};

function toValue(flag: Flag, written: string, bytes: Bytes): Value {
  if (bytes === '') throw new UsageError(`${written} must not be empty`);
  if (flag.kind === 'path' || flag.kind === 'boolean') return toPath(bytes);
  const text = toText(bytes);
  if (text === undefined) throw new UsageError(`the value of ${written} is not UTF-8: '${show(bytes)}'`);
  return convert[flag.kind](text, flag, written);
}

/** Returns undefined if the command line asks for the help, which is then printed. */
export function parse(args: readonly Bytes[], name: string, command: Command): Parsed | undefined {
  const found: Record<string, Value> = {};
  const parser = parserOf(name, command, ({ flag, isNegative }, written, value) => {
    if (!flag.isList && Object.hasOwn(found, flag.name)) throw new UsageError(`${written} is given twice`);
    if (value === undefined) {
      found[flag.name] = !isNegative;
      return;
    }
    if (/^-./s.test(value) && !args.some((arg) => arg.endsWith(`=${value}`) || arg === `-${flag.short}${value}`)) {
      throw new UsageError(
        `${written} needs a value, but an option follows: ${show(value)}`,
        `Write a value that begins with a dash as ${written}=${show(value)}.`,
      );
    }
    const given = toValue(flag, written, value);
    const before = found[flag.name];
    if (flag.kind === 'pair') found[flag.name] = { ...(before as object), ...(given as object) };
    else found[flag.name] = flag.isList ? [...((before as Path[] | undefined) ?? []), given as Path] : given;
  });
  const words = parseBy(parser, args);
  if (words === undefined) return undefined;
  if (words.includes('') && !command.runsProgram) throw new UsageError('a path must not be empty');
  const { json, quiet, ...options } = found;
  return { options, operands: words.map(toPath), isJson: json === true, isQuiet: quiet === true };
}
