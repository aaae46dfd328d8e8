/**
 * The two sides of how overlay paths stand in option strings: escaped on the way into the kernel, and taken
 * apart again from what the mount table shows. All on bytes.
 */
import type { Path } from './paths.js';

const BACKSLASH = 0x5c;
const COLON = 0x3a;
const COMMA = 0x2c;

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
