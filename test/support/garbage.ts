import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Runs the garbage collector, and the finalizers of addons: @photostructure/sqlite closes its files there. */
export async function collectGarbage(): Promise<void> {
  setFlagsFromString('--expose-gc');
  runInNewContext('gc')();
  for (let i = 0; i < 3; i++) await setImmediate();
}
