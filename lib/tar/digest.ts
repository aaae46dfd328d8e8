/** The size and the digest of bytes that pass. A thread of the library hashes, so that the event loop goes on. */
import type { Hash } from 'node:crypto';
import { ENOSYS } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';

/** The size of the state of a hash, which is more than that of a digest. */
const STATE = 112;
const DIGEST = 32;
/** Chunks that wait while others are hashed. */
const MOST_WAITING = 2;

export class Digester {
  size = 0;
  /** The state after what was hashed: null at the beginning. */
  #state: Buffer | null = null;
  /** Hashes if the addon cannot, because the runtime exports no OpenSSL. */
  #own: Hash | undefined;
  #waiting: Uint8Array[] = [];
  /** Bytes that are hashed. */
  #done = 0;
  /** The native call under way. */
  #call: Promise<void> | undefined;

  /** `own` hashes on this thread, as without OpenSSL. */
  constructor(own?: Hash) {
    this.#own = own;
  }

  /** Adds bytes, which must stay as they are until `isDone` says so. Waits while many are not hashed yet. */
  async update(chunk: Uint8Array): Promise<void> {
    this.size += chunk.length;
    this.#waiting.push(chunk);
    this.#begin();
    while (this.#waiting.length > MOST_WAITING) await this.#call;
  }

  /** Returns whether the first bytes, so many, are hashed. */
  isDone(size: number): boolean {
    return this.#done >= size;
  }

  /** Resolves when the first bytes, so many, are hashed. */
  async done(size = this.size): Promise<void> {
    while (this.#done < size) await this.#call;
  }

  /** Passes the chunks on. They are hashed before, or while the caller uses them if it leaves them as they are. */
  async *pass(chunks: AsyncIterable<Uint8Array>, leavesThem: boolean): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      await this.update(chunk);
      if (!leavesThem) await this.done();
      yield chunk;
    }
  }

  /** Resolves to `sha256:` and 64 digits. Called once, at the end. */
  async digest(): Promise<string> {
    await this.done();
    const digest = this.#own?.digest() ?? (await this.#hash([], true));
    return `sha256:${digest.toString('hex')}`;
  }

  /** Hashes all that waits, unless a call is under way. Its end begins the next one. */
  #begin(): void {
    if (this.#call !== undefined || this.#waiting.length === 0) return;
    const chunks = this.#waiting;
    this.#waiting = [];
    this.#call = this.#run(chunks);
    // Its error comes out where somebody waits for it.
    this.#call.catch(() => {});
  }

  async #run(chunks: readonly Uint8Array[]): Promise<void> {
    if (this.#own === undefined) this.#state = await this.#hash(chunks, false);
    else {
      // The caller has to know the call before this ends it.
      await undefined;
      for (const chunk of chunks) this.#own.update(chunk);
    }
    for (const { length } of chunks) this.#done += length;
    this.#call = undefined;
    this.#begin();
  }

  /** Returns the state after the chunks, or at the end the digest. */
  async #hash(chunks: readonly Uint8Array[], isEnd: boolean): Promise<Buffer> {
    const plan = new Plan();
    plan.lent = chunks;
    const step = plan.stepOf(plan.add(calls.hash, [this.#state, isEnd ? 1 : 0], { output: STATE, tolerate: [ENOSYS] }));
    const outcome = await perform(plan);
    if (outcome instanceof StepFailure) throw new Error(`a hash has failed: errno ${outcome.errno}`);
    if (outcome.result(step) < 0) return this.#hashHere(chunks, isEnd);
    return outcome.bytes(step, isEnd ? DIGEST : STATE);
  }

  #hashHere(chunks: readonly Uint8Array[], isEnd: boolean): Buffer {
    this.#own = process.getBuiltinModule('node:crypto').createHash('sha256');
    for (const chunk of chunks) this.#own.update(chunk);
    return isEnd ? this.#own.digest() : Buffer.alloc(0);
  }
}
