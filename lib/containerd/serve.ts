/** Serves a snapshotter to containerd, as one of its proxy plugins. */
import { abortError, invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { explainFiltered } from '../kernel/filtered.js';
import type { Held } from '../kernel/held.js';
import { onAbort } from '../kernel/on-abort.js';
import { StepFailure } from '../kernel/perform.js';
import { run, type Task } from '../kernel/task.js';
import { quotePath } from '../paths.js';
import { missingPackages } from '../peers.js';
import { SnapshotError } from '../snapshots/errors.js';
import type { Snapshotter } from '../snapshots/index.js';
import { render } from '../text.js';
import { tryLock, unlock } from '../trees/lock.js';
import { type Admin, serveAdmin } from './admin.js';
import { type Listener, listen } from './listen.js';
import { Log } from './log.js';
import { Metrics } from './metrics.js';
import { type CheckedServeOptions, checkServeOptions, type ServeOptions } from './options.js';
import { toStatus } from './status.js';
import { notify, takeSockets } from './systemd.js';

/** A server that is running. */
export interface SnapshotServer {
  /** The path of the socket; `fd:N` for a socket of systemd's. */
  readonly address: string;
  /** The address of `/metrics` and `/healthz`, if they are served: `HOST:PORT`, or a path. */
  readonly metrics: string | undefined;
  /** Fulfilled when the server has stopped. */
  readonly closed: Promise<void>;
  /** Stops the server: nobody can connect any more, and requests under way are finished. The snapshotter stays open. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export async function loadService(): Promise<typeof import('./service.js')> {
  try {
    return await import('./service.js');
  } catch (cause) {
    throw new SnapshotError(
      {
        code: 'ERR_SNAPSHOT_DEPENDENCY_MISSING',
        ...missingPackages('the server', ['@grpc/grpc-js', '@bufbuild/protobuf']),
      },
      { cause },
    );
  }
}

/** Makes this the only server of a root. The lock ends with the process. */
function* lockRoot(root: string): Task<Held> {
  const lock = yield* tryLock(root);
  if (lock instanceof StepFailure) {
    const { what, hint = '' } = explainFiltered(lock) ?? {
      what: `the root ${quotePath(root)} cannot be opened and locked`,
      hint: 'look if it is still there, and how many files this process has open',
    };
    throw new SnapshotError({ code: 'ERR_SNAPSHOT_STORE_FAILED', what: render(what), hint: render(hint), path: root });
  }
  if (lock !== 'taken') return lock;
  throw new SnapshotError({
    code: 'ERR_SNAPSHOT_SERVED',
    what: `another server has the root ${quotePath(root)}`,
    hint: 'stop that server, or choose another root',
    path: root,
  });
}

/** A place to listen at: the address, or a socket of systemd's. */
function choosePlace({ address, isSystemd }: CheckedServeOptions): { address: string } | { descriptor: number } {
  const [descriptor, ...others] = isSystemd ? takeSockets() : [];
  if (others.length > 0) {
    throw invalidArgumentValue('systemd', true, `got ${others.length + 1} sockets: let the unit have one`);
  }
  if (descriptor !== undefined) return { descriptor };
  if (address === undefined) throw invalidArgumentType('address', 'the path of a socket', address);
  return { address };
}

/** Throws when the store cannot be read. */
async function checkHealth(snapshotter: Snapshotter): Promise<void> {
  try {
    await snapshotter.stat('healthz');
  } catch (error) {
    if (toStatus(error) !== 'NOT_FOUND') throw error;
  }
}

/**
 * Serves a snapshotter over gRPC on a unix socket, which has mode 0600, as containerd's service
 * `containerd.services.snapshots.v1.Snapshots`. Needs the packages @grpc/grpc-js and @bufbuild/protobuf. A socket at the
 * address on which nobody answers is replaced.
 *
 * @throws {SnapshotError} `ERR_SNAPSHOT_SERVED`: another server has the root, or somebody answers at the address, or
 * something else than a socket is there; `ERR_SNAPSHOT_DEPENDENCY_MISSING`
 * @throws {Error} the socket cannot be made; `code` is that of bind(2)
 */
export async function serve(snapshotter: Snapshotter, options?: ServeOptions): Promise<SnapshotServer> {
  if (typeof snapshotter?.prepare !== 'function')
    throw invalidArgumentType('snapshotter', 'a Snapshotter', snapshotter);
  const checked = checkServeOptions(options);
  const { signal, isSystemd, gracePeriod, concurrency } = checked;
  if (signal?.aborted) throw abortError(signal);
  const place = choosePlace(checked);
  const { Service } = await loadService();
  const log = new Log(checked.logLevel, checked.log);
  const metrics = new Metrics();
  const lock = await run(lockRoot(snapshotter.root));
  let listener: Listener;
  let admin: Admin | undefined;
  const service = new Service(snapshotter, { concurrency, log, metrics });
  const formatMetrics = (): string =>
    metrics.format({ running: service.running, waiting: service.waiting, connections: listener.connections });
  try {
    listener = await listen(place, (socket) => {
      log.write('debug', 'connection', { connections: listener.connections });
      service.inject(socket);
    });
    try {
      if (checked.metrics !== undefined) {
        const sources = { metrics: formatMetrics, checkHealth: () => checkHealth(snapshotter) };
        admin = await serveAdmin(checked.metrics, sources);
      }
    } catch (error) {
      listener.stop();
      throw error;
    }
  } catch (error) {
    await run(unlock(lock));
    throw error;
  }

  const stop = async (): Promise<void> => {
    forget?.();
    if (isSystemd) await run(notify('STOPPING=1'));
    listener.stop();
    await service.close(gracePeriod);
    listener.end();
    admin?.close();
    await run(unlock(lock));
    log.write('info', 'stopped', { address: listener.address });
  };
  let stopping: Promise<void> | undefined;
  let onClosed: (stopped: Promise<void>) => void = () => {};
  const closed = new Promise<void>((resolve) => (onClosed = resolve));
  const closeServer = (): Promise<void> => {
    if (stopping === undefined) {
      stopping = stop();
      onClosed(stopping);
    }
    return stopping;
  };
  const forget = signal && onAbort(signal, closeServer);
  if (signal?.aborted) {
    await closeServer();
    throw abortError(signal);
  }
  log.write('info', 'ready', { address: listener.address, root: snapshotter.root, metrics: admin?.address });
  if (isSystemd) await run(notify('READY=1'));
  return {
    address: listener.address,
    metrics: admin?.address,
    closed,
    close: closeServer,
    [Symbol.asyncDispose]: closeServer,
  };
}
