/** The library's texts for those who mount by mount(8): its options by the kernel's names, and none of the library's own. */
import { writeFileSync } from 'node:fs';
import { OverlayError } from '../../errors.js';
import type { Problem } from '../../overlay/conflicts.js';
import { WITHOUT_TARGET } from '../../overlay/diagnosis/process.js';
import { optionRows } from '../../overlay/option-table.js';
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

/** The ways out that only a program has. */
const librarys = /,? or (?:pass|name it in) `(?:create|stack|allowDegraded|detach)\b(?:(?!\.(?:\s|$)|;).)*/g;

/** The library says what the kernel would do; once it has done it, that is wrong. */
const turns: readonly (readonly [would: RegExp, does: string])[] = [
  [/EROFS: /, 'mounted read-only, because '],
  [/(?:, so that|:) the kernel would have mounted read-only/, ''],
  [/the kernel would mount and drop it without a word/, 'the kernel has dropped it'],
  [/the kernel would mount, and drop one of them without a word/, 'the kernel has dropped one of them'],
  [/the kernel refuses that, or mounts without it and shows it all the same/, 'the mount table shows it all the same'],
  [/the kernel would mount, and refuse/, 'the kernel refuses'],
  [/the kernel would mount, and a directory that was removed could not/, 'a directory that has been removed cannot'],
];

/** The text of an objection to a mount that is there. */
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

/** Writes at once. Where nobody reads it, or the device is full, the mount is no worse. */
export const writeAnyway: Write = (descriptor, text) => {
  try {
    writeFileSync(descriptor, text);
  } catch {}
};

/** What the helper says, and to whom. */
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

  /** Warns of what is now the case. */
  warnMounted(problem: unknown): void {
    const isReadOnly = problem instanceof OverlayError && problem.code === 'EROFS';
    const program = isReadOnly ? warning.program : `${warning.program}, mounted all the same`;
    this.write(2, asDone(errorText(problem, { ...warning, program })));
  }

  /** Complains of all problems, of the last one by throwing it. */
  throwAll(problems: readonly Problem[]): never {
    for (const { error } of problems.slice(0, -1)) this.complain(error);
    throw problems.at(-1)?.error;
  }
}
