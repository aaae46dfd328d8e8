/**
 * Finds the options that a kernel before 6.5 has. There fsconfig(2) accepts any option, and only the mount reports a
 * wrong one.
 */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { firstKernel, optionRows } from '../options/table.js';
import type { FeatureState, KernelFeatures } from './record.js';

/** Returns true if an option, or a value of it such as `uuid=null`, came with this kernel or a later one. */
export function cameSince(probed: string, major: number, minor: number): boolean {
  const [name, value] = probed.split('=');
  const row = Object.values(optionRows).find((candidate) => candidate?.kernel === name);
  const [firstMajor = 0, firstMinor = 0] = row
    ? firstKernel(row, value)
        .split(/[^0-9]+/)
        .map(Number)
    : [];
  return firstMajor > major || (firstMajor === major && firstMinor >= minor);
}

/**
 * Answers without a probe if possible. An option with a default has a module parameter; other options came with later
 * kernels, or long before.
 */
export function knownBefore65(name: string, defaults: KernelFeatures['defaults'], hasSelinux: boolean): FeatureState {
  // Without SELinux the kernel hands its options to overlayfs, which refuses them.
  if (name === 'context') return hasSelinux || (Object.keys(defaults).length === 0 && 'unknown');
  if (cameSince(name, 6, 5)) return false;
  return name === 'default_permissions' || (name === 'xino' ? 'xino_auto' : name) in defaults || 'unknown';
}

/** A path that leads to no directory on any kernel. */
const NOWHERE = '/dev/null/none';

type Option = readonly [name: string, option: readonly [key: string, value: string | null]];

/**
 * Tries a mount that must fail for each option: the kernel refuses an unknown option before it looks for the layers.
 * Each attempt writes a line to the kernel's log.
 */
export function askByMounting(options: readonly Option[]): {
  plan: Plan;
  read: (outputs: Outputs | StepFailure) => Readonly<Record<string, FeatureState>>;
} {
  const plan = new Plan();
  const tries = options.map(([name, [key, value]]): [name: string, step: Step] => {
    const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC], { tolerate: 'any', output: 0 });
    const set = (option: string, text: string | null) => {
      const command = text === null ? k.FSCONFIG_SET_FLAG : k.FSCONFIG_SET_STRING;
      plan.add(calls.fsconfig, [context, command, option, text], { tolerate: 'any' });
    };
    set('lowerdir', `${NOWHERE}:${NOWHERE}`); // the kernel refuses a single lower layer before it looks for it
    set(key, value);
    const created = plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_CREATE, null, null], {
      tolerate: 'any',
      output: 0,
    });
    return [name, plan.stepOf(created)];
  });
  const answer = (outputs: Outputs | StepFailure, step: Step): FeatureState => {
    const errno = outputs instanceof StepFailure ? outputs.errno : -outputs.result(step);
    if (errno === e.EINVAL) return false;
    return errno === e.ENOENT || errno === e.ENOTDIR || 'unknown';
  };
  return {
    plan,
    read: (outputs) => Object.fromEntries(tries.map(([name, step]) => [name, answer(outputs, step)])),
  };
}
