/**
 * Runs an image as a container, and shows what it has changed. The changes are discarded.
 *
 *   npm run build:ts && node dist-test/examples/run-image.js LAYOUT[:TAG] [COMMAND...]
 *
 * LAYOUT is an OCI image layout, as `skopeo copy docker://debian:12 oci:debian:12` makes one. `overlayfs image run` does
 * the same with more options.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openLayout, runContainer } from 'overlayfs/images';
import { Snapshotter } from 'overlayfs/snapshots';

const [name = '', ...command] = process.argv.slice(2);
const [, path = '', tag] = /^(.*?)(?::([^:/]+))?$/.exec(name) ?? [];
const directory = mkdtempSync(join(tmpdir(), 'run-image-'));
try {
  const image = await (await openLayout(path)).image(tag);
  const snapshotter = await Snapshotter.open(join(directory, 'root'));
  try {
    const options = { snapshotter, ...(command.length > 0 && { command }) };
    const { exitCode, changes } = await runContainer(image, options);
    for (const { kind, path } of changes) console.log(kind, path);
    process.exitCode = exitCode;
  } finally {
    await snapshotter.close();
  }
} finally {
  rmSync(directory, { recursive: true });
}
