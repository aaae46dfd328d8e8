/** The results, for people and for machines. */
import { cpus, release } from 'node:os';
import type { Bound, Result, Row } from './kind.js';

type Column = readonly [title: string, width: number, align?: 'right'];

const columns: readonly Column[] = [
  ['what (ours : peer)', 32],
  ['on', 5],
  ['other CPU', 9],
  ['ours', 14, 'right'],
  ['peer', 14, 'right'],
  ['ratio', 6, 'right'],
  ['quartiles', 13, 'right'],
  ['ours - peer', 11, 'right'],
  ['bound', 16],
];

function line(cells: readonly string[]): string {
  const padded = columns.map(([, width, align], i) => {
    const cell = cells[i] ?? '';
    return align === 'right' ? cell.padStart(width) : cell.padEnd(width);
  });
  return padded.join('  ').trimEnd();
}

const ratioText = (ratio: number): string => ratio.toFixed(ratio < 10 ? 2 : 1);
const valueText = (value: number, unit: string): string => `${value.toFixed(unit === 'pairs/s' ? 0 : 1)} ${unit}`;
const signed = (value: number, unit: string): string => `${value < 0 ? '' : '+'}${valueText(value, unit)}`;

function boundText({ of, is, limit }: Bound, unit: string): string {
  const texts = { ratio: limit.toFixed(2), difference: signed(limit, unit), ours: `${limit} ${unit}` };
  return `${is === 'at most' ? '≤' : '≥'} ${texts[of]}`;
}

export const headerText = (): string =>
  [
    `Linux ${release()}, ${cpus()[0]?.model.trim()}, Node ${process.versions.node}`,
    '',
    line(columns.map(([title]) => title)),
    line(columns.map(([, width]) => '-'.repeat(width))),
  ].join('\n');

const otherCpu = ({ spinner }: Row): string => (spinner ? 'busy' : 'idle');

export function skippedText(row: Row, reason: string): string {
  return line([row.kind.what, row.fileSystem, otherCpu(row), `not measured: ${reason}`]);
}

export function resultText(row: Row, result: Result): string {
  const { what, unit, waits } = row.kind;
  const [lower, upper] = result.ratioQuartiles;
  return line([
    what,
    row.fileSystem,
    otherCpu(row),
    valueText(result.ours, unit),
    valueText(result.peer, unit),
    ratioText(result.ratio),
    `${ratioText(lower)} - ${ratioText(upper)}`,
    waits && unit === 'µs' && row.kind.ratio === 'ours / peer' ? signed(result.difference, unit) : '',
    result.bound === undefined ? '' : `${boundText(result.bound, unit)} ${result.isOver ? 'over' : 'ok'}`,
  ]);
}

export const footerText = `
Medians of blocks that alternate between the two sides; ratios and differences of neighbouring blocks only.
A pair is a mount and its unmount. An unmount waits for all CPUs, for an idle one in another way than for a
busy one: both are measured, "busy" by a process that does nothing else. One CPU is for both sides, the other
one for that process, or for nobody. Only "at once" and "stat" have both sides on both CPUs.
A stat that is slower during unmounts than on an idle machine waits for a CPU: "C, in turn" is what a process of its
own costs it that makes the same unmounts one after the other.
"C" makes two system calls a pair; "C guarded" makes those that the library makes. libmount and containerd make no more
than "C", with what these libraries do around it. "At first" compares the last tenth of many cycles with the first.
The ratio is ours / peer: of times (less is better); of pairs/s, and for programs the times that ours is
faster (more is better).`;

export interface Measured {
  readonly row: Row;
  /** Or why there is none. */
  readonly result: Result | string;
}

export function toJson(measured: readonly Measured[]): string {
  const machine = { kernel: release(), cpu: cpus()[0]?.model.trim(), cpus: cpus().length, node: process.versions.node };
  const rows = measured.map(({ row, result }) => ({
    what: row.kind.what,
    fileSystem: row.fileSystem,
    otherCpu: otherCpu(row),
    unit: row.kind.unit,
    ratioOf: row.kind.ratio,
    ...(typeof result === 'string' ? { skipped: result } : result),
  }));
  return JSON.stringify({ machine, rows }, null, 2);
}
