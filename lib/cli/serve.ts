/** `overlayfs serve` */
import { checkMachine, type Finding } from '../containerd/check.js';
import { type LogLevel, logLevels } from '../containerd/log.js';
import type { ServeOptions } from '../containerd/options.js';
import { serve as serveSnapshots } from '../containerd/serve.js';
import { type Path, pathString, toAbsolute } from '../paths.js';
import { Snapshotter, type SnapshotterOptions } from '../snapshots/index.js';
import { printable } from '../text.js';
import type { Command, Outcome, Parsed } from './command.js';
import { NO } from './errors.js';
import { ownFlag } from './flags.js';
import { type RootFlag, rootFlag, rootOf } from './store.js';

const CONFIG = '/etc/containerd/config.toml';

interface Options extends RootFlag {
  readonly address?: string;
  readonly check?: boolean;
  readonly config?: Path;
  readonly metrics?: string;
  readonly logLevel?: LogLevel;
  readonly concurrency?: number;
  readonly gracePeriod?: number;
  readonly syncRemove?: boolean;
  readonly upperdirLabel?: boolean;
  readonly slowChown?: boolean;
  readonly remapIds?: boolean;
  readonly mountOptions?: string[];
  readonly fsync?: NonNullable<SnapshotterOptions['fsync']>;
}

function findingText({ name, isRight, detail, hint }: Finding): string {
  const remedy = isRight || hint === undefined || hint === '' ? '' : ` Remedy: ${hint}`;
  return `${isRight ? 'ok     ' : 'missing'}  ${printable(`${name}: ${detail}${remedy === '' ? '' : `.${remedy}`}`)}\n`;
}

async function check(root: Path, { address, config = CONFIG }: Options): Promise<Outcome> {
  const findings = await checkMachine({ root: pathString(toAbsolute(root)), address, config: pathString(config) });
  return {
    text: findings.map(findingText).join(''),
    json: { findings },
    exitCode: findings.every(({ isRight }) => isRight) ? 0 : NO,
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

function toServeOptions(options: Options, signal: AbortSignal): ServeOptions {
  const { address, metrics, logLevel = 'info', concurrency, gracePeriod } = options;
  return {
    signal,
    systemd: true,
    logLevel,
    ...(address !== undefined && { address }),
    ...(metrics !== undefined && { metrics }),
    ...(concurrency !== undefined && { concurrency }),
    ...(gracePeriod !== undefined && { gracePeriod }),
  };
}

function toSnapshotterOptions(options: Options): SnapshotterOptions {
  const { syncRemove = false, upperdirLabel = false, slowChown = false, remapIds, mountOptions, fsync } = options;
  return {
    // As in containerd: its garbage collector holds a lock meanwhile, and calls Cleanup afterwards.
    asyncRemove: !syncRemove,
    upperdirLabel,
    slowChown,
    ...(remapIds !== undefined && { remapIds }),
    ...(mountOptions !== undefined && { mountOptions }),
    ...(fsync !== undefined && { fsync }),
  };
}

async function run({ options }: Parsed<Options>): Promise<Outcome> {
  const root = rootOf(options);
  if (options.check) return check(root, options);
  const { signal, forget } = untilStopped();
  // The disk of the log may be full, or its reader gone.
  process.stderr.on('error', () => {});
  try {
    // The process does nothing else.
    const snapshotter = await Snapshotter.openBlocking(root, toSnapshotterOptions(options));
    try {
      const server = await serveSnapshots(snapshotter, toServeOptions(options, signal));
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

export const serve: Command<Options> = {
  about: 'Serves snapshots to containerd as a proxy plugin, until SIGTERM.',
  forms: ['--address SOCKET [OPTION...]', '--check --address SOCKET [--config FILE]'],
  groups: [
    {
      title: 'the server',
      flags: [
        rootFlag,
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
        ownFlag('concurrency', 'the number of requests that are performed at once', { kind: 'number', default: '100' }),
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
        ownFlag('mountOptions', 'an option of each overlay', {
          spelling: 'mount-option',
          kind: 'text',
          isList: true,
          default: 'none',
        }),
        ownFlag('fsync', 'when something is on the disk', {
          kind: 'word',
          words: ['store', 'all', 'none'],
          default: 'all',
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
  no: 'with --check: something is missing',
  notes: 'docs/containerd.md has the configuration of containerd, and a unit for systemd.',
  examples: [
    'overlayfs serve --root /var/lib/overlayfs --address /run/overlayfs/containerd.sock',
    'overlayfs serve --check --root /var/lib/overlayfs --address /run/overlayfs/containerd.sock',
  ],
  run,
};
