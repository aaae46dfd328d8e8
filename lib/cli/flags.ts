/** Flags, derived from tables of options: the library's names in kebab-case. */
import type { OptionRow } from '../options/table.js';
import type { Text } from '../text.js';

/** The value after a flag: none, or one. Repeating the flag makes a list. */
export type FlagKind = 'boolean' | 'path' | 'word' | 'text' | 'names' | 'time';

export interface Flag {
  /** The library's name for the option. */
  readonly name: string;
  /** The spellings without the dashes; the first is the one in the documentation. */
  readonly spellings: readonly [string, ...string[]];
  readonly short?: string;
  readonly kind: FlagKind;
  /** The name of a path value in the help text. Default: DIR. */
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
  names: 'names',
  object: undefined,
  namespace: 'text',
};

/** Returns the spellings; `--lower` is short for `--lowerdir`. */
function spellingsOf(name: string, { form }: OptionRow): [string, ...string[]] {
  const isLayer = (form === 'path' || form === 'paths') && name.endsWith('dir');
  return isLayer ? [name.slice(0, -'dir'.length), name] : [kebab(name)];
}

function toFlag(name: string, row: OptionRow): Flag[] {
  const kind = kinds[row.form];
  if (kind === undefined) return [];
  return [
    {
      name,
      spellings: spellingsOf(name, row),
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

/**
 * Returns the flag as the documentation writes it: `--[no-]index`, `--redirect-dir on|off|follow|nofollow`,
 * `--lower DIR`.
 */
export function signature({ spellings: [spelling], short, kind, value, words, hasNegative, isList }: Flag): string {
  const start = short === undefined ? '' : `-${short}, `;
  const list = isList ? '...' : '';
  switch (kind) {
    case 'boolean':
      return `${start}--${hasNegative ? '[no-]' : ''}${spelling}`;
    case 'word':
      return `${start}--${spelling} ${words.join('|')}`;
    default:
      return `${start}--${spelling} ${{ path: value ?? 'DIR', text: 'TEXT', names: 'NAME', time: 'TIME' }[kind]}${list}`;
  }
}
