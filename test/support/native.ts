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

export const MNT_DETACH = 2;

export const native: TestSupport = createRequire(import.meta.url)(join(packageRoot, 'build/Release/test_support.node'));
