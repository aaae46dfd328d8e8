/** The library's side, and that of the programs which it replaces. All times are in µs. */
import { type ChildProcess, execFile, spawn as spawnPlain } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  bindSync,
  findMountSync,
  listMountsSync,
  mountOverlay,
  mountOverlaySync,
  type OverlayMount,
  type SpawnOptions,
  spawn,
  unmount,
  unmountSync,
  whiteoutSync,
} from 'overlayfs';
import { median } from './interleave.js';
import type { LayerSet } from './stage.js';

const now = (): number => performance.now() * 1000;

/** The median time of one run. */
function medianOf(times: number, run: () => void): number {
  const each = new Float64Array(times);
  for (let i = 0; i < times; i++) {
    const start = now();
    run();
    each[i] = now() - start;
  }
  return median(each);
}

/** The same, one run after the other. */
async function medianOfPromises(times: number, run: () => Promise<unknown>): Promise<number> {
  const each = new Float64Array(times);
  for (let i = 0; i < times; i++) {
    const start = now();
    await run();
    each[i] = now() - start;
  }
  return median(each);
}

const pair = async (set: LayerSet): Promise<void> => (await mountOverlay(set)).unmount();

async function pairByPath(set: LayerSet): Promise<void> {
  await mountOverlay(set);
  await unmount(set.target);
}

export const syncPairs = (set: LayerSet, pairs: number): number =>
  medianOf(pairs, () => mountOverlaySync(set).unmountSync());

export const syncPairsByPath = (set: LayerSet, pairs: number): number =>
  medianOf(pairs, () => {
    mountOverlaySync(set);
    unmountSync(set.target);
  });

export const asyncPairs = (set: LayerSet, pairs: number): Promise<number> => medianOfPromises(pairs, () => pair(set));

export const asyncPairsByPath = (set: LayerSet, pairs: number): Promise<number> =>
  medianOfPromises(pairs, () => pairByPath(set));

/** Mounts without privilege, and their ends. */
export const rootlessPairs = ({ target: _, ...layers }: LayerSet, rootless: true | 'keep', pairs: number): number =>
  medianOf(pairs, () => mountOverlaySync({ ...layers, rootless }).unmountSync());

/** Mounts whose layers are all mapped, here each id to itself. */
export function mappedPairs(set: LayerSet, pairs: number): number {
  const options = { ...set, idmap: [{ container: 0, host: 0, size: 65_536 }] };
  return medianOf(pairs, () => mountOverlaySync(options).unmountSync());
}

/** The median program, from its start to its end; one that does nothing. */
export const programStarts = (start: () => ChildProcess, programs: number): Promise<number> =>
  medianOfPromises(programs, () => once(start(), 'close'));

/** The program where it sees a mount at a place, and the same program as it is. */
export const startInside = (mount: OverlayMount, at: string, more: SpawnOptions = {}): ChildProcess =>
  spawn('/bin/true', [], { mounts: [{ source: mount, target: at }], cwd: at, stdio: 'ignore', ...more });
export const startOutside = (at: string): ChildProcess => spawnPlain('/bin/true', [], { cwd: at, stdio: 'ignore' });

/** All sets at once, each so many times; the time of the whole. */
async function atOnce(
  run: (set: LayerSet) => Promise<void>,
  sets: readonly LayerSet[],
  times: number,
): Promise<number> {
  const start = now();
  await Promise.all(
    sets.map(async (set) => {
      for (let i = 0; i < times; i++) await run(set);
    }),
  );
  return now() - start;
}

export const pairsAtOnce = (sets: readonly LayerSet[], times: number): Promise<number> => atOnce(pair, sets, times);

export const pairsAtOnceByPath = (sets: readonly LayerSet[], times: number): Promise<number> =>
  atOnce(pairByPath, sets, times);

/** The median pair of mount(8) and umount(8). */
export function programPairs(set: LayerSet, pairs: number): Promise<number> {
  const run = promisify(execFile);
  const options = `lowerdir=${set.lowerdir},upperdir=${set.upperdir},workdir=${set.workdir}`;
  return medianOfPromises(pairs, async () => {
    await run('mount', ['-t', 'overlay', '-o', options, 'overlay', set.target]);
    await run('umount', [set.target]);
  });
}

/** Directories for whiteouts, so many to each. */
export function makeWhiteoutDirectories(directory: string, count: number, each: number): void {
  for (let i = 0; i < count / each; i++) mkdirSync(join(directory, String(i)), { recursive: true });
}

/** One call that makes all of them; the time of the call. */
export function whiteoutBatch(directory: string, count: number, each: number): number {
  const name = (i: number) => `${Math.floor(i / each)}/module-${String(i).padStart(5, '0')}.js`;
  const paths = Array.from({ length: count }, (_, i) => join(directory, name(i)));
  const start = now();
  whiteoutSync(paths);
  return now() - start;
}

/** Directories for one overlay of many layers; returns what takes them away. */
export function makeLayers(directory: string, count: number): () => void {
  for (const path of [
    ...layersIn(directory, count).lowerdir,
    join(directory, 'upper/work'),
    join(directory, 'target'),
  ]) {
    mkdirSync(path, { recursive: true });
  }
  return () => rmSync(directory, { recursive: true });
}

function layersIn(directory: string, count: number): { lowerdir: string[]; target: string } {
  const lowerdir = Array.from({ length: count }, (_, i) => join(directory, `lower-${i}`));
  return { lowerdir, target: join(directory, 'target') };
}

/** A mount that the kernel refuses, with the look for the reason; the time of the call. */
export function refusal(directory: string, count: number): number {
  const upperdir = join(directory, 'upper');
  const options = { ...layersIn(directory, count), upperdir, workdir: join(upperdir, 'work') };
  const start = now();
  try {
    mountOverlaySync(options);
  } catch {
    return now() - start;
  }
  throw new Error('a workdir inside the upperdir was taken');
}

/** The same layers mounted, and unmounted. */
export function layeredPair(directory: string, count: number): number {
  const options = layersIn(directory, count);
  const start = now();
  mountOverlaySync(options).unmountSync();
  return now() - start;
}

/** Mounts below a directory, to be among many. */
export class ManyMounts {
  readonly #directory: string;
  #count = 0;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** So many at least. */
  grow(count: number): void {
    const source = join(this.#directory, 'source');
    if (this.#count === 0) {
      mkdirSync(source, { recursive: true });
      // In a mount of its own, with which all go at once.
      bindSync(this.#directory, this.#directory);
    }
    for (; this.#count < count; this.#count++) {
      const target = join(this.#directory, String(this.#count));
      mkdirSync(target, { recursive: true });
      bindSync(source, target);
    }
  }

  /** So many, and the kernel done with those that are gone. */
  async become(count: number): Promise<void> {
    if (this.#count > count) this.#unmount();
    this.grow(count);
    await setTimeout(50);
  }

  #unmount(): void {
    unmountSync(this.#directory, { recursive: true, detach: true });
    this.#count = 0;
  }

  /** All of them, also those that another object has made. */
  remove(): void {
    if (!existsSync(this.#directory)) return;
    this.#unmount();
    rmSync(this.#directory, { recursive: true });
  }
}

/** The whole mount table. */
export function listing(): number {
  const start = now();
  listMountsSync();
  return now() - start;
}

/** The whole mount table by findmnt(8), as it gives it to programs. */
export async function programListing(): Promise<number> {
  const start = now();
  await promisify(execFile)('findmnt', ['-J'], { maxBuffer: 2 ** 28 });
  return now() - start;
}

/** The median one. */
export const finding = (path: string, times: number): number => medianOf(times, () => findMountSync(path));
