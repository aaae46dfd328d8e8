/** `overlayfs explain` */

import { type Beforehand, lookBeforehand } from '../overlay/diagnosis/beforehand.js';
import { nameOf } from '../overlay/diagnosis/rule.js';
import { features } from '../overlay/features.js';
import { prepare } from '../overlay/mount.js';
import type { CheckedOptions } from '../overlay/options.js';
import type { Command, Outcome } from './command.js';
import { mountGroups, toMountOptions } from './mount.js';
import type { Parsed } from './parse.js';

/** What each path is on, a line each. */
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

async function run(parsed: Parsed): Promise<Outcome> {
  const record = await features();
  const { checked } = prepare(toMountOptions(parsed), record);
  const beforehand = await lookBeforehand(checked, record);
  const { errors, facts } = beforehand;
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
  usage: ['--lower DIR... [OPTION...] TARGET'],
  groups: mountGroups,
  notes:
    'The options are those of overlayfs mount. What only the attempt shows is not foreseen: overlayfs mount says ' +
    'why it failed then. Each reason is in docs/errors.md.',
  examples: [
    'overlayfs explain --lower /srv/base --upper /srv/upper --work /srv/work /srv/merged',
    'overlayfs explain --json --lower /srv/app --lower /srv/base /srv/view',
  ],
  run,
};
