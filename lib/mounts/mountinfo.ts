/** The mount table as /proc shows it: proc_pid_mountinfo(5). Text in, entries out; see readMountinfo for I/O. */
import { readFileSync } from 'node:fs';
import { unescapeOctal } from '../mount-strings.js';

/** A line of the table. Bytes are as the kernel has them, the table's octal escapes taken away. */
export interface MountinfoEntry {
  /** Reused when a mount is gone: not the id that statx(2) calls unique. */
  readonly id: number;
  readonly parent: number;
  readonly device: string;
  readonly root: Buffer;
  readonly target: Buffer;
  readonly mountOptions: string;
  readonly type: string;
  readonly source: Buffer;
  /** As it stands there, still escaped: commas separate options only until then. */
  readonly superOptions: Buffer;
  /** The whole line. */
  readonly line: Buffer;
}

const SPACE = 0x20;
const NEWLINE = 0x0a;

function split(bytes: Buffer, separator: number): Buffer[] {
  const parts: Buffer[] = [];
  let start = 0;
  for (let at = bytes.indexOf(separator); at >= 0; at = bytes.indexOf(separator, start)) {
    parts.push(bytes.subarray(start, at));
    start = at + 1;
  }
  parts.push(bytes.subarray(start));
  return parts;
}

//   36 35 98:0 /root /target rw,noatime master:1 … - ext3 /dev/root rw,errors=continue
//   id parent device root target options (any number of tags) - type source super
function parseLine(line: Buffer): MountinfoEntry | undefined {
  // On single spaces: an empty source is an empty field.
  const fields = split(line, SPACE);
  const dash = fields.findIndex((field, i) => i >= 6 && field.length === 1 && field[0] === 0x2d);
  if (dash < 0 || fields.length < dash + 4) return undefined;
  const [id, parent, device, root, target, options] = fields as [Buffer, Buffer, Buffer, Buffer, Buffer, Buffer];
  const [type, source, superOptions] = fields.slice(dash + 1) as [Buffer, Buffer, Buffer];
  return {
    id: Number(id),
    parent: Number(parent),
    device: device.toString(),
    root: unescapeOctal(root),
    target: unescapeOctal(target),
    mountOptions: options.toString(),
    type: type.toString(),
    source: unescapeOctal(source),
    superOptions,
    line,
  };
}

export function parseMountinfo(text: Buffer): MountinfoEntry[] {
  return split(text, NEWLINE).flatMap((line) => parseLine(line) ?? []);
}

/** The mounts that the calling thread sees. */
export function readMountinfo(): MountinfoEntry[] {
  return parseMountinfo(readFileSync('/proc/thread-self/mountinfo'));
}
