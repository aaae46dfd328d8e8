/** Paths are bytes: a program may pass them in any form, with any byte but NUL in them. */
import { readlinkSync, realpathSync, statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { isUint8Array } from 'node:util/types';
import { ENOENT } from './errnos.js';
import { invalidArgumentType, invalidArgumentValue, OverlayError } from './errors.js';
import { printable } from './text.js';

/** A path as callers pass it. */
export type PathLike = string | Uint8Array | URL;

/** A path as the library keeps it: a string, or bytes that may not be UTF-8. */
export type Path = string | Uint8Array;

const SLASH = 0x2f;

/** The kernel's limit (PATH_MAX), without the byte that ends a path. */
const MAX_PATH_BYTES = 4095;

/**
 * Returns the value as a path. Throws a TypeError that names the argument if it is not a path. Bytes are copied, since
 * the caller may change them and they may have accessors of their own.
 */
export function toPath(value: unknown, name: string): Path {
  let path: Path;
  if (typeof value === 'string') path = value;
  else if (isUint8Array(value)) path = Buffer.copyBytesFrom(value);
  else if (value instanceof URL) path = fromUrl(value);
  else throw invalidArgumentType(name, 'a path: a string, a Buffer or a file: URL', value);
  if (path.length === 0) throw invalidArgumentValue(name, value, 'must not be empty');
  if (path.length > MAX_PATH_BYTES) {
    throw invalidArgumentValue(name, value, `must be a path of at most ${MAX_PATH_BYTES} bytes`);
  }
  const hasNul = typeof path === 'string' ? path.includes('\0') : path.includes(0);
  if (hasNul) throw invalidArgumentValue(name, value, 'must not contain a NUL byte');
  if (typeof path === 'string' && !path.isWellFormed()) {
    throw invalidArgumentValue(name, value, 'must not contain lone surrogates; pass the bytes in a Buffer');
  }
  return path;
}

function fromUrl(url: URL): Path {
  try {
    return fileURLToPath(url);
  } catch (error) {
    if (!(error instanceof URIError)) throw error;
    // Bytes that are not UTF-8.
    const bytes = url.pathname.replace(/%([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
    return Buffer.from(bytes, 'latin1');
  }
}

/** Returns a path that a caller may have: a change of its bytes changes nothing here. */
export const copyPath = (path: Path): Path => (typeof path === 'string' ? path : Buffer.from(path));

export function isAbsolute(path: Path): boolean {
  return typeof path === 'string' ? path.charCodeAt(0) === SLASH : path[0] === SLASH;
}

/**
 * Returns whether the path goes by descriptors (`/proc/self/fd/9`). Such a path leads even to a removed file; a path of
 * names does not. A symbolic link to such a path is not detected.
 */
export function goesByDescriptors(path: Path): boolean {
  const start = typeof path === 'string' ? path : Buffer.from(path.subarray(0, 8)).toString('latin1');
  return start.startsWith('/proc/') || start.startsWith('/dev/fd/');
}

/**
 * Returns the path from the root on, so that it means the same after the working directory has changed, or on another
 * thread. Resolves nothing in it: the kernel walks `..` and links itself.
 */
export function toAbsolute(path: Path): Path {
  return isAbsolute(path) ? path : joinPath(workingDirectory(), path);
}

function readWorkingDirectory(): Buffer {
  try {
    return readlinkSync('/proc/thread-self/cwd', { encoding: 'buffer' });
  } catch {
    // Without /proc only the name is known.
    return Buffer.from(process.cwd());
  }
}

// process.cwd() is a string, which cannot hold every directory's name, and it is the same for all threads.
function workingDirectory(): Path {
  const link = readWorkingDirectory();
  // The link's text may lead elsewhere if the directory has been removed, or is on a mount without a path.
  const [here, there] = ['.', link].map((path) => statSync(path, { bigint: true, throwIfNoEntry: false }));
  if (here === undefined || there === undefined || here.dev !== there.dev || here.ino !== there.ino) {
    throw new OverlayError({
      errno: ENOENT,
      reason: 'path-missing',
      what: 'a relative path cannot be resolved: the working directory has been removed, or has no path',
      hint: 'pass an absolute path',
      path: '.',
    });
  }
  return fromBytes(link);
}

/** Returns a path as the library hands it out: a string if a string can hold it. */
export function fromBytes(bytes: Buffer): Path {
  const text = bytes.toString();
  return Buffer.from(text).equals(bytes) ? text : bytes;
}

/** Joins a directory's path and a name in it. */
export function joinPath(directory: Path, name: Path): Path {
  const base = withoutTrailingSlashes(directory);
  const slash = base.length === 1 && base[0] === '/' ? '' : '/';
  if (typeof base === 'string' && typeof name === 'string') return base + slash + name;
  return Buffer.concat([toBytes(base), Buffer.from(slash), toBytes(name)]);
}

/** Returns whether a path is the directory or is below it, by their texts. */
export function isAtOrBelow(path: Path, directory: Path): boolean {
  const [bytes, start] = [toBytes(path), toBytes(withoutTrailingSlashes(directory))];
  const hasStart = Buffer.compare(bytes.subarray(0, start.length), start) === 0;
  return hasStart && (bytes.length === start.length || start.length === 1 || bytes[start.length] === SLASH);
}

/** Returns whether both paths are spelled the same, apart from slashes at the end. */
export function isSamePath(a: Path, b: Path): boolean {
  return Buffer.from(toBytes(withoutTrailingSlashes(a))).equals(toBytes(withoutTrailingSlashes(b)));
}

export function toBytes(path: Path): Uint8Array {
  return typeof path === 'string' ? Buffer.from(path) : path;
}

/** Returns `/a/b//` as `/a/b`; `/` stays. */
export function withoutTrailingSlashes(path: Path): Path {
  let end = path.length;
  if (typeof path === 'string') {
    while (end > 1 && path.charCodeAt(end - 1) === SLASH) end--;
    return end === path.length ? path : path.slice(0, end);
  }
  while (end > 1 && path[end - 1] === SLASH) end--;
  return end === path.length ? path : path.subarray(0, end);
}

/** Splits `/a/b` into `['/a', 'b']`, and `b` into `['.', 'b']`. Ignores trailing slashes. */
export function splitPath(path: Path): [parent: Path, name: Path] {
  const whole = withoutTrailingSlashes(path);
  const at = typeof whole === 'string' ? whole.lastIndexOf('/') : whole.lastIndexOf(SLASH);
  if (at < 0) return ['.', whole];
  return [at === 0 ? '/' : whole.slice(0, at), whole.slice(at + 1)];
}

/** Returns where an absolute path leads, by all links in it that this process can follow. */
export function toReal(path: Path): Path {
  try {
    return fromBytes(realpathSync.native(Buffer.from(toBytes(path)), 'buffer'));
  } catch {
    const [parent, name] = splitPath(path);
    return name.length === 0 ? parent : joinPath(toReal(parent), name);
  }
}

/** Formats a path for people: escapes bytes that are not UTF-8, control characters, quotes and backslashes. */
export function formatBytes(path: Path): string {
  const bytes = Buffer.from(toBytes(path));
  const text = bytes.toString();
  const isText = Buffer.from(text).equals(bytes);
  const shown = (isText ? text : bytes.toString('latin1')).replace(/["\\]/g, '\\$&');
  return printable(isText ? shown : shown.replace(/[^\0-\x7f]/g, (byte) => `\\${byte.charCodeAt(0).toString(8)}`));
}

/** Quotes a path for a message. */
export function quotePath(path: Path): string {
  return `'${formatBytes(path)}'`;
}

/** Returns a path for an error's `path`: a string, whatever the bytes. */
export function pathString(path: PathLike): string {
  if (typeof path === 'string') return path;
  if (path instanceof URL) return fileURLToPath(path);
  return Buffer.from(path).toString();
}
