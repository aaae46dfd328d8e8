/** `overlayfs ls` */
import { realpathSync } from 'node:fs';
import { ENOENT, ENOTDIR } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { AT_SYMLINK_NOFOLLOW } from '../kernel/constants.js';
import { statPathSync } from '../kernel/stat.js';
import type { MountEntry } from '../mount-table/entry.js';
import { listMounts } from '../mount-table/list.js';
import { formatBytes, fromBytes, type Path, pathString, quotePath, toBytes } from '../paths.js';
import { type Command, namespaceFlag, type Outcome, type Parsed, type Row } from './command.js';
import { ownFlag } from './flags.js';
import { UsageError } from './usage-error.js';

/** Returns text for one column: blanks, and commas in a list, are octal escapes, as in the mount table. */
export const toColumn = (text: Path, isInList = false): string =>
  formatBytes(text).replaceAll(isInList ? /[ ,]/g : / /g, (one) => `\\0${one.charCodeAt(0).toString(8)}`) || '-';

/** Returns the options of the mount in the words of mount(8). */
function attributesOf({ flags, root, propagation }: MountEntry<Buffer>): string {
  return [
    flags.readonly ? 'ro' : 'rw',
    ...(['nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime', 'idmapped'] as const).filter((name) => flags[name]),
    flags.atime,
    ...(propagation.peerGroup === undefined ? [] : [`shared:${propagation.peerGroup}`]),
    ...(propagation.master === undefined ? [] : [`master:${propagation.master}`]),
    ...(propagation.unbindable ? ['unbindable'] : []),
    ...(root.length === 1 ? [] : [`root=${toColumn(root, true)}`]),
  ].join(',');
}

/** Returns the layers of an overlay, topmost first. */
function layersOf({ overlay }: MountEntry<Buffer>): string {
  if (overlay === undefined) return '-';
  const { upperdir, workdir, lowerdir, datadir } = overlay;
  return [
    ...(upperdir === undefined ? [] : [['upperdir', upperdir] as const]),
    ...(workdir === undefined ? [] : [['workdir', workdir] as const]),
    ...lowerdir.map((path) => ['lowerdir', path] as const),
    ...datadir.map((path) => ['datadir', path] as const),
  ]
    .map(([name, path]) => `${name}=${toColumn(path, true)}`)
    .join(',');
}

/** Returns the columns of a mount: target, type, source, options, layers. */
export const toRow = (entry: MountEntry<Buffer>): Row => ({
  text: `${[entry.target, entry.type, entry.source].map((text) => toColumn(text)).join(' ')} ${attributesOf(entry)} ${layersOf(entry)}\n`,
  json: entry,
});

/** Resolves the path as the table has it. A path that does not exist here, or is in another namespace, stays as given. */
function resolved(path: Path): Path {
  try {
    return fromBytes(realpathSync(Buffer.from(toBytes(path)), { encoding: 'buffer' }));
  } catch {
    return path;
  }
}

/** Throws if the path does not exist: that is more likely a mistake than a place without mounts. */
function refuseMissing(path: Path): void {
  const { errno } = statPathSync(path, { flags: AT_SYMLINK_NOFOLLOW });
  if (errno !== ENOENT && errno !== ENOTDIR) return;
  const what = `${quotePath(path)} does not exist`;
  throw new OverlayError({ errno, reason: 'path-missing', what, path: pathString(path) });
}

export interface FilterFlags {
  readonly all?: boolean;
  readonly type?: string[];
  readonly layer?: Path;
  readonly namespace?: Path;
}

/** The flags that select mounts. */
export const filterFlags = [
  ownFlag('all', 'mounts of every type', { short: 'a' }),
  ownFlag('type', 'mounts of this type', { short: 't', kind: 'text', isList: true, default: 'overlay' }),
  ownFlag('layer', 'overlays that have this directory as a layer', { kind: 'path', default: 'none' }),
  namespaceFlag,
];

/** Returns the conditions for the mounts at and below a path. */
export function toFilter({ all, type, layer, namespace }: FilterFlags, target: Path | undefined) {
  if (all && type !== undefined) throw new UsageError('--type cannot be used with --all', 'Leave one of the two out.');
  return {
    encoding: 'buffer' as const,
    ...(!all && { type: type ?? 'overlay' }),
    ...(target !== undefined && { target: namespace === undefined ? resolved(target) : target }),
    ...(layer !== undefined && { layer }),
    ...(namespace !== undefined && { namespace }),
  };
}

async function run({ options, operands: [target] }: Parsed<FilterFlags>): Promise<Outcome> {
  const entries = await listMounts(toFilter(options, target));
  // Another namespace has paths of its own.
  if (entries.length === 0 && options.namespace === undefined) {
    for (const path of [target, options.layer]) if (path !== undefined) refuseMissing(path);
  }
  return { rows: entries.map(toRow) };
}

export const ls: Command<FilterFlags> = {
  about: 'Lists mounts, by default overlays: target, type, source, options and layers, a line each.',
  operands: '[PATH]',
  groups: [{ title: 'options', flags: filterFlags }],
  notes: 'With PATH, lists the mounts at it and below it. A blank in a column is \\040, as in the mount table.',
  no: 'no mount was found',
  isNoIfEmpty: true,
  examples: ['overlayfs ls', 'overlayfs ls --layer /srv/base', 'overlayfs ls -a --json /srv'],
  run,
};
