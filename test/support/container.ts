/** A container of an OCI runtime, crun: real, with the programs of this machine and without a network. */
import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { native } from './index.js';

export interface Container {
  /** The number of its first process in this pid namespace. */
  readonly pid: number;
  /** Runs a program in it and returns its output; throws when the program fails. */
  readonly exec: (...args: string[]) => string;
}

const SYS_FS_CGROUP = '/sys/fs/cgroup';
const NAMESPACES = ['mount', 'pid', 'ipc', 'uts', 'network'];
/** Root of the container is a plain user here. */
const USER = [{ containerID: 0, hostID: 100_000, size: 65_536 }];

function config(withUser: boolean): unknown {
  const programs = ['bin', 'lib', 'lib64', 'usr'].filter((name) => existsSync(`/${name}`));
  return {
    ociVersion: '1.0.0',
    root: { path: 'rootfs', readonly: false },
    process: { user: { uid: 0, gid: 0 }, cwd: '/', args: ['sleep', '1000'], env: ['PATH=/usr/bin:/bin'] },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc' },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs' },
      ...programs.map((name) => ({
        destination: `/${name}`,
        type: 'bind',
        source: `/${name}`,
        options: ['rbind', 'ro'],
      })),
    ],
    linux: {
      namespaces: [...NAMESPACES, ...(withUser ? ['user'] : [])].map((type) => ({ type })),
      ...(withUser && { uidMappings: USER, gidMappings: USER }),
    },
  };
}

/** Until a container's first process is its program, crun lets nobody in: setns(2) fails. */
function awaitProgram(pid: number): void {
  const pause = new Int32Array(new SharedArrayBuffer(4));
  for (let i = 0; i < 1000 && readFileSync(`/proc/${pid}/comm`, 'utf8') !== 'sleep\n'; i++) {
    Atomics.wait(pause, 0, 0, 10);
  }
}

/** Starts one, with an empty directory `/x` in it; it ends with the test. */
export function startContainer(t: ExecutionContext, dir: string, { withUser }: { withUser: boolean }): Container {
  // crun refuses a machine with both versions of cgroups, also when it is to leave them alone.
  if (existsSync(SYS_FS_CGROUP)) {
    t.is(native.mount('none', SYS_FS_CGROUP, 'tmpfs', 0, ''), 0);
    t.teardown(() => native.umount(SYS_FS_CGROUP, 0));
  }
  const [bundle, pidFile, log] = [join(dir, 'bundle'), join(dir, 'pid'), join(dir, 'log')];
  for (const name of ['proc', 'dev', 'bin', 'lib', 'lib64', 'usr', 'x']) {
    mkdirSync(join(bundle, 'rootfs', name), { recursive: true });
  }
  writeFileSync(join(bundle, 'config.json'), JSON.stringify(config(withUser)));
  const crun = ['--cgroup-manager=disabled', '--root', join(dir, 'state')];
  const id = 'overlayfs-test';
  // Not a pipe, which the container would keep open.
  const output = openSync(log, 'w+');
  // crun gives its streams to root of the container: with 'ignore', that would be /dev/null of this machine.
  const stdio = [output, output, output];
  t.teardown(() => {
    execFileSync('crun', [...crun, 'delete', '--force', id], { stdio });
    closeSync(output);
  });
  try {
    execFileSync('crun', [...crun, 'run', '--detach', '--pid-file', pidFile, '--bundle', bundle, id], {
      stdio,
    });
  } catch {
    throw new Error(`crun: ${readFileSync(log, 'utf8')}`);
  }
  const pid = Number(readFileSync(pidFile, 'utf8'));
  awaitProgram(pid);
  return {
    pid,
    exec: (...args) => execFileSync('crun', [...crun, 'exec', id, ...args], { encoding: 'utf8' }),
  };
}
