/** The configuration of a container for an OCI runtime, runc(8) or crun(1). Pure. */
import { kernelPaths } from '../programs/launch.js';
import type { ContainerUser } from './rootfs.js';

/** A directory or file that the container sees. */
export interface Bind {
  readonly source: string;
  readonly target: string;
  readonly isReadonly: boolean;
  readonly isDirectory: boolean;
}

export interface Wanted {
  /** The path of the mounted snapshot. */
  readonly root: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly user: ContainerUser;
  readonly binds: readonly Bind[];
  readonly hasNetwork: boolean;
  readonly hasTerminal: boolean;
  /** The path of mount(8), for crun: it clears the flag nodev of the root, which has to be set again. */
  readonly remount: string | undefined;
}

/** The name that a container has as a machine. */
export const HOST_NAME = 'container';

/** The capabilities that containers usually have. */
const capabilities = [
  ...['CAP_AUDIT_WRITE', 'CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_FOWNER', 'CAP_FSETID', 'CAP_KILL'],
  ...[
    'CAP_NET_BIND_SERVICE',
    'CAP_NET_RAW',
    'CAP_SETFCAP',
    'CAP_SETGID',
    'CAP_SETPCAP',
    'CAP_SETUID',
    'CAP_SYS_CHROOT',
  ],
];

const fixed = (destination: string, type: string, options: readonly string[]) => ({
  destination,
  type,
  source: type,
  options,
});

const mounts = [
  fixed('/proc', 'proc', ['nosuid', 'noexec', 'nodev']),
  fixed('/dev', 'tmpfs', ['nosuid', 'strictatime', 'mode=755', 'size=65536k']),
  fixed('/dev/pts', 'devpts', ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5']),
  fixed('/dev/shm', 'tmpfs', ['nosuid', 'noexec', 'nodev', 'mode=1777', 'size=65536k']),
  fixed('/dev/mqueue', 'mqueue', ['nosuid', 'noexec', 'nodev']),
  fixed('/sys', 'sysfs', ['nosuid', 'noexec', 'nodev', 'ro']),
];

/** Files of the kernel that a container does not see. */
export const maskedPaths = [
  ...['/proc/kcore', '/proc/keys', '/proc/latency_stats', '/proc/timer_list', '/proc/sched_debug', '/proc/acpi'],
  ...['/proc/scsi', '/sys/firmware', '/sys/devices/virtual/powercap'],
] as const;

/** Returns config.json, as the OCI runtime specification has it. */
export function toSpec({ root, args, env, cwd, user, binds, hasNetwork, hasTerminal, remount }: Wanted): object {
  const { uid, gid, groups } = user;
  const isRoot = uid === 0;
  const all = { bounding: capabilities, effective: isRoot ? capabilities : [], permitted: isRoot ? capabilities : [] };
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: hasTerminal,
      user: { uid, gid, additionalGids: groups },
      args,
      env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
      cwd,
      capabilities: all,
      noNewPrivileges: false,
    },
    root: { path: root, readonly: false },
    hostname: HOST_NAME,
    ...(remount !== undefined && {
      hooks: {
        createContainer: [
          {
            path: '/bin/sh',
            // A hook that does not read all of its input fails.
            args: [
              ...['sh', '-c', 'while read -r line; do :; done; exec "$@"', 'sh'],
              ...[remount, '-o', 'remount,bind,nodev', root],
            ],
          },
        ],
      },
    }),
    mounts: [
      ...mounts,
      ...binds.map(({ source, target, isReadonly, isDirectory }) => ({
        destination: target,
        type: 'bind',
        source,
        // crun takes what is recursive for directories only.
        options: [isDirectory ? 'rbind' : 'bind', ...(!isReadonly ? ['rw'] : isDirectory ? ['ro', 'rro'] : ['ro'])],
      })),
    ],
    linux: {
      namespaces: [
        ...['pid', 'ipc', 'uts', 'mount', 'cgroup'].map((type) => ({ type })),
        ...(hasNetwork ? [] : [{ type: 'network' }]),
      ],
      readonlyPaths: kernelPaths,
      maskedPaths,
    },
  };
}
