/**
 * Whether an option was given that begins with `x-`: mount(8) keeps these to itself. So they are looked for where it
 * has them from, its command line and the fstab.
 */
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { splitGiven, unescapeOctal } from '../../mount-strings.js';
import { type Path, toBytes } from '../../paths.js';

/** One character a byte; empty where it cannot be read. */
function read(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

const holds = (options: string, word: string): boolean =>
  splitGiven(Buffer.from(options, 'latin1')).some(({ name }) => name === word);

/** The files that mount(8) takes for the fstab: -T, or --fstab, can name a directory of them. */
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

/** Whether the mount(8) that has started this process was given the option for this target. */
export function wasGivenToMount(word: string, target: Path): boolean {
  const mount = read(`/proc/${process.ppid}/cmdline`).split('\0').slice(0, -1);
  if (mount.some((argument) => holds(argument.replace(/^(-o|--options=)/, ''), word))) return true;
  const place = resolve(target);
  return tablesOf(mount).some((table) => isInTable(read(table), place, word));
}
