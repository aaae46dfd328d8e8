/** A process with a snapshotter of its own, which does what it is told. Arguments: the root, the options as JSON. */
import { codeOf, openRoot, perform } from './verbs.js';

export interface Request {
  readonly id: number;
  readonly verb: string;
  readonly args: readonly unknown[];
}

export interface Reply {
  readonly id: number;
  readonly value?: unknown;
  /** The code of the error, or its message where it has none. */
  readonly code?: string;
}

const [root = '', options = '{}'] = process.argv.slice(2);
const snapshotter = await openRoot(root, JSON.parse(options));
process.on('message', async ({ id, verb, args }: Request) => {
  let reply: Reply;
  try {
    reply = { id, value: await perform(snapshotter, verb, args) };
  } catch (error) {
    reply = { id, code: codeOf(error) };
  }
  process.send?.(reply);
});
process.send?.({ id: 0 } satisfies Reply);
