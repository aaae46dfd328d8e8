/** What this kernel can do, asked of the kernel and not of its version number. */
import { release } from 'node:os';
import * as e from '../errnos.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask as askKernel, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { type Outputs, performSync, StepFailure } from '../kernel/perform.js';
import { Plan, type Step, type StepOptions, type Text } from '../kernel/plan.js';
import { addon } from '../native.js';
import { askByMounting, knownBefore65 } from './features-before-6.5.js';

/** `'unknown'` where the process lacks the privilege to ask, or the kernel tells only when it mounts. */
export type Answer = boolean | 'unknown';

/** Overlayfs' own options and values by the kernel's names, as far as kernels differ in them. */
export const probedOptions = {
  redirect_dir: ['redirect_dir', 'nofollow'],
  index: ['index', 'off'],
  nfs_export: ['nfs_export', 'off'],
  metacopy: ['metacopy', 'off'],
  xino: ['xino', 'off'],
  uuid: ['uuid', 'off'],
  'uuid=null': ['uuid', 'null'],
  'uuid=auto': ['uuid', 'auto'],
  verity: ['verity', 'off'],
  volatile: ['volatile', null],
  fsync: ['fsync', 'auto'],
  userxattr: ['userxattr', null],
  override_creds: ['override_creds', null],
  default_permissions: ['default_permissions', null],
  'datadir+': ['datadir+', '/'],
  context: ['context', 'system_u:object_r:tmp_t:s0'],
} as const satisfies Readonly<Record<string, readonly [key: string, value: string | null]>>;

export type ProbedOption = keyof typeof probedOptions;

/** What the kernel can do, and what the process may: the record that a mount is planned from. */
export interface KernelFeatures {
  /** The kernel's release, for people: nothing is decided by it. */
  readonly release: string;
  /** What mount(2) takes of options, and one byte more. */
  readonly pageSize: number;
  /** Whether the process is in a user namespace other than the initial one, where `trusted.*` is out of reach. */
  readonly userNamespace: boolean;
  /** Whether the process may mount an overlay: fsopen(2), which needs CAP_SYS_ADMIN. */
  readonly mayMount: Answer;
  /** Whether the kernel has the overlay file system, as a module that it finds at least. */
  readonly overlay: Answer;
  /** fsopen(2), fsconfig(2), fsmount(2), move_mount(2) (5.2). */
  readonly mountApi: Answer;
  /** overlayfs reads its options from fsconfig(2) itself (6.5). */
  readonly fsContext: Answer;
  /** Layers one by one, unescaped: `lowerdir+` (6.7, and late 6.6). */
  readonly lowerdirAppend: Answer;
  /** Layers by descriptor (6.13): O_PATH ones (6.15 and late 6.13, 6.14) or only readable ones. */
  readonly layerDescriptors: 'path' | 'readable' | false | 'unknown';
  /** Whether each of overlayfs' options is known. */
  readonly options: Readonly<Record<ProbedOption, Answer>>;
  /** mount_setattr(2) (5.12). */
  readonly mountSetattr: Answer;
  /** MOVE_MOUNT_BENEATH (6.5). */
  readonly mountBeneath: Answer;
  /** statmount(2) and listmount(2) (6.8). */
  readonly statmount: Answer;
  /** open_tree_attr(2) (6.15). */
  readonly openTreeAttr: Answer;
  /** FAN_REPORT_MNT: fanotify(7) tells of mounts (6.15). */
  readonly mountEvents: Answer;
  /** Mount ids that are never used again, statx(2) (6.8). */
  readonly uniqueMountId: Answer;
  /** The overlay module's parameters, which are the defaults of options: /sys/module/overlay/parameters. */
  readonly defaults: Readonly<Partial<Record<DefaultName, boolean>>>;
}

const defaultNames = [
  'redirect_dir',
  'redirect_always_follow',
  'index',
  'nfs_export',
  'xino_auto',
  'metacopy',
] as const;
export type DefaultName = (typeof defaultNames)[number];

/**
 * Up to Linux 6.15, verity and data-only layers stand on metacopy. That shows only when a mount is made; what
 * shows is override_creds, which came one release before.
 */
export function needsMetacopy({ options }: KernelFeatures): boolean {
  return options.override_creds === false;
}

export interface Questions {
  readonly plan: Plan;
  readonly read: (outputs: Outputs | StepFailure) => KernelFeatures;
}

