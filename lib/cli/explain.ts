/** `overlayfs explain` */
import { textsOf } from '../errors.js';
import type { OverlayOptions } from '../options/check.js';
import { type Explanation, explain as explainMount, type Finding } from '../overlay/explain.js';
import { quotePath } from '../paths.js';
import { printable, sentence } from '../text.js';
import type { Command, Outcome, Parsed } from './command.js';
import { NO } from './errors.js';
import { ownFlag } from './flags.js';
import { type MountFlags, moreGroup, mountGroups, toDetachedOptions, toMountOptions } from './mount.js';
import { spellingOf } from './spelling.js';
import { UsageError } from './usage-error.js';

/** Describes the file system of each path, a line each. */
function describe({ paths, complete }: Explanation): string {
  const lines = paths.map(({ role, index, path, found, fileSystem = 'on a mount that cannot be seen' }) => {
    const isOneOfSeveral = index !== undefined && paths.filter((other) => other.role === role).length > 1;
    const name = isOneOfSeveral ? `${role}[${index}]` : role;
    return `${name} ${quotePath(path)}: ${found ? printable(fileSystem) : 'not there'}\n`;
  });
  return lines.join('') + (complete ? '' : 'A file system does not answer: some facts are missing.\n');
}

/** Spells the options as flags. */
function spell(finding: Finding): Finding {
  const { message, hint } = textsOf(finding) ?? {};
  if (message === undefined || hint === undefined) return finding;
  const spelling = spellingOf(explain);
  return { ...finding, message: sentence(message, spelling), hint: sentence(hint, spelling) };
}

const findingText = ({ reason, message, hint }: Finding): string =>
  `${message}\n  reason: ${reason}\n  hint: ${hint}\n`;

interface Options extends Omit<MountFlags, 'rootless'> {
  readonly rootless?: boolean;
}

/** Returns the options of a mount at a target, or of a detached mount. */
function toOptions({ options: { rootless, ...options }, operands }: Parsed<Options>): OverlayOptions {
  if (rootless) {
    if (operands.length > 0) throw new UsageError('--rootless takes no directory to mount on');
    return { ...toDetachedOptions(options), rootless: true };
  }
  if (operands.length === 0) throw new UsageError('name the directory to mount on');
  return toMountOptions({ options, operands });
}

async function run(parsed: Parsed<Options>): Promise<Outcome> {
  const explanation = await explainMount(toOptions(parsed));
  const findings = explanation.findings.map(spell);
  const verdict = 'Nothing that can be seen beforehand is in the way of this mount.\n';
  return {
    text: describe(explanation) + (explanation.ok ? verdict : findings.map(findingText).join('')),
    json: { ...explanation, findings },
    exitCode: explanation.ok ? 0 : NO,
  };
}

export const explain: Command<Options> = {
  about:
    'Examines everything that a mount with these options would use, and reports what would prevent it or make it wrong. ' +
    'Mounts nothing and changes nothing.',
  operands: '[TARGET]',
  forms: ['--lowerdir DIR... [OPTION...] TARGET', '--rootless --lowerdir DIR... [OPTION...]'],
  groups: [
    ...mountGroups,
    moreGroup,
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
  no: 'something is in the way',
  notes:
    'The options are those of overlayfs mount. Some failures show only in the attempt: overlayfs mount then says ' +
    'why it failed. docs/errors.md lists all reasons.',
  examples: [
    'overlayfs explain --lowerdir /srv/base --upperdir /srv/upper --workdir /srv/work /srv/merged',
    'overlayfs explain --json --lowerdir /srv/app --lowerdir /srv/base /srv/view',
    'overlayfs explain --rootless --lowerdir /srv/app --lowerdir /srv/base',
  ],
  run,
};
