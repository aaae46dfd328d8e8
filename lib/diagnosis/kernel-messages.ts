/** Rules about the kernel's own messages, from the log of the file system context. */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import type { StepFailure } from '../kernel/perform.js';
import { pathString } from '../paths.js';
import { option, text } from '../text.js';
import { fileSystemName, findSubject, isReadOnly, isSetting, nameOf, place, type Rule } from './rule.js';

const says =
  (text: RegExp) =>
  ({ kernel }: StepFailure): boolean =>
    kernel.some((line) => text.test(line));

/** From Linux 6.18 on the kernel accepts case folding, but only in all layers. */
const isMixed = says(/case-(?:in)?sensitive directory on .* is inconsistent/s);

const casefolded: Rule = {
  when: (failure) => isMixed(failure) || says(/case-insensitive|casefold/i)(failure),
  find(scene) {
    const culprit = findSubject(scene);
    const name = culprit === undefined ? 'a layer' : nameOf(culprit.subject, scene.options);
    const path = culprit && { path: pathString(culprit.subject.path) };
    if (scene.failure !== undefined && isMixed(scene.failure)) {
      return {
        reason: 'layer-casefolded',
        what: `${name} and another layer differ in case folding, and the kernel takes only layers that agree in it`,
        hint: 'use directories that all have case folding (lsattr -d shows F), or that all lack it',
        ...path,
      };
    }
    return {
      reason: 'layer-casefolded',
      what: `${name} is on a file system with case folding, which this kernel does not accept as a layer`,
      ...path,
    };
  },
};

const saidReadOnly: Rule = {
  when: says(/is read-only/),
  find(scene) {
    const culprit = findSubject(scene);
    return culprit && isReadOnly(nameOf(culprit.subject, scene.options), culprit);
  },
};

const notSupported: Rule = {
  when: says(/not supported/),
  find(scene) {
    const culprit = findSubject(scene);
    if (culprit === undefined) return undefined;
    const { subject } = culprit;
    const isUpper = subject.role === 'upperdir' || subject.role === 'workdir';
    return {
      reason: isUpper ? 'upper-unsupported' : 'layer-unsupported',
      what: `the file system of ${nameOf(subject, scene.options)} cannot hold this layer: it is ${fileSystemName(culprit)}`,
      path: pathString(subject.path),
    };
  },
};

const optionRefused: Rule = {
  when: (failure) => isSetting(failure) && says(/Unknown parameter|Bad value|Unexpected value/)(failure),
  find({ failure }) {
    const [key, value] = [failure?.step?.args[2], failure?.step?.args[3]].map((text) => String(text ?? ''));
    return {
      reason: 'option-refused',
      what: `this kernel refuses the option ${value === '' ? key : `${key}=${value}`}`,
    };
  },
};

const attributeRefused: Rule = {
  when: ({ step, errno }) =>
    (step?.call === calls.mount_setattr || step?.call === calls.fsmount) && (errno === e.ENOSYS || errno === e.EINVAL),
  find: ({ options, failure }) => ({
    reason: 'option-unsupported',
    what: `this kernel does not know an attribute of the mount${place(options)}: ${failure?.step?.call.name}(2) refuses it`,
    hint: text`leave out ${option('readonly')}, ${option('propagation')} or ${option('nosymfollow')} on this kernel`,
  }),
};

export const messageRules: readonly Rule[] = [casefolded, saidReadOnly, notSupported, optionRefused, attributeRefused];
