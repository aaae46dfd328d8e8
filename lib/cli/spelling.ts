/** The command line's spelling of the library's options. */
import type { Part, Spelling } from '../text.js';
import { type Command, formsOf } from './command.js';
import { type Flag, kebab } from './flags.js';

function spellFlag({ spelling, hasNegative }: Flag, value: unknown): string | undefined {
  if (value === false) return hasNegative ? `--no-${spelling}` : undefined;
  const words = [value].flat().filter((word) => typeof word === 'string');
  return words.length === 0 ? `--${spelling}` : `--${spelling} ${words.map(kebab).join(' ')}`;
}

/** Returns the spelling of a command: it names only the flags and the operands that the command has. */
export function spellingOf(command: Pick<Command, 'groups' | 'forms' | 'operands'>): Spelling {
  const flags = (command.groups ?? []).flatMap((group) => group.flags);
  const words = new Set(formsOf(command).flatMap((form) => form.match(/[A-Z]+/g) ?? []));
  const spellOperand = (name: string): string | undefined =>
    [name, name.replace(/s$/, '')].map((word) => word.toUpperCase()).find((word) => words.has(word));
  const find = (name: string, isItem: boolean): Flag | undefined =>
    flags.find((flag) => (flag.option ?? flag.name) === name && (flag.isList || !isItem));
  return {
    spell(part: Part) {
      if ('command' in part) return `'overlayfs ${part.command}'`;
      if ('member' in part) return undefined;
      if ('option' in part) {
        const flag = find(part.option, false);
        return flag === undefined ? spellOperand(part.option) : spellFlag(flag, part.value);
      }
      const [, name = '', item] = /^(.*?)(\[\d+\].*)?$/.exec(part.argument) ?? [];
      const flag = find(name, item !== undefined);
      return flag === undefined ? spellOperand(name) : spellFlag(flag, undefined);
    },
  };
}
