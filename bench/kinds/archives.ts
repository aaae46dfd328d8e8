/** Layer archives: unpacked on a new file system each time, and packed. Digests are always part of ours. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { apply, pack } from 'overlayfs/layers';
import { jobRow, timed } from '../job.js';
import { atMost, type Kind } from '../kind.js';
import type { Peers } from '../peers.js';
import type { FileSystem, Site } from '../stage.js';

const DIRECTORIES = 2_000;
const FILES_EACH = 10;
const MEDIAN = 2_300;
const SPREAD = 1.9;
const LARGEST = 8_000_000;
const LARGE_FILES = 8;
const LARGE = 2 ** 25;

type Layer = 'small files' | 'large files';
type Form = 'plain' | 'gzip' | 'zstd';

const endings = { plain: '.tar', gzip: '.tar.gz', zstd: '.tar.zst' } as const;
const flagsOfTar = { plain: [], gzip: ['-z'], zstd: ['--zstd'] } as const;
const levels = { gzip: ['gzip', '-6'], zstd: ['zstd', '-q', '-3'] } as const;

const directoryOf = (site: Site, layer: Layer): string => join(site.sources, layer.replace(' ', '-'));
const archiveOf = (site: Site, layer: Layer, form: Form): string => `${directoryOf(site, layer)}${endings[form]}`;

/** Numbers from 0 to 1, the same in each run. */
function* numbers(): Generator<number, never> {
  for (let state = 12_345; ; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    yield (state >>> 1) / 2 ** 31;
  }
}

/** Files as images have them: half below 2.3 kB, together 260 MB, and compressible as programs are. */
function makeSmall(root: string, share: Site['share']): void {
  const contents = readFileSync(process.execPath);
  const source = numbers();
  const next = (): number => source.next().value;
  for (let i = 0; i < share(DIRECTORIES); i++) {
    const directory = join(root, `d${i % 40}`, `e${Math.floor(i / 40)}`);
    mkdirSync(directory, { recursive: true });
    for (let file = 0; file < FILES_EACH; file++) {
      const deviation = Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
      const size = Math.min(LARGEST, Math.round(MEDIAN * Math.exp(SPREAD * deviation)));
      const at = Math.floor(next() * (contents.length - size));
      writeFileSync(join(directory, `file-${file}.txt`), contents.subarray(at, at + size));
    }
    if (i % 2 === 1) symlinkSync('file-1.txt', join(directory, 'link'));
  }
}

function makeLarge(root: string, share: Site['share']): void {
  const contents = readFileSync(process.execPath);
  mkdirSync(root, { recursive: true });
  for (let i = 0; i < LARGE_FILES; i++) {
    writeFileSync(join(root, `file-${i}`), contents.subarray(i * LARGEST, i * LARGEST + share(LARGE)));
  }
}

/** Makes what is missing. It stays until the end: all rows read it. */
function prepare(site: Site, layer: Layer, form: Form): void {
  const [directory, plain] = [directoryOf(site, layer), archiveOf(site, layer, 'plain')];
  if (!existsSync(directory)) (layer === 'small files' ? makeSmall : makeLarge)(directory, site.share);
  if (!existsSync(plain)) execFileSync('tar', ['-C', directory, '-cf', plain, '.']);
  if (form !== 'plain' && !existsSync(archiveOf(site, layer, form))) {
    const [program, ...args] = levels[form];
    execFileSync(program, [...args, '-k', plain], { stdio: ['ignore', 'ignore', 'inherit'] });
  }
}

