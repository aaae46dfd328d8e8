/**
 * Cycles of a mount and its end, one of each sort that programs repeat. After each cycle, nothing is mounted, and only
 * the layer set is left.
 */
import { spawn as spawnPlain } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { bindSync, mountOverlay, mountOverlaySync, type OverlayOptions, spawn, unmount, unmountSync } from 'overlayfs';

/** Directories that exist. */
export interface CycleSet extends OverlayOptions {
  readonly lowerdir: string;
  readonly upperdir: string;
  readonly workdir: string;
  readonly target: string;
}

export type Cycle = () => unknown;

const detached = ({ lowerdir, upperdir, workdir }: CycleSet): OverlayOptions => ({ lowerdir, upperdir, workdir });

function makeAnother(set: CycleSet): CycleSet {
  const at = (path: string) => {
    mkdirSync(`${path}-2`, { recursive: true });
    return `${path}-2`;
  };
  return { ...set, upperdir: at(set.upperdir), workdir: at(set.workdir), target: at(set.target) };
}

export const cycles: Readonly<Record<string, (set: CycleSet) => Cycle>> = {
  'pair by object': (set) => () => mountOverlaySync(set).unmountSync(),

  'pair by object, async': (set) => async () => (await mountOverlay(set)).unmount(),

  'pair by path': (set) => () => {
    mountOverlaySync(set);
    unmountSync(set.target);
  },

  'pair by path, async': (set) => async () => {
    await mountOverlay(set);
    await unmount(set.target);
  },

  detached: (set) => () => mountOverlaySync(detached(set)).unmountSync(),

  replace: (set) => {
    const another = detached(makeAnother(set));
    return () => {
      const mount = mountOverlaySync(set);
      mount.replaceSync(another);
      mount.unmountSync();
    };
  },

  clone: (set) => () => {
    const mount = mountOverlaySync(set);
    const clone = mount.cloneSync();
    mount.unmountSync();
    clone.unmountSync();
  },

  bind: (set) => {
    const { target } = makeAnother(set);
    return () => {
      const mount = mountOverlaySync(set);
      const copy = bindSync(set.target, target);
      mount.unmountSync();
      copy.unmountSync();
    };
  },

  rootless: (set) => () => mountOverlaySync({ ...detached(set), rootless: true }).unmountSync(),

  'rootless keep': (set) => () => mountOverlaySync({ ...detached(set), rootless: 'keep' }).unmountSync(),

  'fresh upper per job': (set) => {
    const job = join(set.target, '../job');
    const [upperdir, workdir] = [join(job, 'upper'), join(job, 'work')];
    return () => {
      for (const path of [upperdir, workdir]) mkdirSync(path, { recursive: true });
      mountOverlaySync({ ...set, upperdir, workdir }).unmountSync({ detach: true });
      rmSync(job, { recursive: true });
    };
  },

  'created work': (set) => {
    const workdir = `${set.workdir}-made`;
    return () => mountOverlaySync({ ...set, workdir, create: true }).unmountSync();
  },

  spawn: (set) => async () => {
    const mount = mountOverlaySync(detached(set));
    await once(spawn('/bin/true', [], { mounts: [{ source: mount, target: set.target }], stdio: 'ignore' }), 'close');
    mount.unmountSync();
  },

  'program inside': (set) => async () => {
    const mount = mountOverlaySync(set);
    await once(spawnPlain('/bin/true', { cwd: set.target, stdio: 'ignore' }), 'close');
    mount.unmountSync();
  },
};
