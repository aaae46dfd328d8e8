/** Probes the kernel for its features, instead of relying on its version number. */
import { release } from 'node:os';
import * as e from '../errnos.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { filteredCall } from '../kernel/filtered.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan, type Step, type StepOptions, type Text } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask as askKernel, run, runSync, type Task } from '../kernel/task.js';
import { addon } from '../native.js';
import { askByMounting, knownBefore65 } from './probe-before-6.5.js';
import {
  type DefaultName,
  defaultNames,
  type FeatureState,
  type KernelFeatures,
  type ProbedOption,
  probedOptions,
} from './record.js';

export interface Questions {
  readonly plan: Plan;
  readonly read: (outputs: Outputs | StepFailure) => KernelFeatures;
}

/** Directories of which at least one is writable on most machines, even if the root is read-only or immutable. */
const mostlyWritable = ['/', '/dev', '/tmp', '.'];

/**
 * Returns true if the process lacks CAP_SYS_ADMIN in the initial user namespace, which trusted attributes need. Takes
 * the results of replacing a trusted attribute that does not exist, which changes nothing. A read-only file system or
 * an immutable directory fails before the kernel checks the capability.
 */
function isTrustedDenied(results: readonly number[]): boolean {
  const asked = results.filter((result) => result !== -e.EROFS && result !== -e.ENOENT);
  return asked.length > 0 && asked.every((result) => result === -e.EPERM);
}

/**
 * Adds the probes to a plan. Every step may fail, and none leaves anything behind. The brief plan probes only for the
 * features that a mount without options needs; the rest of its record is unknown, and has no options.
 */
export function questions(plan = new Plan(), isBrief = false): Questions {
  const probes = addProbes(plan, isBrief);
  return { plan, read: (outputs) => readRecord(plan, probes, outputs) };
}

type Probes = ReturnType<typeof addProbes>;

function addProbes(plan: Plan, isBrief: boolean) {
  const ask = (call: Call, args: readonly (Text | number)[], options?: StepOptions): number =>
    plan.add(call, args, { tolerate: 'any', output: 0, ...options });
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const path = ask(calls.openat2, [k.AT_FDCWD, '/', flags | k.O_PATH]);
  const readable = ask(calls.openat2, [k.AT_FDCWD, '/', flags]);
  const context = ask(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC]);
  const set = (key: string, value: string | null): number =>
    ask(calls.fsconfig, [context, value === null ? k.FSCONFIG_SET_FLAG : k.FSCONFIG_SET_STRING, key, value]);
  // From Linux 5.2 to 6.4 fsconfig(2) accepts any key.
  const madeUp = set('overlayfs-probe', '1');
  const pathLayer = ask(calls.fsconfig, [context, k.FSCONFIG_SET_FD, 'lowerdir+', null, path]);
  const readableLayer = ask(calls.fsconfig, [context, k.FSCONFIG_SET_FD, 'lowerdir+', null, readable]);
  const append = set('lowerdir+', '/');
  const probed = isBrief ? [] : Object.entries(probedOptions);
  const options = probed.map(([name, [key, value]]) => [name, set(key, value)] as const);
  // The arguments are invalid on purpose. Only ENOSYS or EINVAL means that the kernel lacks the feature.
  const statmount = ask(calls.statmount, []);
  const more = isBrief
    ? undefined
    : {
        setattr: ask(calls.mount_setattr, [-1, '', 0]),
        beneath: ask(calls.move_mount, [-1, '', -1, '', k.MOVE_MOUNT_BENEATH]),
        openTreeAttr: ask(calls.open_tree_attr, []),
        events: ask(calls.fanotify_init, [k.FAN_REPORT_MNT]),
        selinux: addStat(plan, '/sys/fs/selinux'),
      };
  const root = addStat(plan, '/', { mask: k.STATX_MNT_ID_UNIQUE });
  const userNamespace = addStat(plan, '/proc/self/ns/user', { mask: k.STATX_INO });
  const trusted = mostlyWritable.map((place) =>
    ask(calls.setxattr, [place, 'trusted.overlay.probe', '', k.XATTR_REPLACE]),
  );
  const parameters = (isBrief ? [] : defaultNames).map((name) => {
    const file = ask(calls.openat2, [k.AT_FDCWD, `/sys/module/overlay/parameters/${name}`, k.O_CLOEXEC]);
    return [name, plan.stepOf(ask(calls.read, [file, 1], { output: 1 }))] as const;
  });
  const probes = { context, madeUp, pathLayer, readableLayer, append, options, statmount, more };
  return { ...probes, root, userNamespace, trusted, parameters };
}

