/** As much of a client of Redis as the story needs: one command at a time, over a unix socket. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';

/** Connects as soon as the server listens. */
export async function connectTo(path: string, signal: AbortSignal): Promise<Socket> {
  for (;;) {
    const socket = connect(path);
    try {
      await once(socket, 'connect', { signal });
      return socket;
    } catch (error) {
      socket.destroy();
      signal.throwIfAborted();
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' && code !== 'ECONNREFUSED') throw error;
      await setTimeout(20, undefined, { signal });
    }
  }
}

/** Sends a command, and returns the answer without the marks of its kind: `PONG`, `OK`, a value. */
export async function ask(socket: Socket, ...words: readonly string[]): Promise<string> {
  socket.write(`*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`);
  const [answer] = (await once(socket, 'data')) as [Buffer];
  const [first = '', second = ''] = answer.toString().split('\r\n');
  if (first.startsWith('-')) throw new Error(`redis: ${first.slice(1)}`);
  return first.startsWith('$') ? second : first.slice(1);
}
