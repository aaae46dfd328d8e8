/** Flags, derived from tables of options: kebab-case of the library's names. */
import type { OptionRow } from '../overlay/option-table.js';

/** What follows a flag: nothing, or one value; lists are made by repeating it. */
export type FlagKind = 'boolean' | 'path' | 'word' | 'text' | 'names' | 'time';

export interface Flag {
  /** The library's name for the option. */
  readonly name: string;
  /** Without the dashes; the first is the one in the documentation. */
  readonly spellings: readonly [string, ...string[]];
  readonly short?: string;
  readonly kind: FlagKind;
  readonly isList: boolean;
  /** Whether `--no-…` says something else than leaving it out. */
  readonly hasNegative: boolean;
  readonly words: readonly string[];
  readonly default: string;
  readonly about: string;
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

/** `--lower` is short for `--lowerdir`. */
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

/** As the documentation writes it: `--[no-]index`, `--redirect-dir on|off|follow|nofollow`, `--lower DIR`. */
export function signature({ spellings: [spelling], short, kind, words, hasNegative, isList }: Flag): string {
  const start = short === undefined ? '' : `-${short}, `;
  const list = isList ? '...' : '';
  switch (kind) {
    case 'boolean':
      return `${start}--${hasNegative ? '[no-]' : ''}${spelling}`;
    case 'word':
      return `${start}--${spelling} ${words.join('|')}`;
    default:
      return `${start}--${spelling} ${{ path: 'DIR', text: 'TEXT', names: 'NAME', time: 'TIME' }[kind]}${list}`;
  }
}
