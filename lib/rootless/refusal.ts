/**
 * Explains why an unprivileged user cannot make the namespaces of a rootless mount, from the step that failed, its
 * errno and the settings of the machine. The library reads the settings only after a failure or for `features`. The
 * explanation is pure.
 */
import { readFileSync } from 'node:fs';
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import { FSCONFIG_CMD_CREATE } from '../kernel/constants.js';
import type { StepFailure } from '../kernel/perform.js';
import type { Step } from '../kernel/plan.js';
import { MOUNTINFO } from '../mount-table/mountinfo.js';
import { ownIds, ownsProcFiles, parseIdMap } from '../namespaces/user-namespace.js';
import type { Reason } from '../reasons.js';

/** The settings that affect user namespaces; undefined if the kernel has no such setting. */
export interface NamespaceSettings {
  /** user.max_user_namespaces, user.max_mnt_namespaces */
  readonly maxUserNamespaces: number | undefined;
  readonly maxMountNamespaces: number | undefined;
  /** kernel.unprivileged_userns_clone: on Debian and others. */
  readonly unprivilegedClone: number | undefined;
  /** kernel.apparmor_restrict_unprivileged_userns: on Ubuntu, since 23.10. */
  readonly appArmorRestricts: number | undefined;
  /** True if the process has a seccomp filter. */
  readonly hasSeccompFilter: boolean;
  /** True if the process's root is not a mount point. */
  readonly isChrooted: boolean;
  /** The capabilities that root needs to map ids, and lacks. */
  readonly missingCapabilities: readonly string[];
  /** True if this process's user namespace lacks its user id or its group id. */
  readonly isUnmapped: boolean;
  /** True if the files of this process in /proc belong to its user. */
  readonly ownsProcFiles: boolean;
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

function readSetting(path: string): number | undefined {
  const text = readText(path).trim();
  return text === '' ? undefined : Number(text);
}

/** From Linux 5.12 on, a map of the id 0 needs CAP_SETFCAP: user_namespaces(7). */
const mapping = [
  ['CAP_SETGID', 6n],
  ['CAP_SETUID', 7n],
  ['CAP_SETFCAP', 31n],
] as const;

function findMissing(status: string): string[] {
  const effective = /^CapEff:\s*(\w+)$/m.exec(status)?.[1];
  if (process.geteuid?.() !== 0 || effective === undefined) return [];
  return mapping.filter(([, bit]) => ((BigInt(`0x${effective}`) >> bit) & 1n) === 0n).map(([name]) => name);
}

/** Returns true if this map of the process does not contain the id. */
function lacks(file: string, id: number): boolean {
  try {
    const ranges = parseIdMap(readFileSync(`/proc/self/${file}`, 'latin1'));
    return !ranges.some(({ container, size }) => id >= container && id < container + size);
  } catch {
    return false; // /proc is not mounted
  }
}

export function readNamespaceSettings(): NamespaceSettings {
  const table = readText(MOUNTINFO);
  const status = readText('/proc/thread-self/status');
  const { uid, gid } = ownIds();
  return {
    maxUserNamespaces: readSetting('/proc/sys/user/max_user_namespaces'),
    maxMountNamespaces: readSetting('/proc/sys/user/max_mnt_namespaces'),
    unprivilegedClone: readSetting('/proc/sys/kernel/unprivileged_userns_clone'),
    appArmorRestricts: readSetting('/proc/sys/kernel/apparmor_restrict_unprivileged_userns'),
    hasSeccompFilter: /^Seccomp:\s*2$/m.test(status),
    missingCapabilities: findMissing(status),
    isChrooted: table !== '' && !table.split('\n').some((line) => line.split(' ')[4] === '/'),
    isUnmapped: lacks('uid_map', uid) || lacks('gid_map', gid),
    ownsProcFiles: ownsProcFiles(),
  };
}

export interface Refusal {
  /** The reason, worded to follow a colon. */
  readonly what: string;
  readonly hint: string;
}

/** Returns the fields of a mount's error for a refusal. */
export const forbiddenBy = ({ what, hint }: Refusal): Refusal & { readonly reason: Reason } => ({
  reason: 'rootless-forbidden',
  what: `this machine does not let plain users mount: ${what}`,
  hint,
});

const appArmor: Refusal = {
  what: 'AppArmor removes the capabilities of user namespaces (kernel.apparmor_restrict_unprivileged_userns=1)',
  hint: 'give this program an AppArmor profile with a "userns," rule, or have root set that sysctl to 0',
};

/** After a change of the user another program makes the namespace: lib/rootless/held-namespace.ts. */
const changedUser: Refusal = {
  what: 'this process has changed its user since it started, so its files in /proc belong to root, and it may not execute the launcher of this package, which would make the namespaces',
  hint: 'let the user read and execute the files of the package, or start the process as that user: setpriv(1), or User= in systemd',
};

/** Returns the refusal for a limit on the number of namespaces, or on their nesting. */
function usedUp({ maxUserNamespaces, maxMountNamespaces }: NamespaceSettings): Refusal {
  for (const [name, value] of [
    ['user.max_user_namespaces', maxUserNamespaces],
    ['user.max_mnt_namespaces', maxMountNamespaces],
  ] as const) {
    if (value === 0) return { what: `${name} is 0`, hint: `have root raise it: sysctl -w ${name}=15000` };
  }
  return {
    what: `the limit of namespaces is reached (user.max_user_namespaces=${maxUserNamespaces}, user.max_mnt_namespaces=${maxMountNamespaces}), or this namespace is 32 levels deep`,
    hint: 'unmount what you do not need, or have root raise both limits',
  };
}

function forbidden(settings: NamespaceSettings): Refusal {
  const { unprivilegedClone, isChrooted, hasSeccompFilter, isUnmapped, missingCapabilities } = settings;
  if (unprivilegedClone === 0) {
    return {
      what: 'kernel.unprivileged_userns_clone is 0',
      hint: 'have root allow it: sysctl -w kernel.unprivileged_userns_clone=1',
    };
  }
  if (isChrooted) {
    return {
      what: 'this process is chrooted, and a chrooted process may not create a user namespace',
      hint: 'change its root by pivot_root(2) in a mount namespace of its own, or mount outside the chroot',
    };
  }
  if (isUnmapped) {
    return {
      what: 'the user namespace of this process has no map for its user or its group',
      hint: 'have the program that made it write the maps, as unshare(1) does with -r',
    };
  }
  if (missingCapabilities.length > 0) {
    const list = missingCapabilities.join(' and ');
    return { what: `this process is root without ${list}`, hint: `give it ${list}, or run it as a plain user` };
  }
  if (hasSeccompFilter) {
    return {
      what: 'a seccomp filter refuses it, as in a container',
      hint: 'run the container with a profile that allows unshare(2) with CLONE_NEWUSER',
    };
  }
  return {
    what: 'the kernel refuses it: a chroot, a seccomp filter or a security module',
    hint: 'check how this process was started, and read the kernel log (dmesg)',
  };
}

/** Explains the failure of a step in namespaces of its own, if the namespaces are the cause. Pure. */
export function explainRefusal(
  { step, errno, plan }: Pick<StepFailure, 'step' | 'errno' | 'plan'>,
  settings: NamespaceSettings,
): Refusal | undefined {
  if (step === undefined || !(plan.isInChild || step.call === calls.userns_by)) return undefined;
  // A shortage of resources is not a refusal.
  if (e.isShortage(errno)) return undefined;
  const isDenied = errno === e.EPERM || errno === e.EACCES;
  if (step.call === calls.unshare || step.call === calls.setns || step.call === calls.userns_by) {
    if (errno === e.ENOSPC) return usedUp(settings);
    if (errno === e.EINVAL) {
      return { what: 'this kernel is built without user namespaces', hint: 'use a kernel with CONFIG_USER_NS' };
    }
    if (errno === e.EACCES && settings.appArmorRestricts === 1) return appArmor;
    return forbidden(settings);
  }
  if (step.call === calls.write) {
    if (errno === e.ENOENT) return { what: '/proc is not mounted', hint: 'mount it: mount -t proc proc /proc' };
    if (errno === e.EACCES && !settings.ownsProcFiles) return changedUser;
    return settings.appArmorRestricts === 1 ? appArmor : forbidden(settings);
  }
  if (!isDenied || (step.call !== calls.fsopen && step.call !== calls.fsconfig && step.call !== calls.fsmount)) {
    return undefined;
  }
  if (settings.appArmorRestricts === 1) return appArmor;
  // The kernel may also have refused an option.
  if (step.call === calls.fsconfig && step.args[1] !== FSCONFIG_CMD_CREATE) return undefined;
  if (step.call === calls.fsconfig && errno === e.EPERM) {
    // Only kernels from 6.5 on take layers as this plan passes them. These kernels make overlays in user namespaces, so
    // the refusal concerns this mount alone.
    const opensLower = plan.steps.some(
      ({ call, options }) => call === calls.openat2 && options.subject?.role === 'lowerdir',
    );
    const isLater = ({ args }: Step): boolean => args[2] === 'lowerdir+' || (args[2] === 'lowerdir' && !opensLower);
    if (plan.steps.some(isLater)) return undefined;
    return {
      what: 'this kernel does not allow overlays in user namespaces',
      hint: 'use Linux 5.11 or later',
    };
  }
  return step.call === calls.fsopen ? forbidden(settings) : undefined;
}
