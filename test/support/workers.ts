/** Threads whose code stands in a test. */

import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { packageRoot } from './package-root.js';

/** Code of a module that finds the library as `overlayfs`, and `parentPort` and `workerData`. */
export const withLibrary = (code: string): string => `
  import * as overlayfs from ${JSON.stringify(pathToFileURL(join(packageRoot, 'dist/index.js')))};
  import { parentPort, workerData } from 'node:worker_threads';
  ${code}`;

/** Starts a worker with such code. */
export const startWorker = (code: string, workerData?: unknown): Worker =>
  new Worker(new URL(`data:text/javascript,${encodeURIComponent(withLibrary(code))}`), { workerData, execArgv: [] });
