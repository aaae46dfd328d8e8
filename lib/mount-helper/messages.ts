/** The messages of the helper: options have the kernel's names, and remedies that only a program has do not appear. */
import { writeFileSync } from 'node:fs';
import { errorText, type MessageStyle } from '../cli/errors.js';
import { OverlayError } from '../errors.js';
import type { Problem } from '../features/conflicts.js';
import { optionRows } from '../options/table.js';
import type { Part, Spelling } from '../text.js';

/** The names of mount(8) for options that the kernel does not take as text. */
const mountNames: Readonly<Record<string, string>> = { readonly: 'ro', readonlySuperblock: 'ro', atime: 'noatime' };

function spell(part: Part): string | undefined {
  if (!('option' in part)) return undefined;
  const { option, value } = part;
  const row = optionRows[option];
  const isAttribute = row?.form === 'attribute' || option === 'propagation';
  const name = row?.kernel ?? mountNames[option] ?? (isAttribute ? option : undefined);
  if (row === undefined || name === undefined) return undefined;
  if (typeof value === 'string') return `${name}=${value}`;
  if (row.form === 'switch' && value !== undefined) return `${name}=${value ? 'on' : 'off'}`;
  if (value !== false) return name;
  return row.form === 'flag' ? row.off : undefined;
}

const spelling: Spelling = { spell };
const style: MessageStyle = { program: 'mount.overlay', spelling };
const warning: MessageStyle = { program: 'mount.overlay: warning', spelling };
const mountedReadOnly: MessageStyle = {
  program: `${warning.program}: mounted read-only`,
  spelling: { spell, isMounted: true },
  isWithoutCode: true,
};
const mountedAnyway: MessageStyle = {
  program: `${warning.program}, mounted anyway`,
  spelling: { spell, isMounted: true },
};

export type Write = (descriptor: 1 | 2, text: string) => void;

/** Writes at once. If nothing reads it, or the device is full, the mount is still good. */
export const writeAnyway: Write = (descriptor, text) => {
  try {
    writeFileSync(descriptor, text);
  } catch {}
};

/** Writes the output and the messages of the helper. */
export class Messages {
  readonly write: Write;

  constructor(write: Write) {
    this.write = write;
  }

  error(problem: unknown): void {
    this.write(2, errorText(problem, style));
  }

  warn(problem: unknown): void {
    this.write(2, errorText(problem, warning));
  }

  /** Warns of a problem that the mount now has. */
  warnMounted(problem: unknown): void {
    const isReadOnly = problem instanceof OverlayError && problem.code === 'EROFS';
    this.write(2, errorText(problem, isReadOnly ? mountedReadOnly : mountedAnyway));
  }

  /** Reports all problems, the last one by throwing it. */
  throwAll(problems: readonly Problem[]): never {
    for (const { error } of problems.slice(0, -1)) this.error(error);
    throw problems.at(-1)?.error;
  }
}
