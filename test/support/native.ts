/** Calls to the kernel that neither Node nor the library offers: the addon that `native.cc` builds. */

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { packageRoot } from './package-root.js';

interface TestSupport {
  unshareMounts(): number;
  mount(source: string, target: string, type: string, flags: number, data: string): number;
  umount(target: string, flags: number): number;
  /** From now on the process gets this errno from the system calls with these numbers. */
  denyCalls(calls: readonly number[], errno: number): number;
  landlockVersion(): number;
}

/** Flags of mount(2) and umount2(2). */
export const MS_RDONLY = 1;
export const MS_REMOUNT = 32;
export const MS_BIND = 4096;
export const MS_MOVE = 8192;
export const MS_REC = 16384;
export const MNT_DETACH = 2;

export const native: TestSupport = createRequire(import.meta.url)(join(packageRoot, 'build/Release/test_support.node'));
