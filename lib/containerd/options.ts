/** The options of a server: their types and checks. Pure. */
import { checkBoolean, checkMilliseconds, checkSignal, checkText, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue, outOfRange } from '../errors.js';
import { isAbsolute } from '../paths.js';
import { type LogLevel, logLevels } from './log.js';

export interface ServeOptions {
  /**
   * The path of the unix socket, absolute, of at most 107 bytes. `unix://` may stand before it. Needed unless systemd
   * passes a socket.
   */
  address?: string;
  /** Stops the server when it aborts, as `close` does. */
  signal?: AbortSignal;
  /** The number of requests that are performed at once; others wait for their turn. Default 100. */
  concurrency?: number;
  /** The time that `close` gives to requests under way, in ms. Default 10,000. */
  gracePeriod?: number;
  /**
   * The least important lines that are logged: `'debug'` for connections too, `'info'` for each request, `'warn'` or
   * `'error'` for requests that a fault of the machine has failed, or `'silent'`. Default `'warn'`.
   */
  logLevel?: LogLevel;
  /** Gets each line of the log, which is JSON. Default: it is written to standard error. */
  log?: (line: string) => void;
  /** Serves `/metrics` for Prometheus and `/healthz` at `HOST:PORT`, or on a unix socket by its path. Default: nowhere. */
  metrics?: string;
  /** Takes the socket that systemd passes, sd_listen_fds(3), and tells it when the server is ready, sd_notify(3). */
  systemd?: boolean;
}

export interface MetricsAddress {
  readonly path?: string;
  readonly host?: string;
  readonly port?: number;
}

export interface CheckedServeOptions {
  readonly address: string | undefined;
  readonly signal: AbortSignal | undefined;
  readonly concurrency: number;
  readonly gracePeriod: number;
  readonly logLevel: LogLevel;
  readonly log: (line: string) => void;
  readonly metrics: MetricsAddress | undefined;
  readonly isSystemd: boolean;
}

const names: ReadonlySet<string> = new Set([
  ...['address', 'signal', 'concurrency', 'gracePeriod', 'logLevel', 'log', 'metrics', 'systemd'],
]);

/** The most bytes of a socket's path, as unix(7) says. */
const MOST_ADDRESS = 107;

/** The bytes of the name beside it that a socket has at first, and of the slash before. */
export const TEMPORARY_SIZE = 7;

function checkPath(path: string, value: unknown, name: string): string {
  const size = Math.max(
    Buffer.byteLength(path),
    Buffer.byteLength(path.slice(0, path.lastIndexOf('/'))) + TEMPORARY_SIZE,
  );
  if (!isAbsolute(path) || path.endsWith('/')) {
    throw invalidArgumentValue(name, value, 'must be the absolute path of a socket');
  }
  if (size > MOST_ADDRESS) {
    throw invalidArgumentValue(name, value, `has ${size} bytes, and a socket's path at most ${MOST_ADDRESS}`);
  }
  return path;
}

export function checkAddress(value: unknown): string | undefined {
  if (value === undefined) return undefined;
  return checkPath(checkText(value, 'address').replace(/^unix:(\/\/)?(?=\/)/, ''), value, 'address');
}

function checkMetrics(value: unknown): MetricsAddress | undefined {
  if (value === undefined) return undefined;
  const address = checkText(value, 'metrics');
  if (address.startsWith('/')) return { path: checkPath(address, value, 'metrics') };
  const [, host = '', digits] = /^(.*):(\d{1,5})$/.exec(address) ?? [];
  const port = Number(digits);
  if (digits === undefined || host === '' || port > 65535) {
    throw invalidArgumentValue('metrics', value, 'must be HOST:PORT, or the absolute path of a socket');
  }
  return { host: host.replace(/^\[(.*)\]$/, '$1'), port };
}

function checkConcurrency(value: unknown): number {
  if (value === undefined) return 100;
  if (typeof value !== 'number') throw invalidArgumentType('concurrency', 'a number', value);
  if (!Number.isInteger(value) || value < 1)
    throw outOfRange('concurrency', 'a whole number, 1 or more', String(value));
  return value;
}

function checkLog(value: unknown): (line: string) => void {
  if (value === undefined) return (line) => process.stderr.write(`${line}\n`);
  if (typeof value !== 'function') throw invalidArgumentType('log', 'a function', value);
  return value as (line: string) => void;
}

export function checkServeOptions(options: ServeOptions | undefined): CheckedServeOptions {
  const given = toOptions(options, names);
  return {
    address: checkAddress(given.address),
    signal: checkSignal(given.signal),
    concurrency: checkConcurrency(given.concurrency),
    gracePeriod: checkMilliseconds(given.gracePeriod, 'gracePeriod') ?? 10_000,
    logLevel: checkWord(given.logLevel, 'logLevel', logLevels) ?? 'warn',
    log: checkLog(given.log),
    metrics: checkMetrics(given.metrics),
    isSystemd: checkBoolean(given.systemd, 'systemd') ?? false,
  };
}
