/** `overlayfs umount` */
import { isUnmountedAllTheSame, type UnmountOptions, unmount } from '../mounts/unmount.js';
import type { Path } from '../paths.js';
import { type Command, libraryOptions, type Outcome, ownFlag } from './command.js';
import { exitCodeOf, FAILED } from './errors.js';
import type { Parsed } from './parse.js';
import { UsageError } from './usage-error.js';

/** One after the other; a target that fails does not keep the others mounted. */
async function run({ options, operands }: Parsed): Promise<Outcome> {
  if (operands.length === 0) throw new UsageError('name what is to be unmounted');
  const chosen = libraryOptions<UnmountOptions>(options);
  const unmounted: Path[] = [];
  const errors: unknown[] = [];
  for (const target of operands) {
    try {
      await unmount(target, chosen);
      unmounted.push(target);
    } catch (error) {
      // Wrong options are wrong for all.
      if (exitCodeOf(error) !== FAILED) throw error;
      errors.push(error);
      if (isUnmountedAllTheSame(error)) unmounted.push(target);
    }
  }
  return { json: { unmounted }, errors };
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
      ],
    },
  ],
  notes: 'When a TARGET fails, the others are unmounted all the same.',
  examples: ['overlayfs umount /srv/merged', 'overlayfs umount --remove-work /srv/a /srv/b'],
  run,
};
