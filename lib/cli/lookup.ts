/** `overlayfs lookup` */
import { lookup as findPath, type LayerLookup } from '../layers/lookup.js';
import { formatBytes, quotePath, toBytes } from '../paths.js';
import type { Command, Outcome, Parsed } from './command.js';
import { NO } from './errors.js';
import { type LayerFlags, layerFlags, mountedAt } from './layers.js';
import { UsageError } from './usage-error.js';

/** Describes the entry of one layer. */
function describe(
  { role, type, path, opaque, metacopy, redirect, hiddenBy }: LayerLookup<Buffer>,
  asked: Buffer,
  layers: readonly LayerLookup<Buffer>[],
): string {
  const words = [
    role,
    ...(type === undefined || role === 'whiteout' ? [] : [type]),
    ...(opaque ? ['opaque'] : []),
    ...(metacopy ? ['metacopy'] : []),
    ...(redirect === undefined ? [] : [`redirect to ${formatBytes(redirect)}`]),
    ...(path.equals(asked) || role === 'nothing' ? [] : [`at ${formatBytes(path)}`]),
  ];
  if (hiddenBy === undefined) return words.join(', ');
  const by = `by ${hiddenBy.as} ${formatBytes(hiddenBy.path)} in ${formatBytes(layers[hiddenBy.layer]?.layer ?? '')}`;
  return `${words.join(', ')} ${by}`;
}

async function run({ options, operands: [first = '', second] }: Parsed<LayerFlags>): Promise<Outcome> {
  const own = options.lowerdir !== undefined || options.datadir !== undefined;
  const path = own ? first : second;
  if (path === undefined || (own && second !== undefined)) {
    throw new UsageError('name a mounted overlay and a path in it, or name layers with --lowerdir and a path in them');
  }
  const layers = own ? options : await mountedAt(first);
  if (layers === undefined) throw new UsageError(`no overlay is mounted at ${quotePath(first)}`);
  const found = await findPath(layers, path, { encoding: 'buffer' });
  const names = Buffer.from(toBytes(path)).toString('latin1').split('/');
  const asked = Buffer.from(names.filter((name) => name !== '' && name !== '.').join('/'), 'latin1');
  const lines = found.layers.map((layer) => `${formatBytes(layer.layer)}: ${describe(layer, asked, found.layers)}\n`);
  return { text: lines.join(''), json: { ...found }, exitCode: found.layer === undefined ? NO : 0 };
}

export const lookup: Command<LayerFlags> = {
  about:
    'Says which layer of an overlay answers for PATH, and what each other layer has there. PATH counts from the root of ' +
    'the overlay.',
  operands: '<MOUNTPOINT> [PATH]',
  forms: ['[OPTION...] MOUNTPOINT PATH', '[OPTION...] --lowerdir DIR... PATH'],
  groups: [{ title: 'options', flags: layerFlags }],
  notes: 'The first --lowerdir names the topmost layer, which may be an upper.',
  no: 'the overlay has nothing at PATH',
  examples: [
    'overlayfs lookup /srv/merged etc/motd',
    'overlayfs lookup --lowerdir /srv/upper --lowerdir /srv/base etc/motd',
  ],
  run,
};
