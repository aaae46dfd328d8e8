/**
 * Escapes overlay options and paths for the kernel, and parses them again, in the form that mount(2) takes and in the
 * form that the mount table shows. All functions work on bytes.
 */
import type { Path } from './paths.js';

const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;
const EQUALS = 0x3d;
const QUOTE = 0x22;

/** Returns whether escapeLayer would change the path. */
function needsEscape(path: string): boolean {
  for (let i = 0; i < path.length; i++) {
    const unit = path.charCodeAt(i);
    if (unit === BACKSLASH || unit === COLON || unit === COMMA) return true;
  }
  return false;
}

/**
 * Escapes a path for `lowerdir`, `upperdir` and `workdir`, by either API: the kernel removes one level of backslashes.
 * Wrong for `lowerdir+` and `datadir+`, where the kernel removes none.
 */
export function escapeLayer(path: Path): Path {
  if (typeof path === 'string') {
    return needsEscape(path) ? path.replace(/[\\,:]/g, '\\$&') : path;
  }
  const escaped: number[] = [];
  for (const byte of path) {
    if (byte === BACKSLASH || byte === COMMA || byte === COLON) escaped.push(BACKSLASH);
    escaped.push(byte);
  }
  return escaped.length === path.length ? path : Uint8Array.from(escaped);
}

/** Removes one level of backslashes: the inverse of escapeLayer. */
export function unescapeLayer(text: Uint8Array): Buffer {
  const plain: number[] = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === BACKSLASH && i + 1 < text.length) i++;
    plain.push(text[i] as number);
  }
  return Buffer.from(plain);
}

/** Returns the layers of a `lowerdir` value, unescaped, topmost first. */
export function splitLowerdir(text: Uint8Array): Buffer[] {
  const layers: Buffer[] = [];
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === BACKSLASH) i++;
    else if (text[i] === COLON) {
      layers.push(unescapeLayer(text.subarray(start, i)));
      start = i + 1;
    }
  }
  layers.push(unescapeLayer(text.subarray(start)));
  return layers;
}

/**
 * Returns the layers of a `lowerdir` value; data-only ones come after `::`. Returns undefined if the kernel would
 * reject it.
 */
export function parseLowerdir(text: Uint8Array): { lowers: Buffer[]; data: Buffer[] } | undefined {
  const lowers: Buffer[] = [];
  const data: Buffer[] = [];
  if (text.length === 0) return { lowers, data };
  let isData = false;
  for (const [i, layer] of splitLowerdir(text).entries()) {
    if (layer.length > 0) {
      if (data.length > 0 && !isData) return undefined;
      (isData ? data : lowers).push(layer);
      isData = false;
    } else {
      if (isData || i === 0) return undefined;
      isData = true;
    }
  }
  return isData ? undefined : { lowers, data };
}

/**
 * Returns the paths that an `upperdir` or `workdir` of the mount table can mean, the likeliest first. The table shows
 * the value as given: escaped if it was passed as text, plain if it was passed as a descriptor.
 */
export function shownLayers(text: Buffer): readonly [Buffer, ...Buffer[]] {
  if (!text.includes(BACKSLASH)) return [text];
  const unescaped = unescapeLayer(text);
  if (text.equals(unescaped)) return [text];
  return text.equals(escapeLayer(unescaped) as Uint8Array) ? [unescaped, text] : [text, unescaped];
}

/** An option in a string. The value, if any, is as mount(2) takes it, with the escapes of layers still in it. */
export interface RawOption {
  readonly name: string;
  readonly value: Buffer | null;
}

function toRaw(option: Uint8Array): RawOption {
  const bytes = Buffer.from(option);
  const at = bytes.indexOf(EQUALS);
  if (at < 0) return { name: bytes.toString('latin1'), value: null };
  return { name: bytes.subarray(0, at).toString('latin1'), value: bytes.subarray(at + 1) };
}

/**
 * Returns the end of the option that begins here: the next comma, except that quotes protect commas in the context of
 * an LSM.
 */
function endOfOption(text: Buffer, start: number, isEscaped: boolean): number {
  let end = start;
  const equals = text.indexOf(EQUALS, start);
  const isQuoted =
    equals >= 0 && text[equals + 1] === QUOTE && /^[a-z]*context$/.test(text.toString('latin1', start, equals));
  if (isQuoted) end = Math.max(equals, text.indexOf(QUOTE, equals + 2));
  for (; end < text.length && text[end] !== COMMA; end++) {
    if (isEscaped && text[end] === BACKSLASH) end++;
  }
  return Math.min(end, text.length);
}

