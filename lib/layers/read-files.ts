/** The data of files for an archive, between its headers: a native call reads some hundred files. */
import { ESTALE } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { explainShortage } from '../verdicts.js';
import { toBytePath } from './encodings.js';
import type { Source } from './stack.js';

const HEAD = 64;
const UINT32 = 2 ** 32;
/** The place of the data, and the number of records that are done. */
const OUTPUT = 16;

/** The file of which a part is read: the walk has seen it so. */
export interface ReadFile extends Pick<Source, 'path' | 'inode' | 'size' | 'mtime'> {
  readonly root: Descriptor;
  /** The path of that root. */
  readonly rootPath: Path;
}

interface Part {
  readonly bytes: Uint8Array;
  readonly file: ReadFile | undefined;
  readonly offset: number;
  readonly size: number;
}

/** Bytes and parts of files, to be read as one piece. */
export class Piece {
  readonly #parts: Part[] = [];
  #bytes: Uint8Array[] = [];
  #room = 0;
  /** The size of what it reads. */
  size = 0;

  add(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#bytes.push(bytes);
    this.size += bytes.length;
  }

  addFile(file: ReadFile, offset: number, size: number): void {
    this.#close(file, offset, size);
    this.size += size;
  }

  #close(file: ReadFile | undefined, offset: number, size: number): void {
    const [first] = this.#bytes;
    const bytes = this.#bytes.length === 1 && first !== undefined ? first : Buffer.concat(this.#bytes);
    this.#parts.push({ bytes, file, offset, size });
    this.#room += roomOf(bytes, file);
    this.#bytes = [];
  }

  async read(): Promise<Buffer> {
    if (this.#bytes.length > 0) this.#close(undefined, 0, 0);
    const plan = new Plan();
    const step = plan.stepOf(plan.add(calls.read_files, [this.#encode()], { output: OUTPUT, tolerate: 'any' }));
    const outcome = await perform(plan);
    if (outcome instanceof StepFailure)
      throw new Error(`a plan that tolerates all errors has failed: ${outcome.errno}`);
    const errno = -outcome.result(step);
    if (errno > 0) throw explainRead((this.#parts[outcome.number(step, 1)] as Part).file as ReadFile, errno);
    return outcome.data(step);
  }

  #encode(): Buffer {
    const batch = Buffer.alloc(this.#room);
    let at = 0;
    for (const { bytes, file, offset, size } of this.#parts) {
      const whole = roomOf(bytes, file);
      const pathSize = file?.path.length ?? 0;
      batch.writeUInt32LE(whole, at);
      batch.writeInt32LE(file?.root ?? -1, at + 4);
      batch.writeUInt32LE(bytes.length, at + 8);
      batch.writeUInt32LE(pathSize, at + 12);
      writeNumber(batch, offset, at + 16);
      writeNumber(batch, size, at + 24);
      batch.set(bytes, at + HEAD);
      if (file !== undefined) {
        batch.writeBigUInt64LE(file.inode, at + 32);
        writeNumber(batch, file.size, at + 40);
        writeNumber(batch, file.mtime.seconds, at + 48);
        batch.writeUInt32LE(file.mtime.nanoseconds, at + 56);
        batch.write(file.path, at + HEAD + bytes.length, 'latin1');
      }
      at += whole;
    }
    return batch;
  }
}

const roomOf = (bytes: Uint8Array, file: ReadFile | undefined): number =>
  (HEAD + bytes.length + (file?.path.length ?? 0) + 1 + 7) & ~7;

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
