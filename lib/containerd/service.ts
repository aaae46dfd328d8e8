/** The service over gRPC: requests are read, wait for their turn, become verbs of a snapshotter, and are answered. */

import { constants, type ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import { EmptySchema } from '@bufbuild/protobuf/wkt';
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceDefinition,
  type sendUnaryData,
  type UntypedHandleCall,
} from '@grpc/grpc-js';
import type { Labels, SetLabelsOptions, SnapshotInfo, SnapshotMount, Snapshotter } from '../snapshots/index.js';
import { printable } from '../text.js';
import { Limit } from './limit.js';
import type { Log, LogFields } from './log.js';
import { toInfo } from './messages.js';
import type { Metrics } from './metrics.js';
import {
  CleanupRequestSchema,
  CommitSnapshotRequestSchema,
  InfoResponseSchema,
  ListSnapshotsRequestSchema,
  ListSnapshotsResponseSchema,
  MountsResponseSchema,
  PrepareSnapshotRequestSchema,
  SnapshotRequestSchema,
  Snapshots,
  UpdateSnapshotRequestSchema,
  UsageResponseSchema,
} from './snapshots_pb.js';
import { isFault, RequestError, type StatusName, status, toStatus } from './status.js';

const MOST_BYTES = 16 * 2 ** 20;

/** The infos in one message of a list, as in containerd. */
const BATCH = 100;

/** In ms: the time for which a client may leave a full stream unread. */
const MOST_STALL = 30_000;

/** A call of grpc-js, which does not show its stream of HTTP/2. */
interface WithStream {
  readonly call?: { readonly stream?: ServerHttp2Stream };
}

type Call = ServerUnaryCall<Buffer, Uint8Array> | ServerWritableStream<Buffer, Uint8Array>;

/** The fields that requests have. The log shows them. */
interface Request {
  readonly snapshotter: string;
  readonly key?: string;
  readonly name?: string;
  readonly parent?: string;
}

interface Verb {
  decode(bytes: Buffer): Request;
  perform(snapshotter: Snapshotter, request: Request): Promise<Uint8Array>;
}

const decoder =
  <I extends DescMessage>(input: I) =>
  (bytes: Buffer): MessageShape<I> => {
    try {
      return fromBinary(input, bytes, { readUnknownFields: false });
    } catch (cause) {
      throw new RequestError('INVALID_ARGUMENT', `The request is no ${input.name}: ${(cause as Error).message}`);
    }
  };

function verb<I extends DescMessage, O extends DescMessage>(
  input: I,
  output: O,
  perform: (snapshotter: Snapshotter, request: MessageShape<I>) => Promise<MessageInitShape<O>>,
): Verb {
  return {
    decode: decoder(input) as unknown as Verb['decode'],
    async perform(snapshotter, request) {
      const answer = await perform(snapshotter, request as unknown as MessageShape<I>);
      return toBinary(output, create(output, answer));
    },
  };
}

const toMounts = (mounts: readonly SnapshotMount[]) => ({
  mounts: mounts.map(({ type, source, target = '', options }) => ({ type, source, target, options: [...options] })),
});

/** Returns the labels to set, and the way: a mask of containerd's names all of them, or some. */
function toLabels(labels: Labels, mask: readonly string[]): [Labels, SetLabelsOptions] {
  const unknown = mask.find((field) => field !== 'labels' && !field.startsWith('labels.'));
  if (unknown !== undefined) {
    const hint = "Use 'labels', or 'labels.' and the name of a label.";
    throw new RequestError('INVALID_ARGUMENT', `The field '${unknown}' of a snapshot cannot be updated. ${hint}`);
  }
  if (mask.length === 0 || mask.includes('labels')) return [labels, { replace: true }];
  const names = mask.map((field) => field.slice('labels.'.length));
  return [Object.fromEntries(names.map((name) => [name, Object.hasOwn(labels, name) ? (labels[name] ?? '') : ''])), {}];
}

