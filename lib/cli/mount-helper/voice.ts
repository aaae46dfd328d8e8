/** The library's texts for those who mount by mount(8): its options by the kernel's names, and none of the library's own. */
import { WITHOUT_TARGET } from '../../overlay/diagnosis/process.js';
import { optionRows } from '../../overlay/option-table.js';
import type { Voice } from '../errors.js';
import { type FoundOption, rephrase } from '../phrase.js';

const names: Readonly<Record<string, string>> = { readonly: 'ro', readonlySuperblock: 'ro', atime: 'noatime' };

function spell({ name = '', boolean, word }: FoundOption): string | undefined {
  const row = optionRows[name];
  if (row === undefined) return undefined;
  const kernel = row.kernel ?? names[name] ?? name;
  if (word !== undefined) return `${kernel}=${word}`;
  if (boolean === undefined) return kernel;
  if (row.form === 'switch') return `${kernel}=${boolean === 'true' ? 'on' : 'off'}`;
  if (boolean === 'true') return kernel;
  return row.form === 'flag' ? row.off : undefined;
}

/** The ways out that only a program has. */
const librarys = /,? or (?:pass|name it in) `(?:create|stack|allowDegraded|detach)\b(?:(?!\.(?:\s|$)|;).)*/g;

export const voice: Voice = {
  program: 'mount.overlay',
  say: (text) =>
    rephrase(
      text.replace(`; ${WITHOUT_TARGET}`, '').replace(librarys, '').replace('which is then true', 'which is then on'),
      spell,
    ),
};
