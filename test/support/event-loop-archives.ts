/**
 * How long apply and pack keep the event loop at a stretch. Arguments: an empty directory, the number of
 * files, and the size of one more in MiB. Prints the milliseconds by call.
 */
import { randomBytes } from 'node:crypto';
import { createWriteStream, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { apply, pack } from 'overlayfs/layers';
import { leastOf, measure } from './stretches.js';

const [dir = '', count = '20000', large = '64'] = process.argv.slice(2);
const at = (name: string): string => join(dir, name);
const source = at('source');
const plain = { layout: 'plain' } as const;

for (let i = 0; i < Number(count); i++) {
  const parent = join(source, `d${i % 100}`, `e${i % 1000}`);
  if (i < 1000) mkdirSync(parent, { recursive: true });
  writeFileSync(join(parent, `file-${i}`), Buffer.alloc((i * 7919) % 20_000, `${i} `));
  if (i % 10 === 0) symlinkSync('file', join(parent, `link-${i}`));
}
writeFileSync(join(source, 'large'), randomBytes(Number(large) * 2 ** 20));

async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

const results: Record<string, number> = {};
for (const compression of ['none', 'gzip', 'zstd'] as const) {
  const archive = at(`archive.${compression}`);
  const options = { ...plain, compression, ...(compression === 'gzip' && { level: 1 }) };
  await pipeline(pack(source, options), createWriteStream(archive));
  results[`pack, ${compression}`] = await leastOf(5, () => measure(() => drain(pack(source, options))));
  results[`apply, ${compression}`] = await leastOf(5, async () => {
    rmSync(at('out'), { recursive: true, force: true });
    return measure(() => apply(archive, at('out')));
  });
}
results['apply, into a directory'] = await leastOf(5, () => measure(() => apply(at('archive.none'), at('out'))));
process.stdout.write(JSON.stringify(results));