const verbs: Readonly<Record<string, Verb>> = {
  Prepare: verb(PrepareSnapshotRequestSchema, MountsResponseSchema, async (snapshotter, { key, parent, labels }) =>
    toMounts(await snapshotter.prepare(key, parent, { labels })),
  ),
  View: verb(PrepareSnapshotRequestSchema, MountsResponseSchema, async (snapshotter, { key, parent, labels }) =>
    toMounts(await snapshotter.view(key, parent, { labels })),
  ),
  Mounts: verb(SnapshotRequestSchema, MountsResponseSchema, async (snapshotter, { key }) =>
    toMounts(await snapshotter.mounts(key)),
  ),
  Commit: verb(CommitSnapshotRequestSchema, EmptySchema, async (snapshotter, { name, key, labels, parent }) => {
    await snapshotter.commit(key, { name, labels, parent });
    return {};
  }),
  Remove: verb(SnapshotRequestSchema, EmptySchema, async (snapshotter, { key }) => {
    await snapshotter.remove(key);
    return {};
  }),
  Stat: verb(SnapshotRequestSchema, InfoResponseSchema, async (snapshotter, { key }) => ({
    info: toInfo(await snapshotter.stat(key)),
  })),
  Update: verb(UpdateSnapshotRequestSchema, InfoResponseSchema, async (snapshotter, { info, updateMask }) => {
    if (info === undefined) throw new RequestError('INVALID_ARGUMENT', 'The request has no info.');
    const { name, labels } = info;
    return { info: toInfo(await snapshotter.setLabels(name, ...toLabels(labels, updateMask?.paths ?? []))) };
  }),
  Usage: verb(SnapshotRequestSchema, UsageResponseSchema, async (snapshotter, { key }) => {
    const { bytes, inodes } = await snapshotter.usage(key);
    return { size: BigInt(bytes), inodes: BigInt(inodes) };
  }),
  Cleanup: verb(CleanupRequestSchema, EmptySchema, async (snapshotter) => {
    await snapshotter.cleanup();
    return {};
  }),
};

const decodeList = decoder(ListSnapshotsRequestSchema);

const cancelled = (): RequestError => new RequestError('CANCELLED', 'The client has given up the request.');

/** Writes a message, and waits until the client has taken it. */
function written(call: ServerWritableStream<Buffer, Uint8Array>, message: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = (error?: Error | null): void => {
      clearTimeout(timer);
      call.off('cancelled', cancel);
      if (error === undefined || error === null) resolve();
      else reject(error);
    };
    const cancel = (): void => end(cancelled());
    const stall = new RequestError('DEADLINE_EXCEEDED', `The client has read nothing for ${MOST_STALL} ms.`);
    const timer = setTimeout(() => {
      end(stall);
      // A status would wait behind the messages that nobody reads, for ever.
      (call as unknown as WithStream).call?.stream?.close(constants.NGHTTP2_CANCEL);
    }, MOST_STALL);
    call.once('cancelled', cancel);
    call.write(message, end);
    if (call.cancelled) cancel();
  });
}

export interface ServiceSettings {
  readonly concurrency: number;
  readonly log: Log;
  readonly metrics: Metrics;
}

