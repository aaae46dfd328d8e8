/** Rules about layers with mapped owners. */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import { OWN_MOUNT_NAMESPACE } from '../namespaces/user-namespace.js';
import { isMapping } from '../options/idmap.js';
import { pathString } from '../paths.js';
import { either, member, option, text } from '../text.js';
import {
  CAP_SYS_ADMIN,
  type Cause,
  cameOutReadOnly,
  fileSystemName,
  findSubject,
  hasCapability,
  nameOf,
  type Rule,
  show,
} from './rule.js';

const isDenied = (errno: number | undefined): boolean => errno === e.EPERM || errno === e.EACCES;

const foreign: Cause = {
  reason: 'no-privilege',
  what: text`this process may not map the layers for ${option('idmap')}: it is in a user namespace, and their file systems belong to another one`,
  hint: either(text`leave ${option('idmap')} out`, 'mount with CAP_SYS_ADMIN in the initial user namespace'),
};

const mapRefused: Rule = {
  when: ({ step, plan, errno }) =>
    step?.call === calls.userns ||
    (step?.call === calls.openat2 && step.args[1] === OWN_MOUNT_NAMESPACE && errno === e.ENOENT) ||
    ((step?.call === calls.unshare || step?.call === calls.open_tree) && !plan.isInChild && isDenied(errno)),
  find({ facts, failure }) {
    const errno = failure?.errno;
    if (errno === e.ENOENT) {
      return { reason: 'proc-missing', what: text`${option('idmap')} needs /proc, which is not mounted` };
    }
    if (errno === e.ENOSPC) {
      return {
        reason: 'out-of-namespaces',
        what: text`no user namespace is left for ${option('idmap')}: the limit in /proc/sys/user/max_user_namespaces is reached, or this namespace is 32 levels deep`,
      };
    }
    if (errno === e.EAGAIN) {
      return {
        reason: 'out-of-threads',
        what: text`no process could be started to create a user namespace for ${option('idmap')}`,
      };
    }
    // The maps are written through the /proc files of a child that has ended. They belong to the initial root: EACCES.
    if (!isDenied(errno))
      return { reason: 'idmap-refused', what: text`the kernel refuses the ranges of ${option('idmap')}` };
    if (facts.process.isInUserNamespace) return foreign;
    if (failure?.step?.call === calls.open_tree && hasCapability(facts.process, CAP_SYS_ADMIN)) return undefined;
    return {
      reason: 'no-privilege',
      what: text`this process may not map the layers for ${option('idmap')}: it lacks CAP_SYS_ADMIN, CAP_SETUID or CAP_SETGID`,
      hint: either('run it as root with these capabilities', text`leave ${option('idmap')} out`),
    };
  },
};

const reachedOtherwise: Rule = {
  when: ({ step, errno }) => step?.call === calls.openat2 && errno === e.EXDEV,
  find({ options, failure }) {
    const subject = failure?.step?.options.subject;
    if (subject === undefined) return undefined;
    return {
      reason: 'idmap-unsupported',
      what: `${nameOf(subject, options)} is reached through a symbolic link or another mount, so the upperdir and the workdir cannot be mapped together`,
      hint: 'name both by their real paths, in one directory',
      path: pathString(subject.path),
    };
  },
};

const notMapped: Rule = {
  when: ({ step }) => step?.call === calls.mount_setattr && isMapping(step.args),
  find(scene) {
    const { options, failure } = scene;
    if (failure?.errno === e.ENOSYS) {
      const what = 'this kernel has no idmapped mounts';
      return {
        reason: 'idmap-unsupported',
        what,
        hint: either('use Linux 5.19 or later', text`leave ${option('idmap')} out`),
      };
    }
    const culprit = findSubject(scene);
    if (culprit === undefined || failure === undefined) return undefined;
    const { subject } = culprit;
    const [name, path] = [nameOf(subject, options), pathString(subject.path)];
    if (failure.errno === e.EPERM && scene.facts.process.isInUserNamespace) return { ...foreign, path };
    const source = subject.role === 'upperdir' ? options.idmap?.upper : options.idmap?.lower;
    if (failure.errno === e.EINVAL && source !== undefined && 'descriptor' in source) {
      const what = `${name} cannot be mapped: the descriptor is not a user namespace, or the file system ${fileSystemName(culprit)} does not support idmapped mounts`;
      return { reason: 'idmap-refused', what, path };
    }
    if (failure.errno === e.EPERM || failure.errno === e.EBADF) {
      const what = `${name} cannot be mapped: its mount is already idmapped, or the descriptor is not a separate user namespace`;
      return { reason: 'idmap-refused', what, path };
    }
    const what = `this kernel cannot map the file system of ${name}, ${fileSystemName(culprit)}`;
    return { reason: 'idmap-unsupported', what, path };
  },
};

/** A guard has found the superblock of a mapped upperdir read-only. The workdir itself may be fully writable. */
const mounterUnmapped: Rule = {
  when: cameOutReadOnly,
  find({ options }) {
    if (options.idmap?.upper === undefined || options.workdir === undefined) return undefined;
    return {
      reason: 'work-idmapped',
      what: text`${option('idmap')} maps no id on disk to the mounting user, or that user may not use the workdir ${show(options.workdir)}: the kernel would mount read-only`,
      hint: text`add a range whose ${member('host')} is the id of the mounting user, and give that user the workdir`,
      path: pathString(options.workdir),
    };
  },
};

export const mappingRules: readonly Rule[] = [mapRefused, reachedOtherwise, notMapped, mounterUnmapped];
