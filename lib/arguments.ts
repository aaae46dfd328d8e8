/** Checks of an options object, shared by all calls that take one. */
import { invalidArgumentType, invalidArgumentValue, outOfRange } from './errors.js';

/** Returns the number of edits that turn one word into another, for guessing the intended word. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next[j] = Math.min((row[j] as number) + 1, (next[j - 1] as number) + 1, substitution);
    }
    row = next;
  }
  return row[b.length] as number;
}

/** Longer than any real name; the comparison takes time in proportion to the product of the lengths. */
const MAX_NAME = 64;

/** Returns the name that is nearest to the given one, or undefined if none is near. */
export function nearestName(given: string, names: readonly string[]): string | undefined {
  if (given.length > MAX_NAME) return undefined;
  const plain = (name: string) => name.toLowerCase().replace(/[^a-z]/g, '');
  let nearest: string | undefined;
  let least = Math.max(2, Math.floor(given.length / 3)) + 1;
  for (const name of names) {
    const edits = distance(plain(given), plain(name));
    if (edits < least) [nearest, least] = [name, edits];
  }
  return nearest;
}

/** Yields the object and its prototypes, except Object.prototype, whose properties are not options. */
function* ownersOf(options: object): Generator<object> {
  for (let at: object | null = options; at !== null && at !== Object.prototype; at = Object.getPrototypeOf(at))
    yield at;
}

/**
 * Returns a copy of the options, with each option read once: a getter may return another value the next time, and the
 * caller may change the object later.
 */
export function takeOnce<T extends object>(options: T, known: ReadonlySet<string>): T {
  const prototype = Object.getPrototypeOf(options);
  if (prototype === Object.prototype || prototype === null) return { ...options };
  const taken = { ...options };
  for (const owner of ownersOf(options)) {
    // Accessors of a class are found by name only.
    const names = [...Object.keys(owner), ...[...known].filter((name) => Object.hasOwn(owner, name))];
    for (const name of names as (keyof T)[]) if (!Object.hasOwn(taken, name)) taken[name] = options[name];
  }
  return taken;
}

/** Inherits nothing, even if a program has extended Object.prototype. */
const NO_OPTIONS: object = Object.freeze(Object.create(null));

/**
 * Returns the options of a call, each read once; an empty object if they are left out. The result inherits nothing.
 * Throws if they are not an object, or if a name is not among the known ones.
 */
export function toOptions<T extends object>(value: T | undefined, known: ReadonlySet<string>, name = 'options'): T {
  if (value === undefined) return NO_OPTIONS as T;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArgumentType(name, 'an object', value);
  }
  const options = takeOnce(value, known);
  checkNames(options, known);
  return Object.setPrototypeOf(options, null);
}

/** Returns some of the options, for a call that takes no others. */
export const pick = <T extends object, K extends keyof T>(options: T, names: readonly K[]): Pick<T, K> =>
  Object.fromEntries(names.map((name) => [name, options[name]])) as Pick<T, K>;

/** Throws if the object has an own name that is not among the known ones. */
export function checkNames(options: object, known: ReadonlySet<string>): void {
  for (const name of Object.keys(options)) {
    if (known.has(name)) continue;
    const nearest = nearestName(name, [...known]);
    const guess =
      nearest === undefined ? `one of ${[...known].join(', ')}` : `a known option: did you mean "${nearest}"?`;
    const shown = name.length > MAX_NAME ? `${name.slice(0, MAX_NAME)}...` : name;
    throw invalidArgumentValue(shown, (options as Record<string, unknown>)[name], `is not ${guess}`);
  }
}

/** Returns the option as a boolean, or undefined if it is left out. */
export function checkBoolean(value: unknown, name: string): boolean | undefined {
  if (value === undefined || typeof value === 'boolean') return value;
  throw invalidArgumentType(name, 'true or false', value);
}

/** Checks an object of options that are true, false or left out: all known ones, or those in `booleans`. */
export function toBooleanOptions<T extends object>(
  value: T | undefined,
  known: ReadonlySet<string>,
  booleans: ReadonlySet<string> = known,
): T {
  const options = toOptions(value, known);
  for (const name of booleans) checkBoolean((options as Record<string, unknown>)[name], name);
  return options;
}

/** Returns the value as a text that the kernel can take. */
export function checkText(value: unknown, name: string): string {
  if (typeof value !== 'string') throw invalidArgumentType(name, 'a string', value);
  if (value.includes('\0')) throw invalidArgumentValue(name, value, 'must not contain a NUL byte');
  return value;
}

export function checkFunction(value: unknown, name: string): void {
  if (value !== undefined && typeof value !== 'function') throw invalidArgumentType(name, 'a function', value);
}

/** Returns the option as one of the words, or undefined if it is left out. */
export function checkWord<W extends string>(value: unknown, name: string, words: readonly W[]): W | undefined {
  if (value === undefined) return undefined;
  if (words.includes(value as W)) return value as W;
  const expected = `must be one of ${words.map((word) => `'${word}'`).join(', ')}`;
  throw typeof value === 'string'
    ? invalidArgumentValue(name, value, expected)
    : invalidArgumentType(name, expected.slice(8), value);
}

/** Returns whether the number can be a descriptor: from 2^30 on, plans use numbers for descriptors of their own. */
export const isDescriptor = (value: number): boolean => Number.isInteger(value) && value >= 0 && value < 2 ** 30;

/** Returns the option as a number of milliseconds, which may be Infinity, or undefined if it is left out. */
export function checkMilliseconds(value: unknown, name: string): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'number') throw invalidArgumentType(name, 'a number of milliseconds', value);
  if (!(value >= 0)) throw outOfRange(name, 'a number of milliseconds, 0 or more', String(value));
  return value;
}

export function checkSignal(value: unknown, name = 'signal'): AbortSignal | undefined {
  if (value === undefined || value instanceof AbortSignal) return value;
  throw invalidArgumentType(name, 'an AbortSignal', value);
}

/** Returns a list, empty if it is left out. The holes of a sparse one are undefined. */
export function checkList(value: unknown, name: string): readonly unknown[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalidArgumentType(name, 'a list', value);
  return Array.from(value);
}