export class Service {
  readonly #snapshotter: Snapshotter;
  readonly #log: Log;
  readonly #metrics: Metrics;
  readonly #limit: Limit;
  readonly #server = new Server({
    // Nobody reads these statistics, which take a part of each request's time.
    'grpc.enable_channelz': 0,
    'grpc.max_receive_message_length': MOST_BYTES,
    'grpc.max_send_message_length': -1,
    'grpc.max_concurrent_streams': 1000,
  });
  readonly #injector = this.#server.createConnectionInjector(ServerCredentials.createInsecure());
  /** Is called when no request is under way. */
  #onIdle: (() => void) | undefined;
  #underWay = 0;

  constructor(snapshotter: Snapshotter, { concurrency, log, metrics }: ServiceSettings) {
    this.#snapshotter = snapshotter;
    this.#log = log;
    this.#metrics = metrics;
    this.#limit = new Limit(concurrency);
    const handlers = Snapshots.methods.map(({ name }): [string, UntypedHandleCall] => {
      const found = verbs[name];
      if (found === undefined) return [name, (call: ServerWritableStream<Buffer, Uint8Array>) => this.#list(call)];
      const handle = (call: ServerUnaryCall<Buffer, Uint8Array>, callback: sendUnaryData<Uint8Array>): void => {
        this.#answer(name, found, call).then(
          (bytes) => callback(null, bytes),
          (error) => callback(error),
        );
      };
      return [name, handle];
    });
    this.#server.addService(definition, Object.fromEntries(handlers));
  }

  get running(): number {
    return this.#limit.running;
  }

  get waiting(): number {
    return this.#limit.waiting;
  }

  /** Serves a connection. */
  inject(socket: Socket): void {
    this.#injector.injectConnection(socket);
  }

  #answer(method: string, { decode, perform }: Verb, call: ServerUnaryCall<Buffer, Uint8Array>): Promise<Uint8Array> {
    return this.#handle(method, call, decode, (request) =>
      this.#inTurn(call, () => perform(this.#snapshotter, request)),
    );
  }

  async #list(call: ServerWritableStream<Buffer, Uint8Array>): Promise<void> {
    try {
      await this.#handle('List', call, decodeList, async ({ filters }) => {
        const walk = this.#snapshotter.list(filters);
        // All is read from the store now, so a slow client holds nobody up.
        const first = await this.#inTurn(call, () => walk.next());
        await this.#send(call, first, walk);
      });
      call.end();
    } catch (error) {
      call.emit('error', error);
    }
  }

  async #send(
    call: ServerWritableStream<Buffer, Uint8Array>,
    first: IteratorResult<SnapshotInfo, void>,
    walk: AsyncIterable<SnapshotInfo>,
  ): Promise<void> {
    if (first.done) return;
    let batch = [first.value];
    const flush = async (): Promise<void> => {
      const message = create(ListSnapshotsResponseSchema, { info: batch.map(toInfo) });
      batch = [];
      if (call.cancelled) throw cancelled();
      await written(call, toBinary(ListSnapshotsResponseSchema, message));
    };
    for await (const info of walk) {
      if (batch.length === BATCH) await flush();
      batch.push(info);
    }
    await flush();
  }

  /** Reads a request, performs it, and writes it down. The error has the fields of a status. */
  async #handle<R extends Request, T>(
    method: string,
    call: Call,
    decode: (bytes: Buffer) => R,
    perform: (request: R) => Promise<T>,
  ): Promise<T> {
    const start = performance.now();
    let request: R | undefined;
    let name: StatusName = 'OK';
    let details: string | undefined;
    this.#underWay++;
    try {
      request = decode(call.request);
      return await perform(request);
    } catch (error) {
      name = toStatus(error);
      details = printable((error as Error).message.toWellFormed());
      throw Object.assign(new Error(details), { code: status[name], details });
    } finally {
      const milliseconds = performance.now() - start;
      this.#metrics.count(method, name, milliseconds / 1000);
      const level = isFault(name) ? 'error' : 'info';
      if (this.#log.shows(level)) {
        this.#log.write(level, 'request', { method, ...fieldsOf(call, request), code: name, milliseconds, details });
      }
      this.#underWay--;
      if (this.#underWay === 0) this.#onIdle?.();
    }
  }

  /** Performs something when it is its turn. A client that gives up before costs nothing more. */
  async #inTurn<T>(call: Call, perform: () => Promise<T>): Promise<T> {
    if (call.cancelled) throw cancelled();
    await new Promise<void>((resolve, reject) => {
      const begin = (): void => {
        call.off('cancelled', cancel);
        resolve();
      };
      const giveUp = this.#limit.enter(begin);
      const cancel = (): void => {
        giveUp?.();
        reject(cancelled());
      };
      if (giveUp === undefined) resolve();
      else call.once('cancelled', cancel);
    });
    try {
      return await perform();
    } finally {
      this.#limit.leave();
    }
  }

  /** A request of a client that has left may begin during the shutdown. */
  async #finish(shutdown: Promise<void>): Promise<void> {
    await shutdown;
    while (this.#underWay > 0) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
      });
    }
  }

  /** Refuses new requests, and waits for those under way, but not for longer than this. */
  async close(milliseconds: number): Promise<void> {
    const shutdown = new Promise<void>((resolve) => this.#server.tryShutdown(() => resolve()));
    let timer: NodeJS.Timeout | undefined;
    const over = new Promise<void>((resolve) => {
      // A timer of 2^31 ms or more would fire at once.
      timer = setTimeout(resolve, Math.min(milliseconds, 2 ** 31 - 1));
    });
    await Promise.race([this.#finish(shutdown), over]);
    clearTimeout(timer);
  }
}

const same = (bytes: Buffer): Buffer => bytes;

/** The bytes of requests are read by the handlers, which can tell what is wrong with them. */
const definition: ServiceDefinition = Object.fromEntries(
  Snapshots.methods.map(({ name, methodKind }) => [
    name,
    {
      path: `/${Snapshots.typeName}/${name}`,
      requestStream: false,
      responseStream: methodKind === 'server_streaming',
      requestSerialize: same,
      requestDeserialize: same,
      responseSerialize: (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length),
      responseDeserialize: same,
    },
  ]),
);

function fieldsOf(call: Call, request: Request | undefined): LogFields {
  const [namespace] = call.metadata.get('containerd-namespace');
  const { key, name, parent } = request ?? {};
  // containerd does not always say it, and puts it before its keys.
  const [, inKey] = /^([^/]+)\/\d+\//.exec(key ?? '') ?? [];
  return { namespace: namespace?.toString() ?? inKey, key, name, parent: parent === '' ? undefined : parent };
}
