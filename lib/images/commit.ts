/** Containers committed: what one has changed becomes the next layer of an image. */

import { checkEpoch, checkPackOptions, type LayerArchive, type PackOptions, pack } from '../archives/create.js';
import type { OwnerMaps } from '../archives/owner-maps.js';
import { checkText, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { needsUserXattr } from '../features/probe.js';
import { ownIds } from '../namespaces/user-namespace.js';
import { toRootMap } from '../rootless/sub-ids.js';
import { layersOf } from '../snapshots/mount-all.js';
import { type Snapshotter, unless } from '../snapshots/snapshotter.js';
import {
  checkConfig,
  type Descriptor,
  type History,
  type ImageConfig,
  type ImageDocument,
  type Platform,
  types,
} from './documents.js';
import { checkPlatform, type Image, type ImageLayout, toChainIds } from './layout.js';

export interface CommitImageOptions
  extends Pick<PackOptions, 'compression' | 'level' | 'sourceDateEpoch' | 'owners' | 'onProgress' | 'signal'> {
  /** The tag of the new image. An image that has it loses it; an index of platforms loses its image of this platform. */
  readonly tag: string;
  /** Changes to the configuration, such as `{ Cmd: ['redis-server'] }`. */
  readonly config?: ImageConfig | undefined;
  /** How the layer was made, for the history of the image. */
  readonly createdBy?: string | undefined;
  readonly comment?: string | undefined;
}

const known: ReadonlySet<string> = new Set<keyof CommitImageOptions>([
  'tag',
  'config',
  'createdBy',
  'comment',
  'compression',
  'level',
  'sourceDateEpoch',
  'owners',
  'onProgress',
  'signal',
]);

/** The ids of this process become those of root: a plain user's container has no others. */
function ownersOfPlainUser(): OwnerMaps | undefined {
  const { uid, gid } = ownIds();
  return uid === 0 ? undefined : { uidMap: toRootMap(uid, []), gidMap: toRootMap(gid, []) };
}

/** Returns the layer's type in the words of OCI: a manifest does not mix both. */
const toOci = (layer: Descriptor): Descriptor => ({
  ...layer,
  mediaType: layer.mediaType.replace(/^application\/vnd\.docker\.image\.rootfs\..*?tar(?:\.(\w+))?$/, (_, packed) =>
    packed === undefined ? types.layer : `${types.layer}+${packed}`,
  ),
});

/** Returns the history of an image, which has one entry for each layer: other programs refuse an image of another number. */
function historyOf({ history = [], rootfs }: ImageDocument): readonly History[] {
  const count = rootfs.diff_ids.length;
  const isWhole = history.filter(({ empty_layer: isEmpty }) => isEmpty !== true).length === count;
  return isWhole ? history : Array.from({ length: count }, () => ({ comment: 'a layer without history' }));
}

/** Writes an archive as a blob. */
async function writeLayer(layout: ImageLayout, archive: LayerArchive): Promise<Descriptor & { diffId: string }> {
  await layout.writeStream(archive, async () => (await archive.summary).digest);
  const { diffId, digest, size, compression } = await archive.summary;
  const mediaType = compression === 'none' ? types.layer : `${types.layer}+${compression}`;
  return { mediaType, digest, size, diffId };
}

interface Written {
  readonly document: object;
  readonly layers: readonly Descriptor[];
  readonly tag: string;
  readonly platform: Platform;
  readonly signal?: AbortSignal | undefined;
}

/** Writes configuration and manifest, and the tag last: a failure leaves unused blobs at most. */
async function writeImage(layout: ImageLayout, written: Written): Promise<Image> {
  const { document, layers, tag, platform, signal } = written;
  const config = await layout.writeJson(document, types.config);
  const descriptors = layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size }));
  const manifest = { schemaVersion: 2, mediaType: types.manifest, config, layers: descriptors };
  const descriptor = await layout.writeJson(manifest, types.manifest);
  await layout.tag(descriptor, tag, platform, signal);
  return layout.image(descriptor.digest, { platform });
}

const checkTag = (tag: unknown): string => {
  if (typeof tag === 'string' && /^[\w][\w.:/@-]{0,254}$/.test(tag)) return tag;
  throw invalidArgumentType('tag', 'a tag of letters, digits and the characters _.:/@-', tag);
};

/** Returns the time of an image in the form of its configuration. */
function toTime(epoch: number | undefined): string {
  const seconds = checkEpoch(epoch);
  return (seconds === undefined ? new Date() : new Date(seconds * 1000)).toISOString();
}

