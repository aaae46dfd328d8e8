/** `overlayfs umount` */
import { isUnmountedAllTheSame, type UnmountOptions, unmount } from '../mounts/unmount.js';
import { type UnmountTreeOptions, unmountTree } from '../mounts/unmount-tree.js';
import type { Path } from '../paths.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { exitCodeOf, FAILED } from './errors.js';
import { kebab } from './flags.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

type Options = Parsed['options'];

/** Options that apply to one mount, not to all mounts below a directory. */
const ofOneMount = ['detach', 'force', 'followSymlinks', 'removeWork', 'namespace'] as const;

/** Returns a function that unmounts a target and returns the number of mounts. */
function unmounter(options: Options): (target: Path) => Promise<number> {
  if (options['tree'] === true) {
    const other = ofOneMount.find((name) => options[name] !== undefined);
    if (other !== undefined) {
      throw new UsageError(`--${kebab(other)} cannot go with --tree`, 'Leave one of the two out.');
    }
    const chosen = libraryOptions<UnmountTreeOptions>(options, ['tree']);
    return (target) => unmountTree(target, chosen);
  }
  if (options['bulk'] === true) throw new UsageError('--bulk needs --tree');
  const chosen = libraryOptions<UnmountOptions>(options);
  return async (target) => {
    await unmount(target, chosen);
    return 1;
  };
}

/** Unmounts one target after the other; a failure does not keep the others mounted. */
async function run({ options, operands }: Parsed): Promise<Outcome> {
  if (operands.length === 0) throw new UsageError('name what is to be unmounted');
  const unmountAt = unmounter(options);
  const unmounted: Path[] = [];
  const errors: unknown[] = [];
  let mounts = 0;
  for (const target of operands) {
    try {
      mounts += await unmountAt(target);
      unmounted.push(target);
    } catch (error) {
      // Wrong options are wrong for all targets.
      if (exitCodeOf(error) !== FAILED) throw error;
      errors.push(error);
      if (isUnmountedAllTheSame(error)) unmounted.push(target);
    }
  }
  return { json: { unmounted, ...(options['tree'] === true && { mounts }) }, errors };
}

export const umount: Command = {
  about: 'Unmounts what is mounted at each TARGET.',
  usage: ['[OPTION...] TARGET...'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('detach', 'takes the mount out of sight now, and frees it when its last user ends'),
        ownFlag('force', 'MNT_FORCE, for which OverlayFS itself has no use'),
        ownFlag('followSymlinks', 'a TARGET that is a symbolic link is followed, not refused'),
        ownFlag('removeWork', "removes the overlay's workdir afterwards, if nothing but the kernel's own is in it"),
        ownFlag('timeout', 'how long to wait while a mount is busy: 500ms, 5s or 2m', { kind: 'time' }),
        ownFlag('namespace', 'of another mount namespace: /proc/PID/ns/mnt', { kind: 'path' }),
        ownFlag('tree', 'all that is mounted at a TARGET and below it, what is inside another first'),
        ownFlag('bulk', 'with --tree: one lazy detaching of it all, quicker; what is busy is freed with its last user'),
      ],
    },
  ],
  notes: 'When a TARGET fails, the others are unmounted all the same.',
  examples: [
    'overlayfs umount /srv/merged',
    'overlayfs umount --remove-work /srv/a /srv/b',
    'overlayfs umount --tree --timeout 5s /srv',
  ],
  run,
};
