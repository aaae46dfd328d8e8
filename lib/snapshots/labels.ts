/** Labels: their limits, and those that have a meaning for the snapshotter. Pure. */

import { invalidArgumentType } from '../errors.js';
import type { IdRange } from '../id-range.js';
import { invalidArgument } from './errors.js';
import type { Labels } from './records.js';

/** The labels with the id maps of a container, and the one that tells where the upperdir is. */
export const UID_MAPPING = 'containerd.io/snapshot/uidmapping';
export const GID_MAPPING = 'containerd.io/snapshot/gidmapping';
export const UPPERDIR_LABEL = 'containerd.io/snapshot/overlay.upperdir';

/** The most bytes of a label's name and value. */
const MOST_BYTES = 4096;

export function checkText(value: unknown, name: string): string {
  if (typeof value !== 'string') throw invalidArgumentType(name, 'a string', value);
  if (!value.isWellFormed()) throw invalidArgument(undefined, `the ${name} holds a lone surrogate`, 'pass text');
  return value;
}

/** Returns a copy of the labels. A label with an empty value is none. */
export function checkLabels(value: unknown, name: string): Labels {
  if (value === undefined) return {};
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArgumentType(name, 'an object of strings', value);
  }
  const entries = Object.entries(value).map(([label, text]): [string, string] => {
    checkText(label, `name of a label in "${name}"`);
    checkText(text, `${name}[${JSON.stringify(label.slice(0, 100))}]`);
    const size = Buffer.byteLength(label) + Buffer.byteLength(text);
    if (label === '') throw invalidArgument(undefined, 'a label has an empty name', 'give it one');
    if (size > MOST_BYTES) {
      throw invalidArgument(
        undefined,
        `the label '${label.slice(0, 100)}' has ${size} bytes with its value`,
        `use at most ${MOST_BYTES}`,
      );
    }
    return [label, text];
  });
  return Object.fromEntries(entries.filter(([, text]) => text !== ''));
}

const INVALID_ID = 0xffff_ffff;

/** Reads an id map; `name` is the label that has it, or the option. */
export function parseMapping(text: string, name: string): IdRange[] {
  return text.split(',').map((part) => {
    const [, ...numbers] = /^(\d+):(\d+):(\d+)$/.exec(part.trim()) ?? [];
    const [container, host, size] = numbers.map(Number);
    if (container === undefined || host === undefined || size === undefined || numbers.some((n) => +n >= INVALID_ID)) {
      throw invalidArgument(
        undefined,
        `'${part.slice(0, 100)}' in ${name} is no range of ids`,
        'write each as container-id:host-id:size, with commas between',
      );
    }
    return { container, host, size };
  });
}

/** Returns the id on the host of id 0 in a container. Without a map they are the same. */
function rootOf(labels: Labels, name: string): number {
  const text = labels[name];
  if (text === undefined) return 0;
  const mappings = parseMapping(text, `the label '${name}'`);
  const found = mappings.find(({ container, size }) => container === 0 && size > 0);
  if (found !== undefined) return found.host;
  throw invalidArgument(
    undefined,
    `the label '${name}' does not map id 0: '${text}'`,
    'add a range that begins with 0:',
  );
}

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** Returns the owner that the labels ask for, if they do. */
export function mappedOwner(labels: Labels): Owner | undefined {
  if (!Object.hasOwn(labels, UID_MAPPING) && !Object.hasOwn(labels, GID_MAPPING)) return undefined;
  return { uid: rootOf(labels, UID_MAPPING), gid: rootOf(labels, GID_MAPPING) };
}
