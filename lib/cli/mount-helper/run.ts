/**
 * mount(8)'s helper: mounts as the library does, and where the library would refuse what the kernel takes, as mount(8)
 * itself would, with a warning.
 */
import { nearestName } from '../../arguments.js';
import { OverlayError } from '../../errors.js';
import * as k from '../../kernel/constants.js';
import { formatPlan } from '../../kernel/format.js';
import { type RawOption, splitGiven } from '../../mount-strings.js';
import { findBadPathsSync } from '../../overlay/diagnosis/beforehand.js';
import { featuresSync } from '../../overlay/features.js';
import { mountOverlaySync, prepare } from '../../overlay/mount.js';
import { readGiven } from '../../overlay/option-strings.js';
import { optionRows } from '../../overlay/option-table.js';
import type { OverlayOptions } from '../../overlay/options.js';
import { isAbsolute, joinPath, type Path, toAbsolute, toBytes, withoutTrailingSlashes } from '../../paths.js';
import type { Reason } from '../../reasons.js';
import { argumentsOf } from '../command-line.js';
import { dryRun } from '../dry-run.js';
import { errorText, exitCodeOf, WRONG_USAGE } from '../errors.js';
import { UsageError, unknownWord } from '../usage-error.js';
import { type Request, readArguments } from './arguments.js';
import { mountPlan, mountRaw, remountPlan } from './raw.js';
import { ignoredOptions, remount } from './remount.js';
import { wasGivenToMount } from './strict.js';
import { voice } from './voice.js';
import { readWords, STRICT, SUPERBLOCK_ONLY, toAttributes, type Words } from './words.js';

/** As mount(8) has them. */
export const exitCodes = { usage: 1, system: 2, bug: 4, failed: 32 } as const;

const reasonCodes: Readonly<Partial<Record<Reason, number>>> = {
  'no-privilege': exitCodes.usage,
  'out-of-descriptors': exitCodes.system,
  'out-of-threads': exitCodes.system,
};

/** An error that is about what was given, as opposed to a fault of ours. */
const isExpected = (error: unknown): boolean => error instanceof OverlayError || exitCodeOf(error) === WRONG_USAGE;

function codeOf(error: unknown): number {
  if (!isExpected(error)) return exitCodes.bug;
  return (error instanceof OverlayError && reasonCodes[error.reason]) || exitCodes.failed;
}

/** What the kernel is not asked for, since it would say the same. */
const isFinal = (error: unknown): boolean =>
  !isExpected(error) ||
  (error instanceof OverlayError && (error.reason in reasonCodes || error.reason === 'overlay-unavailable'));

const byKernelName = new Map(
  Object.values(optionRows).flatMap((row) => (row?.kernel === undefined ? [] : [[row.kernel, row] as const])),
);

/** What is not right about an option that the table does not take. */
function optionProblem(option: RawOption, rest: readonly RawOption[]): UsageError {
  const { name, value } = option;
  const row = byKernelName.get(name);
  const shown = value === null ? name : `${name}=${value}`;
  const words = row?.form === 'switch' ? ['on', 'off'] : row?.form === 'word' ? row.words : undefined;
  if (words !== undefined) {
    const what = value === null ? 'needs a value' : `cannot be '${value}'`;
    return new UsageError(`the option '${name}' ${what}`, `One of: ${words.join(', ')}.`);
  }
  if (row?.form === 'flag') return new UsageError(`the option '${shown}' takes no value`, `Write ${name}.`);
  if (row !== undefined || name === 'lowerdir+') {
    return new UsageError(
      `the option '${shown}' is wrong, or wrong after what comes before it`,
      'lowerdir is paths with colons between them, and data-only layers after two colons; lowerdir+ and datadir+ are one path each, and follow no lowerdir.',
    );
  }
  const known = [...byKernelName.keys()];
  if (value === null && isAfterPath(option, rest) && nearestName(name, known) === undefined) {
    return new UsageError(
      `unknown option '${name}'`,
      `If that is a part of the path before it: write a comma in a path as '\\,'.`,
    );
  }
  return unknownWord('unknown option', name, known);
}

/** Whether it comes after a path, which ends at a comma. */
function isAfterPath(option: RawOption, rest: readonly RawOption[]): boolean {
  const before = rest[rest.indexOf(option) - 1];
  return before !== undefined && layerNames.has(before.name);
}

const layerNames: ReadonlySet<string> = new Set(['lowerdir', 'lowerdir+', 'datadir+', 'upperdir', 'workdir']);

function toLibrary({ source, target }: Request, words: Words): OverlayOptions {
  const { lowerdir, datadir, upperdir, workdir, ...own } = readGiven(words.rest).options;
  const layer = (name: 'upperdir' | 'workdir', path: Path | undefined) =>
    path === undefined ? {} : { [name]: toAbsolute(path) };
  return {
    ...own,
    ...toAttributes(words),
    // Left out, the library says that it is missing.
    ...(lowerdir.length > 0 && { lowerdir: lowerdir.map(toAbsolute) }),
    ...(datadir.length > 0 && { datadir: datadir.map(toAbsolute) }),
    ...layer('upperdir', upperdir),
    ...layer('workdir', workdir),
    target,
    source: Buffer.from(toBytes(source)).toString(),
  } as OverlayOptions;
}

const fromRoot = (path: Path): Path => (isAbsolute(path) ? path : joinPath('/', path));

