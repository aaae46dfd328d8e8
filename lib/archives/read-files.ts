/** The data of files for an archive, between its headers: a native call reads some hundred files. */
import { ESTALE } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { askTolerant, run } from '../kernel/task.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { padded } from '../tar/layout.js';
import { toBytePath } from '../trees/encodings.js';
import type { Source } from '../trees/stack.js';
import { explainShortage } from '../verdicts.js';

const HEAD = 64;
/** The room for records at first. */
const ROOM = 16 * 1024;
const UINT32 = 2 ** 32;
/** The number of records that are done. */
const OUTPUT = 8;

/** The file of which a part is read: the walk has seen it so. */
export interface ReadFile extends Pick<Source, 'path' | 'inode' | 'size' | 'mtime'> {
  readonly root: Descriptor;
  /** The path of that root. */
  readonly rootPath: Path;
}

/** Bytes of an archive: some are there already, the others are parts of files, which a thread reads into their places. */
export class Piece {
  readonly #bytes: Buffer;
  readonly #files: ReadFile[] = [];
  #records = Buffer.allocUnsafe(ROOM);
  #end = 0;
  size = 0;

  constructor(room: number) {
    this.#bytes = Buffer.allocUnsafeSlow(room);
  }

  /** The number of bytes for which there is room. */
  get room(): number {
    return this.#bytes.length - this.size;
  }

  /** Returns the next bytes, which the caller fills. */
  take(size: number): Buffer {
    const start = this.size;
    this.size += size;
    return this.#bytes.subarray(start, this.size);
  }

  /** Adds a part of a file. Zeros up to the next block follow the last part. */
  addFile(file: ReadFile, offset: number, size: number): void {
    const { path, mtime } = file;
    const whole = (HEAD + path.length + 1 + 7) & ~7;
    if (this.#end + whole > this.#records.length) {
      this.#records = Buffer.concat([this.#records], 2 * this.#records.length + whole);
    }
    const padding = offset + size === file.size ? padded(file.size) - file.size : 0;
    const [to, at] = [this.#records, this.#end];
    to.writeUInt32LE(whole, at);
    to.writeInt32LE(file.root, at + 4);
    to.writeUInt32LE(this.size, at + 8);
    to.writeUInt32LE(path.length, at + 12);
    writeNumber(to, offset, at + 16);
    writeNumber(to, size, at + 24);
    to.writeBigUInt64LE(file.inode, at + 32);
    writeNumber(to, file.size, at + 40);
    writeNumber(to, mtime.seconds, at + 48);
    to.writeUInt32LE(mtime.nanoseconds, at + 56);
    to.writeUInt32LE(padding, at + 60);
    to.write(path, at + HEAD, 'latin1');
    to[at + HEAD + path.length] = 0;
    this.#end += whole;
    this.#files.push(file);
    this.size += size + padding;
  }

  async read(): Promise<Buffer> {
    if (this.#files.length > 0) await this.#readFiles();
    return this.#bytes.subarray(0, this.size);
  }

  async #readFiles(): Promise<void> {
    const plan = new Plan();
    plan.lent = [this.#bytes];
    const records = this.#records.subarray(0, this.#end);
    const step = plan.stepOf(plan.add(calls.read_files, [records], { output: OUTPUT, tolerate: 'any' }));
    const outputs = await run(askTolerant(plan));
    const errno = -outputs.result(step);
    if (errno > 0) throw explainRead(this.#files[outputs.number(step, 0)] as ReadFile, errno);
  }
}

function writeNumber(to: Buffer, value: number, at: number): void {
  to.writeUInt32LE(((value % UINT32) + UINT32) % UINT32, at);
  to.writeInt32LE(Math.floor(value / UINT32) | 0, at + 4);
}

function explainRead({ path, rootPath }: ReadFile, errno: number): OverlayError {
  const whole = joinPath(rootPath, toBytePath(path));
  const shown = quotePath(whole);
  const fields = { errno, path: pathString(whole) };
  if (errno === ESTALE) {
    return new OverlayError({ ...fields, reason: 'layer-changed', what: `${shown} changed while it was packed` });
  }
  const shortage = explainShortage(errno, `read ${shown}`);
  return (
    shortage ?? new OverlayError({ ...fields, reason: 'path-inaccessible', what: `this process cannot read ${shown}` })
  );
}
