/**
 * The mount(8) helper. It mounts as the library does. If the library would refuse what the kernel accepts, it mounts as
 * mount(8) itself would, with a warning.
 */

import { argumentsOf } from '../cli/command-line.js';
import { isWrongUsage } from '../cli/errors.js';
import { isKnown, optionProblem } from '../cli/mount-option.js';
import { UsageError } from '../cli/usage-error.js';
import { findBadPathsSync } from '../diagnosis/beforehand.js';
import { explainMount, wantedAfter } from '../diagnosis/explain.js';
import { gatherFactsSync } from '../diagnosis/gather-facts.js';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { findProblems, type Problem } from '../features/conflicts.js';
import { kernelFeaturesSync } from '../features/probe.js';
import * as k from '../kernel/constants.js';
import { formatPlan } from '../kernel/format.js';
import type { StepFailure } from '../kernel/perform.js';
import { runSync } from '../kernel/task.js';
import { splitGiven } from '../mount-strings.js';
import { type CheckedOptions, checkOptions, LAYERS_APART, type OverlayOptions, takeOptions } from '../options/check.js';
import { readWords, STRICT, SUPERBLOCK_ONLY, toAttributes, type Words } from '../options/mount-words.js';
import { readGiven } from '../options/text.js';
import { dryRun } from '../overlay/dry-run.js';
import { mountOverlaySync, prepare, readOptions } from '../overlay/mount.js';
import { isAbsolute, joinPath, type Path, toAbsolute, toBytes, withoutTrailingSlashes } from '../paths.js';
import type { Reason } from '../reasons.js';
import { type Request, readArguments } from './arguments.js';
import { Messages, type Write, writeAnyway } from './messages.js';
import { explainRaw, mountPlan, mountRaw, remountPlan } from './raw.js';
import { ignoredOptions, remount } from './remount.js';
import { wasGivenToMount } from './strict.js';

/** The exit codes of mount(8). */
export const exitCodes = { usage: 1, system: 2, bug: 4, failed: 32 } as const;

const reasonCodes: Readonly<Partial<Record<Reason, number>>> = {
  'no-privilege': exitCodes.usage,
  'out-of-descriptors': exitCodes.system,
  'out-of-threads': exitCodes.system,
};

/** True if the error is about the input, false if it is a fault of this program. */
const isExpected = (error: unknown): boolean => error instanceof OverlayError || isWrongUsage(error);

function codeOf(error: unknown): number {
  if (!isExpected(error)) return exitCodes.bug;
  return (error instanceof OverlayError && reasonCodes[error.reason]) || exitCodes.failed;
}

/** True if asking the kernel is pointless, since it would give the same answer. */
const isFinal = (error: unknown): boolean =>
  !isExpected(error) ||
  (error instanceof OverlayError && (error.reason in reasonCodes || error.reason === 'overlay-unavailable'));

function toLibrary({ source, target }: Request, words: Words): OverlayOptions {
  const { options, layersApart } = readGiven(words.rest);
  const { lowerdir, datadir, upperdir, workdir, ...own } = options;
  const layer = (name: 'upperdir' | 'workdir', path: Path | undefined) =>
    path === undefined ? {} : { [name]: toAbsolute(path) };
  return {
    ...own,
    ...toAttributes(words),
    ...(layersApart && { [LAYERS_APART]: true }),
    // If lowerdir is left out, the library reports it as missing.
    ...(lowerdir.length > 0 && { lowerdir: lowerdir.map(toAbsolute) }),
    ...(datadir.length > 0 && { datadir: datadir.map(toAbsolute) }),
    ...layer('upperdir', upperdir),
    ...layer('workdir', workdir),
    target,
    source: Buffer.from(toBytes(source)).toString(),
  } as OverlayOptions;
}

const fromRoot = (path: Path): Path => (isAbsolute(path) ? path : joinPath('/', path));

/** The options with which the library mounts in spite of its objection, as the kernel does. */
const tolerances: Readonly<Partial<Record<Reason, Partial<OverlayOptions>>>> = {
  'target-mounted': { stack: true },
  'upper-in-use': { exclusive: false },
  'work-in-use': { exclusive: false },
};

/** True if the library refuses what the kernel may accept: such an error names no failed system call. */
const isObjection = (error: unknown): error is OverlayError =>
  error instanceof OverlayError && error.syscall === undefined;

const isSame = (one: unknown, other: unknown): boolean =>
  one === other || (one instanceof OverlayError && other instanceof OverlayError && one.reason === other.reason);

/** The reasons that `nofail` covers: for mount(8), a device that does not exist. */
const missing: ReadonlySet<Reason> = new Set(['lower-missing', 'upper-missing', 'work-missing', 'path-missing']);

