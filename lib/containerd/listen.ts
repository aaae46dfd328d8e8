/** The socket of a server: never visible with another mode than 0600, and never in the place of one on which somebody answers. */
import { chmodSync, existsSync, linkSync, lstatSync, renameSync, type Stats, statSync, unlinkSync } from 'node:fs';
import { connect, createServer, type ListenOptions, type Server, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { quotePath } from '../paths.js';
import { SnapshotError } from '../snapshots/errors.js';
import { TEMPORARY_SIZE } from './options.js';

const MODE = 0o600;

/** In ms: a client says something by then, or its connection ends. */
const MOST_SILENCE = 30_000;

/** A socket that listens. */
export interface Listener {
  readonly address: string;
  /** The number of open connections, silent ones too. */
  readonly connections: number;
  /** Lets nobody connect any more. Connections end with their last answer. */
  stop(): void;
  /** Ends the connections that are left. */
  end(): void;
}

const served = (address: string, what: string, hint: string, cause?: unknown): SnapshotError =>
  new SnapshotError({ code: 'ERR_SNAPSHOT_SERVED', what, hint, path: address }, { cause });

/** Returns true if somebody listens on a socket. */
export function isAnswered(address: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(address);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false);
      // Too many clients wait for it already.
      else if (error.code === 'EAGAIN') resolve(true);
      else reject(error);
    });
  });
}

const look = (path: string): Stats | undefined => lstatSync(path, { throwIfNoEntry: false });

/** Throws if something at the address is not a socket that a server has left. Returns that socket, if there is one. */
async function refuseTaken(address: string): Promise<Stats | undefined> {
  const found = look(address);
  if (found === undefined) return undefined;
  if (!found.isSocket()) {
    throw served(address, `${quotePath(address)} exists and is no socket`, 'choose another address, or remove it');
  }
  if (await isAnswered(address)) {
    throw served(address, `somebody answers on ${quotePath(address)}`, 'stop that server, or choose another address');
  }
  return found;
}

export function begin(server: Server, to: ListenOptions & { readonly fd?: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(to, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** A name beside the socket's, which is short: the path of a socket must be. */
const temporaryName = (): string => `.${Math.random().toString(36).slice(2, TEMPORARY_SIZE)}`;

/** Takes away a socket that a server has left. Another server's socket may have come there meanwhile, and stays. */
function removeStale(address: string, stale: Stats): void {
  const aside = join(dirname(address), temporaryName());
  try {
    renameSync(address, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  try {
    if (statSync(aside).ino !== stale.ino) linkSync(aside, address);
  } finally {
    unlinkSync(aside);
  }
}

/**
 * Puts a socket at a path, once it has its mode. Returns a function that removes it, unless another one has come there. A
 * socket at which nobody answers is replaced.
 */
export async function bindAt(server: Server, address: string): Promise<() => void> {
  const directory = dirname(address);
  if (!existsSync(directory)) {
    throw served(address, `the directory ${quotePath(directory)} does not exist`, `run mkdir -p ${directory}`);
  }
  const stale = await refuseTaken(address);
  const temporary = join(directory, temporaryName());
  await begin(server, { path: temporary });
  try {
    chmodSync(temporary, MODE);
    const { ino } = statSync(temporary);
    if (stale !== undefined) removeStale(address, stale);
    linkSync(temporary, address);
    unlinkSync(temporary);
    return () => {
      if (look(address)?.ino === ino) unlinkSync(address);
    };
  } catch (error) {
    server.close();
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'EEXIST') throw error;
    throw served(address, `another server has just begun at ${quotePath(address)}`, 'choose another address', error);
  }
}

/**
 * Listens at an address, or on a socket that systemd has made. `inject` gets each connection when its client has sent
 * something: those that are silent take no more than a descriptor, and end after a while.
 */
export async function listen(
  place: { readonly address: string } | { readonly descriptor: number },
  inject: (socket: Socket) => void,
): Promise<Listener> {
  const open = new Set<Socket>();
  const silent = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    silent.add(socket);
    const timer = setTimeout(() => socket.destroy(), MOST_SILENCE);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => {
      clearTimeout(timer);
      open.delete(socket);
      silent.delete(socket);
    });
    socket.once('readable', () => {
      clearTimeout(timer);
      silent.delete(socket);
      if (socket.readableLength > 0) inject(socket);
      else socket.destroy();
    });
  });
  const isOwn = 'address' in place;
  const remove = isOwn ? await bindAt(server, place.address) : undefined;
  if (!isOwn) {
    await begin(server, { fd: place.descriptor }).catch((error) => {
      const what = `systemd has passed descriptor ${place.descriptor}, on which nobody can connect`;
      throw served(`fd:${place.descriptor}`, what, 'let the socket unit have one ListenStream=', error);
    });
  }
  // Too many descriptors, for example. The next connection may succeed.
  server.on('error', () => {});
  return {
    address: isOwn ? place.address : `fd:${place.descriptor}`,
    get connections() {
      return open.size;
    },
    stop() {
      server.close();
      try {
        remove?.();
      } catch {
        // The next server replaces it.
      }
      for (const socket of silent) socket.destroy();
      // HTTP/2 closes its half of a connection that has ended. Some clients never close theirs.
      for (const socket of open) socket.once('finish', () => socket.destroy());
    },
    end() {
      for (const socket of open) socket.destroy();
    },
  };
}
