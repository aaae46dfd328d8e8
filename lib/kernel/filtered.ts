/** System calls that a seccomp(2) filter refuses, as in a container or a service. */
import { readFileSync } from 'node:fs';
import { EACCES, ENOSYS, EPERM } from '../errnos.js';
import { explainDenials } from '../errors.js';
import type { Verdict } from '../verdicts.js';
import { type Call, calls } from './calls.js';
import { performSync, StepFailure } from './perform.js';
import { Plan } from './plan.js';

const CAP_SYS_ADMIN = 21n;

/** The calls for mounts and namespaces that the launcher makes, and steps too. */
const shared = ['unshare', 'setns', 'mount', 'umount2', 'open_tree', 'move_mount', 'mount_setattr', 'chdir'] as const;

/** The calls that the launcher makes for mounts, namespaces and ids. */
const asked = [
  ...[...shared, 'fchdir', 'chroot', 'pivot_root', 'sethostname', 'capget', 'capset'],
  ...['setresuid', 'setresgid', 'setgroups', 'setpgid', 'signalfd4', 'memfd_create', 'sendfile', 'execveat'],
] as const;

/** Without this one, the kernel itself refuses setgroups(2). */
const CAP_SETGID = 6n;

/** The calls on files for which the library has no other. The kernel refuses none of them for want of privilege. */
const onFiles = [
  ...['statx', 'fstatfs', 'mkdirat', 'mknodat', 'linkat', 'symlinkat', 'unlinkat', 'renameat2', 'readlinkat'],
  ...['utimensat', 'fchmod', 'fchmodat', 'fchown', 'fchownat', 'ftruncate', 'flock', 'fsync', 'syncfs'],
  ...['setxattr', 'getxattr'],
  ...['lgetxattr', 'fgetxattr', 'lsetxattr', 'fsetxattr', 'lremovexattr', 'fremovexattr', 'flistxattr', 'llistxattr'],
] as const;

/** Returns whether the process has a filter, and the capabilities without which the kernel itself refuses mounts. */
function readFilter(): Record<'isFiltered' | 'mayMount' | 'maySetGroups', boolean> {
  try {
    const status = readFileSync('/proc/thread-self/status', 'latin1');
    const capabilities = BigInt(`0x${/^CapEff:\s*(\w+)$/m.exec(status)?.[1] ?? '0'}`);
    const has = (capability: bigint) => ((capabilities >> capability) & 1n) === 1n;
    return {
      isFiltered: /^Seccomp:\s*2$/m.test(status),
      mayMount: has(CAP_SYS_ADMIN),
      maySetGroups: has(CAP_SETGID),
    };
  } catch {
    return { isFiltered: false, mayMount: false, maySetGroups: false };
  }
}

const isRefusal = (errno: number): boolean => errno === EPERM || errno === ENOSYS || errno === EACCES;

/** The names under which system calls are known that steps make by another name. */
const systemCalls: Readonly<Partial<Record<string, string>>> = {
  mount_of: 'statmount',
  mount_table: 'statmount',
  mount_ids: 'listmount',
};

const nameOf = ({ name }: Call): string => systemCalls[name] ?? name;

/**
 * Returns those of the calls that a filter refuses. The kernel is asked: it says of wrong arguments that they are wrong,
 * and a filter refuses them before.
 */
function refused(names: readonly string[], isAnswer: (errno: number) => boolean = isRefusal): string[] {
  return names.filter((name) => {
    const plan = new Plan();
    plan.add(calls.probe, [name]);
    const outcome = performSync(plan);
    return outcome instanceof StepFailure && isAnswer(outcome.errno);
  });
}

function refusedMounts(names: readonly string[]): string[] {
  const { isFiltered, mayMount, maySetGroups } = readFilter();
  return isFiltered && mayMount ? refused(maySetGroups ? names : names.filter((name) => name !== 'setgroups')) : [];
}

/** The system calls of steps that make one each. */
const single: ReadonlySet<string> = new Set([
  ...['openat2', 'fsopen', 'fsconfig', 'fsmount', 'fspick', 'statx', 'statfs', 'fstatfs', 'flock', 'fsync', 'mkdirat'],
  ...['mknodat', 'linkat', 'unlinkat', 'renameat2', 'setxattr', 'getxattr', 'lgetxattr', 'faccessat2', 'readlinkat'],
  ...['name_to_handle_at', 'open_by_handle_at', 'fchownat', 'statmount', 'listmount', 'fanotify_init', 'fanotify_mark'],
  ...['open_tree_attr', ...shared],
]);

/** @internal All calls of which the kernel may be asked. */
export const askedNames: readonly string[] = [...new Set([...asked, ...onFiles, ...single])];

/** Returns the name of the failed call if a filter refuses it. A step of several calls may have failed at any of them. */
export function filteredCall({ step, errno }: Pick<StepFailure, 'step' | 'errno'>): string | undefined {
  if (step === undefined || !isRefusal(errno)) return undefined;
  const [own] = refusedMounts([nameOf(step.call)]);
  return own ?? (single.has(nameOf(step.call)) ? undefined : refusedMounts([...single])[0]);
}

function verdict(names: readonly string[]): Verdict & { readonly reason: 'seccomp-denied' } {
  const list = names.map((name) => `${name}(2)`).join(' and ');
  return {
    reason: 'seccomp-denied',
    what: `a seccomp filter refuses ${list} to this process`,
    hint: `allow ${list} in the profile of the container or service`,
  };
}

/** Explains a failure by a filter; undefined if no filter refuses the call. */
export function explainFiltered(failure: Pick<StepFailure, 'step' | 'errno'>): Verdict | undefined {
  const name = filteredCall(failure);
  return name === undefined ? undefined : verdict([name]);
}

/** The same for a program of ours that has failed at one of several calls. */
export function explainFilteredProgram(errno: number): Verdict | undefined {
  const names = isRefusal(errno) ? refusedMounts(asked) : [];
  return names.length === 0 ? undefined : verdict(names);
}

explainDenials((errno) => {
  const names = isRefusal(errno) && readFilter().isFiltered ? refused(onFiles, (answer) => answer === errno) : [];
  return names.length === 0 ? undefined : verdict(names);
});