class Helper {
  readonly #request: Request;
  readonly #words: Words;
  readonly #isStrict: boolean;

  constructor(given: Request) {
    // As mount(8) passes it; in another mount namespace it begins where the layers do.
    const target = given.namespace === undefined ? toAbsolute(given.target) : fromRoot(given.target);
    const request = { ...given, target: withoutTrailingSlashes(target) };
    this.#request = request;
    const words = readWords(splitGiven(request.options));
    this.#isStrict = words.isStrict || wasGivenToMount(STRICT, request.target);
    const { others } = readGiven(words.rest);
    const dropped = request.isSloppy ? others.filter(({ name }) => !isKnown(name)) : [];
    for (const { name } of dropped) this.#warn(new UsageError(`the unknown option '${name}' is left out (-s)`));
    this.#words = { ...words, rest: words.rest.filter((option) => !dropped.includes(option)) };
  }

  #warn(problem: unknown, more = ''): void {
    process.stderr.write(errorText(problem, { ...voice, program: `${voice.program}: warning${more}` }));
  }

  /** What the kernel lets pass: an error only where that is wanted. */
  #object(problem: unknown): void {
    if (this.#isStrict || this.#request.isFake) throw problem;
    this.#warn(problem);
  }

  #showPlan(plan: () => string): void {
    if (this.#request.isVerbose) process.stdout.write(plan());
  }

  run(): void {
    if ((this.#words.flags & k.MS_REMOUNT) !== 0) this.#remount();
    else if ((this.#words.flags & k.MS_BIND) !== 0) {
      throw new UsageError('a bind mount is none of an overlay', 'Leave the type out: mount --bind.');
    } else this.#mount();
  }

  #remount(): void {
    const { target, namespace, isFake } = this.#request;
    const ignored = namespace === undefined ? ignoredOptions(target, this.#words.rest) : [];
    if (ignored.length > 0) {
      const names = ignored.map((name) => `'${name}'`).join(', ');
      this.#object(
        new UsageError(
          `a remount changes no option of overlayfs: ${names} stays as it is`,
          'Unmount, and mount again.',
        ),
      );
    }
    this.#showPlan(() => formatPlan(remountPlan(this.#request, this.#words)));
    if (!isFake) remount(this.#request, this.#words);
  }

  #mount(): void {
    const { namespace, isFake } = this.#request;
    const { rest } = this.#words;
    const problems = readGiven(rest).others.map((option) => optionProblem(option, rest));
    const options = toLibrary(this.#request, this.#words);
    if (problems.length === 0 && options.lowerdir === undefined) {
      problems.push(
        new UsageError('no lowerdir is given', 'Name the lower layers, the topmost first: lowerdir=PATH:PATH.'),
      );
    }
    const raw = () => formatPlan(mountPlan(this.#request, this.#words));
    if (problems.length > 0) {
      if (this.#isStrict || isFake) throw problems[0];
      this.#showPlan(raw);
      // The kernel may know more options than are known here.
      this.#mountRaw(problems);
      return;
    }
    let lines: string[] | undefined;
    try {
      lines = dryRun(options, featuresSync());
    } catch (problem) {
      if (isFake || this.#isStrict || isFinal(problem)) throw problem;
      this.#showPlan(raw);
      this.#mountRaw([problem]);
      return;
    }
    this.#showPlan(namespace === undefined ? () => `${lines.join('\n')}\n` : raw);
    if (isFake) {
      if (namespace === undefined) this.#lookAtPaths(options);
      return;
    }
    // The library's layers and target are those of this namespace.
    if (namespace !== undefined) {
      const isWritable = options.upperdir !== undefined && (this.#words.flags & k.MS_RDONLY) === 0;
      mountRaw(this.#request, this.#words, this.#isStrict && isWritable);
      return;
    }
    try {
      this.#mountByLibrary(options);
    } catch (problem) {
      if (this.#isStrict || isFinal(problem)) throw problem;
      this.#mountRaw([problem]);
    }
  }

  /** For -f, which is to fail where the mount would: paths, as they are now. */
  #lookAtPaths(options: OverlayOptions): void {
    const errors = findBadPathsSync(prepare(options).checked);
    for (const error of errors.slice(0, -1)) process.stderr.write(errorText(error, voice));
    if (errors.length > 0) throw errors.at(-1);
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

  /** What the problems are about becomes a warning where the kernel mounts, else the error. */
  #mountRaw(problems: readonly unknown[]): void {
    try {
      mountRaw(this.#request, this.#words);
    } catch (error) {
      // What has been found says more than the kernel's errno.
      for (const problem of problems.slice(0, -1)) process.stderr.write(errorText(problem, voice));
      if (isExpected(error)) throw problems.at(-1);
      throw error;
    }
    for (const problem of problems) this.#warn(problem, ', mounted all the same');
  }
}

const isKnown = (name: string): boolean => byKernelName.has(name) || name === 'lowerdir+';

/** Returns the exit code. */
export function mountHelper(decoded: readonly string[]): number {
  let request: Request;
  try {
    request = readArguments(argumentsOf(decoded));
  } catch (error) {
    process.stderr.write(errorText(error, voice));
    return exitCodes.usage;
  }
  try {
    new Helper(request).run();
    return 0;
  } catch (error) {
    process.stderr.write(errorText(error, voice));
    return codeOf(error);
  }
}
