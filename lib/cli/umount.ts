/** `overlayfs umount` */
import type { UnmountOptions } from '../mounts/unmount.js';
import { unmount } from '../mounts/unmount-path.js';
import type { Path } from '../paths.js';
import { type Command, namespaceFlag, type Outcome, type Parsed } from './command.js';
import { ownFlag } from './flags.js';
import { toEach } from './rm.js';

async function run({ options, operands }: Parsed<UnmountOptions>): Promise<Outcome> {
  const unmounted: Path[] = [];
  const { errors } = await toEach(operands, async (target) => {
    await unmount(target, options);
    unmounted.push(target);
  });
  return { json: { unmounted }, errors };
}

export const umount: Command<UnmountOptions> = {
  about: 'Unmounts the mount at each TARGET.',
  operands: '<TARGET...>',
  groups: [
    {
      title: 'options',
      flags: [
        ownFlag('recursive', 'unmounts all mounts at and below a TARGET, inner mounts first', { short: 'R' }),
        ownFlag('detach', 'detaches the mount now, and frees it when its last user ends', { short: 'l' }),
        ownFlag('timeout', 'how long to wait while a mount is busy: 500ms, 5s or 2m', { kind: 'time' }),
        namespaceFlag,
      ],
    },
  ],
  notes: 'If one TARGET fails, the others are still unmounted.',
  examples: ['overlayfs umount /srv/merged', 'overlayfs umount /srv/a /srv/b', 'overlayfs umount -R --timeout 5s /srv'],
  run,
};
