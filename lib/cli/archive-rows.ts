/** The entries of a layer archive as rows, for `--dry-run`. */
import { readEntries } from '../archives/apply.js';
import { formatBytes } from '../paths.js';
import type { FoundEntry } from '../tar/entry.js';
import type { Row } from './command.js';

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
function toRow({ type, mode, uid, gid, size, mtime, ...names }: FoundEntry): Row {
  const [name, linkname] = [bytes(names.name), bytes(names.linkname)];
  const link = linkname.length === 0 ? '' : ` -> ${formatBytes(linkname)}`;
  const permissions = mode.toString(8).padStart(4, '0');
  return {
    text: `${letters[type]} ${permissions} ${uid}:${gid} ${size} ${formatBytes(name)}${link}\n`,
    json: { name, ...(link !== '' && { linkname }), type, mode, uid, gid, size, mtime },
  };
}

export async function* archiveRows(source: AsyncIterable<Uint8Array> | string | URL): AsyncGenerator<Row> {
  for await (const entries of readEntries(source)) yield* entries.map(toRow);
}
