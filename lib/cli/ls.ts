/** `overlayfs ls` */
import { realpathSync } from 'node:fs';
import { ENOENT, ENOTDIR } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { AT_SYMLINK_NOFOLLOW } from '../kernel/constants.js';
import { statPathSync } from '../kernel/stat.js';
import type { MountEntry } from '../mount-table/entry.js';
import { listMounts, type MountFilter } from '../mount-table/list.js';
import { formatBytes, fromBytes, type Path, pathString, quotePath } from '../paths.js';
import { type Paint, paintFor } from './colour.js';
import { type Command, type Outcome, ownFlag } from './command.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

type Entry = MountEntry<Buffer>;

/** Returns the text after the target. */
function describe({ type, source, flags, root, propagation }: Entry): string {
  const words = [
    flags.readonly ? 'ro' : 'rw',
    ...(['nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime', 'idmapped'] as const).filter((name) => flags[name]),
    flags.atime,
    ...(propagation.peerGroup === undefined ? [] : [`shared:${propagation.peerGroup}`]),
    ...(propagation.master === undefined ? [] : [`master:${propagation.master}`]),
    ...(propagation.unbindable ? ['unbindable'] : []),
  ];
  const part = root.length === 1 ? '' : `[${formatBytes(root)}]`;
  return `${type} ${formatBytes(source)}${part} ${words.join(',')}`;
}

/** Returns the layers of an overlay with their roles, topmost first. */
function layersOf({ overlay }: Entry): [role: string, path: Path][] {
  if (overlay === undefined) return [];
  const { upperdir, workdir, lowerdir, datadir } = overlay;
  return [
    ...(upperdir === undefined ? [] : [['upper', upperdir] as [string, Path]]),
    ...(workdir === undefined ? [] : [['work', workdir] as [string, Path]]),
    ...lowerdir.map((path): [string, Path] => ['lower', path]),
    ...datadir.map((path): [string, Path] => ['data', path]),
  ];
}

/** Mounts nested more deeply are indented no further: the text would grow with the square of the depth. */
const DEEPEST = 50;

/** Returns the mounts as a tree: mounts below those that they are mounted on, and layers below their overlays. */
export function treeText(entries: readonly Entry[], paint: Paint): string {
  const ids = new Set(entries.map(({ id }) => id));
  const isTop = ({ id, parent }: Entry) => !ids.has(parent) || parent === id;
  const children = new Map<number, Entry[]>(entries.map(({ id }) => [id, []]));
  for (const entry of entries) if (!isTop(entry)) children.get(entry.parent)?.push(entry);
  const lines: string[] = [];
  const left = entries.filter(isTop).map((entry) => ({ entry, first: '', rest: '', depth: 0 }));
  left.reverse();
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const { entry, first, rest, depth } = next;
    lines.push(`${first}${paint('bold', formatBytes(entry.target))}  ${describe(entry)}`);
    const layers = layersOf(entry).map(([role, path]) => `${role.padEnd(5)}  ${formatBytes(path)}`);
    const inside = children.get(entry.id) ?? [];
    const count = layers.length + inside.length;
    layers.forEach((text, i) => {
      lines.push(`${rest}${i + 1 === count ? '└─ ' : '├─ '}${text}`);
    });
    const indent = (bar: string) => (depth < DEEPEST ? `${rest}${bar}` : rest);
    inside.toReversed().forEach((child, i) => {
      const [branch, bar] = i === 0 ? ['└─ ', '   '] : ['├─ ', '│  '];
      left.push({ entry: child, first: `${rest}${branch}`, rest: indent(bar), depth: depth + 1 });
    });
  }
  return lines.map((line) => `${line}\n`).join('');
}

/** Returns a line a mount, for other programs. */
const linesText = (entries: readonly Entry[]): string =>
  entries.map((entry) => `${formatBytes(entry.target)} ${describe(entry)}\n`).join('');

function toPlain(value: unknown): unknown {
  if (value instanceof Buffer) return fromBytes(value);
  if (Array.isArray(value)) return value.map(toPlain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, toPlain(inner)]));
}

/**
 * Resolves the path as the table has it. A path that does not exist here, or is in another namespace, stays as given.
 */
function resolved(path: Path): Path {
  try {
    return fromBytes(realpathSync(typeof path === 'string' ? path : Buffer.from(path), { encoding: 'buffer' }));
  } catch {
    return path;
  }
}

/**
 * Throws if the path does not exist: that is more likely a mistake than a place without mounts. Another namespace has
 * paths of its own.
 */
function refuseMissing(path: Path | undefined, namespace: unknown): void {
  if (path === undefined || namespace !== undefined) return;
  const { errno } = statPathSync(path, { flags: AT_SYMLINK_NOFOLLOW });
  if (errno !== ENOENT && errno !== ENOTDIR) return;
  throw new OverlayError({
    errno,
    reason: 'path-missing',
    what: `${quotePath(path)} does not exist`,
    path: pathString(path),
  });
}

async function run({ options, operands }: Parsed): Promise<Outcome> {
  if (operands.length > 1) throw new UsageError('ls takes one path');
  const [target] = operands;
  const types = (options['type'] as string[] | undefined) ?? (options['all'] === true ? undefined : ['overlay']);
  const filter: MountFilter & { encoding: 'buffer' } = {
    encoding: 'buffer',
    ...(types !== undefined && { type: types }),
    ...(target !== undefined && { target: options['namespace'] === undefined ? resolved(target) : target }),
    ...(options['layer'] !== undefined && { layer: options['layer'] as Path }),
    ...(options['namespace'] !== undefined && { namespace: options['namespace'] as Path }),
  };
  if (options['all'] === true && options['type'] !== undefined) {
    throw new UsageError('--type cannot be used with --all', 'Leave one of the two out.');
  }
  const entries = await listMounts(filter);
  if (entries.length === 0) {
    for (const path of [target, options['layer'] as Path | undefined]) refuseMissing(path, options['namespace']);
  }
  const isTerminal = process.stdout.isTTY === true;
  return {
    text: isTerminal ? treeText(entries, paintFor(isTerminal, process.env)) : linesText(entries),
    json: { mounts: toPlain(entries) },
  };
}

export const ls: Command = {
  about: 'Lists mounts, by default only overlays: on a terminal as a tree with their layers, else one on each line.',
  usage: ['[OPTION...] [PATH]'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('all', 'lists mounts of every type'),
        ownFlag('type', 'lists mounts of this type', { kind: 'names', isList: true }),
        ownFlag('layer', 'lists overlays that have this directory as a layer', { kind: 'path' }),
        ownFlag('namespace', 'works in another mount namespace: /proc/PID/ns/mnt', { kind: 'path' }),
      ],
    },
  ],
  notes: 'With PATH, lists the mounts at it and below it.',
  examples: ['overlayfs ls', 'overlayfs ls --layer /srv/base', 'overlayfs ls --all --json /srv'],
  run,
};
