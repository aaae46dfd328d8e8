/**
 * Random options: the verdict of the library's checks against the kernel's own, which is asked without the library.
 * Imports internals: a mount would not say which check refused it.
 */
import { join } from 'node:path';
import test from 'ava';
import { OverlayError, type OverlayOptions } from 'overlayfs';
import { checkConflicts, conflicts } from '#lib/features/conflicts.js';
import { kernelFeaturesSync } from '#lib/features/probe.js';
import { type CheckedOptions, checkOptions } from '#lib/options/check.js';
import { overlayOptionNames } from '#lib/options/table.js';
import { generator, MNT_DETACH, mountTest, native, scaled } from '../support/index.js';
import { ways } from '../support/ways.js';
import { attributesAmiss, fallen } from './random/differences.js';
import { freshen, makeDirectories } from './random/directories.js';
import { choices, type Generated, generate } from './random/generator.js';
import { judged, mountDirectly } from './random/kernel.js';
import { type Line, overlayAt } from './rows/mount-table.js';
import { givenOptions } from './rows/row.js';

const seed = 20261124;
const sets = scaled(2000, 100);

/** The verdict of the library's checks. */
type Verdict =
  | { readonly kind: 'passes'; readonly checked: CheckedOptions }
  /** A value or the structure is wrong. */
  | { readonly kind: 'argument'; readonly error: Error }
  /** A row of the table of conflicts. */
  | { readonly kind: 'conflict'; readonly error: Error; readonly says: string; readonly outcomes: readonly string[] };

function verdictOf(options: OverlayOptions): Verdict {
  let checked: CheckedOptions;
  try {
    checked = checkOptions(options);
  } catch (error) {
    return { kind: 'argument', error: error as Error };
  }
  try {
    return { kind: 'passes', checked: checkConflicts(checked, kernelFeaturesSync()) };
  } catch (error) {
    const found = {
      named: Object.fromEntries(checked.overlay.map(({ name, value }) => [name, value])),
      hasUpper: checked.upperdir !== undefined,
      hasData: checked.datadir.length > 0,
      features: kernelFeaturesSync(),
    };
    const rows = conflicts.filter(({ applies }) => applies(found));
    return {
      kind: 'conflict',
      error: error as Error,
      // No row speaks of an option that the kernel lacks.
      says: rows[0] === undefined ? (error as Error).message : `${rows[0].when}: ${rows[0].kernel}`,
      outcomes: rows.map(({ kernel }) => kernel),
    };
  }
}

interface Outcome {
  readonly generated: Generated;
  readonly verdict: Verdict;
  readonly kernel: { errno: number; line: Line | undefined };
  /** Options that the kernel mounts and does not follow. */
  readonly dropped: readonly string[];
}

/** Intended differences of validation and kernel: the name, and when it applies. */
const explained: Readonly<Record<string, (outcome: Outcome) => boolean>> = {
  // The kernel mounts, and ignores the workdir.
  'a workdir without an upperdir': ({ generated: { options }, verdict }) =>
    verdict.kind === 'argument' && options['workdir'] !== undefined && options['upperdir'] === undefined,
  // It depends on a module parameter whether "off" follows, and with it whether the kernel refuses.
  'metacopy with redirectDir off, in a view': ({ generated: { options }, verdict }) =>
    verdict.kind === 'conflict' &&
    options['metacopy'] === true &&
    options['redirectDir'] === 'off' &&
    options['upperdir'] === undefined,
};

function disagreement(outcome: Outcome): string | undefined {
  const { verdict, kernel, dropped } = outcome;
  if (verdict.kind === 'argument') {
    return kernel.errno === 0 ? `refused, and the kernel mounts: ${verdict.error.message}` : undefined;
  }
  if (verdict.kind === 'conflict') {
    if (kernel.errno !== 0) return undefined;
    if (dropped.length > 0) return undefined;
    return `refused, and the kernel does it right: ${verdict.says}`;
  }
  return undefined;
}

/** The row that speaks says of the kernel what it does not do. */
function misstated({ generated, verdict, kernel, dropped }: Outcome): string | undefined {
  const { options, hasWrongPath, wrongText } = generated;
  if (verdict.kind !== 'conflict' || hasWrongPath || wrongText !== undefined) return undefined;
  // An option that the kernel lacks is no conflict.
  if (verdict.outcomes.length === 0)
    return kernel.errno === 0 ? `the kernel has it: ${verdict.error.message}` : undefined;
  // These two hang on a module parameter: what "off" comes to.
  if (options['redirectDir'] === 'off' && (options['userxattr'] || options['metacopy'])) return undefined;
  if (kernel.errno !== 0) {
    return verdict.outcomes.includes('refuses') ? undefined : `the kernel refuses, and the row says: ${verdict.says}`;
  }
  const isDrop = dropped.length > 0 && verdict.says.endsWith('refuses');
  return isDrop ? `the kernel drops, and the row says: ${verdict.says}` : undefined;
}

/** The outcome in the library of options that pass its checks, by one of the ways. */
function mountByLibrary(options: OverlayOptions, way: string, target: string): Line | Error | undefined {
  try {
    ways[way]?.mountSync(options);
  } catch (error) {
    return error as Error;
  }
  const line = overlayAt(target);
  native.umount(target, MNT_DETACH);
  return line;
}

/** Intended differences of the library and the kernel. */
const explainedMounts: Readonly<
  Record<string, (options: Generated['options'], kernel: Outcome['kernel'], outcome: unknown) => boolean>
