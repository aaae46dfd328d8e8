/** `/metrics` and `/healthz` over HTTP. */
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { begin, bindAt } from './listen.js';
import type { MetricsAddress } from './options.js';

export interface AdminSources {
  metrics(): string;
  /** Throws if the server cannot serve. */
  checkHealth(): Promise<void>;
}

export interface Admin {
  /** `HOST:PORT`, or the path. */
  readonly address: string;
  close(): void;
}

export async function serveAdmin(at: MetricsAddress, { metrics, checkHealth }: AdminSources): Promise<Admin> {
  const { createServer } = process.getBuiltinModule('node:http');
  const pages: Readonly<Record<string, () => Promise<[status: number, type: string, body: string]>>> = {
    '/metrics': async () => [200, 'text/plain; version=0.0.4; charset=utf-8', metrics()],
    '/healthz': async () => {
      try {
        await checkHealth();
        return [200, 'text/plain', 'ok\n'];
      } catch (error) {
        return [503, 'text/plain; charset=utf-8', `${(error as Error).message}\n`];
      }
    },
  };
  const server = createServer(async (request, response) => {
    const [path = ''] = (request.url ?? '').split('?');
    const page = Object.hasOwn(pages, path) ? pages[path] : undefined;
    const isRead = request.method === 'GET' || request.method === 'HEAD';
    const [status, type, body] = !isRead
      ? [405, 'text/plain', 'only GET\n']
      : page === undefined
        ? [404, 'text/plain', '/metrics and /healthz are here\n']
        : await page();
    response.writeHead(status, { 'content-type': type });
    response.end(request.method === 'HEAD' ? undefined : body);
  });
  const remove = at.path === undefined ? undefined : await bindAt(server, at.path);
  if (at.path === undefined) await begin(server, at);
  server.on('error', () => {});
  return {
    address: at.path ?? addressOf(server),
    close() {
      server.close();
      remove?.();
      server.closeAllConnections();
    },
  };
}

function addressOf(server: Server): string {
  const found = server.address() as AddressInfo;
  return `${found.family === 'IPv6' ? `[${found.address}]` : found.address}:${found.port}`;
}
