/** Scenarios: work on a disk, and a judge of each cut. */
import { strict as assert } from 'node:assert';
import { createHash } from 'node:crypto';
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { getAttribute } from '../support/index.js';
import type { Cut } from './replay.js';

/** `check` reads only the disk that a cut has left. */
export interface Scenario {
  setUp(root: string): Promise<void>;
  work(root: string, now: () => number): Promise<void>;
  check(cut: Cut): Promise<void>;
}

export const digestOf = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Describes all that a directory has: paths with type, mode, mark, time and bytes. */
export function look(dir: string, path = '', found: Record<string, string> = {}): Record<string, string> {
  for (const name of readdirSync(join(dir, path)).sort()) {
    const inside = join(path, name);
    const at = join(dir, inside);
    const stat = lstatSync(at, { bigint: true });
    const isDirectory = stat.isDirectory();
    const data = stat.isFile() ? digestOf(at) : stat.isSymbolicLink() ? readlinkSync(at) : isDirectory ? '' : stat.rdev;
    const mark = isDirectory ? getAttribute(at, 'trusted.overlay.opaque') : undefined;
    // A whiteout has a time, which means nothing.
    const time = stat.isCharacterDevice() ? '' : stat.mtimeNs;
    found[inside] = `${stat.mode.toString(8)} ${mark} ${time} ${data}`;
    if (isDirectory) look(dir, inside, found);
  }
  return found;
}

export type Found = ReturnType<typeof look>;

export const sameAs = (dir: string, expected: Found | undefined): void => assert.deepEqual(look(dir), expected, dir);

export type Random = (below: number) => number;

/** Writes random files; nothing syncs them. */
export function fill(dir: string, random: Random, files: number): void {
  for (let i = 0; i < files; i++) {
    const sub = join(dir, `d${random(3)}`);
    mkdirSync(sub, { recursive: true });
    const bytes = Buffer.alloc(1 + random(random(8) === 0 ? 200_000 : 6000), `${random(1e9)} `);
    writeFileSync(join(sub, `f${random(files)}`), bytes);
  }
}

/** The names that were acknowledged, each with the versions that it had, one after another. */
export class Acknowledged {
  readonly #versions = new Map<string, { version: string; since: number }[]>();

  add(name: string, since: number, version = ''): void {
    this.#versions.set(name, [...(this.#versions.get(name) ?? []), { version, since }]);
  }

  /** True if the disk must have it at this size of the log. */
  has(name: string, end: number): boolean {
    return this.#versions.get(name)?.some(({ since }) => since <= end) === true;
  }

  /** Throws if the disk lacks what was acknowledged, or has a version that there never was. */
  check(end: number, versionOf: (name: string) => string | undefined): void {
    for (const [name, versions] of this.#versions) {
      const found = versionOf(name);
      const is = versions.findLastIndex(({ version }) => version === found);
      assert.ok(found === undefined || is >= 0, `${name} is torn`);
      const must = versions.findLastIndex(({ since }) => since <= end);
      assert.ok(is >= must, `${name} ${versions[must]?.version} was acknowledged and is missing`);
    }
  }
}

/** The version of what has only one. */
export const ifThere = (isThere: boolean): string | undefined => (isThere ? '' : undefined);