/** A layout of an image with one layer, as umoci reads it. */
function makeImage(site: Site, layer: Layer): string {
  const layout = `${directoryOf(site, layer)}-image`;
  if (existsSync(layout)) return layout;
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true });
  const put = (bytes: Uint8Array, type: string): object => {
    const digest = createHash('sha256').update(bytes).digest('hex');
    writeFileSync(join(layout, 'blobs/sha256', digest), bytes);
    return { mediaType: `application/vnd.oci.image.${type}`, digest: `sha256:${digest}`, size: bytes.length };
  };
  const json = (value: object): Buffer => Buffer.from(JSON.stringify(value));
  const archive = put(readFileSync(archiveOf(site, layer, 'plain')), 'layer.v1.tar') as { digest: string };
  const config = put(
    json({ architecture: 'amd64', os: 'linux', config: {}, rootfs: { type: 'layers', diff_ids: [archive.digest] } }),
    'config.v1+json',
  );
  const manifest = put(json({ schemaVersion: 2, config, layers: [archive] }), 'manifest.v1+json');
  const named = { ...manifest, annotations: { 'org.opencontainers.image.ref.name': 'layer' } };
  writeFileSync(join(layout, 'index.json'), json({ schemaVersion: 2, manifests: [named] }));
  writeFileSync(join(layout, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
  return layout;
}

const common = { ...jobRow, warmUpBlocks: 1 } as const;

type Unpack = (site: Site, peers: Peers, directory: string, archive: string) => unknown;

const unpackers: Readonly<Record<string, Unpack>> = {
  tar: (_site, _peers, directory, archive) => {
    const form = (Object.keys(endings) as Form[]).find((name) => archive.endsWith(endings[name])) ?? 'plain';
    execFileSync('tar', ['-x', ...flagsOfTar[form], '--xattrs', '-f', archive, '-C', directory]);
  },
  umoci: (site, _peers, directory) => {
    const image = `${makeImage(site, 'small files')}:layer`;
    execFileSync('umoci', ['raw', 'unpack', '--image', image, join(directory, 'out')], { stdio: 'ignore' });
  },
  "containerd's archive.Apply": (_site, peers, directory, archive) => peers.get('containerd').apply(archive, directory),
};

function applies(form: Form, layer: Layer, peer: string, limit: (fileSystem: FileSystem) => number): Kind {
  const unpack = unpackers[peer] as Unpack;
  return {
    ...common,
    what: `apply, ${form}, ${layer} : ${peer}`,
    ...(peer.startsWith('containerd') && { needs: 'containerd' as const }),
    ...(peer === 'umoci' && { needs: 'umoci' as const }),
    setUp: (site) => {
      prepare(site, layer, form);
      if (peer === 'umoci') makeImage(site, layer);
      return () => {};
    },
    blocks: (site, peers) => {
      const archive = archiveOf(site, layer, form);
      return [
        () => site.onNew((directory) => timed(() => apply(archive, join(directory, 'out')))),
        () => site.onNew((directory) => timed(() => unpack(site, peers, directory, archive))),
      ];
    },
    bound: (fileSystem) => atMost(limit(fileSystem)),
  };
}

async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

function creates(form: Form, layer: Layer, limit: number): Kind {
  return {
    ...common,
    what: `pack, ${form}, ${layer} : tar | cat`,
    on: ['tmpfs'],
    setUp: (site) => {
      prepare(site, layer, 'plain');
      return () => {};
    },
    blocks: (site) => {
      const directory = directoryOf(site, layer);
      const compression = form === 'plain' ? 'none' : form;
      // To /dev/null, tar would read no file.
      const tar = `tar -C ${directory} ${flagsOfTar[form].join(' ')} -cf - . | cat >/dev/null`;
      return [
        () => timed(() => drain(pack(directory, { layout: 'plain', compression }))),
        () => timed(() => execFileSync('sh', ['-c', tar])),
      ];
    },
    bound: () => atMost(limit),
  };
}

const plainLimit = (fileSystem: FileSystem): number => (fileSystem === 'ext4' ? 0.95 : 1.3);

export const archiveKinds: readonly Kind[] = [
  applies('plain', 'small files', 'tar', plainLimit),
  applies('plain', 'large files', 'tar', plainLimit),
  applies('plain', 'small files', 'umoci', () => 0.25),
  applies('plain', 'small files', "containerd's archive.Apply", () => 0.35),
  applies('gzip', 'small files', 'tar', () => 0.75),
  applies('gzip', 'large files', 'tar', () => 0.75),
  applies('zstd', 'small files', 'tar', () => 0.9),
  applies('zstd', 'large files', 'tar', () => 0.9),
  creates('plain', 'small files', 1),
  creates('plain', 'large files', 1),
  creates('gzip', 'small files', 0.8),
];