function readRecord(plan: Plan, probes: Probes, outputs: Outputs | StepFailure): KernelFeatures {
  const { context, options, more, userNamespace, parameters } = probes;
  const result = (made: number): number =>
    outputs instanceof StepFailure ? -outputs.errno : outputs.result(plan.stepOf(made) as Step);
  const opened = result(context);
  // A seccomp filter causes EPERM, too. Then mount(2) tells whether the process may mount.
  const isDenied = opened === -e.EPERM || opened === -e.EACCES;
  const isFiltered = isDenied && filteredCall({ step: plan.stepOf(context), errno: -opened }) !== undefined;
  const isUnknown = isDenied || e.isShortage(-opened);
  const answer = (value: () => boolean): FeatureState => (isUnknown ? 'unknown' : value());
  const ofMore = (read: (made: NonNullable<typeof more>) => FeatureState): FeatureState =>
    more === undefined ? 'unknown' : read(more);
  const fsContext = answer(() => opened >= 0 && result(probes.madeUp) < 0);
  const accepts = (made: number): FeatureState => (fsContext === false ? false : answer(() => result(made) >= 0));
  const hasSelinux = more !== undefined && readStat(more.selinux, outputs).errno === 0;
  const defaults: Partial<Record<DefaultName, boolean>> = {};
  for (const [name, step] of parameters) {
    if (outputs instanceof StepFailure || outputs.result(step) !== 1) continue;
    defaults[name] = outputs.bytes(step, 1).toString() === 'Y';
  }
  return {
    release: release(),
    pageSize: addon().pageSize,
    // Without /proc: a process that may mount but may not set trusted attributes is in a user namespace.
    userNamespace:
      readStat(userNamespace, outputs).errno === 0
        ? isOtherUserNamespace(readStat(userNamespace, outputs))
        : opened >= 0 && isTrustedDenied(probes.trusted.map(result)),
    mayMount: opened >= 0 ? true : isDenied && !isFiltered ? false : 'unknown',
    overlay: answer(() => opened !== -e.ENODEV),
    mountApi: answer(() => opened !== -e.ENOSYS),
    fsContext,
    lowerdirAppend: accepts(probes.append),
    layerDescriptors:
      fsContext === 'unknown'
        ? 'unknown'
        : accepts(probes.pathLayer) === true
          ? 'path'
          : accepts(probes.readableLayer) === true
            ? 'readable'
            : false,
    options: Object.fromEntries(
      options.map(([name, made]) => [
        name,
        fsContext === false ? knownBefore65(name, defaults, hasSelinux) : accepts(made),
      ]),
    ) as Record<ProbedOption, FeatureState>,
    mountSetattr: ofMore((made) => result(made.setattr) !== -e.ENOSYS),
    // The kernel checks the privilege first.
    mountBeneath: ofMore(({ beneath }) =>
      result(beneath) === -e.EPERM ? 'unknown' : ![-e.ENOSYS, -e.EINVAL].includes(result(beneath)),
    ),
    statmount: result(probes.statmount) !== -e.ENOSYS,
    openTreeAttr: ofMore((made) => result(made.openTreeAttr) !== -e.ENOSYS),
    mountEvents: ofMore(({ events }) => (e.isShortage(-result(events)) ? 'unknown' : result(events) >= 0)),
    uniqueMountId: readStat(probes.root, outputs).hasUniqueMountId,
    defaults,
  };
}

/**
 * Returns true if a user namespace is not the initial one, which has a fixed inode number (PROC_USER_INIT_INO). Its
 * maps do not tell: another namespace can have the same ones.
 */
export function isOtherUserNamespace({ errno, inode }: StatResult): boolean {
  const INITIAL = 0xeffffffd;
  return errno === 0 && Number(inode) !== INITIAL;
}

let remembered: KernelFeatures | undefined;

/** Returns true if all probes ran, without a temporary shortage of resources. */
export function wereAllAsked(plan: Plan, outputs: Outputs | StepFailure): boolean {
  if (outputs instanceof StepFailure) return false;
  return !plan.steps.some((step) => step.outputAt >= 0 && e.isShortage(-outputs.result(step)));
}

/** Returns true if the record can be kept. The process may gain privileges later, and a module may be loaded. */
const isFinal = ({ fsContext, overlay }: KernelFeatures): boolean => fsContext !== 'unknown' && overlay === true;

/** Returns the record, and whether it is final. */
function* findOut(): Task<readonly [record: KernelFeatures, isLast: boolean]> {
  const { plan, read } = questions();
  const outputs = yield* askKernel(plan);
  const record = read(outputs);
  const isLast = isFinal(record) && wereAllAsked(plan, outputs);
  const more = questionsBefore65(record);
  if (more === undefined) return [record, isLast];
  const others = yield* askKernel(more.plan);
  return [more.read(others), isLast && wereAllAsked(more.plan, others)];
}

function remember([features, isLast]: readonly [record: KernelFeatures, isLast: boolean]): KernelFeatures {
  if (isLast) remembered = features;
  return features;
}

/** Returns the record for this process, from which a mount with privilege is planned. */
export function* findFeatures(): Task<KernelFeatures> {
  return remembered ?? remember(yield* findOut());
}

/** The promise form of `findFeatures`. */
export async function kernelFeatures(): Promise<KernelFeatures> {
  return run(findFeatures());
}

/** The synchronous form of `findFeatures`. */
export function kernelFeaturesSync(): KernelFeatures {
  return runSync(findFeatures());
}

let rememberedBrief: KernelFeatures | undefined;

/** Returns the record for a mount without options. Probes only for what it needs, unless more is known already. */
export function* findBriefFeatures(): Task<KernelFeatures> {
  const known = remembered ?? rememberedBrief;
  if (known !== undefined) return known;
  const { plan, read } = questions(new Plan(), true);
  const outputs = yield* askKernel(plan);
  const record = read(outputs);
  // Before Linux 6.5 the choice of a fallback depends on the rest of the record, too.
  if (record.fsContext !== true || !isFinal(record) || !wereAllAsked(plan, outputs)) return yield* findFeatures();
  rememberedBrief = record;
  return record;
}

/** Returns the probes for options that a record leaves open because fsconfig(2) does not check them, if any. */
function questionsBefore65(record: KernelFeatures): Questions | undefined {
  if (record.fsContext !== false || record.mountApi !== true) return undefined;
  const names = Object.keys(record.options).filter((name) => record.options[name as ProbedOption] === 'unknown');
  const { plan, read } = askByMounting(names.map((name) => [name, probedOptions[name as ProbedOption]]));
  return { plan, read: (outputs) => ({ ...record, options: { ...record.options, ...read(outputs) } }) };
}

/** Returns whether this process can set marks of `user.` only: those of `trusted.` need root in the initial namespace. */
export const needsUserXattr = (): boolean => process.geteuid?.() !== 0 || kernelFeaturesSync().userNamespace;
