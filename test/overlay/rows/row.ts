/** A row of the tables: a mount as data, and the expected outcome. */
import type { KernelFeatures } from '#lib/features/record.js';
import type { Reason } from '#lib/reasons.js';
import type { Feature } from '../../support/index.js';
import type { Setup } from './setup.js';

/** Options as a caller gives them, wrong ones too. Relative paths are below the row's directory. */
export type Given = Readonly<Record<string, unknown>>;

/** The ways of the tests' support that go step by step. */
export const stepWays = [
  'by descriptors',
  'by readable descriptors',
  'by strings',
  'by one string',
  'by mount(2)',
] as const;
export const allWays: readonly string[] = ['as it comes', ...stepWays];

export interface Refusal {
  readonly name: 'TypeError' | 'RangeError' | 'OverlayError';
  readonly code: string;
  /** `explained`: whichever but none. */
  readonly reason?: Reason | 'explained';
  readonly text: RegExp;
  /** Relative to the row's directory. */
  readonly path?: string;
}

/** The expected options in the mount table. Left out: as it is when nothing is asked for. */
export interface Shows {
  /** Overlayfs' own options where they differ from the module's defaults, complete. */
  readonly shown?: readonly string[];
  /** Options that may not stand in the mount table at all. */
  readonly notShown?: readonly string[];
  /** The attributes of the mount, besides `rw` and `relatime`, complete. */
  readonly attributes?: readonly string[];
  readonly superblock?: 'ro' | 'rw';
  /** As mountinfo names it; a group's number is left out. */
  readonly propagation?: 'private' | 'shared' | 'master' | 'unbindable';
  readonly source?: string;
  /** The layers, as they were given and, in the second list, as descriptors show them. */
  readonly lowerdir?: Reads;
  readonly datadir?: Reads;
  readonly upperdir?: Reads;
  readonly workdir?: Reads;
  /** The contents of files below the target; undefined: no such file. */
  readonly files?: Readonly<Record<string, string | undefined>>;
}

export type Reads = readonly [given: readonly string[], resolved: readonly string[]];

export type Expected = Shows | { readonly error: Refusal };

export interface Row {
  readonly title: string;
  /** Default: one lower layer, upperdir and workdir. A view: two lower layers and nothing else. */
  readonly view?: boolean;
  readonly on?: 'tmpfs' | 'disk';
  readonly setup?: readonly Setup[];
  readonly options: Given;
  readonly expect: Expected;
  /** Default: each. */
  readonly ways?: readonly string[];
  /** Besides what the options need. */
  readonly needs?: readonly Feature[];
  /** The paths are relative to the working directory. */
  readonly relative?: boolean;
  /** A directory of which `{fd}` in a path is a descriptor. */
  readonly descriptorOf?: string;
  /** A step with the descriptor open. */
  readonly opened?: Setup;
  /** A step with the overlay mounted. */
  readonly after?: Setup;
}

/** Makes a row with an upperdir. */
export const row = (title: string, options: Given, expect: Expected, ...setup: Setup[]): Row => ({
  title,
  options,
  expect,
  setup,
});

/** Makes a row of a view. */
export const viewRow = (title: string, options: Given, expect: Expected, ...setup: Setup[]): Row => ({
  ...row(title, options, expect, ...setup),
  view: true,
});

export const shown = (...options: string[]): Shows => ({ shown: options });

/** A row that is decided by a record of a kernel's features, without the kernel. */
export interface RecordRow {
  readonly title: string;
  readonly view?: boolean;
  readonly options: Given;
  readonly record: KernelFeatures;
  /** The options sent to the kernel, or the error. */
  readonly expect: { readonly sent: readonly string[] } | { readonly error: Refusal };
}

/** A row in a user namespace of its own: root there, nobody outside. */
export interface UserRow {
  readonly title: string;
  readonly needs?: readonly Feature[];
  readonly view?: boolean;
  readonly options: Given;
  readonly expect: { readonly shown: readonly string[] } | { readonly error: Refusal };
}

const layerNames: ReadonlySet<string> = new Set(['lowerdir', 'datadir', 'upperdir', 'workdir', 'target']);

function place(value: unknown, dir: string): unknown {
  if (Array.isArray(value)) return value.map((path) => place(path, dir));
  if (typeof value === 'string') return value === '' || value.startsWith('/') ? value : `${dir}/${value}`;
  if (value instanceof Uint8Array) return Buffer.concat([Buffer.from(`${dir}/`), value]);
  return value;
}

/** The options of a row, whole, its paths below a directory. */
export function givenOptions({ view, options, relative }: Pick<Row, 'view' | 'options' | 'relative'>, dir: string) {
  const base: Given = view
    ? { lowerdir: ['l1', 'l2'], target: 'm' }
    : { lowerdir: 'l1', upperdir: 'u', workdir: 'w', target: 'm' };
  const all = Object.entries({ ...base, ...options }).map(([name, value]) => [
    name,
    layerNames.has(name) && !relative ? place(value, dir) : value,
  ]);
  return Object.fromEntries(all) as Record<string, unknown>;
}