/** Directories of which one can be written on most machines, be the root read-only or immutable. */
const mostlyWritable = ['/', '/dev', '/tmp', '.'];

/**
 * From what came of replacing a trusted attribute that is not there, and so nothing: it takes CAP_SYS_ADMIN in
 * the initial user namespace. A read-only file system and an immutable directory answer before that is asked.
 */
function isTrustedDenied(results: readonly number[]): boolean {
  const asked = results.filter((result) => result !== -e.EROFS && result !== -e.ENOENT);
  return asked.length > 0 && asked.every((result) => result === -e.EPERM);
}

/**
 * One plan in which every step may fail, and none leaves anything behind; after steps that it is given. The brief one
 * asks for what a mount without options needs; the rest of its record is unknown, and the options are left out.
 */
export function questions(plan = new Plan(), isBrief = false): Questions {
  const ask = (call: Call, args: readonly (Text | number)[], options?: StepOptions): number =>
    plan.add(call, args, { tolerate: 'any', output: 0, ...options });
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const path = ask(calls.openat2, [k.AT_FDCWD, '/', flags | k.O_PATH]);
  const readable = ask(calls.openat2, [k.AT_FDCWD, '/', flags]);
  const context = ask(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC]);
  const set = (key: string, value: string | null): number =>
    ask(calls.fsconfig, [context, value === null ? k.FSCONFIG_SET_FLAG : k.FSCONFIG_SET_STRING, key, value]);
  // The wrapper of 5.2 to 6.4 takes any key.
  const madeUp = set('overlayfs-probe', '1');
  const pathLayer = ask(calls.fsconfig, [context, k.FSCONFIG_SET_FD, 'lowerdir+', null, path]);
  const readableLayer = ask(calls.fsconfig, [context, k.FSCONFIG_SET_FD, 'lowerdir+', null, readable]);
  const append = set('lowerdir+', '/');
  const probed = isBrief ? [] : Object.entries(probedOptions);
  const options = probed.map(([name, [key, value]]) => [name, set(key, value)] as const);
  // With arguments that cannot be right: whatever is answered, ENOSYS or EINVAL says that it is not there.
  const statmount = ask(calls.statmount, []);
  const more = isBrief
    ? undefined
    : {
        setattr: ask(calls.mount_setattr, [-1, '', 0]),
        beneath: ask(calls.move_mount, [-1, '', -1, '', k.MOVE_MOUNT_BENEATH]),
        openTreeAttr: ask(calls.open_tree_attr, []),
        events: ask(calls.fanotify_init, [k.FAN_REPORT_MNT]),
        selinux: addLook(plan, '/sys/fs/selinux'),
      };
  const look = addLook(plan, '/', { mask: k.STATX_MNT_ID_UNIQUE });
  const userNamespace = addLook(plan, '/proc/self/ns/user', { mask: k.STATX_INO });
  const trusted = mostlyWritable.map((place) =>
    ask(calls.setxattr, [place, 'trusted.overlay.probe', '', k.XATTR_REPLACE]),
  );
  const parameters = (isBrief ? [] : defaultNames).map((name) => {
    const file = ask(calls.openat2, [k.AT_FDCWD, `/sys/module/overlay/parameters/${name}`, k.O_CLOEXEC]);
    return [name, plan.stepOf(ask(calls.read, [file, 1], { output: 1 }))] as const;
  });

  return {
    plan,
    read(outputs) {
      const result = (made: number): number =>
        outputs instanceof StepFailure ? -outputs.errno : outputs.result(plan.stepOf(made) as Step);
      const opened = result(context);
      // EPERM also where a seccomp filter is in the way: then mount(2) says what is true.
      const isDenied = opened === -e.EPERM || opened === -e.EACCES;
      const isUnknown = isDenied || e.isShortage(-opened);
      const answer = (value: () => boolean): Answer => (isUnknown ? 'unknown' : value());
      const ofMore = (read: (made: NonNullable<typeof more>) => Answer): Answer =>
        more === undefined ? 'unknown' : read(more);
      const fsContext = answer(() => opened >= 0 && result(madeUp) < 0);
      const accepts = (made: number): Answer => (fsContext === false ? false : answer(() => result(made) >= 0));
      const hasSelinux = more !== undefined && readLook(more.selinux, outputs).errno === 0;
      const defaults: Partial<Record<DefaultName, boolean>> = {};
      for (const [name, step] of parameters) {
        if (outputs instanceof StepFailure || outputs.result(step) !== 1) continue;
        defaults[name] = outputs.bytes(step, 1).toString() === 'Y';
      }
      return {
        release: release(),
        pageSize: addon().pageSize,
        // Without /proc: who may mount, and may not that.
        userNamespace:
          readLook(userNamespace, outputs).errno === 0
            ? isOtherUserNamespace(readLook(userNamespace, outputs))
            : opened >= 0 && isTrustedDenied(trusted.map(result)),
        mayMount: opened >= 0 ? true : isDenied ? false : 'unknown',
        overlay: answer(() => opened !== -e.ENODEV),
        mountApi: answer(() => opened !== -e.ENOSYS),
        fsContext,
        lowerdirAppend: accepts(append),
        layerDescriptors:
          fsContext === 'unknown'
            ? 'unknown'
            : accepts(pathLayer) === true
              ? 'path'
              : accepts(readableLayer) === true
                ? 'readable'
                : false,
        options: Object.fromEntries(
          options.map(([name, made]) => [
            name,
            fsContext === false ? knownBefore65(name, defaults, hasSelinux) : accepts(made),
          ]),
        ) as Record<ProbedOption, Answer>,
        mountSetattr: ofMore((made) => result(made.setattr) !== -e.ENOSYS),
        // Without privilege EPERM comes first.
        mountBeneath: ofMore(({ beneath }) =>
          result(beneath) === -e.EPERM ? 'unknown' : ![-e.ENOSYS, -e.EINVAL].includes(result(beneath)),
        ),
        statmount: result(statmount) !== -e.ENOSYS,
        openTreeAttr: ofMore((made) => result(made.openTreeAttr) !== -e.ENOSYS),
        mountEvents: ofMore(({ events }) => (e.isShortage(-result(events)) ? 'unknown' : result(events) >= 0)),
        uniqueMountId: readLook(look, outputs).hasUniqueMountId,
        defaults,
      };
    },
  };
}

