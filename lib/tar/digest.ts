/** The size and the digest of bytes that pass. */
import type { Hash } from 'node:crypto';

export class Digester {
  size = 0;
  readonly #hash: Hash = process.getBuiltinModule('node:crypto').createHash('sha256');

  update(chunk: Uint8Array): void {
    this.size += chunk.length;
    this.#hash.update(chunk);
  }

  /** Passes the chunks on. */
  async *pass(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      this.update(chunk);
      yield chunk;
    }
  }

  /** `sha256:` and 64 digits. Called once, at the end. */
  digest(): string {
    return `sha256:${this.#hash.digest('hex')}`;
  }
}