class Helper {
  readonly #request: Request;
  readonly #words: Words;
  readonly #messages: Messages;
  #wasGivenStrict: boolean | undefined;

  constructor(given: Request, messages: Messages) {
    this.#messages = messages;
    // Not resolved, as mount(8) passes it. In another mount namespace, a relative path begins at the root, as those of
    // the layers do.
    const target = given.namespace === undefined ? toAbsolute(given.target) : fromRoot(given.target);
    const request = { ...given, target: withoutTrailingSlashes(target) };
    this.#request = request;
    const words = readWords(splitGiven(request.options));
    const { others } = readGiven(words.rest);
    const dropped = request.isSloppy ? others.filter(({ name }) => !isKnown(name)) : [];
    for (const { name } of dropped)
      this.#messages.warn(new UsageError(`the unknown option '${name}' is left out (-s)`));
    this.#words = { ...words, rest: words.rest.filter((option) => !dropped.includes(option)) };
  }

  /** Looked up only when there is an objection. */
  get #isStrict(): boolean {
    if (this.#words.isStrict) return true;
    this.#wasGivenStrict ??= wasGivenToMount(STRICT, this.#request.target);
    return this.#wasGivenStrict;
  }

  get isNofail(): boolean {
    return this.#words.isNofail;
  }

  #showPlan(plan: () => string): void {
    if (this.#request.isVerbose) this.#messages.write(1, plan());
  }

