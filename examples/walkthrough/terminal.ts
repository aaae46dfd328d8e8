/** Prints the walk, and checks that the text is true. */
import { isDeepStrictEqual, stripVTControlCharacters, styleText } from 'node:util';

type Format = Parameters<typeof styleText>[0];

const isColoured = process.stdout.isTTY && !process.env.NO_COLOR && process.env.TERM !== 'dumb';
const WIDTH = 80;
const MARGIN = '   ';

// Newer Nodes would decide a second time, and by other rules.
export const paint = (format: Format, text: string): string =>
  isColoured ? styleText(format, text, { validateStream: false }) : text;

/** A step did not go as it was told. */
export class NotAsTold extends Error {
  constructor(claim: string, found: unknown, expected: unknown) {
    super(`${claim}\nexpected: ${JSON.stringify(expected)}\nfound:    ${JSON.stringify(found)}`);
  }
}

type Kind = 'heading' | 'prose' | 'command' | 'output' | 'check';

let lastKind: Kind = 'heading';
let steps = 0;
let checks = 0;
let currentStep = 'The beginning';

export function title(text: string, facts: string): void {
  print([paint('bold', text), paint('dim', facts)]);
}

export function part(text: string): void {
  print(['', '', paint(['bold', 'blue'], text), paint('blue', '─'.repeat(WIDTH))]);
}

export function step(text: string): void {
  steps += 1;
  currentStep = `Step ${steps}, ${text}`;
  print(['', `${paint(['bold', 'yellow'], String(steps).padStart(2))} ${paint('bold', text)}`]);
  lastKind = 'heading';
}

/** Prose, filled to the width of the page. */
export function explain(text: string): void {
  const lines: string[] = [];
  for (const word of text.split(/\s+/)) {
    const line = lines.at(-1);
    if (line === undefined || MARGIN.length + line.length + 1 + word.length > WIDTH) lines.push(word);
    else lines[lines.length - 1] = `${line} ${word}`;
  }
  show(
    'prose',
    lines.map((line) => paint('dim', line)),
  );
}

/** A call, as one would write it. */
export const code = (...lines: string[]): void => showCommand('>', lines);

/** A command, as one would type it. */
export const shell = (line: string): void => showCommand('$', [line]);

function showCommand(prompt: string, lines: readonly string[]): void {
  show(
    'command',
    lines.map((line, i) => paint('cyan', `${i === 0 ? prompt : ' '} ${line}`)),
  );
}

export const output = (lines: readonly string[]): void => show('output', lines);

/** Holds the claim against what was found: a tick, or the end of the walk. */
export function check(claim: string, found: unknown, expected: unknown = true): void {
  if (!isDeepStrictEqual(found, expected)) throw new NotAsTold(claim, found, expected);
  checks += 1;
  show('check', [`${paint('green', '✓')} ${claim}`]);
}

export function reportSuccess(): void {
  print(['', paint(['bold', 'green'], `All as told: ${steps} steps, ${checks} checks.`)]);
}

export function reportFailure(error: unknown, advice: string): void {
  const [how, what] = error instanceof NotAsTold ? ['not as told', error.message] : ['failed', String(error)];
  const text = `${what}\n${advice}`.trimEnd();
  process.stderr.write(`\n✗ ${currentStep}: ${how}\n${text.replace(/^/gm, MARGIN)}\n`);
}

/** Blocks of lines beside each other, as many as the page is wide enough for, the others below. */
export function showBlocks(blocks: readonly (readonly string[])[]): void {
  const rows: (readonly string[])[][] = [];
  for (const block of blocks) {
    const row = rows.at(-1);
    if (row !== undefined && widthOfRow([...row, block]) <= WIDTH) row.push(block);
    else rows.push([block]);
  }
  for (const row of rows) {
    if (lastKind === 'command' || lastKind === 'output') print(['']);
    output(joinBlocks(row));
  }
}

const widthOf = (block: readonly string[]): number => Math.max(...block.map(visibleLength));
const widthOfRow = (row: readonly (readonly string[])[]): number =>
  row.reduce((width, block) => width + MARGIN.length + widthOf(block), 0);

function joinBlocks(row: readonly (readonly string[])[]): string[] {
  const height = Math.max(...row.map((block) => block.length));
  return Array.from({ length: height }, (_, i) => {
    const cells = row.map((block) => pad(block[i] ?? '', widthOf(block)));
    return cells.join(MARGIN).trimEnd();
  });
}

const pad = (text: string, width: number): string => text + ' '.repeat(width - visibleLength(text));
const visibleLength = (text: string): number => stripVTControlCharacters(text).length;

/** A blank line comes between things of two kinds, but for a command and what it shows. */
function show(kind: Kind, lines: readonly string[]): void {
  const isOneBlock = kind === lastKind || lastKind === 'heading' || (kind === 'output' && lastKind === 'command');
  if (!isOneBlock) print(['']);
  lastKind = kind;
  print(lines.map((line) => (line === '' ? '' : MARGIN + line)));
}

function print(lines: readonly string[]): void {
  for (const line of lines) process.stdout.write(`${line}\n`);
}
