/**
 * Prints a plan as text, one system call a line as strace(1) does. File descriptors are named after the step that makes
 * them.
 */
import { describeErrno } from '../errnos.js';
import { formatBytes } from '../paths.js';
import { type Argument, calls, learnCalls } from './calls.js';
import { AT_FDCWD } from './constants.js';
import { guardsOf } from './guards.js';
import { MADE_BY, type Plan, type Step, type Text } from './plan.js';

function formatDescriptor(descriptor: number, names: ReadonlyMap<number, string>): string {
  if (descriptor === AT_FDCWD) return 'AT_FDCWD';
  if (descriptor < MADE_BY) return String(descriptor);
  return names.get(descriptor ^ MADE_BY) ?? '?';
}

function formatText(text: Text, names: ReadonlyMap<number, string>): string {
  if (text === null) return 'NULL';
  if (typeof text === 'string' || text instanceof Uint8Array) return `"${formatBytes(text)}"`;
  const pieces = text.map((piece) =>
    typeof piece === 'number' ? `{${formatDescriptor(piece, names)}}` : formatBytes(piece),
  );
  return `"${pieces.join('')}"`;
}

function formatNumber(value: number, { bits, words, kind }: Argument): string {
  if (kind === 'octal') return `0${value.toString(8)}`;
  const word = words && Object.entries(words()).find(([, known]) => known === value)?.[0];
  if (word !== undefined) return word;
  if (bits === undefined) return String(value);
  let rest = value;
  const names: string[] = [];
  for (const [name, bit] of Object.entries(bits())) {
    if (bit === 0 || (rest & bit) !== bit) continue;
    names.push(name);
    rest &= ~bit;
  }
  if (rest !== 0 || names.length === 0) names.push(rest === 0 ? '0' : `0x${(rest >>> 0).toString(16)}`);
  return names.join('|');
}

/** Returns the names of a plan's file descriptors, by the index of the step that makes each. */
function nameDescriptors(plan: Plan): ReadonlyMap<number, string> {
  learnCalls();
  const names = new Map<number, string>();
  plan.steps.forEach((step, i) => {
    if (step.call.makesDescriptor) names.set(i, `fd${names.size}`);
  });
  return names;
}

/** Returns the name that node:fs uses for the system call of a step. */
export function systemCallOf({ call }: Step): string {
  return call === calls.mkdirat ? 'mkdir' : call === calls.openat2 ? 'open' : call.name;
}

/** Prints one step of a plan. */
export function formatStep(plan: Plan, step: Step, names = nameDescriptors(plan)): string {
  const args: string[] = step.call === calls.guard ? [...guardsOf(step)] : [];
  step.call.args.forEach((argument, i) => {
    if (argument.hidden) return;
    const value = step.args[i] ?? 0;
    switch (argument.kind) {
      case 'descriptor':
        args.push(formatDescriptor(value as number, names));
        return;
      case 'text':
      case 'value':
        args.push(formatText((step.args[i] ?? null) as Text, names));
        return;
      default:
        args.push(formatNumber(value as number, argument));
    }
  });
  return `${step.call.name}(${args.join(', ')})`;
}

export function formatPlan(plan: Plan): string {
  const names = nameDescriptors(plan);
  const lines = plan.steps.map((step, i) => {
    const made = names.has(i) ? ` = ${names.get(i)}` : '';
    const notes: string[] = [];
    const { tolerate, later, undo } = step.options;
    const guards = step.call === calls.guard ? [] : guardsOf(step);
    if (guards.length > 0) notes.push(`guard: ${guards.join(', ')}`);
    if (later) notes.push('only on failure');
    if (undo) notes.push('undone on failure');
    if (tolerate === 'any') notes.push('any error will do');
    else if (tolerate) notes.push(`${tolerate.map((errno) => describeErrno(errno)[0]).join(', ')} will do`);
    const note = notes.length === 0 ? '' : `  # ${notes.join('; ')}`;
    return `${formatStep(plan, step, names)}${made}${note}`;
  });
  return `${lines.join('\n')}\n`;
}
