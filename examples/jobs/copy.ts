/** `node copy.js FIXTURE`: a test changes a copy of its fixture. */
import { appendFileSync } from 'node:fs';
import { mountOverlay } from 'overlayfs';

await using copy = await mountOverlay({ lowerdir: process.argv[2] ?? '.', temporary: true });
appendFileSync(`${copy.path}/settings`, 'changed');
