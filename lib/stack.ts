/**
 * Stacks of errors that begin at the caller of the library: the library's own frames tell a user nothing. All this is
 * done when an error is made, so calls that succeed pay nothing.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** More than the frames of the library in any call. */
const DEEP = 60;

function setLimit(limit: number): void {
  try {
    Error.stackTraceLimit = limit;
  } catch {
    // With --frozen-intrinsics the stack has the frames that fit.
  }
}

/** Has the next error keep more frames. Returns a function that restores the limit, and returns it. */
export function deepStack(): () => number {
  const limit = Error.stackTraceLimit;
  // A program that wants no stacks has none.
  if (!(limit > 0)) return () => 0;
  setLimit(limit + DEEP);
  return () => {
    setLimit(limit);
    return limit;
  };
}

let places: readonly string[] | undefined;

/**
 * Returns the directories of the library's files, as frames name them: as a URL and as a path. There are none in a
 * program that was bundled into one file, whose frames are the caller's too.
 */
function ownPlaces(): readonly string[] {
  if (places !== undefined) return places;
  try {
    const url: string | undefined = import.meta.url;
    if (url === undefined) return [];
    const { name } = JSON.parse(readFileSync(new URL('../package.json', url), 'utf8')) as { readonly name?: string };
    // The last one has the sources, which a source map names.
    const urls = name === 'overlayfs' ? ['.', '../lib/'].map((place) => new URL(place, url)) : [];
    places = urls.flatMap((place) => [place.href, fileURLToPath(place)]);
    return places;
  } catch {
    // No descriptor is left to read the file: the next error tries again.
    return [];
  }
}

/** Frames of Node and of V8 themselves, which can be between those of the library. */
const isBuiltIn = (frame: string): boolean => /\(?(?:node:|<anonymous>\)?$)/.test(frame);

/** Removes the library's frames from the stack, and keeps at most `limit` others. */
export function startAtCaller(error: Error, limit: number): void {
  const own = ownPlaces();
  if (limit === 0 || own.length === 0 || typeof error.stack !== 'string') return;
  const [head = '', ...frames] = error.stack.split(/\n(?= {4}at )/);
  const isOwn = (frame: string): boolean => own.some((place) => frame.includes(place));
  const last = frames.findLastIndex(isOwn);
  const first = frames.findIndex((frame, i) => !isOwn(frame) && !(i < last + 3 && isBuiltIn(frame)));
  // Nobody awaits the promise: V8 knows no caller.
  const isUnknown = first < 0 || frames.slice(first).every(isBuiltIn);
  const kept = isUnknown ? [] : frames.slice(first).filter((frame) => !isOwn(frame));
  error.stack = [head, ...kept.slice(0, limit)].join('\n');
}

/** Gives an error that knows no caller the frames of an earlier one, which was made in the call that began the work. */
export function addCaller(error: unknown, earlier: Error): void {
  if (!(error instanceof Error) || typeof error.stack !== 'string' || /\n {4}at /.test(error.stack)) return;
  startAtCaller(earlier, Error.stackTraceLimit);
  error.stack += /(?:\n {4}at .*)*$/.exec(earlier.stack ?? '')?.[0] ?? '';
}