export interface CreateImageOptions {
  readonly tag: string;
  readonly config?: ImageConfig | undefined;
  /** Default: that of this process. */
  readonly platform?: Platform | undefined;
  /** The time of the image, in seconds since 1970. Default: now. */
  readonly sourceDateEpoch?: number | undefined;
}

const knownOfNew: ReadonlySet<string> = new Set<keyof CreateImageOptions>([
  'tag',
  'config',
  'platform',
  'sourceDateEpoch',
]);

/**
 * Makes an image of layers, the lowest first, as `pack` packs them: writes them, the configuration, the manifest
 * and the tag into the layout.
 *
 * @throws {OverlayError} as `pack`
 */
export async function createImage(
  layout: ImageLayout,
  layers: readonly LayerArchive[],
  given: CreateImageOptions,
): Promise<Image> {
  const options = toOptions(given, knownOfNew);
  const tag = checkTag(options.tag);
  const config = checkConfig(options.config);
  const platform = checkPlatform(options.platform);
  const created = toTime(options.sourceDateEpoch);
  if (!Array.isArray(layers)) throw invalidArgumentType('layers', 'a list of archives', layers);
  const written: (Descriptor & { diffId: string })[] = [];
  for (const layer of layers) written.push(await writeLayer(layout, layer));
  const document = {
    ...platform,
    created,
    config,
    rootfs: { type: 'layers', diff_ids: written.map(({ diffId }) => diffId) },
    history: written.map(() => ({ created, created_by: 'overlayfs' })),
  };
  return writeImage(layout, { document, layers: written, tag, platform });
}

/** @internal Checks the options, before the work that is to be committed begins. */
export function checkCommitImageOptions(given: CommitImageOptions) {
  const { tag, config, createdBy = 'overlayfs', comment, compression = 'gzip', ...rest } = toOptions(given, known);
  const packing = { ...rest, compression };
  const { signal } = checkPackOptions(packing);
  const entry = {
    created: toTime(rest.sourceDateEpoch),
    created_by: checkText(createdBy, 'createdBy'),
    ...(comment !== undefined && { comment: checkText(comment, 'comment') }),
  };
  return { tag: checkTag(tag), config: checkConfig(config), entry, packing, signal };
}

/**
 * Commits a container: packs what the active snapshot `key` has changed as one more layer, writes the configuration, the
 * manifest and the tag of the new image into the layout of `image`, and commits the snapshot, so that the new image is
 * unpacked already. Unmount the container before. A failure before the tag leaves unused blobs in the layout at most; one
 * after it leaves a complete image that is not unpacked.
 *
 * @throws {ImageError} as `ImageLayout.image`
 * @throws {OverlayError} as `pack`
 * @throws {SnapshotError} as `Snapshotter.mounts` and `commit`
 */
export async function commitImage(
  image: Image,
  snapshotter: Snapshotter,
  key: string,
  given: CommitImageOptions,
): Promise<Image> {
  const { tag, config, entry, packing, signal } = checkCommitImageOptions(given);
  const { layout, document, manifest, platform } = image;
  const { kind, parent } = await snapshotter.stat(key);
  // Its changes are those to the files of its parent.
  if (kind !== 'active' || parent !== image.layers.at(-1)?.chainId) {
    const found = `${kind === 'active' ? 'an' : 'a'} ${kind} one, of ${parent === '' ? 'nothing' : parent}`;
    throw invalidArgumentValue('key', key, `must be an active snapshot of the image, and not ${found}`);
  }
  const { upper, lowers } = layersOf(await snapshotter.mounts(key));
  const maps = packing.owners ?? ownersOfPlainUser();
  const layer = await writeLayer(
    layout,
    pack(
      { upperdir: upper, lowerdir: lowers, userxattr: needsUserXattr() },
      { ...packing, ...(maps !== undefined && { owners: maps }) },
    ),
  );
  const diffIds = [...document.rootfs.diff_ids, layer.diffId];
  const committed = await writeImage(layout, {
    document: {
      ...document,
      created: entry.created,
      config: { ...document.config, ...config },
      rootfs: { type: 'layers', diff_ids: diffIds },
      history: [...historyOf(document), entry],
    },
    layers: [...manifest.layers.map(toOci), layer],
    tag,
    platform,
    signal,
  });
  const name = toChainIds(diffIds).at(-1) as string;
  const isNew = await unless(
    'ERR_SNAPSHOT_ALREADY_EXISTS',
    snapshotter.commit(key, { name }).then(() => true),
  );
  // Another container has made the same changes.
  if (isNew === undefined) await snapshotter.remove(key);
  return committed;
}
