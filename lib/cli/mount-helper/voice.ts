/**
 * The library's texts for users of mount(8): options have the kernel's names, and the library's own options do not
 * appear.
 */
import { writeFileSync } from 'node:fs';
import { WITHOUT_TARGET } from '../../diagnosis/process.js';
import { OverlayError } from '../../errors.js';
import type { Problem } from '../../features/conflicts.js';
import { optionRows } from '../../options/table.js';
import { errorText, type Voice } from '../errors.js';
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

/** Workarounds that only a program can use. */
const librarys = /,? or (?:pass|name it in) `(?:create|stack|allowDegraded|detach)\b(?:(?!\.(?:\s|$)|;).)*/g;

/** Phrases about what the kernel would do, and their form once the kernel has done it. */
const turns: readonly (readonly [would: RegExp, does: string])[] = [
  [/EROFS: /, 'mounted read-only, because '],
  [/(?:, so that|:) the kernel would have mounted read-only/, ''],
  [/the kernel would mount and drop it without a word/, 'the kernel has dropped it'],
  [/the kernel would mount, and drop one of them without a word/, 'the kernel has dropped one of them'],
  [/the kernel refuses that, or mounts without it and shows it all the same/, 'the mount table shows it all the same'],
  [/the kernel would mount, and refuse/, 'the kernel refuses'],
  [/the kernel would mount, and a directory that was removed could not/, 'a directory that has been removed cannot'],
];

/** Returns the text of an objection to a mount that has been made. */
const asDone = (text: string): string => turns.reduce((told, [would, does]) => told.replace(would, does), text);

const voice: Voice = {
  program: 'mount.overlay',
  say: (text) =>
    rephrase(
      text.replace(`; ${WITHOUT_TARGET}`, '').replace(librarys, '').replace('which is then true', 'which is then on'),
      spell,
    ),
};

const warning: Voice = { ...voice, program: `${voice.program}: warning` };

export type Write = (descriptor: 1 | 2, text: string) => void;

/** Writes at once. If nothing reads it, or the device is full, the mount is still good. */
export const writeAnyway: Write = (descriptor, text) => {
  try {
    writeFileSync(descriptor, text);
  } catch {}
};

/** Writes the output and the messages of the helper. */
export class Speaker {
  readonly write: Write;

  constructor(write: Write) {
    this.write = write;
  }

  complain(problem: unknown): void {
    this.write(2, errorText(problem, voice));
  }

  warn(problem: unknown): void {
    this.write(2, errorText(problem, warning));
  }

  /** Warns of a problem that the mount now has. */
  warnMounted(problem: unknown): void {
    const isReadOnly = problem instanceof OverlayError && problem.code === 'EROFS';
    const program = isReadOnly ? warning.program : `${warning.program}, mounted all the same`;
    this.write(2, asDone(errorText(problem, { ...warning, program })));
  }

  /** Reports all problems, the last one by throwing it. */
  throwAll(problems: readonly Problem[]): never {
    for (const { error } of problems.slice(0, -1)) this.complain(error);
    throw problems.at(-1)?.error;
  }
}
