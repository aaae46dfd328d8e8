/** OCI image layouts: directories with an index and blobs, as skopeo, buildah, umoci and docker make them. */
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { checkSignal, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { pause, run } from '../kernel/task.js';
import { type PathLike, pathString, quotePath, toAbsolute, toPath } from '../paths.js';
import { lockDirectory, unlock } from '../trees/lock.js';
import { checkSync, makeDirectories, type Sync, syncNames } from '../trees/synced.js';
import { explainSystemError } from '../verdicts.js';
import {
  type Descriptor,
  formatPlatform,
  type ImageConfig,
  type ImageDocument,
  invalid,
  isFor,
  isIndex,
  isManifest,
  isSamePlatform,
  type Manifest,
  type Origin,
  ownPlatform,
  type Platform,
  parseJson,
  TAG,
  toDocument,
  toIndex,
  toManifest,
  types,
  unknownType,
} from './documents.js';
import { ImageError } from './errors.js';

/** The most bytes of a document. */
const MOST = 16 * 2 ** 20;
/** The most indexes that may lead to a manifest. */
const DEEPEST = 4;

/** An image of a layout, for one platform. */
export interface Image {
  readonly layout: ImageLayout;
  readonly tag: string | undefined;
  /** The digest of its manifest. */
  readonly digest: string;
  readonly platform: Platform;
  readonly manifest: Manifest;
  /** Its configuration. */
  readonly document: ImageDocument;
  /** How to run it. */
  readonly config: ImageConfig;
  /** The lowest first. */
  readonly layers: readonly ImageLayer[];
}

export interface ImageLayer extends Descriptor {
  /** The digest of the uncompressed archive. */
  readonly diffId: string;
  /** The digest of this layer and all below: the name of its snapshot. */
  readonly chainId: string;
}

export interface FindOptions {
  /** The platform of an image in an index. Default: that of this process, such as `linux/amd64`. */
  readonly platform?: string | Platform | undefined;
}

export interface LayoutOptions {
  /**
   * `'end'`: a blob is on the disk before it gets its name, and its name before index.json has it, fsync(2). `'none'`: the
   * kernel writes both when it likes. Default: `'end'`.
   */
  sync?: Sync;
}

const layoutNames: ReadonlySet<string> = new Set(['sync']);

const sha256 = (data: string | Uint8Array): string => `sha256:${createHash('sha256').update(data).digest('hex')}`;

/** Returns the chain ids of layers: each is the digest of the one below and of the layer's own. */
export function toChainIds(diffIds: readonly string[]): string[] {
  const chain: string[] = [];
  for (const diffId of diffIds) {
    const below = chain.at(-1);
    chain.push(below === undefined ? diffId : sha256(`${below} ${diffId}`));
  }
  return chain;
}

export function checkPlatform(value: unknown): Platform {
  if (value === undefined) return ownPlatform();
  if (typeof value === 'string') {
    const [os = '', architecture = '', variant, ...rest] = value.split('/');
    if (os === '' || architecture === '' || rest.length > 0) {
      throw invalidArgumentValue('platform', value, "must be like 'linux/amd64' or 'linux/arm/v7'");
    }
    return { os, architecture, ...(variant !== undefined && { variant }) };
  }
  const { os, architecture } = (value ?? {}) as Partial<Platform>;
  if (typeof os === 'string' && typeof architecture === 'string') return value as Platform;
  throw invalidArgumentType('platform', "a text like 'linux/amd64', or { os, architecture }", value);
}

const hasCode = (error: unknown, code: string): boolean => (error as NodeJS.ErrnoException).code === code;

/** Reads a document that no descriptor describes. */
async function readDocument(path: string): Promise<Readonly<Record<string, unknown>>> {
  const found = await stat(path);
  if (!found.isFile() || found.size > MOST) throw invalid({ path }, `is not a file of at most ${MOST} bytes`);
  return parseJson(await readFile(path), { path });
}

/** Writes a file to a place of its own, and moves it to where it belongs, whole. */
async function writeWhole(
  temporary: string,
  write: (path: string) => Promise<void>,
  place: () => string | Promise<string>,
  syncs: boolean,
): Promise<void> {
  try {
    await write(temporary);
    const path = await place();
    await rename(temporary, path);
    if (syncs) await run(syncNames(toPath(dirname(path), 'dir')));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw explainSystemError(error, `write to the image layout, in ${quotePath(dirname(temporary))}`);
  }
}

const writeNew = (path: string, data: string | Uint8Array, syncs: boolean): Promise<void> =>
  writeFile(path, data, { flag: 'wx', mode: 0o644, flush: syncs });

const randomName = (): string => randomBytes(6).toString('hex');

/** Writes a document that no descriptor describes. */
const writeDocument = (path: string, value: object, syncs: boolean): Promise<void> =>
  writeWhole(
    `${path}.${randomName()}`,
    (written) => writeNew(written, JSON.stringify(value), syncs),
    () => path,
    syncs,
  );

/** A layout that was opened. It reads index.json anew each time, since other programs may change it. */
export class ImageLayout {
  /** The directory, as an absolute path. */
  readonly path: string;

  readonly #syncs: boolean;

  /** @internal */
  constructor(path: string, syncs: boolean) {
    this.path = path;
    this.#syncs = syncs;
  }

  /** Returns the tags in index.json. */
  async tags(): Promise<string[]> {
    const tags = (await this.#index()).flatMap(({ annotations }) => annotations?.[TAG] ?? []);
    return [...new Set(tags)];
  }

  /**
   * Returns the image with this tag, or with this digest. Without a tag, the layout has to have one image.
   *
   * @throws {ImageError} `ERR_IMAGE_NOT_FOUND`, `ERR_IMAGE_PLATFORM_MISSING`, `ERR_IMAGE_BLOB_MISSING`,
   * `ERR_IMAGE_DIGEST_MISMATCH`, `ERR_IMAGE_MEDIA_TYPE`, `ERR_IMAGE_INVALID`
   */
  async image(tag?: string, options: FindOptions = {}): Promise<Image> {
    if (tag !== undefined && typeof tag !== 'string') throw invalidArgumentType('tag', 'a string', tag);
    const platform = checkPlatform(options.platform);
    const index = await this.#index();
    const named = index.filter(
      ({ annotations, digest }) => tag === undefined || annotations?.[TAG] === tag || digest === tag,
    );
    const found =
      named.length > 0 || tag?.startsWith('sha256:') !== true ? named : await this.#findInner(index, tag, 0);
    const [first, second] = found;
    if (first === undefined || (tag === undefined && second !== undefined)) throw this.#notFound(tag, index);
    // Several descriptors of one tag are for several platforms.
    const chosen = found.length === 1 ? first : this.#choose(found, platform, tag);
    const { digest, manifest, platform: offered } = await this.#manifest(chosen, platform, 0);
    const { config: descriptor, layers } = manifest;
    const document = toDocument(...(await this.#json(descriptor, 'the configuration')));
    const diffIds = document.rootfs.diff_ids;
    if (diffIds.length !== layers.length) {
      throw new ImageError({
        code: 'ERR_IMAGE_INVALID',
        what: `the image has ${layers.length} layers, and its configuration names ${diffIds.length}`,
        hint: 'fetch or make the image anew',
        digest,
      });
    }
    // Many configurations leave the variant to the index.
    const variant = document.variant ?? offered?.variant;
    const own = { os: document.os, architecture: document.architecture, ...(variant !== undefined && { variant }) };
    if (!isFor(own, { os: platform.os, architecture: platform.architecture })) {
      throw this.#noPlatform(tag, platform, [own]);
    }
    const chain = toChainIds(diffIds);
    return {
      layout: this,
      tag: chosen.annotations?.[TAG] ?? tag,
      digest,
      platform: own,
      manifest,
      document,
      config: document.config ?? {},
      layers: layers.map((layer, i) => ({
        ...layer,
        diffId: diffIds[i] as string,
        chainId: chain[i] as string,
      })),
    };
  }

  /** Returns the images with this digest in indexes of platforms. */
  async #findInner(index: readonly Descriptor[], digest: string, depth: number): Promise<Descriptor[]> {
    const found: Descriptor[] = [];
    for (const one of depth === DEEPEST ? [] : index) {
      if (!isIndex(one.mediaType)) continue;
      const inner = toIndex(...(await this.#json(one, 'the index')));
      found.push(...inner.filter((other) => other.digest === digest));
      found.push(...(await this.#findInner(inner, digest, depth + 1)));
    }
    return found.slice(0, 1);
  }

  #notFound(tag: string | undefined, index: readonly Descriptor[]): ImageError {
    const tags = index.flatMap(({ annotations }) => annotations?.[TAG] ?? []);
    const which = tag === undefined ? `${index.length} images` : `no image ${quotePath(tag)}`;
    return new ImageError({
      code: 'ERR_IMAGE_NOT_FOUND',
      what: `the layout ${quotePath(this.path)} has ${which}`,
      hint: tags.length === 0 ? 'name one by its digest' : `name one of its tags: ${tags.slice(0, 20).join(', ')}`,
      path: this.path,
    });
  }

  #noPlatform(tag: string | undefined, wanted: Platform, offered: readonly Platform[]): ImageError {
    const others = [...new Set(offered.map(formatPlatform))].join(', ');
    return new ImageError({
      code: 'ERR_IMAGE_PLATFORM_MISSING',
      what: `the image${tag === undefined ? '' : ` ${quotePath(tag)}`} is not for ${formatPlatform(wanted)}`,
      hint: others === '' ? 'fetch the image for this platform' : `choose a platform that it has: ${others}`,
      path: this.path,
    });
  }

  #choose(found: readonly Descriptor[], platform: Platform, tag: string | undefined): Descriptor {
    const chosen = found.find((one) => one.platform !== undefined && isFor(one.platform, platform));
    // An entry without a platform may be an index, or the only image.
    const unnamed = found.find((one) => one.platform === undefined);
    const fit = chosen ?? unnamed;
    if (fit !== undefined) return fit;
    throw this.#noPlatform(
      tag,
      platform,
      found.flatMap((one) => one.platform ?? []),
    );
  }

  async #manifest(
    descriptor: Descriptor,
    platform: Platform,
    depth: number,
  ): Promise<{ digest: string; manifest: Manifest; platform: Platform | undefined }> {
    const { mediaType, digest } = descriptor;
    if (isManifest(mediaType)) {
      return {
        digest,
        platform: descriptor.platform,
        manifest: toManifest(...(await this.#json(descriptor, 'the manifest'))),
      };
    }
    if (!isIndex(mediaType) || depth === DEEPEST) {
      throw unknownType({ path: this.path, digest }, mediaType, `the image ${digest}`);
    }
    const inner = toIndex(...(await this.#json(descriptor, 'the index')));
    // Attestations have the platform unknown/unknown.
    const images = inner.filter(({ mediaType: type }) => isManifest(type) || isIndex(type));
    return this.#manifest(this.#choose(images, platform, descriptor.annotations?.[TAG]), platform, depth + 1);
  }

  async #index(): Promise<Descriptor[]> {
    const path = `${this.path}/index.json`;
    return toIndex(await readDocument(path), { path });
  }

  /** @internal The path of a blob. */
  pathOf(digest: string): string {
    return `${this.path}/blobs/${digest.replace(':', '/')}`;
  }

  /** @internal Throws if a blob is missing or has another size. */
  async checkBlob({ digest, size }: Descriptor, what: string): Promise<string> {
    const path = this.pathOf(digest);
    const found = await stat(path).catch((error: unknown) => {
      if (hasCode(error, 'ENOENT')) return undefined;
      throw error;
    });
    if (found?.isFile() !== true) {
      throw new ImageError({
        code: 'ERR_IMAGE_BLOB_MISSING',
        what: `${what} of the image is missing: ${digest}`,
        hint: 'copy the whole image into the layout again',
        path,
        digest,
      });
    }
    if (found.size !== size) throw mismatch(path, digest, what, `${found.size} bytes instead of ${size}`);
    return path;
  }

  async #json(descriptor: Descriptor, what: string): Promise<[Readonly<Record<string, unknown>>, Origin]> {
    const { digest, size } = descriptor;
    const path = await this.checkBlob(descriptor, what);
    const origin = { path, digest };
    if (size > MOST) {
      throw new ImageError({
        code: 'ERR_IMAGE_INVALID',
        what: `${what} has ${size} bytes, more than the ${MOST} that a document may have`,
        hint: 'fetch or make the image anew',
        ...origin,
      });
    }
    const bytes = await readFile(path);
    const actual = sha256(bytes);
    if (actual !== digest) throw mismatch(path, digest, what, `the digest ${actual}`);
    return [parseJson(bytes, origin), origin];
  }

  /** @internal Writes a document as a blob. */
  async writeJson(value: unknown, mediaType: string): Promise<Descriptor> {
    const bytes = Buffer.from(JSON.stringify(value));
    const digest = sha256(bytes);
    await this.#put(
      (path) => writeNew(path, bytes, this.#syncs),
      () => digest,
    );
    return { mediaType, digest, size: bytes.length };
  }

  /** @internal Writes a stream as a blob, whose digest is known only at its end. */
  async writeStream(stream: NodeJS.ReadableStream, digestOf: () => Promise<string>): Promise<void> {
    const write = (path: string): Promise<void> =>
      pipeline(stream, createWriteStream(path, { flags: 'wx', mode: 0o644, flush: this.#syncs } as object));
    await this.#put(write, digestOf);
  }

  #makeDirectory(path: string): Promise<void> {
    return run(makeDirectories(path, 0o777, this.#syncs));
  }

  async #put(write: (path: string) => Promise<void>, digestOf: () => string | Promise<string>): Promise<void> {
    const directory = `${this.path}/blobs/sha256`;
    await this.#makeDirectory(directory);
    await writeWhole(
      `${directory}/.overlayfs-${randomName()}`,
      write,
      async () => this.pathOf(await digestOf()),
      this.#syncs,
    );
  }

  /** @internal Throws if an image cannot be written: files are made and removed in the directories that it changes. */
  async checkWritable(): Promise<void> {
    const blobs = `${this.path}/blobs/sha256`;
    await this.#makeDirectory(blobs);
    for (const directory of [blobs, this.path]) {
      const path = `${directory}/.overlayfs-${randomName()}`;
      try {
        await writeNew(path, Buffer.alloc(4096), false);
      } finally {
        await rm(path, { force: true });
      }
    }
  }

  /** @internal Makes what an empty layout has. */
  async initialize(): Promise<void> {
    await this.#makeDirectory(`${this.path}/blobs/sha256`);
    const lock = await this.#lock(undefined);
    try {
      const index = { schemaVersion: 2, mediaType: types.index, manifests: [] };
      for (const [name, value] of [
        ['index.json', index],
        ['oci-layout', { imageLayoutVersion: '1.0.0' }],
      ] as const) {
        const path = `${this.path}/${name}`;
        if (!existsSync(path)) await writeDocument(path, value, this.#syncs);
      }
    } finally {
      if (lock !== undefined) await run(unlock(lock));
    }
  }

  /**
   * @internal Adds an image to index.json, in the place of the one that had the tag. If an index of platforms has the tag,
   * the image takes the place of that for its platform.
   */
  async tag(descriptor: Descriptor, tag: string, platform: Platform, signal?: AbortSignal): Promise<void> {
    const lock = await this.#lock(checkSignal(signal));
    try {
      const path = `${this.path}/index.json`;
      const index = await readDocument(path);
      const manifests = toIndex(index, { path });
      const all = index['manifests'] as readonly object[];
      const isTagged = ({ annotations }: Descriptor): boolean => annotations?.[TAG] === tag;
      const inner = manifests.find((one) => isTagged(one) && isIndex(one.mediaType));
      const added =
        inner === undefined ? { ...descriptor, platform } : await this.#addTo(inner, { ...descriptor, platform });
      const isReplaced = (one: Descriptor): boolean =>
        isTagged(one) && (one.platform === undefined || isSamePlatform(one.platform, platform));
      const others = all.filter((_, i) => !isReplaced(manifests[i] as Descriptor));
      await writeDocument(
        path,
        { ...index, manifests: [...others, { ...added, annotations: { [TAG]: tag } }] },
        this.#syncs,
      );
    } finally {
      if (lock !== undefined) await run(unlock(lock));
    }
  }

  /** Writes an index of platforms anew, with this image in the place of that for its platform. */
  async #addTo(index: Descriptor, image: Descriptor & { readonly platform: Platform }): Promise<Descriptor> {
    const [document, origin] = await this.#json(index, 'the index');
    const manifests = toIndex(document, origin);
    const all = document['manifests'] as readonly object[];
    const isReplaced = ({ platform, digest }: Descriptor): boolean =>
      digest === image.digest || (platform !== undefined && isSamePlatform(platform, image.platform));
    const replaced = new Set(manifests.filter(isReplaced).map(({ digest }) => digest));
    // An attestation names its image.
    const goes = ({ digest, annotations }: Descriptor): boolean =>
      replaced.has(digest) || replaced.has(annotations?.['vnd.docker.reference.digest'] ?? '');
    const others = all.filter((_, i) => !goes(manifests[i] as Descriptor));
    return this.writeJson({ ...document, manifests: [...others, image] }, index.mediaType);
  }

  /** Waits for others that change index.json. */
  async #lock(signal: AbortSignal | undefined) {
    for (;;) {
      const lock = await run(lockDirectory(this.path));
      if (lock !== 'taken') return lock;
      await run(pause(20, signal));
    }
  }

  /** @internal A stream of a blob. */
  read(digest: string): NodeJS.ReadableStream {
    return createReadStream(this.pathOf(digest));
  }
}

export function mismatch(path: string, digest: string, what: string, has: string, cause?: unknown): ImageError {
  return new ImageError(
    {
      code: 'ERR_IMAGE_DIGEST_MISMATCH',
      what: `${what} ${digest} is damaged: it has ${has}`,
      hint: 'copy the image into the layout again',
      path,
      digest,
    },
    cause === undefined ? undefined : { cause },
  );
}

/** Takes DIR:TAG apart. Both may have colons: the longest path that exists is the directory. */
export function splitReference(name: string): { readonly layout: string; readonly tag: string | undefined } {
  if (existsSync(name)) return { layout: name, tag: undefined };
  const colons = Array.from(name.matchAll(/:/g), ({ index }) => index);
  const at = colons.findLast((colon) => existsSync(name.slice(0, colon))) ?? colons[0] ?? 0;
  return at === 0 ? { layout: name, tag: undefined } : { layout: name.slice(0, at), tag: name.slice(at + 1) };
}

/**
 * Opens an OCI image layout: a directory with `oci-layout`, `index.json` and `blobs`. skopeo, buildah and umoci write
 * one; so does `docker save`, as an archive to be unpacked first. It may hold images of Docker's media types too.
 *
 * @throws {ImageError} `ERR_IMAGE_NOT_FOUND`: the directory is no layout; `ERR_IMAGE_INVALID`
 */
export async function openLayout(dir: PathLike, options?: LayoutOptions): Promise<ImageLayout> {
  const syncs = checkSync(toOptions(options, layoutNames).sync);
  const path = pathString(toAbsolute(toPath(dir, 'dir')));
  const marker = `${path}/oci-layout`;
  const fields = {
    code: 'ERR_IMAGE_NOT_FOUND',
    hint: 'name the directory that has oci-layout and index.json; of an archive, skopeo copy makes one',
    path,
  } as const;
  try {
    for (const file of [marker, `${path}/index.json`]) await stat(file);
  } catch (cause) {
    throw new ImageError({ ...fields, what: `${quotePath(path)} is no OCI image layout` }, { cause });
  }
  const { imageLayoutVersion } = await readDocument(marker);
  if (typeof imageLayoutVersion !== 'string' || !imageLayoutVersion.startsWith('1.')) {
    throw new ImageError({
      ...fields,
      what: `${quotePath(path)} is a layout of the version ${quotePath(String(imageLayoutVersion))}, and not of 1.x`,
      hint: 'use a later version of this library',
    });
  }
  return new ImageLayout(path, syncs);
}

/** Makes an empty layout, or opens one that exists. */
export async function createLayout(dir: PathLike, options?: LayoutOptions): Promise<ImageLayout> {
  const syncs = checkSync(toOptions(options, layoutNames).sync);
  const path = pathString(toAbsolute(toPath(dir, 'dir')));
  await new ImageLayout(path, syncs).initialize();
  return openLayout(path, options);
}
