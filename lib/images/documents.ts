/** The documents of an image: index, manifest and configuration, as the OCI image specification has them. Pure. */
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { quotePath } from '../paths.js';
import { ImageError, type ImageErrorFields } from './errors.js';
import { SIGNAL_FORM, toSignalNumber } from './stop.js';

/** Names a blob: its type, its digest and its size. */
export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly platform?: Platform;
}

/** The platform of an image, in the words of Go. */
export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string;
}

export interface Manifest {
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
}

/** How to run an image. */
export interface ImageConfig {
  readonly User?: string;
  readonly Env?: readonly string[];
  readonly Entrypoint?: readonly string[] | null;
  readonly Cmd?: readonly string[] | null;
  readonly Volumes?: Readonly<Record<string, unknown>> | null;
  readonly WorkingDir?: string;
  readonly Labels?: Readonly<Record<string, string>> | null;
  readonly StopSignal?: string;
}

export interface History {
  readonly created?: string;
  readonly created_by?: string;
  readonly comment?: string;
  readonly empty_layer?: boolean;
}

/** The configuration of an image. */
export interface ImageDocument extends Platform {
  readonly created?: string;
  readonly config?: ImageConfig;
  readonly rootfs: { readonly type: 'layers'; readonly diff_ids: readonly string[] };
  readonly history?: readonly History[];
}

/** The annotation of a descriptor in index.json that holds its tag. */
export const TAG = 'org.opencontainers.image.ref.name';

export const types = {
  index: 'application/vnd.oci.image.index.v1+json',
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  config: 'application/vnd.oci.image.config.v1+json',
  layer: 'application/vnd.oci.image.layer.v1.tar',
} as const;

const indexTypes: ReadonlySet<string> = new Set([
  types.index,
  'application/vnd.docker.distribution.manifest.list.v2+json',
]);
const manifestTypes: ReadonlySet<string> = new Set([
  types.manifest,
  'application/vnd.docker.distribution.manifest.v2+json',
]);
const configTypes: ReadonlySet<string> = new Set([types.config, 'application/vnd.docker.container.image.v1+json']);
const LAYER =
  /^application\/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?|docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?)$/;

type Record_ = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Record_ =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The place of a document, for errors. */
export interface Origin {
  readonly path: string;
  readonly digest?: string;
}

export function invalid(origin: Origin, rule: string): ImageError {
  const fields: ImageErrorFields = {
    code: 'ERR_IMAGE_INVALID',
    what: `the document ${quotePath(origin.path)} ${rule}`,
    hint: 'fetch or make the image anew',
    ...origin,
  };
  return new ImageError(fields);
}

export function unknownType(origin: Origin, mediaType: string, what: string): ImageError {
  return new ImageError({
    code: 'ERR_IMAGE_MEDIA_TYPE',
    what: `${what} has the type ${quotePath(mediaType.slice(0, 200))}, which this library does not read`,
    hint: 'convert the image: skopeo copy --format oci',
    ...origin,
  });
}

const DIGEST = /^sha256:[0-9a-f]{64}$/;

function toDigest(value: unknown, origin: Origin, name: string): string {
  if (typeof value === 'string' && DIGEST.test(value)) return value;
  throw invalid(origin, `has no digest of sha256 in ${name}: ${quotePath(String(value).slice(0, 200))}`);
}

const isStrings = (value: unknown): boolean =>
  isObject(value) && Object.values(value).every((v) => typeof v === 'string');

function toDescriptor(value: unknown, origin: Origin, name: string): Descriptor {
  if (!isObject(value)) throw invalid(origin, `has no object in ${name}`);
  const { mediaType, size, annotations, platform } = value;
  const digest = toDigest(value['digest'], origin, `${name}.digest`);
  if (typeof mediaType !== 'string') throw invalid(origin, `has no text in ${name}.mediaType`);
  if (!Number.isSafeInteger(size) || (size as number) < 0) throw invalid(origin, `has no size in ${name}.size`);
  return {
    mediaType,
    digest,
    size: size as number,
    ...(isStrings(annotations) && { annotations: annotations as Record<string, string> }),
    ...(isObject(platform) && { platform: toPlatform(platform) }),
  };
}

function toPlatform({ os, architecture, variant }: Record_): Platform {
  return {
    os: String(os),
    architecture: String(architecture),
    ...(typeof variant === 'string' && variant !== '' && { variant }),
  };
}

function toList(value: unknown, origin: Origin, name: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw invalid(origin, `has no list in ${name}`);
}

