/**
 * Finds out whether an option that begins with `x-` was given. mount(8) keeps these to itself, so they are searched for
 * in its sources: its command line and the fstab.
 */
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { splitGiven, unescapeOctal } from '../mount-strings.js';
import { type Path, toBytes } from '../paths.js';

/** Reads a file as one character a byte; returns an empty text if it cannot be read. */
function read(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

const holds = (options: string, word: string): boolean =>
  splitGiven(Buffer.from(options, 'latin1')).some(({ name }) => name === word);

/** Returns the files that mount(8) takes for the fstab: -T, or --fstab, can name a directory of them. */
function tablesOf(mount: readonly string[]): string[] {
  const at = mount.findIndex((argument) => /^(-T|--fstab)$/.test(argument));
  const joined = mount.find((argument) => /^(-T|--fstab=)./.test(argument))?.replace(/^(-T|--fstab=)/, '');
  const named = (at < 0 ? undefined : mount[at + 1]) ?? joined ?? '/etc/fstab';
  try {
    if (!statSync(named).isDirectory()) return [named];
    const names = readdirSync(named).filter((name) => name.endsWith('.fstab') && !name.startsWith('.'));
    return names.map((name) => join(named, name));
  } catch {
    return [];
  }
}

function resolve(path: Path): string {
  try {
    return realpathSync(Buffer.from(toBytes(path)), 'latin1');
  } catch {
    return Buffer.from(toBytes(path)).toString('latin1');
  }
}

function isInTable(text: string, target: string, word: string): boolean {
  return text.split('\n').some((line) => {
    const fields = line.trim().split(/[ \t]+/);
    if (fields[0]?.startsWith('#')) return false;
    const [, place = '', type, options = ''] = fields.map((field) => unescapeOctal(Buffer.from(field, 'latin1')));
    if (type?.toString() !== 'overlay' || !holds(options.toString('latin1'), word)) return false;
    return resolve(place) === target;
  });
}

/** Returns whether the mount(8) that started this process was given the option for this target. */
export function wasGivenToMount(word: string, target: Path): boolean {
  const mount = read(`/proc/${process.ppid}/cmdline`).split('\0').slice(0, -1);
  if (mount.some((argument) => holds(argument.replace(/^(-o|--options=)/, ''), word))) return true;
  const place = resolve(target);
  return tablesOf(mount).some((table) => isInTable(read(table), place, word));
}
