/** Flags, derived from tables of options: the library's names in kebab-case. */
import type { OptionRow } from '../options/table.js';
import type { Text } from '../text.js';

/** The value after a flag: none, or one. Repeating the flag makes a list. */
export type FlagKind = 'boolean' | 'path' | 'word' | 'text' | 'time' | 'size' | 'number' | 'pair';

export interface Flag {
  /** The library's name for the option. */
  readonly name: string;
  /** The name in the texts of the library, where it is another one. */
  readonly option?: string;
  /** The spelling, without the dashes. */
  readonly spelling: string;
  readonly short?: string;
  readonly kind: FlagKind;
  /** The name of the value in the help text, such as FILE. */
  readonly value?: string;
  readonly isList: boolean;
  /** True if `--no-…` means something else than leaving the flag out. */
  readonly hasNegative: boolean;
  readonly words: readonly string[];
  readonly default: Text;
  readonly about: Text;
}

export type OptionTable = Readonly<Record<string, OptionRow>>;

export const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

const kinds: Readonly<Record<OptionRow['form'], FlagKind | undefined>> = {
  paths: 'path',
  path: 'path',
  flag: 'boolean',
  switch: 'boolean',
  word: 'word',
  text: 'text',
  attribute: 'boolean',
  boolean: 'boolean',
  names: 'text',
  object: undefined,
  namespace: 'text',
};

function toFlag(name: string, row: OptionRow): Flag[] {
  const kind = kinds[row.form];
  if (kind === undefined) return [];
  return [
    {
      name,
      spelling: kebab(name),
      kind,
      isList: row.form === 'paths' || row.form === 'names',
      hasNegative:
        row.form === 'switch' ||
        (row.form === 'flag' && (row.off !== undefined || row.default !== 'false')) ||
        (row.form === 'boolean' && row.default === 'true'),
      words: row.form === 'word' ? row.words : [],
      default: row.default,
      about: row.about,
    },
  ];
}

export function flagsOf(table: OptionTable): Flag[] {
  return Object.entries(table).flatMap(([name, row]) => toFlag(name, row));
}

/** Returns a flag that belongs to the command line alone, not to the library. */
export function ownFlag(name: string, about: Text, more: Partial<Flag> = {}): Flag {
  const plain = { kind: 'boolean', isList: false, hasNegative: false, words: [], default: 'false' } as const;
  return { name, spelling: kebab(name), ...plain, about, ...more };
}

const placeholders = {
  path: 'DIR',
  text: 'TEXT',
  time: 'TIME',
  size: 'SIZE',
  number: 'N',
  pair: 'NAME=VALUE',
} as const;

/** Returns the value of a flag as the documentation writes it: `on|off`, `DIR`. */
export function placeholderOf({ kind, value, words }: Flag): string | undefined {
  if (kind === 'boolean') return undefined;
  return kind === 'word' ? words.join('|') : (value ?? placeholders[kind]);
}

/**
 * Returns the flag as the documentation writes it: `--[no-]index`, `--redirect-dir on|off|follow|nofollow`,
 * `--lowerdir DIR...`
 */
export function signature(flag: Flag): string {
  const { spelling, short, hasNegative, isList } = flag;
  const start = short === undefined ? '' : `-${short}, `;
  const value = placeholderOf(flag);
  if (value === undefined) return `${start}--${hasNegative ? '[no-]' : ''}${spelling}`;
  return `${start}--${spelling} ${value}${isList ? '...' : ''}`;
}

/** Returns the forms of the flag as commander has them: `-h, --help`, `--lowerdir <DIR>`, `--index` and `--no-index`. */
export function commanderForms(flag: Flag): string[] {
  const { spelling, short, hasNegative } = flag;
  const value = placeholderOf(flag);
  const form = `${short === undefined ? '' : `-${short}, `}--${spelling}${value === undefined ? '' : ` <${value}>`}`;
  return hasNegative ? [form, `--no-${spelling}`] : [form];
}