  run(): void {
    if ((this.#words.flags & k.MS_REMOUNT) !== 0) this.#remount();
    else if ((this.#words.flags & k.MS_BIND) !== 0) {
      throw new UsageError('a bind mount has no file system type', 'Leave the type out: mount --bind.');
    } else this.#mount();
  }

  #remount(): void {
    const { target, namespace, isFake } = this.#request;
    const ignored = namespace === undefined ? ignoredOptions(target, this.#words.rest) : [];
    if (ignored.length > 0) {
      const names = ignored.map((name) => `'${name}'`).join(', ');
      const problem = new UsageError(
        `a remount changes no option of overlayfs: ${names} stays unchanged`,
        'Unmount it and mount it again.',
      );
      if (this.#isStrict || isFake) throw problem;
      this.#messages.warn(problem);
    }
    this.#showPlan(() => formatPlan(remountPlan(this.#request, this.#words)));
    if (!isFake) remount(this.#request, this.#words);
  }

  #mount(): void {
    const { namespace, isFake } = this.#request;
    let options: OverlayOptions;
    try {
      options = toLibrary(this.#request, this.#words);
    } catch (error) {
      // In a working directory that has been removed, the kernel still resolves a relative path.
      if (isFake || mountRaw(this.#request, this.#words, this.#isStrict) !== undefined) throw error;
      return;
    }
    const problems = this.#findProblems(options);
    if (problems.length > 0 && (this.#isStrict || isFake)) this.#messages.throwAll(problems);
    const isByLibrary = problems.length === 0 && namespace === undefined;
    this.#showPlan(() => (isByLibrary ? planText(options) : '') || formatPlan(mountPlan(this.#request, this.#words)));
    if (isFake) {
      dryRun(options, kernelFeaturesSync());
      const bad = namespace === undefined ? findBadPaths(options) : [];
      if (bad.length > 0) this.#messages.throwAll(bad);
    } else if (isByLibrary) this.#mountTolerantly(options);
    else this.#mountRaw(options, problems);
  }

  /** Finds the problems that the options themselves show, before anything is tried. */
  #findProblems(options: OverlayOptions): Problem[] {
    const { rest } = this.#words;
    const problems: Problem[] = readGiven(rest).others.map((option) => refused(optionProblem(option, rest)));
    if (options.lowerdir === undefined) {
      const hint = 'Name the lower layers, the topmost first: lowerdir=PATH:PATH.';
      return problems.length > 0 ? problems : [refused(new UsageError('no lowerdir is given', hint))];
    }
    if (isWorkAlone(options)) {
      const what = 'workdir has no effect without an upperdir: the kernel ignores it';
      problems.push({ error: new UsageError(what, 'Leave it out, or add an upperdir.'), isRefused: false });
    }
    try {
      const checked = check(options);
      if (isLone(checked)) {
        const hint = 'Add upperdir and workdir, or a second lower layer. A bind mount shows one directory.';
        problems.push(refused(new UsageError('an overlay without an upperdir needs at least 2 lower layers', hint)));
      }
      if (checked.overlay.length > 0 || checked.datadir.length > 0) {
        problems.push(...findProblems(checked, kernelFeaturesSync()));
      }
    } catch (error) {
      problems.push(refused(error as Error));
    }
    return problems;
  }

  /** Mounts by the library, which is told to tolerate its previous objections. */
  #mountTolerantly(options: OverlayOptions, objections: readonly Problem[] = []): void {
    try {
      this.#mountByLibrary(options);
    } catch (error) {
      if (this.#isStrict || isFinal(error)) {
        for (const objection of objections) this.#messages.warn(objection.error);
        throw error;
      }
      if (isObjection(error)) this.#mountAgain(options, objections, error);
      else this.#mountRaw(options, objections, error as Error);
      return;
    }
    for (const { error } of objections) this.#messages.warnMounted(error);
  }

  #mountAgain(options: OverlayOptions, before: readonly Problem[], error: OverlayError): void {
    const objections = [...before, { error, isRefused: false }];
    const tolerance = tolerances[error.reason];
    if (tolerance === undefined || before.some((objection) => isSame(objection.error, error))) {
      this.#mountRaw(options, objections);
    } else this.#mountTolerantly({ ...options, ...tolerance }, objections);
  }

  #mountByLibrary(options: OverlayOptions): void {
    const mounted = mountOverlaySync(options);
    if ((this.#words.flags & SUPERBLOCK_ONLY) === 0) return;
    try {
      remount(this.#request, { ...this.#words, propagation: 0 }, options.upperdir === undefined);
    } catch (error) {
      mounted.unmountSync();
      throw error;
    }
  }

  /**
   * Mounts by mount(2), as mount(8) itself would. If the kernel mounts, the problems become warnings. If it refuses,
   * they become warnings beside the reason. The reason may be one of them, or `known`: the error with which the kernel
   * refused the library's mount.
   */
  #mountRaw(options: OverlayOptions, problems: readonly Problem[], known?: Error): void {
    const isWritable = options.upperdir !== undefined && (this.#words.flags & k.MS_RDONLY) === 0;
    const failure = mountRaw(this.#request, this.#words, isWritable && this.#isStrict);
    if (failure === undefined) {
      for (const { error } of problems) this.#messages.warnMounted(error);
      if (known !== undefined) this.#messages.warnMounted(known);
      return;
    }
    const isAboutOptions = failure.errno === e.EINVAL || failure.errno === e.EPERM;
    const causes = problems.filter(({ isRefused }) => isRefused && isAboutOptions);
    const error = causes.length > 0 ? undefined : (known ?? this.#explain(options, failure));
    for (const problem of problems) {
      if (!causes.includes(problem) && !isSame(problem.error, error)) this.#messages.warn(problem.error);
    }
    if (error !== undefined) throw error;
    this.#messages.throwAll(causes);
  }

  /** Explains why the kernel has refused. */
  #explain(options: OverlayOptions, failure: StepFailure): OverlayError {
    const raw = explainRaw(failure, this.#request);
    if (this.#request.namespace !== undefined) return raw;
    let checked: CheckedOptions;
    try {
      checked = check(options);
    } catch {
      return raw;
    }
    const error = explainMount(checked, failure, gatherFactsSync(checked, wantedAfter(failure)));
    return error.reason === 'unexplained' ? raw : error;
  }
}

/** The library shows one layer by an upper in memory. The kernel refuses it. */
const isLone = ({ upperdir, temporary }: CheckedOptions): boolean => upperdir === undefined && temporary !== undefined;

const isWorkAlone = ({ upperdir, workdir }: OverlayOptions): boolean => workdir !== undefined && upperdir === undefined;

/** Checks the options without a useless workdir, which the library reports as an error. */
function check(options: OverlayOptions): CheckedOptions {
  const { workdir, ...others } = options;
  return checkOptions(takeOptions(isWorkAlone(options) ? others : options));
}

const refused = (error: Error): Problem => ({ error, isRefused: true });

/** Returns the library's plan as text; an empty text if the library has none. */
function planText(options: OverlayOptions): string {
  try {
    return `${dryRun(options, kernelFeaturesSync()).join('\n')}\n`;
  } catch {
    return '';
  }
}

/** Checks the paths as they are now, for -f, which must fail if the mount would. */
const findBadPaths = (options: OverlayOptions): Problem[] =>
  findBadPathsSync(runSync(prepare(readOptions(options))).checked).map(refused);

/** Runs the helper. Returns the exit code. */
export function mountHelper(decoded: readonly string[], write: Write = writeAnyway): number {
  const messages = new Messages(write);
  let helper: Helper | undefined;
  let request: Request;
  try {
    request = readArguments(argumentsOf(decoded));
  } catch (error) {
    messages.error(error);
    return exitCodes.usage;
  }
  try {
    helper = new Helper(request, messages);
    helper.run();
    return 0;
  } catch (error) {
    if (helper?.isNofail && error instanceof OverlayError && missing.has(error.reason)) return 0;
    messages.error(error);
    return codeOf(error);
  }
}
