/**
 * Rephrases the library's texts for the command line: "pass `create: true`" becomes "pass --create". A caller may
 * supply other wording: this file only finds the names of options. It is only for the library's own texts, not for
 * those that hold a path.
 */
import { WITHOUT_TARGET } from '../diagnosis/process.js';
import { optionTable } from '../options/table.js';
import { type Flag, flagsOf, kebab } from './flags.js';

type Named = Pick<Flag, 'spellings' | 'hasNegative'>;

function makeFlags(): ReadonlyMap<string, Named> {
  const flags = new Map<string, Named>(flagsOf(optionTable).map((flag) => [flag.name, flag]));
  // The target is an operand.
  flags.delete('target');
  // Flags of the other commands, which have no table.
  for (const name of ['detach', 'force', 'followSymlinks', 'removeWork', 'timeout', 'replace', 'recursive']) {
    flags.set(name, { spellings: [kebab(name)], hasNegative: false });
  }
  return flags;
}

/**
 * Makes the patterns that find options. A bare name can be an ordinary word, so a name counts only if something marks
 * it as an option.
 */
function makePatterns(names: Iterable<string>): readonly RegExp[] {
  const name = `(?<name>${[...names].join('|')})(?:\\[\\d+\\])?`;
  const value = String.raw`: (?:(?<boolean>true|false)|'(?<word>\w+)'|\['(?<listed>\w+)'\])`;
  return [
    new RegExp(String.raw`(?<quote>["\x60])${name}(?:${value})?\k<quote>`, 'g'),
    new RegExp(String.raw`\b${name}${value}`, 'g'),
    new RegExp(`(?<=\\b[Ll]eave )${name}(?= out)`, 'g'),
    /(?<![-\w/])(?<name>[a-z]+[A-Z]\w+)\b/g,
  ];
}

let vocabulary: { readonly flags: ReadonlyMap<string, Named>; readonly patterns: readonly RegExp[] } | undefined;

/** Built for the first text, so that a program without messages starts faster. */
function getVocabulary(): NonNullable<typeof vocabulary> {
  if (vocabulary === undefined) {
    const flags = makeFlags();
    vocabulary = { flags, patterns: makePatterns(flags.keys()) };
  }
  return vocabulary;
}

/** An option as a text of the library names it, with the value that the text gives. */
export type FoundOption = Partial<Record<'name' | 'boolean' | 'word' | 'listed', string>>;

function toFlag({ name: option = '', boolean, word, listed }: FoundOption): string | undefined {
  const flag = getVocabulary().flags.get(option);
  if (flag === undefined) return undefined;
  const [spelling] = flag.spellings;
  if (boolean === 'false') return flag.hasNegative ? `--no-${spelling}` : undefined;
  const given = word ?? (listed === undefined ? undefined : kebab(listed));
  return given === undefined ? `--${spelling}` : `--${spelling} ${given}`;
}

/** Returns the text with each option spelled by `spell`; undefined leaves the option as it is. */
export function rephrase(text: string, spell: (found: FoundOption) => string | undefined): string {
  return getVocabulary().patterns.reduce(
    (said, pattern) => said.replace(pattern, (whole, ...rest) => spell(rest.at(-1) as FoundOption) ?? whole),
    text,
  );
}

export const phrase = (text: string): string =>
  rephrase(text.replace(WITHOUT_TARGET, '`overlayfs run` needs neither'), toFlag);