function splitOptions(text: Buffer, isEscaped: boolean): Buffer[] {
  const options: Buffer[] = [];
  for (let start = 0; start < text.length; ) {
    const end = endOfOption(text, start, isEscaped);
    // The kernel ignores an option without a name.
    if (end > start && text[start] !== EQUALS) options.push(text.subarray(start, end));
    start = end + 1;
  }
  return options;
}

function withoutQuotes(option: RawOption): RawOption {
  const { name, value } = option;
  const isQuoted = value !== null && value.length > 1 && value[0] === QUOTE && value.at(-1) === QUOTE;
  return isQuoted && name.endsWith('context') ? { name, value: value.subarray(1, -1) } : option;
}

/** Splits options as mount(2) takes them: commas separate them, and a backslash protects the character after it. */
export function splitGiven(text: Uint8Array): RawOption[] {
  return splitOptions(Buffer.from(text), true).map((option) => withoutQuotes(toRaw(option)));
}

/** Joins options: the inverse of splitGiven. */
export function joinGiven(options: readonly RawOption[]): Buffer {
  const texts = options.map(({ name, value }) => {
    if (value === null) return Buffer.from(name, 'latin1');
    const isQuoted = name.endsWith('context') && value.includes(COMMA);
    const [before, after] = isQuoted ? ['="', '"'] : ['=', ''];
    return Buffer.concat([Buffer.from(name + before, 'latin1'), value, Buffer.from(after)]);
  });
  return Buffer.concat(texts.flatMap((text, i) => (i === 0 ? [text] : [Buffer.from(','), text])));
}

/**
 * Splits superblock options of the mount table, or of statmount(2)'s STATMOUNT_MNT_OPTS, whose values have octal
 * escapes.
 */
export function splitShown(text: Uint8Array): RawOption[] {
  return splitOptions(Buffer.from(text), false).map((option) => {
    const { name, value } = toRaw(option);
    if (value === null) return { name, value };
    const isLowerdir = name === 'lowerdir' && value.includes('\\072');
    return withoutQuotes({ name, value: isLowerdir ? fromOctalColons(value) : unescapeOctal(value) });
  });
}

/** Converts a value of Linux 6.5, which shows the colons of a path in octal and its backslashes as they are. */
function fromOctalColons(lowerdir: Buffer): Buffer {
  const layers = lowerdir.toString('latin1').split(':');
  const escaped = layers.map((layer) => escapeLayer(unescapeOctal(Buffer.from(layer, 'latin1'))) as Uint8Array);
  return Buffer.concat(escaped.flatMap((layer, i) => (i === 0 ? [layer] : [Buffer.from(':'), layer])));
}

/** Splits statmount(2)'s STATMOUNT_OPT_ARRAY (6.13): each option ends in a NUL byte, and nothing is escaped for it. */
export function splitArray(text: Uint8Array): RawOption[] {
  const options: RawOption[] = [];
  const bytes = Buffer.from(text);
  for (let start = 0; start < bytes.length; ) {
    let end = bytes.indexOf(0, start);
    if (end < 0) end = bytes.length;
    if (end > start) options.push(withoutQuotes(toRaw(bytes.subarray(start, end))));
    start = end + 1;
  }
  return options;
}

/**
 * Replaces the octal escapes in a field of the mount table (`\040` and the like) with the bytes that they stand for.
 */
export function unescapeOctal(text: Uint8Array): Buffer {
  const plain = Buffer.alloc(text.length);
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    const digits = text[i] === BACKSLASH ? Buffer.from(text.subarray(i + 1, i + 4)).toString('latin1') : '';
    if (/^[0-3][0-7]{2}$/.test(digits)) {
      plain[length++] = Number.parseInt(digits, 8);
      i += 3;
    } else {
      plain[length++] = text[i] as number;
    }
  }
  return plain.subarray(0, length);
}

/**
 * Returns the values of an option among the superblock options of a mount table line, with one level of octal escapes
 * removed.
 */
export function findOptions(superOptions: Uint8Array, name: string): Buffer[] {
  const prefix = Buffer.from(`${name}=`);
  const options = Buffer.from(superOptions);
  const values: Buffer[] = [];
  for (let start = 0; start <= options.length; ) {
    let end = options.indexOf(COMMA, start);
    if (end < 0) end = options.length;
    const option = options.subarray(start, end);
    if (option.subarray(0, prefix.length).equals(prefix)) values.push(unescapeOctal(option.subarray(prefix.length)));
    start = end + 1;
  }
  return values;
}

/** Returns the first value of the option. */
export function findOption(superOptions: Uint8Array, name: string): Buffer | undefined {
  return findOptions(superOptions, name)[0];
}
