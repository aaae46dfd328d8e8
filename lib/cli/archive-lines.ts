/** The entries of a layer archive as lines, for `--dry-run`. */
import { readEntries } from '../archives/apply.js';
import { formatBytes } from '../paths.js';
import type { FoundEntry } from '../tar/entry.js';
import { toPlain } from './json.js';

const letters: Readonly<Record<FoundEntry['type'], string>> = {
  file: '-',
  directory: 'd',
  symlink: 'l',
  link: 'h',
  character: 'c',
  block: 'b',
  fifo: 'p',
};

const bytes = (name: string): Buffer => Buffer.from(name, 'latin1');

/** Returns an entry as a line: `- 0644 0:0 12 etc/motd`, `l 0777 0:0 0 lib -> usr/lib`. */
function entryLine({ type, mode, uid, gid, size, name, linkname }: FoundEntry): string {
  const target = linkname === '' ? '' : ` -> ${formatBytes(bytes(linkname))}`;
  return `${letters[type]} ${mode.toString(8).padStart(4, '0')} ${uid}:${gid} ${size} ${formatBytes(bytes(name))}${target}\n`;
}

export async function* entryLines(source: AsyncIterable<Uint8Array> | string | URL): AsyncGenerator<string> {
  for await (const entries of readEntries(source)) yield entries.map(entryLine).join('');
}

/** The same as one JSON document. */
export async function* entryJson(source: AsyncIterable<Uint8Array> | string | URL): AsyncGenerator<string> {
  let start = '{\n  "entries": [';
  for await (const entries of readEntries(source)) {
    for (const { name, linkname, type, mode, uid, gid, size, mtime } of entries) {
      const shown = { name: toJsonName(name), ...(linkname !== '' && { linkname: toJsonName(linkname) }) };
      yield `${start}\n    ${JSON.stringify({ ...shown, type, mode, uid, gid, size, mtime })}`;
      start = ',';
    }
  }
  yield start === ',' ? '\n  ]\n}\n' : `${start}]\n}\n`;
}

const toJsonName = (name: string): unknown => toPlain(bytes(name));
