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
  spawn,
  unmountTreeSync,
  whiteoutSync,
} from 'overlayfs';
import { median } from './interleave.js';
import type { LayerSet } from './stage.js';

const now = (): number => performance.now() * 1000;

/** The median pair. */
export function syncPairs(set: LayerSet, pairs: number): number {
  const times = new Float64Array(pairs);
  for (let i = 0; i < pairs; i++) {
    const start = now();
    mountOverlaySync(set).unmountSync();
    times[i] = now() - start;
  }
  return median(times);
}

/** The median pair, one after the other. */
export async function asyncPairs(set: LayerSet, pairs: number): Promise<number> {
  const times = new Float64Array(pairs);
  for (let i = 0; i < pairs; i++) {
    const start = now();
    const mount = await mountOverlay(set);
    await mount.unmount();
    times[i] = now() - start;
  }
  return median(times);
}

/** The median pair of a mount without privilege and its end. */
export function rootlessPairs({ target: _, ...layers }: LayerSet, rootless: true | 'keep', pairs: number): number {
  const times = new Float64Array(pairs);
  for (let i = 0; i < pairs; i++) {
    const start = now();
    mountOverlaySync({ ...layers, rootless }).unmountSync();
    times[i] = now() - start;
  }
  return median(times);
}

/** The median pair of a mount whose layers are all mapped, here each id to itself. */
export function mappedPairs(set: LayerSet, pairs: number): number {
  const options = { ...set, idmap: [{ inside: 0, outside: 0, size: 65_536 }] };
  const times = new Float64Array(pairs);
  for (let i = 0; i < pairs; i++) {
    const start = now();
    mountOverlaySync(options).unmountSync();
    times[i] = now() - start;
  }
  return median(times);
}

/** The median program, from its start to its end; one that does nothing. */
export async function programStarts(start: () => ChildProcess, programs: number): Promise<number> {
  const times = new Float64Array(programs);
  for (let i = 0; i < programs; i++) {
    const begin = now();
    await once(start(), 'close');
    times[i] = now() - begin;
  }
  return median(times);
}

/** The program where it sees a mount at a place, and the same program as it is. */
export const startInside = (mount: OverlayMount, at: string): ChildProcess =>
  spawn('/bin/true', [], { mount, at, cwd: at, stdio: 'ignore' });
export const startOutside = (at: string): ChildProcess => spawnPlain('/bin/true', [], { cwd: at, stdio: 'ignore' });

/** All sets at once, each so many times; the time of the whole. */
export async function pairsAtOnce(sets: readonly LayerSet[], times: number): Promise<number> {
  const start = now();
  await Promise.all(
    sets.map(async (set) => {
      for (let i = 0; i < times; i++) {
        const mount = await mountOverlay(set);
        await mount.unmount();
      }
    }),
  );
  return now() - start;
}

/** The median pair of mount(8) and umount(8). */
export async function programPairs(set: LayerSet, pairs: number): Promise<number> {
  const run = promisify(execFile);
  const options = `lowerdir=${set.lowerdir},upperdir=${set.upperdir},workdir=${set.workdir}`;
  const times = new Float64Array(pairs);
  for (let i = 0; i < pairs; i++) {
    const start = now();
    await run('mount', ['-t', 'overlay', '-o', options, 'overlay', set.target]);
    await run('umount', [set.target]);
    times[i] = now() - start;
  }
  return median(times);
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
    unmountTreeSync(this.#directory, { bulk: true });
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
export function finding(path: string, times: number): number {
  const each = new Float64Array(times);
  for (let i = 0; i < times; i++) {
    const start = now();
    findMountSync(path);
    each[i] = now() - start;
  }
  return median(each);
}
