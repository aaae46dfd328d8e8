/** The command line's spelling of the library's options. */
import { optionTable } from '../options/table.js';
import type { Part, Spelling } from '../text.js';
import { type Flag, flagsOf, kebab } from './flags.js';

/** The flags of the commands that have no table of options. */
const others = [
  ...['detach', 'force', 'followSymlinks', 'removeWork', 'timeout', 'replace', 'recursive', 'type', 'conflict'],
  ...['level', 'compression', 'excludeXattrs'],
  ...['owners', 'devices', 'expectedDigest', 'expectedDiffId', 'maxEntries', 'maxBytes', 'maxPathDepth', 'maxRatio'],
  ...[
    'address',
    'metrics',
    'concurrency',
    'gracePeriod',
    'root',
    'cwd',
    'user',
    'runtime',
    'platform',
    'env',
    'subIds',
  ],
];
const operands = ['target', 'path'];

type Spelled = Pick<Flag, 'spellings' | 'hasNegative'>;

let known: ReadonlyMap<string, Spelled> | undefined;

/** Built for the first text, so that a program without messages starts faster. */
function getFlags(): ReadonlyMap<string, Spelled> {
  known ??= new Map<string, Spelled>([
    ...flagsOf(optionTable).map((flag) => [flag.name, flag] as const),
    ...others.map((name) => [name, { spellings: [kebab(name)], hasNegative: false }] as const),
  ]);
  return known;
}

function spellOption(name: string, value: unknown): string | undefined {
  const flag = operands.includes(name) ? undefined : getFlags().get(name);
  if (flag === undefined) return operands.includes(name) ? name.toUpperCase() : undefined;
  const [spelling] = flag.spellings;
  if (value === false) return flag.hasNegative ? `--no-${spelling}` : undefined;
  const words = [value].flat().filter((word) => typeof word === 'string');
  return words.length === 0 ? `--${spelling}` : `--${spelling} ${words.map(kebab).join(' ')}`;
}

export const inFlags: Spelling = {
  spell(part: Part) {
    if ('command' in part) return `'overlayfs ${part.command}'`;
    if ('option' in part) return spellOption(part.option, part.value);
    if ('member' in part) return undefined;
    return spellOption(part.argument.replace(/(?<=^(?:target|path))s?(?:\[\d+\])?$|\[\d+\]$/, ''), undefined);
  },
};
