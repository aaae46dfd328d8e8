/**
 * Finds the ends of zstd's frames (RFC 8878). Node's decoder takes the end of a frame inside a chunk as the end of all, and
 * drops the rest of the chunk without a word. It goes on if the next frame comes in a chunk of its own.
 */

const MAGIC = 0xfd2fb528;
/** Frames that decoders skip: 16 magic numbers. */
const SKIPPABLE = 0x184d2a50;
const DICTIONARY_ID_SIZES = [0, 1, 2, 4] as const;
const RLE_BLOCK = 1;
const CHECKSUM_SIZE = 4;

const numberOf = (bytes: readonly number[]): number => bytes.reduceRight((number, byte) => number * 256 + byte, 0);

/** The size of a frame's header after its magic number, by its first byte. */
function headerSize(descriptor: number): number {
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >> 6;
  const contentSize = sizeFlag === 0 ? Number(isSingleSegment) : 2 ** sizeFlag;
  return 1 + (isSingleSegment ? 0 : 1) + (DICTIONARY_ID_SIZES[descriptor & 3] as number) + contentSize;
}

class Frames {
  #reading: 'magic number' | 'size' | 'header' | 'block' | 'unknown' = 'magic number';
  #head: number[] = [];
  /** Bytes of the block or of the skippable frame that follow. */
  #left = 0;
  #hasChecksum = false;
  #isLast = false;

  /** Returns the place after the first end of a frame from `at` on, or that after the last byte. */
  findEnd(bytes: Uint8Array, start: number): number {
    for (let at = start; at < bytes.length; ) {
      if (this.#reading === 'unknown') break;
      if (this.#left === 0) {
        this.#head.push(bytes[at++] as number);
        if (!this.#parse()) continue;
      }
      const step = Math.min(this.#left, bytes.length - at);
      this.#left -= step;
      at += step;
      if (this.#left > 0 || !this.#isLast) continue;
      this.#isLast = false;
      this.#reading = 'magic number';
      return at;
    }
    return bytes.length;
  }

  /** Parses what it has. Returns whether contents follow, of which it knows the size. */
  #parse(): boolean {
    const head = this.#head;
    const isWhole =
      head.length === (this.#reading === 'header' ? headerSize(head[0] as number) : this.#reading === 'block' ? 3 : 4);
    if (!isWhole) return false;
    const number = numberOf(head);
    this.#head = [];
    switch (this.#reading) {
      case 'magic number':
        if (number === MAGIC) this.#reading = 'header';
        else this.#reading = number - (number % 16) === SKIPPABLE ? 'size' : 'unknown';
        return false;
      case 'size':
        this.#left = number;
        this.#isLast = true;
        return true;
      case 'header':
        this.#hasChecksum = ((head[0] as number) & 4) !== 0;
        this.#reading = 'block';
        return false;
      default:
        this.#isLast = (number & 1) !== 0;
        this.#left = ((number >> 1) & 3) === RLE_BLOCK ? 1 : number >> 3;
        if (this.#isLast && this.#hasChecksum) this.#left += CHECKSUM_SIZE;
        return true;
    }
  }
}

/** Splits chunks at the ends of frames. */
export async function* splitFrames(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const frames = new Frames();
  for await (const chunk of source) {
    for (let at = 0; at < chunk.length; ) {
      const end = frames.findEnd(chunk, at);
      yield chunk.subarray(at, end);
      at = end;
    }
  }
}
