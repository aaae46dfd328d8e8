/** A client of the service, as containerd is one. */
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { Snapshots } from '#lib/containerd/snapshots_pb.js';

const same = (bytes: Buffer): Buffer => bytes;

type Methods = typeof Snapshots.method;
type Input<M extends keyof Methods> = Methods[M]['input'];
type Output<M extends keyof Methods> = Methods[M]['output'];

export interface CallOptions {
  readonly deadline?: number;
  readonly namespace?: string;
  readonly signal?: AbortSignal;
}

export class TestClient {
  readonly client: Client;

  constructor(address: string) {
    // Connections of their own: clients of one address share one otherwise.
    this.client = new Client(`unix:${address}`, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 });
  }

  close(): void {
    this.client.close();
  }

  /** Sends bytes as a request, and returns those of the answer. */
  send(method: keyof Methods, bytes: Uint8Array, { deadline, namespace, signal }: CallOptions = {}): Promise<Buffer> {
    const { name } = Snapshots.method[method];
    const metadata = new Metadata();
    if (namespace !== undefined) metadata.set('containerd-namespace', namespace);
    const options = deadline === undefined ? {} : { deadline: Date.now() + deadline };
    return new Promise((resolve, reject) => {
      const done = (error: ServiceError | null, answer?: Buffer): void =>
        error === null ? resolve(answer as Buffer) : reject(error);
      const path = `/${Snapshots.typeName}/${name}`;
      const call = this.client.makeUnaryRequest(path, same, same, Buffer.from(bytes), metadata, options, done);
      signal?.addEventListener('abort', () => call.cancel());
    });
  }

  async call<M extends keyof Methods>(
    method: M,
    request: MessageInitShape<Input<M>>,
    options?: CallOptions,
  ): Promise<MessageShape<Output<M>>> {
    const { input, output } = Snapshots.method[method] as { input: DescMessage; output: DescMessage };
    const bytes = toBinary(input, create(input, request as MessageInitShape<DescMessage>));
    return fromBinary(output, await this.send(method, bytes, options)) as MessageShape<Output<M>>;
  }

  stream(filters: readonly string[] = []) {
    const { input } = Snapshots.method.list;
    const bytes = Buffer.from(toBinary(input, create(input, { filters: [...filters] })));
    return this.client.makeServerStreamRequest(`/${Snapshots.typeName}/List`, same, same, bytes, new Metadata());
  }

  /** Returns the batches of a list. */
  async list(filters?: readonly string[]): Promise<MessageShape<Output<'list'>>['info'][]> {
    const batches = [];
    for await (const bytes of this.stream(filters)) batches.push(fromBinary(Snapshots.method.list.output, bytes).info);
    return batches;
  }
}