export function parseJson(bytes: Buffer, origin: Origin): Record_ {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString());
  } catch (error) {
    throw invalid(origin, `is no JSON: ${(error as Error).message}`);
  }
  if (!isObject(value)) throw invalid(origin, 'holds no object');
  return value;
}

export function toIndex(value: Record_, origin: Origin): Descriptor[] {
  return toList(value['manifests'], origin, 'manifests').map((one, i) => toDescriptor(one, origin, `manifests[${i}]`));
}

export function toManifest(value: Record_, origin: Origin): Manifest {
  const config = toDescriptor(value['config'], origin, 'config');
  if (!configTypes.has(config.mediaType)) throw unknownType(origin, config.mediaType, 'the configuration of the image');
  const layers = toList(value['layers'], origin, 'layers').map((one, i) => toDescriptor(one, origin, `layers[${i}]`));
  for (const { mediaType, digest } of layers) {
    if (!LAYER.test(mediaType)) throw unknownType({ ...origin, digest }, mediaType, `the layer ${digest}`);
  }
  return { config, layers };
}

const isText = (value: unknown): boolean => typeof value === 'string' && !value.includes('\0');
const isTexts = (value: unknown): boolean => Array.isArray(value) && value.every(isText);

/** The fields of `config`, and what each has to be if it is there. */
const configFields: Readonly<Record<keyof ImageConfig, (value: unknown) => boolean>> = {
  User: isText,
  Env: isTexts,
  Entrypoint: isTexts,
  Cmd: isTexts,
  Volumes: isObject,
  WorkingDir: isText,
  Labels: isStrings,
  StopSignal: isText,
};

/** Returns the name of a field that is not as it has to be. */
function wrongField(config: Record_): string | undefined {
  const isWrong = ([name, isRight]: [string, (value: unknown) => boolean]): boolean =>
    config[name] !== undefined && config[name] !== null && !isRight(config[name]);
  return Object.entries(configFields).find(isWrong)?.[0];
}

/** Returns the configuration that a caller gives. */
export function checkConfig(value: unknown): ImageConfig {
  if (value === undefined) return {};
  if (!isObject(value)) throw invalidArgumentType('config', 'an object', value);
  const field = wrongField(value);
  if (field !== undefined) {
    throw invalidArgumentType(`config.${field}`, 'as in an image, without NUL bytes', value[field]);
  }
  const { StopSignal } = value as ImageConfig;
  if (StopSignal && toSignalNumber(StopSignal) === undefined) {
    throw invalidArgumentValue('config.StopSignal', StopSignal, `must be ${SIGNAL_FORM}`);
  }
  return value;
}

export function toDocument(value: Record_, origin: Origin): ImageDocument {
  const { rootfs, config } = value;
  if (!isObject(rootfs)) throw invalid(origin, 'has no object in rootfs');
  const ids = toList(rootfs['diff_ids'], origin, 'rootfs.diff_ids');
  for (const [i, id] of ids.entries()) toDigest(id, origin, `rootfs.diff_ids[${i}]`);
  if (config !== undefined && config !== null) {
    if (!isObject(config)) throw invalid(origin, 'has no object in config');
    const field = wrongField(config);
    if (field !== undefined) throw invalid(origin, `has a wrong config.${field}`);
  }
  return { ...value, ...toPlatform(value) } as unknown as ImageDocument;
}

export const isIndex = (mediaType: string): boolean => indexTypes.has(mediaType);
export const isManifest = (mediaType: string): boolean => manifestTypes.has(mediaType);

/** Go's words for Node's architectures. */
const architectures: Readonly<Record<string, string>> = { x64: 'amd64', ia32: '386', arm64: 'arm64', arm: 'arm' };

export const ownPlatform = (): Platform => ({
  os: 'linux',
  architecture: architectures[process.arch] ?? process.arch,
});

export const formatPlatform = ({ os, architecture, variant }: Platform): string =>
  [os, architecture, ...(variant === undefined ? [] : [variant])].join('/');

/** Returns whether an image for `offered` is one for `wanted`: its variant counts only if one is wanted. */
export function isFor(offered: Platform, wanted: Platform): boolean {
  const isSame = offered.os === wanted.os && offered.architecture === wanted.architecture;
  return isSame && (wanted.variant === undefined || wanted.variant === offered.variant);
}

/** Returns whether an image takes the place of another one in an index. A variant that one of them leaves out is no difference. */
export function isSamePlatform(one: Platform, other: Platform): boolean {
  const isFree = one.variant === undefined || other.variant === undefined;
  return one.os === other.os && one.architecture === other.architecture && (isFree || one.variant === other.variant);
}
