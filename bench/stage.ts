/** Both sides are measured on these: file systems, the directories in them, and the other CPU kept busy. */
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, truncateSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type OverlayOptions, unmount } from 'overlayfs';
import type { Enclosure } from './enclosure.js';
import type { Effort } from './interleave.js';

export type FileSystem = 'tmpfs' | 'ext4';

/** As many as are mounted at once. */
export const SET_COUNT = 64;

/** A layer set as strings, which the programs take too. */
export interface LayerSet extends OverlayOptions {
  readonly lowerdir: string;
  readonly upperdir: string;
  readonly workdir: string;
  readonly target: string;
}

/** Directories on one file system. */
export interface Site {
  /** Holds the sets, by their numbers. */
  readonly base: string;
  readonly sets: readonly LayerSet[];
  /** To be made, filled and removed. */
  readonly whiteouts: string;
  /** For a great many mounts, while they are needed. */
  readonly many: string;
  /** How many there are of what a row has so many of. */
  readonly share: (count: number) => number;
  /** A tmpfs, for what both sides read. */
  readonly sources: string;
  /**
   * Calls a function with a directory on a new file system of this kind: on an ext4 that is used again, each run is slower
   * than the one before, because the kernel passes over inodes that were deleted recently.
   */
  readonly onNew: <T>(use: (directory: string) => Promise<T>) => Promise<T>;
}

type MountNew = (at: string) => Promise<void>;

function makeSite(base: string, sources: string, share: Site['share'], mountNew: MountNew): Site {
  const sets = Array.from({ length: SET_COUNT }, (_, i) => {
    const at = (name: string) => join(base, String(i), name);
    return { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('target') };
  });
  for (const set of sets) {
    for (const path of Object.values(set)) mkdirSync(path, { recursive: true });
  }
  setFlagsFromString('--expose-gc');
  const onNew = async <T>(use: (directory: string) => Promise<T>): Promise<T> => {
    const at = join(dirname(sources), 'new');
    await mountNew(at);
    try {
      const directory = join(at, 'directory');
      mkdirSync(directory);
      return await use(directory);
    } finally {
      // @photostructure/sqlite closes the files of a store when its statements are collected.
      runInNewContext('gc')();
      await unmount(at, { timeout: 5000 }); // a program that has ended may keep it for a moment
    }
  };
  return { base, sets, whiteouts: join(base, 'whiteouts'), many: join(base, 'many'), share, sources, onNew };
}

async function mountTmpfs(at: string): Promise<void> {
  mkdirSync(at, { recursive: true });
  await promisify(execFile)('mount', ['-t', 'tmpfs', 'bench', at]);
}

async function mountExt4(image: string, at: string, size: number, inodes: number): Promise<void> {
  closeSync(openSync(image, 'w'));
  truncateSync(image, size);
  // Nothing left for the kernel to do later, in the midst of a measurement.
  const complete = 'lazy_itable_init=0,lazy_journal_init=0';
  const run = promisify(execFile);
  await run('mkfs.ext4', ['-q', '-F', '-N', `${inodes}`, '-E', complete, image]);
  mkdirSync(at, { recursive: true });
  await run('mount', ['-o', 'loop', image, at]); // the loop device goes with the mount
}

export class Stage {
  readonly #enclosure: Enclosure;
  readonly #sites = new Map<FileSystem, Site>();
  /** The file systems that are not there, and why. */
  readonly missing = new Map<FileSystem, string>();
  #spinner: ChildProcess | undefined;

  private constructor(enclosure: Enclosure) {
    this.#enclosure = enclosure;
  }

  static async setUp(enclosure: Enclosure, effort: Effort): Promise<Stage> {
    const stage = new Stage(enclosure);
    const share = (count: number): number => Math.ceil(count * effort.share);
    // A journal and 64 sets of directories need some room.
    const sizeOf = (size: number): number => Math.max(share(size), 2 ** 27);
    const inodes = Math.max(share(300_000), 3_000);
    const tmpfs = join(enclosure.directory, 'tmpfs');
    await mountTmpfs(tmpfs);
    const sources = join(tmpfs, 'sources');
    stage.#sites.set('tmpfs', makeSite(tmpfs, sources, share, mountTmpfs));
    const ext4 = join(enclosure.directory, 'ext4');
    try {
      // In memory as well: the pace of a disk is nothing that either side could change.
      await mountExt4(join(tmpfs, 'ext4.img'), ext4, sizeOf(2 ** 29), inodes);
      const image = join(tmpfs, 'new.img');
      stage.#sites.set(
        'ext4',
        makeSite(ext4, sources, share, (at) => mountExt4(image, at, sizeOf(2 ** 30), inodes)),
      );
    } catch (error) {
      stage.missing.set('ext4', whyNoExt4(error as NodeJS.ErrnoException & { stderr?: string }));
    }
    return stage;
  }

  site(fileSystem: FileSystem): Site {
    const site = this.#sites.get(fileSystem);
    if (site === undefined) throw new Error(`no ${fileSystem}: ${this.missing.get(fileSystem)}`);
    return site;
  }

  /** Keeps the other CPU busy, or leaves it idle. */
  async spin(on: boolean, program: string): Promise<void> {
    if (on === (this.#spinner !== undefined)) return;
    if (on) {
      const cpu = String(this.#enclosure.otherCpu);
      this.#spinner = spawn('taskset', ['-c', cpu, program, 'spin'], { stdio: ['ignore', 'ignore', 'inherit'] });
    } else {
      this.#spinner?.kill('SIGKILL');
      this.#spinner = undefined;
    }
    await setTimeout(200);
  }

  /** Lets processes, with all their threads, run on one CPU or on both. */
  runOn(cpus: 'one' | 'both', pids: readonly number[]): void {
    const { cpu, otherCpu } = this.#enclosure;
    const list = cpus === 'both' && otherCpu !== undefined ? `${cpu},${otherCpu}` : String(cpu);
    for (const pid of pids) {
      // taskset fails if a thread ends meanwhile.
      for (let left = 5; ; left--) {
        const { status } = spawnSync('taskset', ['-a', '-p', '-c', list, String(pid)], { stdio: 'ignore' });
        if (status === 0) break;
        if (left === 0) throw new Error(`taskset cannot move process ${pid} to ${list}`);
      }
    }
  }
}

function whyNoExt4({ code, message, stderr }: NodeJS.ErrnoException & { stderr?: string }): string {
  if (code === 'ENOENT') return 'mkfs.ext4 is not installed';
  return `no ext4 image could be mounted here: ${(stderr || message).trim().split('\n').at(-1)}`;
}
