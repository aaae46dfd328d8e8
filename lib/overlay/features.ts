/** What this kernel can do, asked of the kernel and not of its version number. */

import { readFileSync } from 'node:fs';
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { addLook, readLook } from '../kernel/look.js';
import { performSync, StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { addon } from '../native.js';

/** The record that a plan is decided from. */
export interface KernelFeatures {
  /** overlayfs reads its options from fsconfig(2) itself (6.5). */
  readonly fsContext: boolean;
  /** Layers one by one, unescaped: `lowerdir+` (6.7, and late 6.6). */
  readonly lowerdirAppend: boolean;
  /** Layers by descriptor (6.13): O_PATH ones (6.15 and late 6.13, 6.14) or only readable ones. */
  readonly layerDescriptors: 'path' | 'readable' | false;
  /** Mount ids that are never used again (6.8). */
  readonly uniqueMountId: boolean;
  /** The process is in a user namespace other than the initial one, where `trusted.*` is out of reach. */
  readonly userNamespace: boolean;
  /** What mount(2) takes of options, and one byte more. */
  readonly pageSize: number;
}

interface Probe {
  readonly features: KernelFeatures;
  /** Whether the process could ask at all. */
  readonly isKnown: boolean;
}

function probe(): Probe {
  const plan = new Plan();
  const steps: Record<string, Step> = {};
  const ask = (name: string, ...step: Parameters<Plan['add']>): number => {
    const [call, args, options] = step;
    const made = plan.add(call, args, { tolerate: 'any', output: 0, ...options });
    steps[name] = plan.stepOf(made);
    return made;
  };
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const path = ask('path', calls.openat2, [k.AT_FDCWD, '/', flags | k.O_PATH, 0]);
  const readable = ask('readable', calls.openat2, [k.AT_FDCWD, '/', flags, 0]);
  const context = ask('context', calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC]);
  // The wrapper of 5.2 to 6.4 takes any key.
  ask('madeUp', calls.fsconfig, [context, k.FSCONFIG_SET_STRING, 'overlayfs-probe', '1', 0]);
  ask('pathLayer', calls.fsconfig, [context, k.FSCONFIG_SET_FD, 'lowerdir+', null, path]);
  ask('readableLayer', calls.fsconfig, [context, k.FSCONFIG_SET_FD, 'lowerdir+', null, readable]);
  ask('append', calls.fsconfig, [context, k.FSCONFIG_SET_STRING, 'lowerdir+', '/', 0]);
  const look = addLook(plan, '/', { mask: k.STATX_MNT_ID_UNIQUE });
  const outputs = performSync(plan);
  const result = (name: string): number =>
    outputs instanceof StepFailure ? -outputs.errno : outputs.result(steps[name] as Step);

  const isKnown = result('context') >= 0 || result('context') === -e.ENOSYS || result('context') === -e.ENODEV;
  const fsContext = isKnown ? result('context') >= 0 && result('madeUp') < 0 : true;
  return {
    isKnown,
    features: {
      fsContext,
      // Unknown: taken for the best way, whose first call then says what is in the way.
      lowerdirAppend: isKnown ? fsContext && result('append') >= 0 : true,
      layerDescriptors: !isKnown
        ? 'path'
        : !fsContext
          ? false
          : result('pathLayer') >= 0
            ? 'path'
            : result('readableLayer') >= 0
              ? 'readable'
              : false,
      uniqueMountId: readLook(look, outputs).hasUniqueMountId,
      userNamespace: inUserNamespace(),
      pageSize: addon().pageSize,
    },
  };
}

function inUserNamespace(): boolean {
  try {
    // All ids as they are: the initial namespace. user_namespaces(7)
    return readFileSync('/proc/self/uid_map', 'latin1').trim().split(/\s+/).join(' ') !== '0 0 4294967295';
  } catch {
    return false;
  }
}

let remembered: KernelFeatures | undefined;

/** Asked once and remembered, unless the process may not ask: privileges can come later. */
export function kernelFeatures(): KernelFeatures {
  if (remembered !== undefined) return remembered;
  const { features, isKnown } = probe();
  if (isKnown) remembered = features;
  return features;
}
