/** `overlayfs explain` */

import { type Beforehand, lookBeforehand } from '../diagnosis/beforehand.js';
import { nameOf } from '../diagnosis/rule.js';
import { EINVAL } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { features } from '../features/probe.js';
import { hold } from '../kernel/dialogue.js';
import { findHalfMarked } from '../layers/half-marked.js';
import type { CheckedOptions, OverlayOptions } from '../options/check.js';
import { prepare } from '../overlay/mount.js';
import { pathString, quotePath } from '../paths.js';
import { type Command, type Outcome, ownFlag } from './command.js';
import { mountGroups, toDetachedOptions, toMountOptions } from './mount.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

/** Describes the file system of each path, a line each. */
function describe({ facts: { paths, mountCount, isIncomplete } }: Beforehand, options: CheckedOptions): string {
  const unknown =
    mountCount === 0
      ? 'on a file system that /proc, which is not mounted, would tell'
      : 'on a mount that this namespace does not show';
  const lines = paths.map(({ subject, found, isUnmade, mount }) => {
    const type = found.errno !== 0 || isUnmade ? 'not there' : (mount?.type ?? unknown);
    return `${nameOf(subject, options).replace(/^the /, '')}: ${type}\n`;
  });
  return lines.join('') + (isIncomplete ? 'A file system does not answer: there may be more to say.\n' : '');
}

/** Returns the options of a mount at a target, or of a detached mount. */
function toOptions(parsed: Parsed): OverlayOptions {
  if (parsed.options['rootless'] !== true) return toMountOptions(parsed);
  if (parsed.operands.length > 0) throw new UsageError('with --rootless there is no directory to mount on');
  return { ...toDetachedOptions(parsed.options, ['rootless']), rootless: true };
}

/** Finds, among the layers that have a layer below them, those whose hidden files a rootless mount would show. */
async function findUnhidden(options: CheckedOptions): Promise<OverlayError[]> {
  const { lowerdir, upperdir } = options;
  const above = lowerdir.map((path, i) => [`lowerdir[${i}]`, path] as const).slice(0, -1);
  const errors: OverlayError[] = [];
  for (const [role, path] of [...(upperdir === undefined ? [] : [['upperdir', upperdir] as const]), ...above]) {
    const { paths, isComplete } = await hold(findHalfMarked(path, true));
    const [first] = paths;
    if (first === undefined) continue;
    const others = paths.length === 1 ? '' : `, and ${isComplete ? '' : 'at least '}${paths.length - 1} more`;
    errors.push(
      new OverlayError({
        errno: EINVAL,
        reason: 'mark-unseen',
        what: `the ${role} ${quotePath(path)} has directories that are opaque for mounts of root only: ${quotePath(first)}${others}`,
        path: pathString(first),
      }),
    );
  }
  return errors;
}

async function run(parsed: Parsed): Promise<Outcome> {
  const record = await features();
  const { checked } = await hold(prepare(toOptions(parsed), record));
  const beforehand = await lookBeforehand(checked, record);
  const { facts } = beforehand;
  const errors = [...beforehand.errors, ...(checked.rootless === false ? [] : await findUnhidden(checked))];
  const verdict = errors.length === 0 ? 'Nothing that can be seen beforehand is in the way of this mount.\n' : '';
  return {
    text: describe(beforehand, checked) + verdict,
    json: {
      complete: !facts.isIncomplete,
      paths: facts.paths.map(({ subject: { role, index, path }, found, isUnmade, mount }) => ({
        role,
        ...(index !== undefined && { index }),
        path,
        found: found.errno === 0 && !isUnmade,
        ...(mount && { fileSystem: mount.type, mount: mount.target }),
      })),
    },
    errors,
  };
}

export const explain: Command = {
  about:
    'Looks at all that a mount with these options would use, and says what would stop it or make it a wrong one. ' +
    'Nothing is mounted, and nothing changed.',
  usage: ['--lower DIR... [OPTION...] TARGET', '--rootless --lower DIR... [OPTION...]'],
  groups: [
    ...mountGroups,
    {
      title: 'without privilege',
      flags: [
        ownFlag(
          'rootless',
          'a mount in a user namespace, without TARGET; as root, what its layers hide from mounts of root only is told too',
        ),
      ],
    },
  ],
  notes:
    'The options are those of overlayfs mount. What only the attempt shows is not foreseen: overlayfs mount says ' +
    'why it failed then. Each reason is in docs/errors.md.',
  examples: [
    'overlayfs explain --lower /srv/base --upper /srv/upper --work /srv/work /srv/merged',
    'overlayfs explain --json --lower /srv/app --lower /srv/base /srv/view',
    'overlayfs explain --rootless --lower /srv/app --lower /srv/base',
  ],
  run,
};