/** The initial user namespace has a number of its own (PROC_USER_INIT_INO); a map can look like its. */
export function isOtherUserNamespace({ errno, inode }: Found): boolean {
  const INITIAL = 0xeffffffd;
  return errno === 0 && Number(inode) !== INITIAL;
}

let remembered: KernelFeatures | undefined;

/** Whether nothing was lacking, for the moment, to ask all questions. */
export function wereAllAsked(plan: Plan, outputs: Outputs | StepFailure): boolean {
  if (outputs instanceof StepFailure) return false;
  return !plan.steps.some((step) => step.outputAt >= 0 && e.isShortage(-outputs.result(step)));
}

/** Whether it can be remembered: privileges can come later, and a module can be loaded. */
const isFinal = ({ fsContext, overlay }: KernelFeatures): boolean => fsContext !== 'unknown' && overlay === true;

/** The record, and whether it is the last word. */
function* findOut(): Dialogue<readonly [record: KernelFeatures, isLast: boolean]> {
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

/** The record for the process as it is: what a mount with privilege is planned from. */
export async function features(): Promise<KernelFeatures> {
  return remembered ?? remember(await hold(findOut()));
}

/** `features`, on the calling thread. */
export function featuresSync(): KernelFeatures {
  return remembered ?? remember(holdSync(findOut()));
}

let rememberedBrief: KernelFeatures | undefined;

/** What a mount without options is planned from: no more is asked than it needs, where nothing is known yet. */
export function briefFeaturesSync(): KernelFeatures {
  const known = remembered ?? rememberedBrief;
  if (known !== undefined) return known;
  const { plan, read } = questions(new Plan(), true);
  const outputs = performSync(plan);
  const record = read(outputs);
  // Before 6.5 the way down depends on the rest too.
  if (record.fsContext !== true || !isFinal(record) || !wereAllAsked(plan, outputs)) return featuresSync();
  rememberedBrief = record;
  return record;
}

/** What a record leaves open where options cannot be asked for one by one, if anything. */
function questionsBefore65(record: KernelFeatures): Questions | undefined {
  if (record.fsContext !== false || record.mountApi !== true) return undefined;
  const names = Object.keys(record.options).filter((name) => record.options[name as ProbedOption] === 'unknown');
  const { plan, read } = askByMounting(names.map((name) => [name, probedOptions[name as ProbedOption]]));
  return { plan, read: (outputs) => ({ ...record, options: { ...record.options, ...read(outputs) } }) };
}