> = {
  // It sends the word that goes with userxattr.
  'redirectDir off with userxattr': ({ userxattr, redirectDir }, { errno }) =>
    userxattr === true && redirectDir === 'off' && errno !== 0,
  // A walk of the overlay would meet ELOOP there.
  'an upperdir or workdir inside a lower layer': ({ lowerdir = [], upperdir, workdir }, { errno }, outcome) =>
    errno === 0 &&
    outcome instanceof OverlayError &&
    outcome.reason === 'layers-overlap' &&
    [lowerdir].flat().some((lower) => [upperdir, workdir].some((path) => String(path).startsWith(`${lower}/`))),
  // An upper that nothing could be written to.
  'an upper that came out read-only': (_, { line }, outcome) =>
    line?.superblock === 'ro' && outcome instanceof OverlayError && outcome.code === 'EROFS',
  // The kernel makes it null where the layers are on several file systems, and says nothing.
  'uuid off that came null': ({ uuid }, { line }, outcome) =>
    uuid === 'off' &&
    line?.options.get('uuid') === 'null' &&
    outcome instanceof OverlayError &&
    outcome.reason === 'feature-dropped',
};

/** Options that fall away though the checks let them through, and the cause. */
const explainedFalls: Readonly<Record<string, (options: Generated['options'], fall: string) => boolean>> = {
  // The kernel's own choice: on where every layer's file system allows it.
  'xino auto': (_, fall) => fall === 'xino=auto, came off',
};

test('each option of overlayfs itself is among the random ones, and has its words for the kernel', (t) => {
  // SELinux's contexts are left out: few machines have it.
  const own = overlayOptionNames.filter((name) => !name.endsWith('context')).sort();
  t.deepEqual(Object.keys(choices).sort(), own, 'choices in test/overlay/random/generator.ts');
  t.deepEqual([...judged].sort(), own, 'switches, words and flags in test/overlay/random/kernel.ts');
});

// Before 6.15 other rules hold, for which the rows by records stand.
mountTest(`${sets} random sets of options: the checks and the kernel agree`, { needs: 'override_creds' }, (t) => {
  t.timeout(600_000);
  t.log(`seed ${seed}, ${sets} sets`);
  const random = generator(seed);
  const dir = makeDirectories(t);
  const target = join(dir, 'm');
  const tally = new Map<string, number>();
  const amiss = new Map<string, { count: number; first: string }>();
  const count = (what: string) => tally.set(what, (tally.get(what) ?? 0) + 1);
  const report = (what: string, generated: Generated) => {
    const entry = amiss.get(what) ?? { count: 0, first: JSON.stringify(generated.options) };
    entry.count++;
    amiss.set(what, entry);
  };

  for (let i = 0; i < sets; i++) {
    const generated = generate(random);
    const { options } = generated;
    const wayNames = Object.keys(ways);
    const way = wayNames[i % wayNames.length] as string;
    freshen(dir);
    const given = givenOptions({ options: { target: 'm', ...options } }, dir);
    for (const name of ['upperdir', 'workdir']) if (!(name in options)) delete given[name];
    const verdict = verdictOf(given as unknown as OverlayOptions);
    const kernel = mountDirectly(options, generated.wrongText, dir);
    const dropped = kernel.line === undefined ? [] : fallen(options, kernel.line);
    const outcome: Outcome = { generated, verdict, kernel, dropped };
    count(`checks: ${verdict.kind}, kernel: ${kernel.errno === 0 ? (dropped.length ? 'drops' : 'mounts') : 'refuses'}`);

    const wrong = disagreement(outcome);
    if (wrong !== undefined) {
      const [why] = Object.entries(explained).find(([, applies]) => applies(outcome)) ?? [];
      if (why === undefined) report(wrong.replaceAll(dir, ''), generated);
      else count(`explained: ${why}`);
    }
    const misstatement = misstated(outcome);
    if (misstatement !== undefined) report(misstatement, generated);
    if (verdict.kind !== 'passes') continue;

    freshen(dir);
    const made = mountByLibrary(given as unknown as OverlayOptions, way, target);
    const [why] = Object.entries(explainedMounts).find(([, applies]) => applies(options, kernel, made)) ?? [];
    if (why !== undefined) count(`explained: ${why}`);
    else if (made instanceof Error) {
      const { reason, code } = made as OverlayError;
      count(`mount: ${code} ${reason}`);
      if (kernel.errno === 0) report(`${way}: the kernel mounts, the library fails: ${code} ${reason}`, generated);
      else if (!generated.hasWrongPath) report(`passes the checks, and fails by ${code} ${reason}`, generated);
      else if (reason === 'unexplained') report(`${way}: fails, unexplained: ${code}`, generated);
    } else if (made === undefined) report(`${way}: mounted, and not in the mount table`, generated);
    else {
      count('mount: mounted');
      if (kernel.errno !== 0) report(`${way}: the kernel refuses (${kernel.errno}), the library mounts`, generated);
      for (const fall of fallen(options, made)) {
        const [reason] = Object.entries(explainedFalls).find(([, applies]) => applies(options, fall)) ?? [];
        if (reason === undefined) report(`let through, and falls: ${fall}`, generated);
        else count(`explained: ${reason}`);
      }
      for (const wrongWay of attributesAmiss(options, made)) report(`${way}: ${wrongWay}`, generated);
    }
  }
  for (const [what, number] of [...tally].sort()) t.log(`${number} × ${what}`);
  const list = [...amiss].map(([what, { count, first }]) => `${count} × ${what}\n    first: ${first}`);
  t.is(list.length, 0, `\n${list.join('\n')}`);
});
