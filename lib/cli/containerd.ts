/** `overlayfs containerd` */
import { checkMachine, type Finding } from '../containerd/check.js';
import { type LogLevel, logLevels } from '../containerd/log.js';
import type { ServeOptions } from '../containerd/options.js';
import { serve } from '../containerd/serve.js';
import { type Path, pathString, toAbsolute } from '../paths.js';
import { Snapshotter, type SnapshotterOptions } from '../snapshots/index.js';
import { type Command, type Outcome, ownFlag } from './command.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

const CONFIG = '/etc/containerd/config.toml';

interface Options {
  readonly root?: Path;
  readonly address?: string;
  readonly check?: boolean;
  readonly config?: Path;
  readonly metrics?: string;
  readonly logLevel?: LogLevel;
  readonly concurrency?: string;
  readonly gracePeriod?: number;
  readonly syncRemove?: boolean;
  readonly upperdirLabel?: boolean;
  readonly slowChown?: boolean;
  readonly remapIds?: boolean;
  readonly mountOption?: string[];
  readonly fsync?: NonNullable<SnapshotterOptions['fsync']>;
}

function findingText({ name, isRight, detail, hint }: Finding): string {
  const remedy = isRight || hint === undefined || hint === '' ? '' : ` Remedy: ${hint}`;
  return `${isRight ? 'ok     ' : 'missing'}  ${name}: ${detail}${remedy === '' ? '' : `.${remedy}`}\n`;
}

async function check(root: Path, { address, config = CONFIG }: Options): Promise<Outcome> {
  const findings = await checkMachine({ root: pathString(toAbsolute(root)), address, config: pathString(config) });
  return {
    text: findings.map(findingText).join(''),
    json: { findings },
    exitCode: findings.every(({ isRight }) => isRight) ? 0 : 1,
  };
}

/** A signal that is aborted by SIGTERM or SIGINT. */
function untilStopped(): { signal: AbortSignal; forget: () => void } {
  const controller = new AbortController();
  const stop = (): void => controller.abort();
  const names = ['SIGTERM', 'SIGINT'] as const;
  for (const name of names) process.on(name, stop);
  return {
    signal: controller.signal,
    forget() {
      for (const name of names) process.off(name, stop);
    },
  };
}

function toCount(text: string): number {
  const count = Number(text);
  if (Number.isNaN(count)) throw new UsageError(`--concurrency takes a number, not '${text}'`);
  return count;
}

function toServeOptions(options: Options, signal: AbortSignal): ServeOptions {
  const { address, metrics, logLevel = 'info', concurrency, gracePeriod } = options;
  return {
    signal,
    systemd: true,
    logLevel,
    ...(address !== undefined && { address }),
    ...(metrics !== undefined && { metrics }),
    ...(concurrency !== undefined && { concurrency: toCount(concurrency) }),
    ...(gracePeriod !== undefined && { gracePeriod }),
  };
}

function toSnapshotterOptions(options: Options): SnapshotterOptions {
  const { syncRemove = false, upperdirLabel = false, slowChown = false, remapIds, mountOption, fsync } = options;
  return {
    // As in containerd: its garbage collector holds a lock meanwhile, and calls Cleanup afterwards.
    asyncRemove: !syncRemove,
    upperdirLabel,
    slowChown,
    ...(remapIds !== undefined && { remapIds }),
    ...(mountOption !== undefined && { mountOptions: mountOption }),
    ...(fsync !== undefined && { fsync }),
  };
}

async function run({ options: given, operands }: Parsed): Promise<Outcome> {
  const options = given as Options;
  if (operands.length > 0) throw new UsageError('containerd takes no operands', 'Name the directory with --root DIR.');
  if (options.root === undefined) {
    throw new UsageError('--root is missing', 'Name the directory of the snapshots: --root DIR.');
  }
  if (options.check) return check(options.root, options);
  const { signal, forget } = untilStopped();
  // The disk of the log may be full, or its reader gone.
  process.stderr.on('error', () => {});
  try {
    // The process does nothing else.
    const snapshotter = await Snapshotter.openBlocking(options.root, toSnapshotterOptions(options));
    try {
      const server = await serve(snapshotter, toServeOptions(options, signal));
      await server.closed;
      return { json: { address: server.address } };
    } finally {
      await snapshotter.close();
    }
  } catch (error) {
    // Stopped before it was ready.
    if (signal.aborted && (error as Error).name === 'AbortError') return { json: { address: options.address } };
    throw error;
  } finally {
    forget();
  }
}

export const containerd: Command = {
  about: 'Serves snapshots to containerd as a proxy plugin, until SIGTERM.',
  usage: ['--root DIR --address SOCKET [OPTION...]', '--check --root DIR --address SOCKET [--config FILE]'],
  groups: [
    {
      title: 'the server',
      flags: [
        ownFlag('root', 'the directory with the snapshots, which is made if it is missing', { kind: 'path' }),
        ownFlag('address', 'the path of the unix socket; not needed if systemd passes one', { kind: 'text' }),
        ownFlag('metrics', 'serves /metrics and /healthz at HOST:PORT, or on a unix socket by its path', {
          kind: 'text',
          default: 'none',
        }),
        ownFlag('logLevel', 'the least important lines of the log, which is on standard error', {
          kind: 'word',
          words: logLevels,
          default: 'info',
        }),
        ownFlag('concurrency', 'the number of requests that are performed at once', { kind: 'text', default: '100' }),
        ownFlag('gracePeriod', 'the time for requests under way at the end', { kind: 'time', default: '10s' }),
      ],
    },
    {
      title: 'the snapshots',
      flags: [
        ownFlag('syncRemove', 'removes files with their snapshot, not at the next clean-up'),
        ownFlag('upperdirLabel', 'adds the label containerd.io/snapshot/overlay.upperdir'),
        ownFlag('slowChown', 'leaves out the capability only-remap-ids'),
        ownFlag('remapIds', 'mounts get the id maps of the labels', {
          hasNegative: true,
          default: 'if the kernel can',
        }),
        ownFlag('mountOption', 'an option of each overlay', { kind: 'names', isList: true, default: 'none' }),
        ownFlag('fsync', 'when something is on the disk', {
          kind: 'word',
          words: ['store', 'all', 'none'],
          default: 'store',
        }),
      ],
    },
    {
      title: 'the machine',
      flags: [
        ownFlag('check', 'looks at the machine, says what is missing, and serves nothing'),
        ownFlag('config', "containerd's configuration, for --check", { kind: 'path', value: 'FILE', default: CONFIG }),
      ],
    },
  ],
  notes: 'docs/containerd.md has the configuration of containerd, and a unit for systemd.',
  examples: [
    'overlayfs containerd --root /var/lib/overlayfs --address /run/overlayfs/containerd.sock',
    'overlayfs containerd --check --root /var/lib/overlayfs --address /run/overlayfs/containerd.sock',
  ],
  run,
};
