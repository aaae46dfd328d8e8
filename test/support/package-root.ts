import { resolve } from 'node:path';

/** The directory of package.json, from dist-test/test/support. */
export const packageRoot = resolve(import.meta.dirname, '../../..');
