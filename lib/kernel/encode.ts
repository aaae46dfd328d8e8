/** Encodes a plan into the block of memory that native/plan.h describes. */
import { addon } from '../native.js';
import type { Path } from '../paths.js';
import { learnCalls } from './calls.js';
import type { Plan, Step, Text } from './plan.js';

const HEADER_SIZE = 16;
const STEP_NUMBERS = 13;
const STEP_HEADER_NUMBERS = 5;
/** The most characters that a file descriptor takes in decimal. */
const MAX_DIGITS = 11;
/** The result of a step that has not run: no file descriptor. */
const NO_RESULT = -1;

// All plans of this thread share one block: each plan is performed, or copied by the addon, before the next is encoded.
let block = Buffer.alloc(65536);
let numbers = new Int32Array(block.buffer, block.byteOffset, block.length >> 2);
let end = 0;

function reserve(size: number): void {
  if (end + size <= block.length) return;
  const larger = Buffer.alloc(Math.max(block.length * 2, end + size));
  block.copy(larger, 0, 0, end);
  block = larger;
  numbers = new Int32Array(block.buffer, block.byteOffset, block.length >> 2);
}

function writeBytes(bytes: Path): number {
  if (typeof bytes !== 'string') {
    reserve(bytes.length);
    block.set(bytes, end);
    end += bytes.length;
    return bytes.length;
  }
  reserve(bytes.length * 3);
  const start = end;
  // Nearly all texts are short and ASCII. For these, a call into V8 costs more than this loop.
  if (bytes.length <= 96) {
    let i = 0;
    for (; i < bytes.length; i++) {
      const unit = bytes.charCodeAt(i);
      if (unit > 0x7f) break;
      block[start + i] = unit;
    }
    if (i === bytes.length) {
      end = start + i;
      return i;
    }
  }
  const length = block.write(bytes, start);
  end = start + length;
  return length;
}

function writeText(text: Text): number {
  if (text === null) return 0;
  reserve(8);
  end = (end + 3) & ~3;
  const offset = end;
  end += 4;
  if (typeof text === 'string' || text instanceof Uint8Array) {
    // Two statements, because writing may replace the block.
    const length = writeBytes(text);
    numbers[offset >> 2] = length;
    reserve(1);
    block[end++] = 0;
    return offset;
  }
  if (!text.some((piece) => typeof piece === 'number')) {
    let length = 0;
    for (const piece of text as readonly Path[]) length += writeBytes(piece);
    numbers[offset >> 2] = length;
    reserve(1);
    block[end++] = 0;
    return offset;
  }
  let room = 1;
  for (const piece of text) {
    reserve(8);
    const at = end;
    end += 4;
    if (typeof piece === 'number') {
      numbers[at >> 2] = -1;
      numbers[end >> 2] = piece;
      end += 4;
      room += MAX_DIGITS;
    } else {
      const length = writeBytes(piece);
      numbers[at >> 2] = length;
      reserve(4);
      end = (end + 3) & ~3;
      room += length;
    }
  }
  numbers[offset >> 2] = -(end - offset - 4);
  reserve(room);
  end += room;
  return offset;
}

function tolerated(tolerate: readonly number[] | 'any'): number {
  if (tolerate === 'any') return addon().anyErrno;
  let packed = 0;
  for (let i = 0; i < tolerate.length; i++) packed |= (tolerate[i] as number) << (8 * i);
  return packed;
}

export interface Encoded {
  /** Valid until the next plan is encoded. */
  readonly block: Buffer;
  /** The same block, as 32-bit numbers. */
  readonly numbers: Int32Array;
  readonly size: number;
  readonly outputs: number;
}

/** An encoded plan, with the positions of the text offsets that differ from plan to plan. */
export interface Pattern {
  readonly numbers: Int32Array;
  readonly size: number;
  readonly outputs: number;
  readonly slots: readonly (readonly number[])[];
}

/** Returns undefined unless each text is an argument of the plan and part of no other. */
export function toPattern(plan: Plan, texts: readonly string[]): Pattern | undefined {
  const { size, outputs } = encode(plan);
  const slots: number[][] = [];
  for (const text of texts) {
    const places = plan.steps.flatMap(({ args }, step) =>
      args.flatMap((argument, position) => {
        if (Array.isArray(argument) && argument.includes(text)) return [Number.NaN];
        return argument === text ? [(HEADER_SIZE >> 2) + step * STEP_NUMBERS + STEP_HEADER_NUMBERS + position] : [];
      }),
    );
    if (places.length === 0 || places.some(Number.isNaN)) return undefined;
    slots.push(places);
  }
  return { numbers: numbers.slice(0, (size + 3) >> 2), size, outputs, slots };
}

/** Encodes the same plan with other texts in the slots. */
export function encodeAs({ numbers: pattern, size, outputs, slots }: Pattern, texts: readonly string[]): Encoded {
  end = 0;
  reserve(size + 4);
  numbers.set(pattern);
  end = size;
  for (let i = 0; i < slots.length; i++) {
    // Two statements, because writing may replace the block.
    const offset = writeText(texts[i] as string);
    for (const slot of slots[i] as readonly number[]) numbers[slot] = offset;
  }
  return { block, numbers, size: end, outputs };
}

export function encode(plan: Plan): Encoded {
  const native = addon();
  learnCalls();
  const { flags } = native;
  const { steps } = plan;
  end = 0;
  const stepsEnd = HEADER_SIZE + steps.length * STEP_NUMBERS * 4;
  reserve(stepsEnd + plan.outputsSize + 8);
  const outputs = (stepsEnd + 7) & ~7;
  end = outputs + plan.outputsSize;

  for (let i = 0; i < steps.length; i++) {
    const { call, args, options, outputAt } = steps[i] as Step;
    const at = (HEADER_SIZE >> 2) + i * STEP_NUMBERS;
    const { isText } = call;
    for (let j = 0; j < args.length; j++) {
      const argument = args[j] as Text | number;
      // Encoded before the number is stored, because writing a text may replace the block.
      const encoded = isText[j] ? writeText(argument as Text) : (argument as number);
      numbers[at + STEP_HEADER_NUMBERS + j] = encoded;
    }
    for (let j = args.length + STEP_HEADER_NUMBERS; j < STEP_NUMBERS; j++) numbers[at + j] = 0;
    numbers[at] = call.number;
    numbers[at + 1] =
      (options.undo ? flags.undo : 0) | (options.keep ? flags.keep : 0) | (options.later ? flags.later : 0);
    numbers[at + 2] = options.tolerate === undefined ? 0 : tolerated(options.tolerate);
    numbers[at + 3] = outputAt < 0 ? 0 : outputs + outputAt;
    numbers[at + 4] = NO_RESULT;
  }
  numbers[0] = steps.length;
  numbers[1] = outputs;
  numbers[2] = plan.outputsSize;
  numbers[3] = (plan.isOnOwnThread ? native.ownThread : 0) | (plan.isInChild ? native.inChild : 0);
  return { block, numbers, size: end, outputs };
}
