/** `overlayfs explain` */
import { type Beforehand, examineBeforehand } from '../diagnosis/beforehand.js';
import { nameOf } from '../diagnosis/rule.js';
import { EINVAL } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { kernelFeatures } from '../features/probe.js';
import { run as runTask } from '../kernel/task.js';
import { findHalfMarked } from '../layers/half-marked.js';
import type { CheckedOptions, OverlayOptions } from '../options/check.js';
import { prepare, readOptions } from '../overlay/mount.js';
import { pathString, quotePath } from '../paths.js';
import { type Command, type Outcome, ownFlag } from './command.js';
import { mountGroups, toDetachedOptions, toMountOptions } from './mount.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

/** Describes the file system of each path, a line each. */
function describe({ facts: { paths, mountCount, isIncomplete } }: Beforehand, options: CheckedOptions): string {
  const unknown =
    mountCount === 0
      ? 'on an unknown file system, because /proc is not mounted'
      : 'on a mount that this namespace does not show';
  const lines = paths.map(({ subject, found, isMissing, mount }) => {
    const type = found.errno !== 0 || isMissing ? 'not there' : (mount?.type ?? unknown);
    return `${nameOf(subject, options).replace(/^the /, '')}: ${type}\n`;
  });
  return lines.join('') + (isIncomplete ? 'A file system does not answer: some facts are missing.\n' : '');
}

/** Returns the options of a mount at a target, or of a detached mount. */
function toOptions(parsed: Parsed): OverlayOptions {
  if (parsed.options['rootless'] !== true) return toMountOptions(parsed);
  if (parsed.operands.length > 0) throw new UsageError('--rootless takes no directory to mount on');
  return { ...toDetachedOptions(parsed.options, ['rootless']), rootless: true };
}

/** Finds, among the layers that have a layer below them, those whose hidden files a rootless mount would show. */
async function findUnhidden(options: CheckedOptions): Promise<OverlayError[]> {
  const { lowerdir, upperdir } = options;
  const above = lowerdir.map((path, i) => [`lowerdir[${i}]`, path] as const).slice(0, -1);
  const errors: OverlayError[] = [];
  for (const [role, path] of [...(upperdir === undefined ? [] : [['upperdir', upperdir] as const]), ...above]) {
    const { paths, isComplete } = await runTask(findHalfMarked(path, true));
    const [first] = paths;
    if (first === undefined) continue;
    const others = paths.length === 1 ? '' : `, and ${isComplete ? '' : 'at least '}${paths.length - 1} more`;
    errors.push(
      new OverlayError({
        errno: EINVAL,
        reason: 'mark-unseen',
        what: `the ${role} ${quotePath(path)} has directories that are opaque only for mounts by root: ${quotePath(first)}${others}`,
        path: pathString(first),
      }),
    );
  }
  return errors;
}

async function run(parsed: Parsed): Promise<Outcome> {
  const record = await kernelFeatures();
  const { checked } = await runTask(prepare(readOptions(toOptions(parsed)), record));
  const beforehand = await examineBeforehand(checked, record);
  const { facts } = beforehand;
  const errors = [...beforehand.errors, ...(checked.rootless === false ? [] : await findUnhidden(checked))];
  const verdict = errors.length === 0 ? 'Nothing that can be seen beforehand is in the way of this mount.\n' : '';
  return {
    text: describe(beforehand, checked) + verdict,
    json: {
      complete: !facts.isIncomplete,
      paths: facts.paths.map(({ subject: { role, index, path }, found, isMissing, mount }) => ({
        role,
        ...(index !== undefined && { index }),
        path,
        found: found.errno === 0 && !isMissing,
        ...(mount && { fileSystem: mount.type, mount: mount.target }),
      })),
    },
    errors,
  };
}

export const explain: Command = {
  about:
    'Examines everything that a mount with these options would use, and reports what would prevent it or make it wrong. ' +
    'Mounts nothing and changes nothing.',
  usage: ['--lower DIR... [OPTION...] TARGET', '--rootless --lower DIR... [OPTION...]'],
  groups: [
    ...mountGroups,
    {
      title: 'without privilege',
      flags: [
        ownFlag(
          'rootless',
          'a mount in a user namespace, without TARGET; as root, also reports directories that are opaque only for mounts by root',
        ),
      ],
    },
  ],
  notes:
    'The options are those of overlayfs mount. Some failures show only in the attempt: overlayfs mount then says ' +
    'why it failed. docs/errors.md lists all reasons.',
  examples: [
    'overlayfs explain --lower /srv/base --upper /srv/upper --work /srv/work /srv/merged',
    'overlayfs explain --json --lower /srv/app --lower /srv/base /srv/view',
    'overlayfs explain --rootless --lower /srv/app --lower /srv/base',
  ],
  run,
};
