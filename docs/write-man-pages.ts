/** Writes the man pages into a directory: `node dist-test/docs/write-man-pages.js DIR`, as release.mjs does. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { manPages } from './man-pages.js';

const [, , dir = 'man'] = process.argv;
mkdirSync(dir, { recursive: true });
for (const [name, page] of Object.entries(manPages())) writeFileSync(join(dir, name), page);
