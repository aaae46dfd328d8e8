/**
 * The two sides of how overlay options and paths stand in strings: escaped on the way into the kernel, and
 * taken apart again, as they are given to mount(2) and as the mount table shows them. All on bytes.
 */
import type { Path } from './paths.js';

const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;
const EQUALS = 0x3d;
const QUOTE = 0x22;

/** Whether escapeLayer would change the path. */
function needsEscape(path: string): boolean {
  for (let i = 0; i < path.length; i++) {
    const unit = path.charCodeAt(i);
    if (unit === BACKSLASH || unit === COLON || unit === COMMA) return true;
  }
  return false;
}

/**
 * A path for `lowerdir`, `upperdir` and `workdir`, by either API: the kernel takes one level of backslashes
 * away. Wrong for `lowerdir+` and `datadir+`, from which it takes none.
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

/** The inverse of escapeLayer: one level of backslashes taken away. */
export function unescapeLayer(text: Uint8Array): Buffer {
  const plain: number[] = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === BACKSLASH && i + 1 < text.length) i++;
    plain.push(text[i] as number);
  }
  return Buffer.from(plain);
}

/** The layers of a `lowerdir` value, unescaped, topmost first. */
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

/** The layers of a `lowerdir` value, data-only ones being those after `::`; undefined where the kernel takes it for wrong. */
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
 * What an `upperdir` or `workdir` of the mount table can stand for, the likeliest first. The table shows what
 * was given: escaped where it came as text, plain where it came as a descriptor.
 */
export function shownLayers(text: Buffer): readonly [Buffer, ...Buffer[]] {
  if (!text.includes(BACKSLASH)) return [text];
  const unescaped = unescapeLayer(text);
  if (text.equals(unescaped)) return [text];
  return text.equals(escapeLayer(unescaped) as Uint8Array) ? [unescaped, text] : [text, unescaped];
}

/** An option in a string: its value, where it has one, as mount(2) takes it, the escapes of layers still in it. */
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

/** Where the option that begins here ends: at a comma, which quotes protect in the context of an LSM. */
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
    // What has no name is nothing to the kernel.
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

/** Options as mount(2) takes them: separated by commas, a backslash protecting what follows it. */
export function splitGiven(text: Uint8Array): RawOption[] {
  return splitOptions(Buffer.from(text), true).map((option) => withoutQuotes(toRaw(option)));
}

/** The inverse of splitGiven. */
export function joinGiven(options: readonly RawOption[]): Buffer {
  const texts = options.map(({ name, value }) => {
    if (value === null) return Buffer.from(name, 'latin1');
    const isQuoted = name.endsWith('context') && value.includes(COMMA);
    const [before, after] = isQuoted ? ['="', '"'] : ['=', ''];
    return Buffer.concat([Buffer.from(name + before, 'latin1'), value, Buffer.from(after)]);
  });
  return Buffer.concat(texts.flatMap((text, i) => (i === 0 ? [text] : [Buffer.from(','), text])));
}

/** Superblock options of the mount table, and statmount(2)'s STATMOUNT_MNT_OPTS: octal escapes in values. */
export function splitShown(text: Uint8Array): RawOption[] {
  return splitOptions(Buffer.from(text), false).map((option) => {
    const { name, value } = toRaw(option);
    if (value === null) return { name, value };
    const isLowerdir = name === 'lowerdir' && value.includes('\\072');
    return withoutQuotes({ name, value: isLowerdir ? fromOctalColons(value) : unescapeOctal(value) });
  });
}

/** Linux 6.5 shows the colons of a path in octal, and its backslashes as they are. */
function fromOctalColons(lowerdir: Buffer): Buffer {
  const layers = lowerdir.toString('latin1').split(':');
  const escaped = layers.map((layer) => escapeLayer(unescapeOctal(Buffer.from(layer, 'latin1'))) as Uint8Array);
  return Buffer.concat(escaped.flatMap((layer, i) => (i === 0 ? [layer] : [Buffer.from(':'), layer])));
}

/** statmount(2)'s STATMOUNT_OPT_ARRAY: each option ends in a NUL byte, and nothing is escaped for it (6.13). */
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

/** A field of the mount table with its `\040` and the like as the bytes that they stand for. */
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

/** The values of an option among the superblock options of a mount table line, unescaped once (octal). */
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

/** The first value of the option. */
export function findOption(superOptions: Uint8Array, name: string): Buffer | undefined {
  return findOptions(superOptions, name)[0];
}
