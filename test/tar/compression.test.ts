/** Compressed streams: zstd by Node, where it has it, and by the package; gzip as a matter of course. */
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import * as zlib from 'node:zlib';
import test, { type ExecutionContext } from 'ava';
import { OverlayError } from 'overlayfs';
import { CHUNK, compressByPackage, decode, decompressByPackage, encode } from '#lib/tar/compression.js';
import { Digester } from '#lib/tar/digest.js';
import { packageRoot } from '../support/index.js';

async function* inParts(bytes: Uint8Array, size = bytes.length): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all);
}

const zstd = (bytes: Uint8Array, ...args: string[]): Buffer =>
  execFileSync('zstd', ['-q', '-c', ...args], { input: bytes, maxBuffer: 2 ** 27 });

const data = Buffer.concat([randomBytes(3_000_000), Buffer.alloc(5_000_000, 'text '), randomBytes(777)]);

interface Form {
  readonly pack: (source: AsyncIterable<Uint8Array>, level: number) => AsyncIterable<Uint8Array>;
  readonly unpack: (source: AsyncIterable<Uint8Array>) => AsyncIterable<Uint8Array>;
}

async function works(t: ExecutionContext, { pack, unpack }: Form): Promise<void> {
  for (const level of [1, 3, 19]) {
    const packed = await collect(pack(inParts(data, 1_000_003), level));
    t.true((await collect(unpack(inParts(packed)))).equals(data), `level ${level}`);
    t.true(zstd(packed, '-d').equals(data), `zstd(1), level ${level}`);
  }
  const packed = zstd(data);
  for (const size of [packed.length, 65_536, 4099]) {
    t.true((await collect(unpack(inParts(packed, size)))).equals(data), `parts of ${size}`);
  }
  const empty = Buffer.from('502a4d1800000000', 'hex');
  const frames = Buffer.concat([
    zstd(data.subarray(0, 1000)),
    Buffer.from('502a4d1803000000616263', 'hex'),
    empty,
    packed,
    empty,
  ]);
  for (const size of [frames.length, 777]) {
    const got = await collect(unpack(inParts(frames, size)));
    t.true(got.equals(Buffer.concat([data.subarray(0, 1000), data])), `frames in parts of ${size}`);
  }
  t.is((await collect(pack(inParts(Buffer.alloc(0)), 3))).length > 0, true);
  const damaged = Buffer.from(packed);
  damaged[20] = (damaged[20] as number) ^ 0xff;
  damaged[packed.length - 2] = (damaged[packed.length - 2] as number) ^ 1;
  for (const bytes of [packed.subarray(0, packed.length - 1), packed.subarray(0, 1000), damaged]) {
    const error = await t.throwsAsync(collect(unpack(inParts(bytes))), { instanceOf: OverlayError });
    t.is(error?.reason, 'archive-invalid');
    t.regex(error?.message ?? '', /zstd data of the archive is damaged or cut/);
  }
}

if ('createZstdDecompress' in zlib) {
  test("zstd by Node's own zlib", works, {
    pack: (source, level) => encode(source, 'zstd', level),
    unpack: (source) => decode(source, 'zstd'),
  });
}
test('zstd by the package', works, { pack: compressByPackage, unpack: decompressByPackage });

test('a bomb takes no more memory than a chunk at once', async (t) => {
  const bomb = execFileSync('sh', ['-c', 'head -c 1073741824 /dev/zero | zstd -q -c']);
  for (const unpack of [decompressByPackage, (source: AsyncIterable<Uint8Array>) => decode(source, 'zstd')]) {
    let size = 0;
    let largest = 0;
    for await (const chunk of unpack(inParts(bomb))) {
      size += chunk.length;
      largest = Math.max(largest, chunk.length);
    }
    t.is(size, 2 ** 30);
    t.true(largest <= CHUNK);
  }
});

test('gzip with zeros behind it: the source is read and hashed to its end', async (t) => {
  const bytes = Buffer.concat([zlib.gzipSync('text'), Buffer.alloc(5 * 2 ** 20)]);
  for (const size of [bytes.length, 65_536]) {
    const digester = new Digester();
    const got = await collect(decode(digester.pass(inParts(bytes, size), true), 'gzip'));
    t.is(got.toString(), 'text');
    t.is(digester.size, bytes.length);
    t.is(await digester.digest(), `sha256:${createHash('sha256').update(bytes).digest('hex')}`);
  }
});

test('many chunks are hashed on this thread where the addon has no OpenSSL', async (t) => {
  const digester = new Digester(createHash('sha256'));
  for await (const chunk of inParts(data, 10_007)) await digester.update(chunk);
  t.is(await digester.digest(), `sha256:${createHash('sha256').update(data).digest('hex')}`);
});

test('zstd without the package: the error names the command that installs it', (t) => {
  const program = `
    const Module = require('node:module');
    const resolve = Module._resolveFilename;
    Module._resolveFilename = (name, ...rest) => {
      if (name === 'zstd-napi') throw Object.assign(new Error('no'), { code: 'MODULE_NOT_FOUND' });
      return resolve(name, ...rest);
    };
    import('./dist-test/lib/tar/compression.js').then(async ({ compressByPackage, decompressByPackage }) => {
      for (const stream of [compressByPackage([], 3), decompressByPackage([])]) {
        try {
          for await (const _ of stream);
        } catch (error) {
          console.log(error.reason, error.hint);
        }
      }
    });`;
  const text = execFileSync(process.execPath, ['-e', program], { cwd: packageRoot, encoding: 'utf8' });
  const hint = 'Run npm install zstd-napi; Node 22.15 and later have zstd themselves.';
  t.is(text, `option-unsupported ${hint}\n`.repeat(2));
});
