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
      throw new UsageError(`--${kebab(other)} cannot be used with --tree`, 'Leave one of the two out.');
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
  if (operands.length === 0) throw new UsageError('name the mount points to unmount');
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
  about: 'Unmounts the mount at each TARGET.',
  usage: ['[OPTION...] TARGET...'],
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('detach', 'detaches the mount now, and frees it when its last user ends'),
        ownFlag('force', 'MNT_FORCE, which OverlayFS itself ignores'),
        ownFlag('followSymlinks', 'follows a TARGET that is a symbolic link'),
        ownFlag('removeWork', 'removes the workdir afterwards, if it contains only what the kernel made'),
        ownFlag('timeout', 'how long to wait while a mount is busy: 500ms, 5s or 2m', { kind: 'time' }),
        ownFlag('namespace', 'works in another mount namespace: /proc/PID/ns/mnt', { kind: 'path' }),
        ownFlag('tree', 'unmounts all mounts at and below a TARGET, inner mounts first'),
        ownFlag(
          'bulk',
          'with --tree: detaches all mounts at once, which is faster; busy mounts are freed when their last user ends',
        ),
      ],
    },
  ],
  notes: 'If one TARGET fails, the others are still unmounted.',
  examples: [
    'overlayfs umount /srv/merged',
    'overlayfs umount --remove-work /srv/a /srv/b',
    'overlayfs umount --tree --timeout 5s /srv',
  ],
  run,
};
