/** The options of overlayfs in a string, as mount(8) takes them after -o: the faults that the table shows. */
import { nearestName } from '../arguments.js';
import type { RawOption } from '../mount-strings.js';
import { optionRows } from '../options/table.js';
import { UsageError, unknownWord } from './usage-error.js';

const byKernelName = new Map(
  Object.values(optionRows).flatMap((row) => (row?.kernel === undefined ? [] : [[row.kernel, row] as const])),
);

export const isKnown = (name: string): boolean => byKernelName.has(name) || name === 'lowerdir+';

/** Returns what is wrong with an option that the table does not take. */
export function optionProblem(option: RawOption, rest: readonly RawOption[]): UsageError {
  const { name, value } = option;
  const row = byKernelName.get(name);
  const shown = value === null ? name : `${name}=${value}`;
  const words = row?.form === 'switch' ? ['on', 'off'] : row?.form === 'word' ? row.words : undefined;
  if (words !== undefined) {
    const what = value === null ? 'needs a value' : `cannot be '${value}'`;
    return new UsageError(`the option '${name}' ${what}`, `One of: ${words.join(', ')}.`);
  }
  if (row?.form === 'flag') return new UsageError(`the option '${shown}' takes no value`, `Write ${name}.`);
  if (row !== undefined || name === 'lowerdir+') {
    return new UsageError(
      `the option '${shown}' is wrong, or cannot follow the option before it`,
      'lowerdir takes paths separated by colons, then data-only layers after two colons; lowerdir+ and datadir+ take one path each, and cannot follow lowerdir.',
    );
  }
  const known = [...byKernelName.keys()];
  if (value === null && isAfterPath(option, rest) && nearestName(name, known) === undefined) {
    return new UsageError(
      `unknown option '${name}'`,
      `If this is a part of the path before it, write the comma in the path as '\\,'.`,
    );
  }
  return unknownWord('unknown option', name, known);
}

/** True if the option comes after a path, which ends at a comma. */
function isAfterPath(option: RawOption, rest: readonly RawOption[]): boolean {
  const before = rest[rest.indexOf(option) - 1];
  return before !== undefined && layerNames.has(before.name);
}

const layerNames: ReadonlySet<string> = new Set(['lowerdir', 'lowerdir+', 'datadir+', 'upperdir', 'workdir']);
