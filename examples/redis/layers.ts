/** The layers of the image: Debian's packages, unpacked without being installed. */
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { whiteout } from 'overlayfs';
import { apply, type LayerArchive, type OwnerMaps, pack } from 'overlayfs/layers';

/** The lowest first. The sixth has the configuration. */
export const layers: readonly (readonly [name: string, packages: readonly string[]])[] = [
  ['base', ['base-files', 'libc6', 'libgcc-s1']],
  [
    'libraries',
    ['libatomic1', 'libjemalloc2', 'liblua5.1-0', 'liblzf1', 'libssl3', 'libstdc++6', 'lua-bitop', 'lua-cjson'],
  ],
  ['system libraries', ['libcap2', 'libgcrypt20', 'libgpg-error0', 'liblz4-1', 'liblzma5', 'libsystemd0', 'libzstd1']],
  ['redis-tools', ['redis-tools']],
  ['redis-server', ['redis-server']],
  ['configuration', []],
];

const REDIS = 999;

const files: Readonly<Record<string, string>> = {
  'etc/passwd': `root:x:0:0:root:/root:/bin/sh\nredis:x:${REDIS}:${REDIS}::/data:/bin/false\n`,
  'etc/group': `root:x:0:\nredis:x:${REDIS}:\n`,
  'etc/redis/redis.conf': `port 0
unixsocket /data/redis.sock
unixsocketperm 777
dir /data
dbfilename dump.rdb
save ""
logfile ""
`,
};

/** Fetches the packages that are not there yet. */
export function fetchPackages(directory: string): void {
  mkdirSync(directory, { recursive: true });
  const there = readdirSync(directory);
  const missing = layers
    .flatMap(([, names]) => names)
    .filter((name) => !there.some((file) => file.startsWith(`${name}_`)));
  if (missing.length > 0)
    execFileSync('apt-get', ['-qq', '-o', 'APT::Sandbox::User=root', 'download', ...missing], {
      cwd: directory,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
}

async function unpackPackage(file: string, directory: string): Promise<void> {
  const tar = spawn('dpkg-deb', ['--fsys-tarfile', file], { stdio: ['ignore', 'pipe', 'inherit'] });
  await apply(tar.stdout, directory, { layout: 'plain' });
}

/** A plain user's files belong to root in the image. */
function ownersInImage(): { owners?: OwnerMaps } {
  const [uid, gid] = [process.getuid?.() ?? 0, process.getgid?.() ?? 0];
  if (uid === 0) return {};
  const map = (host: number) => [{ container: 0, host, size: 1 }];
  return { owners: { uidMap: map(uid), gidMap: map(gid) } };
}

/** Makes the directories of the layers, and returns their archives. */
export async function makeLayers(packages: string, directory: string): Promise<LayerArchive[]> {
  const archives: LayerArchive[] = [];
  for (const [i, [, names]] of layers.entries()) {
    const layer = join(directory, String(i));
    mkdirSync(layer, { recursive: true });
    for (const name of names) {
      const file = readdirSync(packages).find((one) => one.startsWith(`${name}_`)) ?? '';
      await unpackPackage(join(packages, file), layer);
    }
    if (names.length === 0) {
      for (const name of ['etc/redis', 'data', 'proc', 'dev', 'sys', 'usr/share'])
        mkdirSync(join(layer, name), { recursive: true });
      for (const [name, text] of Object.entries(files)) writeFileSync(join(layer, name), text);
      // The server writes its dump here.
      if (process.getuid?.() === 0) execFileSync('chown', [`${REDIS}:${REDIS}`, join(layer, 'data')]);
      // Nobody reads manuals in a container.
      await whiteout(join(layer, 'usr/share/doc'));
    }
    archives.push(
      pack({ upperdir: layer, userxattr: process.getuid?.() !== 0 }, { compression: 'gzip', ...ownersInImage() }),
    );
  }
  return archives;
}
