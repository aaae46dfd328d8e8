/** `overlayfs lookup` */
import { lookup as findPath, type LayerLookup, type LookupOptions } from '../layers/lookup.js';
import { formatBytes } from '../paths.js';
import { type Command, libraryOptions, type Outcome } from './command.js';
import { hasLayers, layerFlags, mountedLayers } from './layers.js';
import type { Parsed } from './parse.js';
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

async function run(parsed: Parsed): Promise<Outcome> {
  const { options, operands } = parsed;
  const own = hasLayers(parsed);
  const [first, second, ...more] = operands;
  const path = own ? first : second;
  if (path === undefined || more.length > 0 || (own && second !== undefined)) {
    throw new UsageError('name a mounted overlay and a path in it, or name layers with --lower and a path in them');
  }
  const given = libraryOptions<LookupOptions>(options, ['lowerdir', 'datadir']);
  const mount = own
    ? {
        options: { lowerdir: (options['lowerdir'] ?? []) as string[], datadir: (options['datadir'] ?? []) as string[] },
      }
    : await mountedLayers(first ?? '');
  if (mount === undefined) throw new UsageError(`no overlay is mounted at '${formatBytes(first ?? '')}'`);
  const found = await findPath(mount, path, { ...given, encoding: 'buffer' });
  const asked = Buffer.from(
    Buffer.from(path)
      .toString('latin1')
      .split('/')
      .filter((name) => name !== '' && name !== '.')
      .join('/'),
    'latin1',
  );
  const lines = found.layers.map((layer) => `${formatBytes(layer.layer)}: ${describe(layer, asked, found.layers)}\n`);
  return { text: lines.join(''), json: { ...found }, exitCode: found.layer === undefined ? 1 : 0 };
}

export const lookup: Command = {
  about:
    'Says which layer of an overlay answers for PATH, and what each other layer has there. PATH counts from the root of ' +
    'the overlay.',
  usage: ['[OPTION...] MOUNTPOINT PATH', '[OPTION...] --lower DIR... PATH'],
  groups: [{ title: 'options', flags: layerFlags }],
  notes:
    'The first --lower names the topmost layer, which may be an upper. The exit code is 1 if the overlay has nothing at PATH.',
  examples: ['overlayfs lookup /srv/merged etc/motd', 'overlayfs lookup --lower /srv/upper --lower /srv/base etc/motd'],
  run,
};
