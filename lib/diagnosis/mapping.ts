/** Rules about layers with mapped owners. */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import { OWN_MOUNT_NAMESPACE } from '../namespaces/user-namespace.js';
import { isMapping } from '../options/idmap.js';
import { pathString } from '../paths.js';
import { fileSystemName, findSubject, nameOf, type Rule, show, type Verdict } from './rule.js';

const isDenied = (errno: number | undefined): boolean => errno === e.EPERM || errno === e.EACCES;

const foreign: Verdict = {
  reason: 'no-privilege',
  what: 'this process may not map the layers of `idmap`: it is in a user namespace, and their file systems belong to another',
  hint: 'leave `idmap` out, or mount with CAP_SYS_ADMIN in the initial user namespace',
};

const mapRefused: Rule = {
  when: ({ step, plan, errno }) =>
    step?.call === calls.userns ||
    (step?.call === calls.openat2 && step.args[1] === OWN_MOUNT_NAMESPACE && errno === e.ENOENT) ||
    (step?.call === calls.unshare && !plan.isInChild && isDenied(errno)),
  find({ facts, failure }) {
    const errno = failure?.errno;
    if (errno === e.ENOENT) {
      return { reason: 'proc-missing', what: '`idmap` goes by way of /proc, which is not mounted' };
    }
    if (errno === e.ENOSPC) {
      return {
        reason: 'out-of-namespaces',
        what: 'no user namespace is left for `idmap`: there are as many as /proc/sys/user/max_user_namespaces allows, or this one is 32 levels deep',
      };
    }
    if (errno === e.EAGAIN) {
      return { reason: 'out-of-threads', what: 'no process could be started to make a user namespace for `idmap`' };
    }
    // The maps are written through the /proc files of a child that has ended. They belong to the initial root: EACCES.
    if (!isDenied(errno)) return { reason: 'idmap-refused', what: 'the kernel refuses the ranges of `idmap`' };
    if (facts.process.isInUserNamespace) return foreign;
    return {
      reason: 'no-privilege',
      what: 'this process may not map the layers of `idmap`: it lacks CAP_SYS_ADMIN, CAP_SETUID or CAP_SETGID',
      hint: 'run it as root with these capabilities, or leave `idmap` out',
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
      what: `${nameOf(subject, options)} is reached through a link or another mount, and cannot be mapped together with the other of upperdir and workdir`,
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
      const what = 'this kernel has no mounts that show files with other owners';
      return { reason: 'idmap-unsupported', what, hint: 'use Linux 5.19 or later, or leave `idmap` out' };
    }
    const culprit = findSubject(scene);
    if (culprit === undefined || failure === undefined) return undefined;
    const { subject } = culprit;
    const [name, path] = [nameOf(subject, options), pathString(subject.path)];
    if (failure.errno === e.EPERM && scene.facts.process.isInUserNamespace) return { ...foreign, path };
    const source = subject.role === 'upperdir' ? options.idmap?.upper : options.idmap?.lower;
    if (failure.errno === e.EINVAL && source !== undefined && 'descriptor' in source) {
      const what = `${name} cannot be mapped: the descriptor is not that of a user namespace, or its file system, ${fileSystemName(culprit)}, has no maps`;
      return { reason: 'idmap-refused', what, path };
    }
    if (failure.errno === e.EPERM || failure.errno === e.EBADF) {
      const what = `${name} cannot be mapped: its mount is mapped already, or the descriptor is not that of a user namespace of its own`;
      return { reason: 'idmap-refused', what, path };
    }
    const what = `the file system of ${name}, ${fileSystemName(culprit)}, cannot be mapped by this kernel`;
    return { reason: 'idmap-unsupported', what, path };
  },
};

/** A guard has found the superblock of a mapped upperdir read-only. The workdir itself may be fully writable. */
const mounterUnmapped: Rule = {
  when: ({ step, errno }) => step?.call === calls.fstatfs && errno === e.EROFS,
  find({ options }) {
    if (options.idmap?.upper === undefined || options.workdir === undefined) return undefined;
    return {
      reason: 'work-idmapped',
      what: `\`idmap\` shows no id on disk as that of the mounting user, or the workdir ${show(options.workdir)} is closed to it: the kernel would have mounted read-only`,
      hint: 'add a range whose `outside` is the id of the mounting user, and give it the workdir',
      path: pathString(options.workdir),
    };
  },
};

export const mappingRules: readonly Rule[] = [mapRefused, reachedOtherwise, notMapped, mounterUnmapped];
